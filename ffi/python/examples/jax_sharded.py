"""A batch sharded over jax's devices: each process gives its share, and jax sees one array over all of them.

    python jax_sharded.py

Needs jax, and uses four devices that it makes out of the processor. On several hosts call `jax.distributed.initialize()` first, and pass
`rank=jax.process_index(), world_size=jax.process_count()`, as here.
"""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import corpus
import farfeed

BATCH = 32
CONTEXT = 64
STEPS = 40


def main() -> None:
    # Rows of a batch are spread over the devices; weights are everywhere.
    mesh = Mesh(numpy.array(jax.devices()), ("batch",))
    rows = NamedSharding(mesh, PartitionSpec("batch"))
    weights = jax.device_put(jnp.zeros((corpus.VOCABULARY, corpus.VOCABULARY)), NamedSharding(mesh, PartitionSpec()))

    with tempfile.TemporaryDirectory() as directory:
        name = corpus.write_text(Path(directory), STEPS * BATCH * CONTEXT + 1)
        with farfeed.emulate.serve(directory, rtt_ms=15, rate=125_000_000) as url:
            loader = farfeed.Loader(
                f"{url}/{name}",
                tokens=farfeed.Tokens("uint16", CONTEXT, with_next=True),
                batch_size=BATCH // jax.process_count(),
                shuffle=farfeed.Shuffle(window=256, seed=7),
                epochs=1,
                host_memory="64MiB",
                rank=jax.process_index(),
                world_size=jax.process_count(),
            )
            losses = []
            for batch in loader:
                # A view of the slot; to each device goes its rows' part of it, without a copy where the device is the processor.
                tokens = jax.make_array_from_process_local_data(rows, batch["tokens"].numpy())
                weights, loss = step(weights, tokens)
                # jax runs ahead, and a step that is still to come holds its batch: here they are taken one by one.
                losses.append(float(loss))
                del batch
    print(f"{len(losses)} steps on {len(jax.devices())} devices, loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    assert tokens.sharding == rows and losses[-1] < losses[0]


@jax.jit
def step(weights: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One step of a model that predicts a token from the one before."""
    before, after = tokens[:, :-1].astype(jnp.int32), tokens[:, 1:].astype(jnp.int32)

    def cross_entropy(weights):
        scores = jax.nn.log_softmax(weights[before])
        return -jnp.take_along_axis(scores, after[..., None], axis=-1).mean()

    loss, gradient = jax.value_and_grad(cross_entropy)(weights)
    return weights - 20.0 * gradient, loss


if __name__ == "__main__":
    main()
