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
        tokens=farfeed.Tokens("u16", CONTEXT, with_next=True),
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
            metrics = {"rank": context.get_world_rank(), "step": batch.index + 1, "loss": loss.item(), "ids": ids}
            report(metrics, model, loader, context.get_world_rank())
            fail_once(config.get("fail_once"))
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


def fail_once(file: str | None) -> None:
    """For the rehearsal of a failure: the worker that finds the file takes it away, and falls."""
    if file and Path(file).exists():
        Path(file).unlink(missing_ok=True)
        raise RuntimeError("a worker is lost")


def main() -> None:
    import corpus

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rtt-ms", type=float, default=15)
    parser.add_argument("--fail-once", action="store_true", help="lose a worker after the first report")
    parser.add_argument("--json", action="store_true", help="print the last report of the first worker, for programs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        text = corpus.write_text(directory / "data", STEPS * GLOBAL_BATCH * CONTEXT + 1)
        with farfeed.emulate.serve(directory / "data", rtt_ms=options.rtt_ms, rate=125_000_000) as url:
            result = fit(f"{url}/{text}", directory, options)
        print(json.dumps(result) if options.json else f"{options.workers} workers: step {result['step']}, loss {result['loss']:.3f}")


def fit(url: str, directory: Path, options: argparse.Namespace) -> dict:
    ray.init(num_cpus=options.workers, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    config: dict = {"url": url, "report_every": STEPS // 2}
    if options.fail_once:
        (directory / "fail").touch()
        config["fail_once"] = str(directory / "fail")
    trainer = ray.train.torch.TorchTrainer(
        train,
        train_loop_config=config,
        torch_config=ray.train.torch.TorchConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=options.workers),
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
