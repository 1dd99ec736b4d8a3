"""Small datasets whose every value is known, for the tests of what is built on a loader."""

import io
import json
import tarfile
from pathlib import Path

import numpy

import farfeed

#: Tokens of a sample; sample i holds i * TOKENS and the following numbers.
TOKENS = 8


def write_tokens(file: Path, samples: int) -> Path:
    """A token file of uint16 with `samples` samples of `TOKENS`."""
    assert samples * TOKENS <= 1 << 16
    numpy.arange(samples * TOKENS, dtype="<u2").tofile(file)
    return file


def token_loader(file: Path | str, **options) -> farfeed.Loader:
    """A loader of such a file: batches of 8, shuffled, with little memory."""
    options = {"batch_size": 8, "shuffle": farfeed.Shuffle(window=64, seed=5), "host_memory": "16MiB", **options}
    return farfeed.Loader(file, tokens=farfeed.Tokens("uint16", TOKENS), **options)


def ids_of(tokens) -> list[int]:
    """The samples in a batch's column of tokens, by their first number."""
    return [int(row[0]) // TOKENS for row in tokens]


def write_shards(directory: Path, samples: int) -> str:
    """Two WebDataset shards with their index: `bin` of n % 7 bytes of n, `cls` n, `score` n / 4, `json` {"n": n}."""
    for shard in range(2):
        with tarfile.open(directory / f"part-{shard}.tar", "w") as tar:
            for n in range(shard, samples, 2):
                fields = {"bin": bytes([n % 256] * (n % 7)), "cls": str(n).encode(), "score": str(n / 4).encode()}
                for name, data in {**fields, "json": json.dumps({"n": n}).encode()}.items():
                    member = tarfile.TarInfo(f"{n:04d}.{name}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    pattern = str(directory / "part-{0..1}.tar")
    farfeed.index(pattern)
    return pattern


def shard_loader(pattern: str, **options) -> farfeed.Loader:
    """A loader of such shards: batches of 8, in order, with little memory."""
    fields = {"bin": farfeed.Bytes(), "cls": farfeed.Int(), "score": farfeed.Float(), "json": farfeed.Json()}
    return farfeed.Loader(pattern, fields=fields, **{"batch_size": 8, "host_memory": "16MiB", **options})
