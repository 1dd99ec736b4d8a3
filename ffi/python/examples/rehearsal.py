"""What the training examples have in common: the same run near, far, and interrupted, and the comparison of the three."""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import farfeed

#: Of the emulated link, in bytes per second: one gigabit per second.
RATE = 125_000_000
#: Steps that are not counted in the step time: torch makes up its mind about threads and kernels in them.
WARM_UP = 5


@dataclass
class Run:
    """What a training run did: the loss of every step, and when each step ended."""

    losses: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)
    #: Seconds that the loop waited for batches, the first one apart.
    waited_s: float = 0.0

    def step(self, loss: float) -> None:
        self.losses.append(loss)
        self.ends.append(time.perf_counter())

    def first_s(self) -> float:
        """From the beginning to the end of the first step: connecting, the first batch, a step."""
        return self.ends[0] - self.began

    def step_s(self) -> float:
        """The mean time of a step, waiting for its batch included."""
        ends = self.ends[WARM_UP:]
        return (ends[-1] - ends[0]) / (len(ends) - 1)


@dataclass
class Checkpoint:
    """Where a run is to stop, and the file that it leaves there or goes on from."""

    file: Path
    stop_after: int | None = None


#: Trains on the dataset at a URL; stops at, or goes on from, a checkpoint.
Train = Callable[[str, Checkpoint | None], Run]


def rehearse(data: Path, train: Train, stop_after: int, rtt_ms: float = 15) -> dict:
    """Runs `train` on the directory `data` with no distance, `rtt_ms` away, and `rtt_ms` away with an interruption, and compares the losses.

    Raises `SystemExit` where one loss differs in one bit.
    """
    with tempfile.TemporaryDirectory() as directory:
        # Thrown away: torch imports half of itself in its first step.
        at_distance(data, 0, lambda url: train(url, Checkpoint(Path(directory, "warm.pt"), WARM_UP)))
        near = at_distance(data, 0, lambda url: train(url, None))
        far = at_distance(data, rtt_ms, lambda url: train(url, None))
        file = Path(directory, "checkpoint.pt")
        before = at_distance(data, rtt_ms, lambda url: train(url, Checkpoint(file, stop_after)))
        after = at_distance(data, rtt_ms, lambda url: train(url, Checkpoint(file)))

    compare("at the two distances", near.losses, far.losses)
    assert len(before.losses) == stop_after and after.losses, (len(before.losses), len(after.losses))
    compare("after the interruption", near.losses, before.losses + after.losses)
    report = {
        "steps": len(near.losses),
        "stopped_after": stop_after,
        "rtt_ms": rtt_ms,
        "losses": near.losses,
        "step_ms": {"near": 1e3 * near.step_s(), "far": 1e3 * far.step_s()},
        "waited_ms": {"near": 1e3 * near.waited_s, "far": 1e3 * far.waited_s},
        "first_step_ms": {"near": 1e3 * near.first_s(), "far": 1e3 * far.first_s(), "resumed": 1e3 * after.first_s()},
    }
    show(report)
    return report


def at_distance(data: Path, rtt_ms: float, run: Callable[[str], Run]) -> Run:
    with farfeed.emulate.serve(data, rtt_ms=rtt_ms, rate=RATE) as url:
        return run(url)


def compare(what: str, expected: list[float], got: list[float]) -> None:
    if expected == got:
        return
    differing = [step for step, pair in enumerate(zip(expected, got)) if pair[0] != pair[1]]
    raise SystemExit(f"the losses differ {what}: {len(expected)} and {len(got)} steps, differing at {differing[:5]}")


def show(report: dict) -> None:
    losses, step, first = report["losses"], report["step_ms"], report["first_step_ms"]
    tenth = max(1, len(losses) // 10)
    begin, end = statistics.fmean(losses[:tenth]), statistics.fmean(losses[-tenth:])
    rtt, waited = report["rtt_ms"], report["waited_ms"]
    print(f"{report['steps']} steps, loss {begin:.3f} -> {end:.3f}; emulated link of {RATE / 1e6:.0f} MB/s")
    print(f"  step        {step['near']:7.2f} ms next door, {step['far']:7.2f} ms from {rtt:g} ms away: {100 * (step['far'] / step['near'] - 1):+.2f} %")
    print(f"  waited      {waited['near']:7.2f} ms next door, {waited['far']:7.2f} ms from {rtt:g} ms away: for all batches but the first")
    print(f"  first step  {first['near']:7.1f} ms next door, {first['far']:7.1f} ms from {rtt:g} ms away, {first['resumed']:7.1f} ms after the resume")
    print(f"  losses      the same, bit for bit: at both distances, and interrupted after {report['stopped_after']} steps")
