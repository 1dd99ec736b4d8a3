"""Names for what arguments and results may be, for annotations; nothing here is needed at run time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeAlias, TypedDict

Path: TypeAlias = str | os.PathLike[str]
"""A path or URL."""

Urls: TypeAlias = Path | Sequence[Path]
"""One or several of them."""

Size: TypeAlias = int | str
"""A number of bytes, or text such as "4GiB" or "250MB"."""


class State(TypedDict):
    """Where a job stands: the same on every rank, and what JSON can hold."""

    version: int
    fingerprint: int
    seed: int
    window: int
    lanes: int
    epoch: int
    position: int


class Quarantined(TypedDict, total=False):
    """A bad sample, or without `key` and `number` all samples of a shard."""

    shard: str
    key: str
    number: int
    field: str
    start: int
    bytes: int
    reason: str
