"""What the training examples have in common: the same run near, far, and interrupted, and the comparison of the three."""

import statistics
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import farfeed

#: Of the emulated link, in bytes per second: one gigabit per second.
RATE = 125_000_000
#: Steps that are not counted in the step time: torch makes up its mind about threads and kernels in them.
WARM_UP = 5

R = TypeVar("R")

#: A training run that pauses after every step and yields its loss; it returns the seconds that it waited for batches, the first one apart.
Steps = Generator[float, None, float]


@dataclass
class Run:
    """What a training run did: the loss of every step, and how long each took, the wait for its batch included."""

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    waited_s: float = 0.0

    def advance(self, steps: Steps) -> bool:
        """Takes a step; False when there is none left."""
        began = time.perf_counter()
        try:
            loss = next(steps)
        except StopIteration as end:
            self.waited_s = end.value
            return False
        self.seconds.append(time.perf_counter() - began)
        self.losses.append(loss)
        return True

    def first_s(self) -> float:
        """The first step: connecting, the first batch, a step."""
        return self.seconds[0]

    def step_s(self) -> float:
        """The mean time of a step."""
        return statistics.fmean(self.seconds[WARM_UP:])


def follow(steps: Steps) -> Run:
    """Takes all steps."""
    run = Run()
    while run.advance(steps):
        pass
    return run


def in_turn(near: Steps, far: Steps) -> tuple[Run, Run]:
    """Takes a step of each in turn, and whichever was first is second in the next pair: what else this machine does lengthens both alike."""
    runs = Run(), Run()
    pair = [(runs[0], near), (runs[1], far)]
    while all([run.advance(steps) for run, steps in pair]):
        pair.reverse()
    return runs


@dataclass
class Checkpoint:
    """Where a run is to stop, and the file that it leaves there or goes on from."""

    file: Path
    stop_after: int | None = None


#: Trains on the dataset at a URL; stops at, or goes on from, a checkpoint.
Train = Callable[[str, Checkpoint | None], Steps]


def rehearse(data: Path, train: Train, stop_after: int, rtt_ms: float = 15) -> dict:
    """Runs `train` on the directory `data` with no distance, `rtt_ms` away, and `rtt_ms` away with an interruption, and compares the losses.

    The first two take their steps in turn. Either then has twice the time to read ahead, so that each has a link of half the rate.

    Raises `SystemExit` where one loss differs in one bit.
    """
    with tempfile.TemporaryDirectory() as directory:
        # Thrown away: torch imports half of itself in its first step.
        at_distance(data, 0, lambda url: follow(train(url, Checkpoint(Path(directory, "warm.pt"), WARM_UP))))
        near, far = at_distance(
            data, 0, lambda here: at_distance(data, rtt_ms, lambda there: in_turn(train(here, None), train(there, None)), RATE // 2), RATE // 2
        )
        file = Path(directory, "checkpoint.pt")
        before = at_distance(data, rtt_ms, lambda url: follow(train(url, Checkpoint(file, stop_after))))
        after = at_distance(data, rtt_ms, lambda url: follow(train(url, Checkpoint(file))))

    compare("at the two distances", near.losses, far.losses)
    assert len(before.losses) == stop_after and after.losses, (len(before.losses), len(after.losses))
    compare("after the interruption", near.losses, before.losses + after.losses)
    report = {
        "steps": len(near.losses),
        "stopped_after": stop_after,
        "rtt_ms": rtt_ms,
        "losses": near.losses,
        "step_ms": {"near": 1e3 * near.step_s(), "far": 1e3 * far.step_s()},
        "median_ms": {"near": 1e3 * statistics.median(near.seconds), "far": 1e3 * statistics.median(far.seconds)},
        "waited_ms": {"near": 1e3 * near.waited_s, "far": 1e3 * far.waited_s},
        "first_step_ms": {"near": 1e3 * near.first_s(), "far": 1e3 * far.first_s(), "resumed": 1e3 * after.first_s()},
    }
    show(report)
    return report


def at_distance(data: Path, rtt_ms: float, run: Callable[[str], R], rate: int = RATE) -> R:
    with farfeed.emulate.serve(data, rtt_ms=rtt_ms, rate=rate) as url:
        return run(url)


def compare(what: str, expected: list[float], got: list[float]) -> None:
    if expected == got:
        return
    differing = [step for step, pair in enumerate(zip(expected, got)) if pair[0] != pair[1]]
    raise SystemExit(f"the losses differ {what}: {len(expected)} and {len(got)} steps, differing at {differing[:5]}")


def show(report: dict) -> None:
    losses, step, middle, first = report["losses"], report["step_ms"], report["median_ms"], report["first_step_ms"]
    tenth = max(1, len(losses) // 10)
    begin, end = statistics.fmean(losses[:tenth]), statistics.fmean(losses[-tenth:])
    rtt, waited = report["rtt_ms"], report["waited_ms"]
    print(f"{report['steps']} steps, loss {begin:.3f} -> {end:.3f}; two loops in turn, each with an emulated link of {RATE / 2e6:g} MB/s")
    print(f"  step        {step['near']:7.2f} ms next door, {step['far']:7.2f} ms from {rtt:g} ms away: {longer(step)}")
    print(f"  the median  {middle['near']:7.2f} ms next door, {middle['far']:7.2f} ms from {rtt:g} ms away: {longer(middle)}")
    print(f"  waited      {waited['near']:7.2f} ms next door, {waited['far']:7.2f} ms from {rtt:g} ms away: for all batches but the first")
    print(f"  first step  {first['near']:7.1f} ms next door, {first['far']:7.1f} ms from {rtt:g} ms away, {first['resumed']:7.1f} ms after the resume")
    print(f"  losses      the same, bit for bit: at both distances, and interrupted after {report['stopped_after']} steps")


def longer(ms: dict[str, float]) -> str:
    return f"{100 * (ms['far'] / ms['near'] - 1):+.2f} %"
