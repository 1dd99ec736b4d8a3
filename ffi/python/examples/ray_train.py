"""The same with Ray Train: two workers here, as many machines as the cluster has elsewhere.

    python ray_train.py [--workers 2] [--json]

Needs torch and ray[train]. Ray starts the workers and their process group; farfeed finds rank and world size in it. The data lie across
an emulated link, as they would lie in a bucket: every worker reads its own share, and none through Ray's object store.
"""

import argparse
import json
import tempfile
from pathlib import Path

import ray
import ray.train
import ray.train.torch
import torch
from torch import nn

import farfeed
import farfeed.torch

GLOBAL_BATCH = 32
CONTEXT = 64
VOCABULARY = 256
STEPS = 24


def train(config: dict) -> None:
    """What every worker runs."""
    context = ray.train.get_context()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = ray.train.torch.prepare_model(nn.Sequential(nn.Embedding(VOCABULARY, 64), nn.Linear(64, VOCABULARY)))
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    loader = farfeed.Loader(
        config["url"],
        tokens=farfeed.Tokens("uint16", CONTEXT, with_next=True),
        batch_size=GLOBAL_BATCH // context.get_world_size(),
        shuffle=farfeed.Shuffle(window=256, seed=7),
        epochs=1,
        host_memory="64MiB",
    )
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        # After a worker or a machine was lost, Ray starts the workers again, from here.
        with checkpoint.as_directory() as directory:
            saved = torch.load(Path(directory, "state.pt"))
        model.load_state_dict(saved["model"])
        loader.load_state_dict(saved["loader"])

    ids = []
    for batch in loader:
        tokens = farfeed.torch.tensors(batch)["tokens"].long()
        loss = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        ids.extend(batch.sample_ids)
        if (batch.index + 1) % config["report_every"] == 0:
            note(config, context.get_world_rank(), batch.index + 1, ids)
            report({"step": batch.index + 1, "loss": loss.item()}, model, loader, context.get_world_rank())
            fall_once(config)
            ids = []
        del batch, tokens


def report(metrics: dict, model: nn.Module, loader: farfeed.Loader, rank: int) -> None:
    """Metrics of every worker, and the checkpoint of the first: the loader's state is the same on all of them."""
    if rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as directory:
        torch.save({"model": model.state_dict(), "loader": loader.state_dict()}, Path(directory, "state.pt"))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(directory))


def note(config: dict, rank: int, step: int, ids: list[int]) -> None:
    """For the check at the end: which samples this worker has seen since its last report."""
    Path(config["notes"], f"{rank}-{step}.json").write_text(json.dumps(ids))


def fall_once(config: dict) -> None:
    """The rehearsal of a failure: the worker that finds the mark takes it away, and falls."""
    mark = Path(config["notes"], "fall")
    if mark.exists():
        mark.unlink(missing_ok=True)
        raise RuntimeError("a worker is lost")


def main() -> None:
    import corpus

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rtt-ms", type=float, default=15)
    parser.add_argument("--fall-once", action="store_true", help="lose a worker after the first report")
    parser.add_argument("--json", action="store_true", help="also print which samples each worker has seen, for programs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "notes").mkdir()
        if options.fall_once:
            (directory / "notes" / "fall").touch()
        text = corpus.write_text(directory / "data", STEPS * GLOBAL_BATCH * CONTEXT + 1)
        with farfeed.emulate.serve(directory / "data", rtt_ms=options.rtt_ms, rate=125_000_000) as url:
            metrics = fit(f"{url}/{text}", directory, options.workers)
        seen = [
            [id for file in (directory / "notes").glob(f"{rank}-*.json") for id in json.loads(file.read_text())]
            for rank in range(options.workers)
        ]
        fell = options.fall_once and not (directory / "notes" / "fall").exists()
    assert sorted(id for ids in seen for id in ids) == list(range(STEPS * GLOBAL_BATCH)), "each sample once"
    print(f"{options.workers} workers, {metrics['step']} steps, each sample once; loss {metrics['loss']:.3f}{'; one fell' if fell else ''}")
    if options.json:
        print(json.dumps({"step": metrics["step"], "seen": seen, "fell": fell}))


def fit(url: str, directory: Path, workers: int) -> dict:
    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    trainer = ray.train.torch.TorchTrainer(
        train,
        train_loop_config={"url": url, "report_every": STEPS // 2, "notes": str(directory / "notes")},
        torch_config=ray.train.torch.TorchConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=workers),
        run_config=ray.train.RunConfig(
            name="farfeed", storage_path=str(directory / "results"), failure_config=ray.train.FailureConfig(max_failures=1)
        ),
    )
    try:
        return trainer.fit().metrics
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
