"""Streams training data from distant storage into GPU memory, so that the distance disappears behind compute.

    import farfeed

    with farfeed.Loader("s3://corpus/train-{0000..0255}.tar", fields={"jpg": farfeed.Bytes(), "cls": farfeed.Int()},
                        batch_size=256, shuffle=True, device="cuda:0") as loader:
        for batch in loader:                           # one epoch; the next loop is the next one
            labels = torch.from_dlpack(batch["cls"])   # no copy
        print(loader.stats())                          # bound by: …
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping

from ._farfeed import (
    DEBUG_BUILD,
    Array,
    Batch,
    Bytes,
    Column,
    Epoch,
    Field,
    Float,
    Int,
    Json,
    Loader,
    Normalize,
    Ragged,
    Retry,
    Shuffle,
    Skip,
    Tokens,
    __version__,
    load_safetensors,
    probe,
)
from .errors import (
    AuthError,
    ConfigError,
    CorruptError,
    DeviceError,
    Error,
    IoError,
    NotFoundError,
    StalledError,
    ThrottledError,
    TopologyError,
    UnsupportedError,
)
from .report import IndexProgress, Report

__all__ = [
    "Array",
    "AuthError",
    "Batch",
    "Bytes",
    "Column",
    "ConfigError",
    "CorruptError",
    "DebugBuildWarning",
    "DeviceError",
    "Epoch",
    "Error",
    "Field",
    "Float",
    "IndexProgress",
    "Int",
    "IoError",
    "Json",
    "Loader",
    "Normalize",
    "NotFoundError",
    "Ragged",
    "Report",
    "Retry",
    "Shuffle",
    "Skip",
    "StalledError",
    "ThrottledError",
    "Tokens",
    "TopologyError",
    "UnsupportedError",
    "__version__",
    "emulate",
    "index",
    "load_safetensors",
    "probe",
]


TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import emulate as emulate
    from .indexing import index as index


class DebugBuildWarning(UserWarning):
    """The extension was built without optimisation: its speed tells nothing."""


def __getattr__(name: str) -> object:
    # What few programs use is imported when it is asked for.
    if name == "emulate":
        return importlib.import_module(".emulate", __name__)
    if name == "index":
        function = importlib.import_module(".indexing", __name__).index
        globals()[name] = function
        return function
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


Mapping.register(Batch)

if DEBUG_BUILD:
    warnings.warn("farfeed was built without optimisation: do not measure its speed", DebugBuildWarning, stacklevel=2)
