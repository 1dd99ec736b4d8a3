"""Batches as torch tensors, without a copy.

`Dataset` is a real `torch.utils.data.IterableDataset`, and can be iterated as it is: it yields whole batches, each a dictionary of column
names to tensors. It works under `DataLoader(dataset, batch_size=None)` and torchdata's `StatefulDataLoader` too, with `num_workers=0`:
reading is done by the loader's own threads, and worker processes would only copy what is in place already.

Lifetime: a tensor shares the memory of its batch's slot, and holds it. The slot goes back when the last tensor of the batch dies, so what
is to be kept for longer than a step is to be cloned. On a GPU a tensor belongs to the stream that was current when it was made: work on
other streams is ordered as with any tensor, `current_stream().wait_stream(other)` before the last reference goes. See docs/python.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch.utils.data import IterableDataset, get_worker_info
from torch.utils.dlpack import from_dlpack

import farfeed
from farfeed.types import State

__all__ = ["Dataset", "Ragged", "tensors"]

#: How a column of varying length is given: as `Ragged`, as a list of one tensor for each row, as a nested tensor, or parsed as JSON.
Layout = Literal["pair", "list", "nested", "json"]
_LAYOUTS = ("pair", "list", "nested", "json")


class Ragged(NamedTuple):
    """A column whose rows differ in length: row i is `values[offsets[i]:offsets[i + 1]]`.

    Both tensors lie on the batch's device; `offsets` is int64 and has one element more than there are rows.
    """

    values: torch.Tensor
    offsets: torch.Tensor

    def rows(self) -> list[torch.Tensor]:
        """One tensor for each row, each a view of `values`. Costs what torch asks for that many tensors, about half a microsecond each.

        Where `offsets` lies on a GPU it is fetched first, and the host waits for it.
        """
        lengths = (self.offsets[1:] - self.offsets[:-1]).tolist()
        # "Unsafe" to those who differentiate and write in place; bytes have no gradients.
        return list(torch.unsafe_split_with_sizes(self.values, lengths))

    def nested(self) -> torch.Tensor:
        """A nested tensor of jagged layout, without a copy: shape `[rows, *]`."""
        return torch.nested.nested_tensor_from_jagged(self.values, offsets=self.offsets)


def tensors(batch: farfeed.Batch, *, ragged: Layout | Mapping[str, Layout] = "pair") -> dict[str, Any]:
    """The columns of `batch` by name, sharing its memory.

    Dense columns become tensors `[B, ...]`; integers int64 and floats float64 of shape `[B]`. Columns of varying length follow `ragged`, one
    layout for all of them or one by name: "pair" gives `Ragged`, "list" B tensors of uint8, "nested" a nested tensor, "json" a list of B
    parsed documents.

    Raises `ValueError` for an unknown layout.
    """
    return {name: _convert(batch, name, column, _layout(ragged, name)) for name, column in batch.items()}


def _layout(ragged: Layout | Mapping[str, Layout], name: str) -> Layout:
    layout = ragged.get(name, "pair") if isinstance(ragged, Mapping) else ragged
    if layout not in _LAYOUTS:
        raise ValueError(f"a ragged column is given as {', '.join(_LAYOUTS)}, not as {layout!r}")
    return layout


def _convert(batch: farfeed.Batch, name: str, column: Any, layout: Layout) -> Any:
    if not isinstance(column, farfeed.Ragged):
        return from_dlpack(column)
    if layout == "json":
        return batch.json(name)
    pair = Ragged(from_dlpack(column.values), from_dlpack(column.offsets))
    if layout == "pair":
        return pair
    return pair.rows() if layout == "list" else pair.nested()


class Dataset(IterableDataset[Mapping[str, Any]]):
    """A loader's batches as tensors: one epoch each time it is iterated, the next one the next time.

    `loader` is a `farfeed.Loader`; or urls, with its options by keyword. `ragged` says how columns of varying length are given, see
    `tensors`. Under a `DataLoader` pass `batch_size=None`, since batches are made already, and leave `num_workers` at 0.

    `state_dict()` counts the batches that were yielded, and is the same on every rank: it fits torchdata's `StatefulDataLoader` and
    `torch.distributed.checkpoint`.

    Raises whatever `farfeed.Loader` raises.
    """

    def __init__(self, loader: farfeed.Loader | Any, *, ragged: Layout | Mapping[str, Layout] = "pair", **options: Any) -> None:
        if isinstance(loader, farfeed.Loader):
            if options:
                raise TypeError(f"the loader is made already, and takes no {', '.join(sorted(options))}")
        else:
            loader = farfeed.Loader(loader, **options)
        self.loader = loader
        self.ragged = ragged

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # A generator: a StatefulDataLoader makes iterators that it never advances, and those must not count as epochs.
        if get_worker_info() is not None:
            raise RuntimeError(_NO_WORKERS)
        # Not a loop: its variable would hold the batch's slot for as long as the consumer takes, whatever he does with the tensors.
        yield from map(partial(tensors, ragged=self.ragged), self.loader)

    def __len__(self) -> int:
        """Batches of an epoch on this rank; the same on every rank."""
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration gives. Without it, each iteration gives the one after the last."""
        self.loader.set_epoch(epoch)

    def state_dict(self) -> State:
        """Where the consumer stands: small, JSON-able, the same on every rank."""
        return self.loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken: the next iteration gives the rest of that epoch.

        Raises `farfeed.ConfigError` or `farfeed.TopologyError`, both `ValueError`, for the state of another dataset, order or global batch.
        """
        self.loader.load_state_dict(dict(state))

    def __getstate__(self) -> Any:
        # What a DataLoader with workers does where processes are spawned.
        raise TypeError(_NO_WORKERS)


_NO_WORKERS = (
    "farfeed reads with threads of its own and makes whole batches: use DataLoader(dataset, batch_size=None, num_workers=0), or iterate the "
    "dataset itself. Worker processes would read every sample once each, and copy it between processes."
)
