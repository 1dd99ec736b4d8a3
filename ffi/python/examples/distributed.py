"""Several processes under torchrun, each with its share of every global batch; stopped, and gone on with by any number of them.

    torchrun --standalone --nproc-per-node 2 distributed.py DIR --stop-after 20
    torchrun --standalone --nproc-per-node 1 distributed.py DIR

DIR keeps the data and the checkpoint. Needs torch, and a link only to storage: ranks agree on the order without talking, since they
compute the same function. On several machines give each torchrun `--nnodes`, `--rdzv-endpoint`, and a DIR or URL that all of them see.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import corpus
import farfeed
import farfeed.torch

#: Over all ranks: it stays when the number of ranks changes, and so does the order.
GLOBAL_BATCH = 32
CONTEXT = 64
#: The lanes that the order is laid out over: any number of ranks that divides them can go on with it.
LANES = 4
STEPS = 48


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--stop-after", type=int, default=None)
    parser.add_argument("--json", action="store_true", help="also print ids and losses of every step, for programs")
    options = parser.parse_args()

    # The program's business, as it is in any other one: farfeed looks whether it was done, and never does it.
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    if dist.get_rank() == 0:
        corpus.write_text(options.directory, STEPS * GLOBAL_BATCH * CONTEXT + 1)
    dist.barrier()
    train(options.directory, options.stop_after, options.json)
    dist.destroy_process_group()


def train(directory: Path, stop_after: int | None, tell: bool) -> None:
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Embedding(corpus.VOCABULARY, 64), nn.Linear(64, corpus.VOCABULARY)))
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    # Rank and world size come from the process group.
    loader = farfeed.Loader(
        directory / "text.bin",
        tokens=farfeed.Tokens("uint16", CONTEXT, with_next=True),
        batch_size=GLOBAL_BATCH // dist.get_world_size(),
        shuffle=farfeed.Shuffle(window=256, seed=7),
        lanes=LANES,
        epochs=1,
        host_memory="64MiB",
    )
    saved = {"model": model.module, "loader": loader}
    checkpoint = directory / "checkpoint"
    if checkpoint.exists():
        load(saved, checkpoint)

    steps = 0
    for batch in loader:
        tokens = farfeed.torch.tensors(batch)["tokens"].long()
        loss = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()  # Averages the gradients over the ranks, and so waits for all of them.
        optimiser.step()
        steps += 1
        if tell:
            note = {"rank": dist.get_rank(), "batch": batch.index, "ids": list(batch.sample_ids), "loss": loss.item()}
            line = json.dumps({**note, "weight": model.module[0].weight.sum().item()})
            # In one piece: ranks write to the same pipe.
            print(line + "\n", end="", flush=True)
        del batch, tokens
        if steps == stop_after:
            dcp.save({name: part.state_dict() for name, part in saved.items()}, checkpoint_id=checkpoint)
            break
    if dist.get_rank() == 0 and not tell:
        print(f"{dist.get_world_size()} ranks, {steps} steps, loss {loss.item():.3f}; {loader.stats()['summary']}")


def load(saved: dict, checkpoint: Path) -> None:
    """The state is the same on every rank and names no world size: whatever wrote it, whatever reads it."""
    states = {name: part.state_dict() for name, part in saved.items()}
    dcp.load(states, checkpoint_id=checkpoint)
    for name, part in saved.items():
        part.load_state_dict(states[name])


if __name__ == "__main__":
    main()
