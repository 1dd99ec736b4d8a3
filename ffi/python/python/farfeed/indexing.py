"""The index of tar shards: made once, so that training begins without reading them."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Any

from . import _farfeed
from .errors import ConfigError
from .report import Report

if TYPE_CHECKING:
    from .types import Path, Urls


def index(urls: Urls, output: Path | None = None, **options: Any) -> Report:
    """Reads every byte of tar shards once and writes where each sample lies, with a digest of each field, to one file.

    `output` is where to; without it the index of local shards is written beside them, where loaders look for it. It is written whole
    or not at all. `options` are `storage_options`, `ca_bundle`, `client_certificate`, `retry` and `progress`, as for Loader.

    Returns a Report with `path`, `shards`, `samples`, `bytes` (of the shards), `skipped` (members of no sample) and `index_bytes`.

    Raises NotFoundError for a shard that is not there, CorruptError for one that is not a whole tar archive, UnsupportedError for one that
    is not tar, ConfigError for remote shards without an `output`, and OSError where it cannot be written.
    """
    path = os.fspath(output) if output is not None else _beside(urls)
    encoded, found = _farfeed.make_index(urls, **options)
    _write(path, encoded)
    summary = f"{found['samples']} samples in {found['shards']} shards: {path} ({len(encoded)} bytes)"
    return Report(path=path, **found, index_bytes=len(encoded), summary=summary)


def _beside(urls: Urls) -> str:
    first = urls if isinstance(urls, (str, os.PathLike)) else next(iter(urls))
    place = _farfeed.index_location(first)
    scheme, separator, path = place.partition("://")
    if separator and scheme != "file":
        message, advice = "an index of remote shards has no place to go", "name a file with output, and put it beside the shards"
        raise ConfigError(f"configuration: {message} ({advice})", context=message, advice=advice)
    return path if separator else place


def _write(path: str, data: bytes) -> None:
    """Whole or not at all: a loader that looks meanwhile sees the old index, or none."""
    handle, scratch = tempfile.mkstemp(dir=os.path.dirname(path) or ".", prefix=".farfeed-index-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp keeps others out; an index is as public as a file that open() makes.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(scratch, 0o666 & ~mask)
        os.replace(scratch, path)
    except BaseException:
        os.unlink(scratch)
        raise
