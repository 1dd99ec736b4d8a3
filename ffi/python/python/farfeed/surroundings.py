"""What the process's surroundings say of its rank and its device. Frameworks are asked if they are there; they are never imported."""

from __future__ import annotations

import os
import sys

from .errors import TopologyError


def ranks() -> tuple[int, int]:
    """Rank and world size: of torch.distributed if somebody has initialised it, else of `RANK` and `WORLD_SIZE`, else 0 of 1.

    torch is neither imported nor initialised, and nothing is sent to other processes.

    Raises TopologyError for variables that are no numbers, or of which one is missing.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    rank, world_size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None and world_size is None:
        return 0, 1
    try:
        return int(rank or ""), int(world_size or "")
    except ValueError:
        message = f"RANK={rank!r} and WORLD_SIZE={world_size!r} in the environment"
        advice = "set both to numbers, or give rank and world_size"
        raise TopologyError(f"topology: {message} ({advice})", context=message, advice=advice) from None


def device(name: object) -> str:
    """The device's name with its number. "cuda" alone is torch's current device where torch is in use, so that every process of a job on
    several GPUs feeds its own; else the first one."""
    text = str(name)
    torch = sys.modules.get("torch")
    if text == "cuda" and torch is not None and torch.cuda.is_available():
        return f"cuda:{torch.cuda.current_device()}"
    return text
