"""Writes real input for the tests: photographs and text, in files that other people's writers write.

make_real.py OUT_DIR

Shards come from webdataset's own writer, GNU tar, and tarfile (PAX and ustar); arrays and tokens from NumPy. What is in
them is then read back by webdataset's own reader and by NumPy, and written down in manifest.json: that is what farfeed is held against.
"""

import hashlib
import importlib.util
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy
import webdataset
from PIL import Image

SHARDS = 4
SAMPLES_PER_SHARD = 64
SAMPLES_OF_OTHERS = 40
TOKENS_PER_SAMPLE = 512


def main(out: Path) -> None:
    out.mkdir(parents=True)
    photographs = [path.read_bytes() for path in find_photographs()]
    crops = list(crop(photographs, SHARDS * SAMPLES_PER_SHARD))
    write_webdataset(out, crops)
    write_gnu(out / "gnu.tar", crops[:SAMPLES_OF_OTHERS])
    write_tarfile(out / "pax.tar", tarfile.PAX_FORMAT, crops[:SAMPLES_OF_OTHERS])
    write_tarfile(out / "ustar.tar", tarfile.USTAR_FORMAT, crops[:SAMPLES_OF_OTHERS])
    manifest = {
        "tars": {path.name: describe_tar(path) for path in sorted(out.glob("*.tar"))},
        "records": write_records(out, crops),
    }
    samples = sum(len(tar["samples"]) for tar in manifest["tars"].values())
    assert samples == SHARDS * SAMPLES_PER_SHARD + 3 * SAMPLES_OF_OTHERS, samples
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1))


def find_photographs() -> list[Path]:
    """The photographs that scikit-learn ships: china.jpg and flower.jpg, 640 x 427, CC-BY. It is found, not imported."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None and spec.submodule_search_locations
    images = Path(spec.submodule_search_locations[0]) / "datasets" / "images"
    photographs = sorted(images.glob("*.jpg"))
    assert len(photographs) == 2, photographs
    return photographs


def crop(photographs: list[bytes], count: int):
    """JPEG files: the photographs as they are, then crops of them of many sizes. Yields (bytes, class, description)."""
    pictures = [Image.open(io.BytesIO(photograph)).convert("RGB") for photograph in photographs]
    random = numpy.random.default_rng(7)
    for number in range(count):
        label = number % len(pictures)
        picture = pictures[label]
        if number < len(pictures):
            box, data = (0, 0, *picture.size), photographs[label]
        else:
            width, height = (int(random.integers(48, limit // 2)) for limit in picture.size)
            left, top = int(random.integers(picture.width - width)), int(random.integers(picture.height - height))
            box = (left, top, left + width, top + height)
            buffer = io.BytesIO()
            picture.crop(box).save(buffer, "JPEG", quality=int(random.integers(60, 96)))
            data = buffer.getvalue()
        yield data, label, {"box": box, "source": label}


def fields(sample) -> dict[str, bytes]:
    data, label, description = sample
    return {"jpg": data, "cls": str(label).encode(), "json": json.dumps(description).encode()}


def write_webdataset(out: Path, crops) -> None:
    pattern = str(out / "train-%04d.tar")
    with webdataset.ShardWriter(pattern, maxcount=SAMPLES_PER_SHARD, verbose=0) as writer:
        for number, (data, label, description) in enumerate(crops):
            sample = {"__key__": f"photo/{number:06d}", "jpg": data, "cls": label, "json": description}
            if number % 10 == 9:
                del sample["json"]
            writer.write(sample)


def long_key(number: int) -> str:
    return f"{'a-directory-with-a-long-name/' * 4}{'photograph-' * 8}{number:04d}"


def write_gnu(path: Path, crops) -> None:
    """Long names, directories, and a link, in GNU's own format."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        for number, sample in enumerate(crops):
            for extension, data in fields(sample).items():
                file = root / f"{long_key(number)}.{extension}"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
        (root / "a-directory-with-a-long-name" / "link.jpg").symlink_to(long_key(0) + ".jpg")
        command = ["tar", "--format=gnu", "--sort=name", "--owner=0", "--group=0", "--mtime=@0", "-C", directory]
        subprocess.run([*command, "-cf", str(path), "a-directory-with-a-long-name"], check=True, timeout=60)


def write_tarfile(path: Path, layout: int, crops) -> None:
    """Long names by tarfile: PAX records with letters that are not ASCII, or a ustar prefix."""
    letters = "é-" if layout == tarfile.PAX_FORMAT else ""
    with tarfile.open(path, "w", format=layout) as tar:
        for number, sample in enumerate(crops):
            for extension, data in fields(sample).items():
                # Upper case on purpose: readers lower it.
                name = f"{letters}{long_key(number)}.{extension.upper()}"
                member = tarfile.TarInfo(name)
                member.size = len(data)
                # A time with a fraction makes tarfile write a PAX header for it.
                member.mtime = 1.5 if layout == tarfile.PAX_FORMAT else 1
                tar.addfile(member, io.BytesIO(data))


def describe_tar(path: Path) -> dict:
    """What webdataset's reader finds, in its order, undecoded; and what tarfile finds that is no file."""
    dataset = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
    samples = [
        {
            "key": sample["__key__"],
            "fields": {name: describe(data) for name, data in sample.items() if not name.startswith("__")},
        }
        for sample in dataset
    ]
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    return {
        **describe(path.read_bytes()),
        "directories": sum(member.isdir() for member in members),
        "links": sum(member.issym() or member.islnk() for member in members),
        "samples": samples,
    }


def write_records(out: Path, crops) -> dict:
    """Arrays of pixels and a file of tokens: the bytes of this Python's own tarfile module, two bytes a token."""
    pictures = [Image.open(io.BytesIO(data)).resize((32, 32)) for data, _, _ in crops]
    pixels = numpy.stack([numpy.asarray(picture) for picture in pictures])
    numpy.save(out / "pixels.npy", pixels)
    numpy.save(out / "scaled.npy", pixels.astype("<f4") / 255)
    numpy.save(out / "labels.npy", numpy.array([label for _, label, _ in crops], dtype="<i8"))
    text = Path(tarfile.__file__).read_bytes()
    tokens = numpy.frombuffer(text, dtype=numpy.uint8).astype("<u2")
    tokens.tofile(out / "tokens.bin")
    records = {}
    for name in ("pixels.npy", "scaled.npy", "labels.npy"):
        array = numpy.load(out / name)
        records[name] = describe_rows(out / name, array.dtype, array.shape[1:], [row.tobytes() for row in array])
    tokens = numpy.fromfile(out / "tokens.bin", dtype="<u2")
    starts = range(0, len(tokens) - TOKENS_PER_SAMPLE, TOKENS_PER_SAMPLE)
    rows = [tokens[start : start + TOKENS_PER_SAMPLE + 1].tobytes() for start in starts]
    records["tokens.bin"] = describe_rows(out / "tokens.bin", tokens.dtype, (TOKENS_PER_SAMPLE + 1,), rows)
    return records


def describe_rows(path: Path, dtype, shape, rows: list[bytes]) -> dict:
    return {
        **describe(path.read_bytes()),
        "dtype": dtype.name,
        "shape": list(shape),
        "rows": [describe(row) for row in rows],
    }


def describe(data: bytes) -> dict:
    return {"bytes": len(data), "crc32c": crc32c(data), "sha256": hashlib.sha256(data).hexdigest()}


def crc32c_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


TABLE = crc32c_table()


def crc32c(data: bytes) -> int:
    """Castagnoli's, byte by byte: slow, and nothing that farfeed uses."""
    table, crc = TABLE, 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


if __name__ == "__main__":
    assert crc32c(b"123456789") == 0xE3069283
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
