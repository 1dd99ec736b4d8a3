"""Storage across a long link, in this process and without root: for tests, and for trying out distances.

    with farfeed.emulate.serve("data/", rtt_ms=15, rate="250MB") as url:
        loader = farfeed.Loader(f"{url}/train-{{00..07}}.tar", ...)

What is measured across it is no measurement of a network: say "emulated link" beside the figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._farfeed import Server

if TYPE_CHECKING:
    from .types import Path

__all__ = ["Server", "serve"]


def serve(path: Path, **options: Any) -> Server:
    """Serves the directory `path` on a free port of 127.0.0.1, as if it were far away. The context manager gives the URL.

    `options`: `rtt_ms`, there and back; `rate` and `connection_rate`, bytes per second (or "250MB") that all connections share and that
    one gets; `loss`, the probability that a packet is lost; `jitter_ms`; `server_time_ms`, which each request takes; `chunked`, bodies
    without their lengths; `seed` of all chance. And the probabilities that a request is struck by a fault: `unavailable` (503), `cut` and
    `reset` in mid-body, `stall` (for `stall_s` seconds), `slow` (five times as long), `corrupt` (one bit).

    Raises NotFoundError where there is no such directory, ConfigError for an impossible link.
    """
    return Server(path, **options)
