"""Trains a small network on photographs in WebDataset shards across an emulated link: near, far, and interrupted in mid-epoch.

    python images.py [--steps 96] [--rtt-ms 15] [--json]

Needs torch, pillow and scikit-learn, for the photographs in it. Half a minute on two processors.
"""

import argparse
import io
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import nn

import corpus
import farfeed
import farfeed.torch
from rehearsal import Checkpoint, Steps, rehearse

BATCH = 32
EPOCHS = 3


def train(url: str, checkpoint: Checkpoint | None, decoders: ThreadPoolExecutor) -> Steps:
    torch.manual_seed(0)
    model = Network()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    with farfeed.Loader(
        url,
        fields={"jpg": farfeed.Bytes(), "cls": farfeed.Int()},
        batch_size=BATCH,
        shuffle=farfeed.Shuffle(window=256, seed=7),
        epochs=EPOCHS,
        host_memory="64MiB",
    ) as loader:
        dataset = farfeed.torch.Dataset(loader, ragged="list")
        if checkpoint and checkpoint.file.exists():
            saved = torch.load(checkpoint.file)
            model.load_state_dict(saved["model"])
            optimiser.load_state_dict(saved["optimiser"])
            dataset.load_state_dict(saved["data"])

        taken = 0
        while dataset.state_dict()["epoch"] < EPOCHS:
            for batch in dataset:
                images = torch.stack(list(decoders.map(decode, batch["jpg"])))
                loss = nn.functional.cross_entropy(model(images), batch["cls"])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                yield loss.item()
                taken += 1
                if checkpoint and taken == checkpoint.stop_after:
                    saved = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "data": dataset.state_dict()}
                    torch.save(saved, checkpoint.file)
                    return loader.stats()["consumer"]["wait_s"]
        return loader.stats()["consumer"]["wait_s"]


def decode(jpg: torch.Tensor) -> torch.Tensor:
    """A JPEG file as three planes of floats. On threads: Pillow lets go of the interpreter while it decodes."""
    pixels = numpy.array(Image.open(io.BytesIO(jpg.numpy())))
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div_(255).sub_(0.5)


class Network(nn.Sequential):
    """Three convolutions, and one layer on their mean."""

    def __init__(self) -> None:
        widths = [3, 16, 32, 64]
        blocks = [
            layer
            for before, after in zip(widths, widths[1:])
            for layer in (nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.ReLU())
        ]
        super().__init__(*blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64 * 4, corpus.CLASSES))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=96, help="of all epochs together")
    parser.add_argument("--rtt-ms", type=float, default=15)
    parser.add_argument("--json", action="store_true", help="also print the losses, for programs")
    options = parser.parse_args()
    # One thread for torch: the other processor is the loader's, and sums are taken in the same order each time.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(2) as decoders:
        pattern = corpus.write_photographs(Path(directory), options.steps // EPOCHS * BATCH)
        # In mid-epoch: of three epochs, half of the second one is done.
        stop_after = options.steps // 2
        report = rehearse(
            Path(directory), lambda url, checkpoint: train(f"{url}/{pattern}", checkpoint, decoders), stop_after, options.rtt_ms
        )
    if options.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
