"""Real data for the examples, made from what is on the machine: nothing is fetched.

Photographs: crops of the two that scikit-learn ships (china.jpg and flower.jpg, 640 x 427, CC-BY), as JPEG files in WebDataset shards.
Text: the sources of Python's standard library, as a token file of uint16, one token for each byte.
"""

import importlib.util
import io
import sysconfig
import tarfile
from pathlib import Path

import numpy

import farfeed

#: Each photograph is cut in four quarters, and which of the eight a crop comes from is its class.
CLASSES = 8
SIDE = 64
SHARDS = 4
#: One token for each byte.
VOCABULARY = 256


def write_photographs(directory: Path, crops: int) -> str:
    """`photos-0000.tar` and so on with their index: jpg, cls. Returns the shards' pattern, relative to `directory`."""
    from PIL import Image

    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the photographs come from scikit-learn: pip install scikit-learn pillow")
    files = sorted((Path(spec.submodule_search_locations[0]) / "datasets" / "images").glob("*.jpg"))
    pictures = [Image.open(file).convert("RGB") for file in files]
    random = numpy.random.default_rng(7)
    directory.mkdir(parents=True, exist_ok=True)
    for shard in range(SHARDS):
        with tarfile.open(directory / f"photos-{shard:04d}.tar", "w") as tar:
            for number in range(shard, crops, SHARDS):
                label = int(random.integers(CLASSES))
                data = cut(pictures[label // 4], label % 4, random)
                add(tar, f"{number:06d}.jpg", data)
                add(tar, f"{number:06d}.cls", str(label).encode())
    pattern = f"photos-{{0000..{SHARDS - 1:04d}}}.tar"
    farfeed.index(str(directory / pattern))
    return pattern


def cut(picture, quarter: int, random) -> bytes:
    """A square crop of one quarter, of varying quality and so of varying size."""
    width, height = picture.width // 2, picture.height // 2
    left = (quarter % 2) * width + int(random.integers(width - SIDE))
    top = (quarter // 2) * height + int(random.integers(height - SIDE))
    buffer = io.BytesIO()
    picture.crop((left, top, left + SIDE, top + SIDE)).save(buffer, "JPEG", quality=int(random.integers(80, 96)))
    return buffer.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_text(directory: Path, tokens: int) -> str:
    """`text.bin`: the standard library's sources, in the order of their names, cut at `tokens`. Returns its name."""
    directory.mkdir(parents=True, exist_ok=True)
    text = bytearray()
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text += file.read_bytes()
        if len(text) >= tokens:
            break
    numpy.frombuffer(text, dtype=numpy.uint8)[:tokens].astype("<u2").tofile(directory / "text.bin")
    return "text.bin"
