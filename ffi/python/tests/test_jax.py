"""Arrays in the slot's memory: numpy and jax import without a copy, and jax puts shares together to one array."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy
import pytest

from datasets import TOKENS, ids_of, token_loader


@pytest.fixture
def loader(tokens):
    with token_loader(tokens) as loader:
        yield loader


def test_numpy_and_jax_share_the_slots_memory(loader):
    batch = next(iter(loader))
    view = batch["tokens"].numpy()
    address = view.__array_interface__["data"][0]
    assert view.dtype == numpy.uint16 and view.shape == (8, TOKENS)
    assert numpy.from_dlpack(batch["tokens"]).__array_interface__["data"][0] == address
    assert numpy.asarray(memoryview(batch["tokens"])).__array_interface__["data"][0] == address

    array = jax.dlpack.from_dlpack(batch["tokens"])
    assert array.unsafe_buffer_pointer() == address
    assert array.shape == (8, TOKENS) and ids_of(array) == list(batch.sample_ids)


def test_a_jax_array_holds_the_slot_and_outlives_the_loader(loader):
    batch = next(iter(loader))
    ids, array = list(batch.sample_ids), jax.dlpack.from_dlpack(batch["tokens"])
    del batch
    for other in loader:
        assert ids_of(other["tokens"].numpy()) != ids
        del other
    loader.close()
    assert ids_of(array) == ids


def test_a_process_gives_its_share_of_a_global_array(loader):
    mesh = jax.sharding.Mesh(numpy.array(jax.devices()), ("batch",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    batch = next(iter(loader))
    array = jax.make_array_from_process_local_data(rows, batch["tokens"].numpy())
    assert array.sharding == rows and ids_of(array) == list(batch.sample_ids)
