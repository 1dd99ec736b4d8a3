"""What Python adds: importing, handing a batch over, and the rate of a loop, beside the bounds that they are held to.

    python bench_handover.py [--seconds 8] [--rounds 3] [--json]

Needs numpy and torch, and a release build: a debug one is slower and says so. The rate is that of this process's loop with a tensor made
of every batch, and of `python -m farfeed bench`, the same loader without Python in the loop; both read the same files from a server of a
process of its own across the same emulated link, in turns. Answers are checked.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import torch

import farfeed
import farfeed.torch
from datasets import write_shards

RTT_MS = 15
RATE = 250_000_000
#: Bytes of a sample, samples of a batch: 4 MiB.
SAMPLE, BATCH = 64 << 10, 64
#: Of each hand-over, for a median: what follows a pause of 20 ms finds neither caches nor a fast clock, and is told apart.
REPEATS = 20
BOUNDS = {"import_ms": 50, "dense_us": 10, "ragged_us": 50, "rate": 0.98}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8, help="of one run at the rate of the link")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report: dict = {"debug_build": farfeed.DEBUG_BUILD, "import_ms": import_ms()}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        report["dense_us"] = {size: dense(directory, size) for size in (4 << 10, 1 << 20, 32 << 20)}
        report["ragged_us"] = ragged(directory)
        report["rate"] = rate(directory, options.seconds, options.rounds)
    print(json.dumps(report) if options.json else table(report))


def import_ms() -> float:
    """The best of ten, since the first ones read from the disk: without numpy, torch or a GPU."""
    code = "import time; t = time.perf_counter(); import farfeed; print(time.perf_counter() - t)"
    return 1e3 * min(float(subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, check=True).stdout) for _ in range(10))


def dense(directory: Path, size: int) -> dict[str, float]:
    """Microseconds from a batch of one dense column of `size` bytes to an array or tensor."""
    samples, rows = 24, 8
    file = directory / f"dense-{size}.bin"
    numpy.arange(samples * size // 2, dtype="<u2").tofile(file)
    figures: dict[str, list[float]] = {"numpy": [], "torch": [], "next": []}
    cold: dict[str, list[float]] = {"numpy": [], "torch": []}
    with farfeed.Loader(file, tokens=farfeed.Tokens("uint16", size // 2 // rows), batch_size=rows, host_memory="256MiB", epochs=8) as loader:
        for _epoch in range(8):
            for batch, took in waited_for(loader):
                figures["next"].append(took)
                for name, way in (("numpy", lambda: batch["tokens"].numpy()), ("torch", lambda: torch.from_dlpack(batch["tokens"]))):
                    cold[name].append(timed(way))
                    figures[name] += [timed(way) for _ in range(REPEATS)]
                tensor = torch.from_dlpack(batch["tokens"])
                first = int(tensor[0, 0])
                assert first == (batch.index * size // 2) % 65536, first
                del batch, tensor
    medians = {name: statistics.median(times) for name, times in figures.items()}
    return {**medians, **{f"{name}, after a pause": statistics.median(times) for name, times in cold.items()}}


def ragged(directory: Path) -> dict[str, float]:
    """Microseconds from a batch of 256 samples that differ in length to what the layouts give."""
    pattern = write_shards(directory, 512)
    ways: dict[str, Callable[[farfeed.Batch], object]] = {
        "views": lambda batch: batch["bin"].list(),
        "numpy": lambda batch: (batch["bin"].values.numpy(), batch["bin"].offsets.numpy()),
        "torch": lambda batch: farfeed.torch.tensors(batch),
        "torch, a list": lambda batch: farfeed.torch.tensors(batch, ragged="list"),
    }
    figures: dict[str, list[float]] = {name: [] for name in ways}
    with farfeed.Loader(pattern, fields={"bin": farfeed.Bytes()}, batch_size=256, host_memory="64MiB", epochs=20) as loader:
        for _epoch in range(20):
            for batch, _ in waited_for(loader):
                for name, way in ways.items():
                    figures[name] += [timed(lambda: way(batch)) for _ in range(REPEATS)]
                lengths = [len(row) for row in farfeed.torch.tensors(batch, ragged="list")["bin"]]
                assert lengths == [n % 7 for n in map(int, batch.sample_keys)]
                del batch
    return {name: statistics.median(times) for name, times in figures.items()}


def waited_for(loader: farfeed.Loader) -> Iterator[tuple[farfeed.Batch, float]]:
    """Batches that had time to arrive, each with the microseconds that asking for it took."""
    batches = iter(loader)
    while True:
        time.sleep(0.02)
        began = time.perf_counter()
        batch = next(batches, None)
        took = 1e6 * (time.perf_counter() - began)
        if batch is None:
            return
        yield batch, took
        del batch


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    result = action()
    took = 1e6 * (time.perf_counter() - began)
    del result
    return took


def rate(directory: Path, seconds: float, rounds: int) -> dict:
    """Bytes per second of both loops, in turns, and the median ratio."""
    batches = int(seconds * RATE / (SAMPLE * BATCH))
    file = directory / "rate" / "train.bin"
    file.parent.mkdir()
    numpy.arange(batches * BATCH * SAMPLE // 2, dtype="<u2").tofile(file)
    ours, rival = [], []
    with served(file.parent) as url:
        for _round in range(rounds):
            ours.append(python_loop(f"{url}/train.bin", batches))
            rival.append(rust_loop(f"{url}/train.bin", batches))
    ratios = [a / b for a, b in zip(ours, rival)]
    return {"python_mb_s": [each / 1e6 for each in ours], "rust_mb_s": [each / 1e6 for each in rival], "ratio": statistics.median(ratios)}


@contextlib.contextmanager
def served(directory: Path) -> Iterator[str]:
    code = "import sys, farfeed\nwith farfeed.emulate.serve(sys.argv[1], rtt_ms=float(sys.argv[2]), rate=int(sys.argv[3])) as url: print(url, flush=True); sys.stdin.read()"
    command = [sys.executable, "-W", "ignore", "-c", code, str(directory), str(RTT_MS), str(RATE)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().strip()
        finally:
            server.stdin.close()


def python_loop(url: str, batches: int) -> float:
    with farfeed.Loader(
        url, tokens=farfeed.Tokens("uint16", SAMPLE // 2), batch_size=BATCH, shuffle=farfeed.Shuffle(window=1024, seed=1), epochs=1, host_memory="512MiB"
    ) as loader:
        began, seen, total = time.perf_counter(), 0, 0
        for batch in loader:
            tensor = torch.from_dlpack(batch["tokens"])
            seen, total = seen + 1, total + tensor.nbytes
            del batch, tensor
        took = time.perf_counter() - began
    assert (seen, total) == (batches, batches * BATCH * SAMPLE)
    return total / took


def rust_loop(url: str, batches: int) -> float:
    command = [sys.executable, "-W", "ignore", "-m", "farfeed", "bench", url, "--tokens", f"uint16:{SAMPLE // 2}", "--batch-size", str(BATCH)]
    options = ["--window", "1024", "--seed", "1", "--host-memory", "512MiB", "--no-digest", "--json"]
    figures = json.loads(subprocess.run([*command, *options], capture_output=True, check=True, timeout=600).stdout)
    assert figures["batches"] == batches
    return figures["bytes"] / figures["seconds"]


def table(report: dict) -> str:
    lines = ["a debug build: these are not the figures of an installed package"] if report["debug_build"] else []
    lines.append(f"import               {report['import_ms']:7.1f} ms   (bound {BOUNDS['import_ms']})")
    for size, figures in report["dense_us"].items():
        for name in ("numpy", "torch"):
            pause = figures[f"{name}, after a pause"]
            lines.append(f"dense {size >> 10:6} KiB {name:6} {figures[name]:6.1f} us   (bound {BOUNDS['dense_us']}; after a pause {pause:.1f}; taking the batch {figures['next']:.1f})")
    for name, us in report["ragged_us"].items():
        lines.append(f"256 ragged, {name:13}{us:6.1f} us   (bound {BOUNDS['ragged_us']}{'' if name != 'torch, a list' else '; torch asks this for 256 tensors'})")
    loop = report["rate"]
    for name in ("python", "rust"):
        lines.append(f"loop in {name:9} " + ", ".join(f"{each:6.1f}" for each in loop[f"{name}_mb_s"]) + f" MB/s of {RATE / 1e6:.0f}, emulated link, {RTT_MS} ms")
    lines.append(f"ratio             {loop['ratio']:10.3f}      (bound {BOUNDS['rate']})")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
