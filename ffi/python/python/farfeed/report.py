"""Numbers to compute with that read as sentences."""

from __future__ import annotations

from collections import namedtuple


class Report(dict):
    """A dict of plain numbers, whose `str` is the text under "summary"."""

    def __str__(self) -> str:
        return self.get("summary", super().__str__())


IndexProgress = namedtuple("IndexProgress", ["bytes", "bytes_total", "shards", "shards_total", "samples"])
IndexProgress.__doc__ = "How far an index is: bytes and shards that were read, of how many; samples found."
