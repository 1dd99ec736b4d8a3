"""Trains a small transformer on Python's sources as a token file across an emulated link: near, far, and interrupted in mid-epoch.

    python language.py [--steps 120] [--rtt-ms 15] [--json]

Needs torch. Half a minute on two processors.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from torch import nn

import corpus
import farfeed
import farfeed.torch
from rehearsal import Checkpoint, Steps, rehearse

BATCH = 16
CONTEXT = 128
WIDTH = 64
EPOCHS = 2


def train(url: str, checkpoint: Checkpoint | None) -> Steps:
    torch.manual_seed(0)
    model = Transformer()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with farfeed.Loader(
        url,
        # Each sample is a context and the token after it, of which all but the first are the targets.
        tokens=farfeed.Tokens("uint16", CONTEXT, with_next=True),
        batch_size=BATCH,
        shuffle=farfeed.Shuffle(window=512, seed=7),
        epochs=EPOCHS,
        host_memory="64MiB",
    ) as loader:
        dataset = farfeed.torch.Dataset(loader)
        if checkpoint and checkpoint.file.exists():
            saved = torch.load(checkpoint.file)
            model.load_state_dict(saved["model"])
            optimiser.load_state_dict(saved["optimiser"])
            dataset.load_state_dict(saved["data"])

        taken = 0
        while dataset.state_dict()["epoch"] < EPOCHS:
            for batch in dataset:
                tokens = batch["tokens"].long()
                scores = model(tokens[:, :-1])
                loss = nn.functional.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten())
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


class Transformer(nn.Module):
    """Two layers of causal attention over tokens and their positions."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(corpus.VOCABULARY, WIDTH)
        self.position = nn.Embedding(CONTEXT, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, nhead=4, dim_feedforward=2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.score = nn.Linear(WIDTH, corpus.VOCABULARY)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Scores `[B, CONTEXT, VOCABULARY]` of the token after each of `tokens` `[B, CONTEXT]`."""
        hidden = self.token(tokens) + self.position(torch.arange(tokens.shape[1]))
        return self.score(self.layers(hidden, mask=self.mask, is_causal=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120, help="of all epochs together")
    parser.add_argument("--rtt-ms", type=float, default=15)
    parser.add_argument("--json", action="store_true", help="also print the losses, for programs")
    options = parser.parse_args()
    # One thread for torch: the other processor is the loader's, and sums are taken in the same order each time.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        # One token more than the samples have: the last sample's next one.
        name = corpus.write_text(Path(directory), options.steps // EPOCHS * BATCH * CONTEXT + 1)
        # In mid-epoch: a quarter of the first of the two epochs is still to come.
        stop_after = 3 * options.steps // 8
        report = rehearse(Path(directory), lambda url, checkpoint: train(f"{url}/{name}", checkpoint), stop_after, options.rtt_ms)
    if options.json:
        print(json.dumps(report))


if __name__ == "__main__":
    main()
