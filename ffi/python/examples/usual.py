"""The loop that most people would write, beside farfeed's: same shards, same network, same links.

    python usual.py [--steps 64] [--rtt-ms 0 15 30] [--json]

The usual one is a torch DataLoader with two worker processes, each of which opens its shards by fsspec over http, reads them through
tarfile, decodes, and shuffles in a buffer. Needs torch, pillow, scikit-learn, fsspec and aiohttp.
"""

import argparse
import json
import os
import random
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import corpus
import farfeed
import farfeed.torch
from images import BATCH, Network, decode
from rehearsal import RATE, Steps, at_distance, follow

WORKERS = 2


class Shards(IterableDataset):
    """Every worker reads every second shard, from one end to the other."""

    def __init__(self, urls: list[str], buffer: int) -> None:
        self.urls, self.buffer = urls, buffer

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
        worker = get_worker_info()
        chance = random.Random(7)
        urls = self.urls[worker.id :: worker.num_workers]
        chance.shuffle(urls)
        held: list[tuple[bytes, int]] = []
        for sample in (sample for url in urls for sample in read(url)):
            held.append(sample)
            if len(held) > self.buffer:
                yield picture(*held.pop(chance.randrange(len(held))))
        chance.shuffle(held)
        yield from (picture(*sample) for sample in held)


def read(url: str) -> Iterator[tuple[bytes, int]]:
    with fsspec.open(url, "rb") as file, tarfile.open(fileobj=file, mode="r|") as tar:
        for member in tar:
            data = tar.extractfile(member).read()
            if member.name.endswith(".jpg"):
                jpg = data
            else:
                yield jpg, int(data)


def picture(jpg: bytes, label: int) -> tuple[torch.Tensor, int]:
    return decode(torch.frombuffer(bytearray(jpg), dtype=torch.uint8)), label


def usual(url: str) -> Steps:
    urls = [f"{url}/photos-{shard:04d}.tar" for shard in range(corpus.SHARDS)]
    loader = DataLoader(Shards(urls, buffer=256 // WORKERS), batch_size=BATCH, num_workers=WORKERS, drop_last=True)
    return (yield from fit(iter(loader)))


def ours(url: str) -> Steps:
    fields = {"jpg": farfeed.Bytes(), "cls": farfeed.Int()}
    pattern = f"{url}/photos-{{0000..{corpus.SHARDS - 1:04d}}}.tar"
    shuffle = farfeed.Shuffle(window=256, seed=7)
    with (
        farfeed.Loader(pattern, fields=fields, batch_size=BATCH, shuffle=shuffle, epochs=1, host_memory="64MiB") as loader,
        ThreadPoolExecutor(2) as decoders,
    ):
        return (yield from fit(decoded(farfeed.torch.Dataset(loader, ragged="list"), decoders)))


def decoded(batches: farfeed.torch.Dataset, decoders: ThreadPoolExecutor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Each batch is decoded while the one before is trained on."""
    ahead = None
    for batch in batches:
        # Begins at once, and is waited for a turn later.
        begun = decoders.map(decode, batch["jpg"]), batch["cls"]
        if ahead:
            yield torch.stack(list(ahead[0])), ahead[1]
        ahead = begun
    if ahead:
        yield torch.stack(list(ahead[0])), ahead[1]


def fit(batches: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> Steps:
    torch.manual_seed(0)
    model = Network()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for images, labels in batches:
        loss = nn.functional.cross_entropy(model(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        yield loss.item()
    return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--rtt-ms", type=float, nargs="+", default=[0, 15, 30])
    parser.add_argument("--json", action="store_true", help="print the figures for programs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        corpus.write_photographs(Path(directory), options.steps * BATCH)
        # Thrown away: torch imports half of itself in its first step.
        measure("farfeed", ours, Path(directory), 0)
        for rtt_ms in options.rtt_ms:
            rows += [measure(name, loop, Path(directory), rtt_ms) for name, loop in (("usual", usual), ("farfeed", ours))]
    if options.json:
        print(json.dumps(rows))
        return
    print(f"emulated link of {RATE / 1e6:.0f} MB/s; {options.steps} steps of {BATCH} photographs")
    print("loop      RTT       first step   step        epoch     CPU")
    for row in rows:
        print(f"{row['loop']:8}  {row['rtt_ms']:4.0f} ms   {row['first_step_ms']:7.0f} ms   {row['step_ms']:6.2f} ms   {row['epoch_s']:5.2f} s   {row['cpu_s']:5.2f} s")


def measure(name: str, loop: Callable[[str], Steps], directory: Path, rtt_ms: float) -> dict:
    before = cpu_s()
    run = at_distance(directory, rtt_ms, lambda url: follow(loop(url)))
    return {
        "loop": name,
        "rtt_ms": rtt_ms,
        "steps": len(run.losses),
        "first_step_ms": 1e3 * run.first_s(),
        "step_ms": 1e3 * run.step_s(),
        "epoch_s": sum(run.seconds),
        "cpu_s": cpu_s() - before,
    }


def cpu_s() -> float:
    """Of this process and of the workers that it has had: training, loading and the emulated server."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    main()
