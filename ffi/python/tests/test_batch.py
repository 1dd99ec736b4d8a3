"""Batches and columns: what is in them, whose memory it is, and for how long."""

import gc
import io
import tarfile
import weakref
from collections.abc import Mapping

import numpy
import pytest

import datasets
import farfeed
from double import Consumer, Unversioned, Versioned


@pytest.fixture
def loader(shards):
    with datasets.shard_loader(shards) as loader:
        yield loader


@pytest.fixture
def batch(loader):
    return next(iter(loader))


def test_a_batch_is_a_mapping(batch):
    assert isinstance(batch, Mapping)
    assert list(batch) == list(batch.keys()) == ["bin", "cls", "score", "json"]
    assert len(batch) == 4 and batch.size == 8
    assert "cls" in batch and "png" not in batch and batch.get("png") is None and batch.get("png", 7) == 7
    assert [name for name, _ in batch.items()] == list(batch)
    assert [type(column) for column in batch.values()] == [farfeed.Ragged, farfeed.Column, farfeed.Column, farfeed.Ragged]
    with pytest.raises(KeyError, match="the columns are bin, cls, score, json"):
        batch["png"]
    match batch:
        case {"cls": column}:
            assert column.shape == (8,)
        case _:
            pytest.fail("a mapping matches")


def test_it_says_what_is_in_it(loader, batch):
    assert (batch.epoch, batch.index, batch.left_out, batch.device) == (0, 0, 0, "cpu")
    assert batch.sample_keys == [f"{n:04d}" for n in batch.ints("cls")]
    assert len(batch.sample_ids) == 8 and batch.nbytes > 0
    assert next(iter(loader)).index == 1
    assert "8 samples" in repr(batch) and "cls" in repr(batch)


def test_values_are_those_of_the_shards(loader):
    seen = []
    for batch in loader:
        labels = batch.ints("cls")
        assert batch["cls"].numpy().tolist() == labels
        assert batch.floats("score") == batch["score"].numpy().tolist() == [n / 4 for n in labels]
        assert batch.json("json") == batch["json"].json() == [{"n": n} for n in labels]
        assert batch.bytes("bin") == batch["bin"].bytes() == [bytes([n] * (n % 7)) for n in labels]
        seen += labels
    assert sorted(seen) == list(range(100))


def test_dense_columns_are_arrays_in_the_slot(batch):
    column = batch["score"]
    assert (column.shape, column.dtype, column.nbytes, column.device) == ((8,), "float64", 64, "cpu")
    assert len(column) == 8 and repr(column) == "Column('float64', (8,), 'cpu')"
    by_dlpack, by_buffer = column.numpy(), numpy.asarray(column)
    assert by_dlpack.ctypes.data == by_buffer.ctypes.data == numpy.from_dlpack(column).ctypes.data
    assert by_dlpack.flags.writeable and by_buffer.flags.writeable
    by_dlpack[3] = -1.5
    assert by_buffer[3] == -1.5 and batch.floats("score")[3] == -1.5


@pytest.mark.parametrize("name", ["uint8", "int8", "uint16", "int16", "float16", "uint32", "int32", "float32", "uint64", "int64", "float64", "bool"])
@pytest.mark.parametrize("row", [(), (3,), (2, 3), (1, 2, 1, 3, 2)])
def test_types_and_shapes_are_kept(tmp_path, name, row):
    count = int(numpy.prod(row, dtype=int))
    array = (numpy.arange(10 * count) % 2 if name == "bool" else numpy.arange(10 * count)).astype(name).reshape(10, *row)
    numpy.save(tmp_path / "rows.npy", array)
    with farfeed.Loader(tmp_path / "rows.npy", batch_size=10, host_memory="16MiB") as loader:
        batch = next(iter(loader))
        (column,) = batch.values()
        assert column.dtype == name and column.shape == array.shape
        for imported in (column.numpy(), numpy.asarray(column), numpy.asarray(memoryview(column))):
            assert imported.dtype == array.dtype
            numpy.testing.assert_array_equal(imported, array)


@pytest.mark.parametrize("layout, version", [(Unversioned, None), (Unversioned, (0, 8)), (Versioned, (1, 0)), (Versioned, (1, 7))])
def test_capsules_are_what_dlpack_says(tokens, layout, version):
    with datasets.token_loader(tokens) as loader:
        batch = next(iter(loader))
        column = batch["tokens"]
        assert column.__dlpack_device__() == (1, 0)
        consumer = Consumer(column.__dlpack__(max_version=version), layout)
        tensor = consumer.tensor
        assert consumer.shape() == (8, datasets.TOKENS) and consumer.strides() == (datasets.TOKENS, 1)
        assert (tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes) == (1, 16, 1)
        assert (tensor.device.kind, tensor.device.id, tensor.byte_offset) == (1, 0, 0)
        assert tensor.data == column.numpy().ctypes.data
        if layout is Versioned:
            assert (consumer.managed.major, consumer.managed.minor, consumer.managed.flags) == (1, 0, 0)
        consumer.done()


def test_bfloat16_goes_by_dlpack_alone(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        member = tarfile.TarInfo("0.half")
        member.size = 6
        tar.addfile(member, io.BytesIO(bytes.fromhex("803f004040c0")))
    with farfeed.Loader(tmp_path / "x.tar", fields={"half": farfeed.Array("bfloat16", (3,))}, host_memory="16MiB") as loader:
        column = next(iter(loader))["half"]
        consumer = Consumer(column.__dlpack__(max_version=(1, 0)))
        assert (consumer.tensor.dtype.code, consumer.tensor.dtype.bits) == (4, 16) and consumer.shape() == (1, 3)
        consumer.done()
        with pytest.raises(BufferError, match="bfloat16"):
            memoryview(column)


def test_impossible_exports_are_refused(batch):
    column = batch["cls"]
    for options in ({"stream": 1}, {"dl_device": (2, 0)}, {"copy": True}):
        with pytest.raises(BufferError):
            column.__dlpack__(max_version=(1, 0), **options)
    assert not hasattr(column, "__cuda_array_interface__")
    column.__dlpack__(stream=None, max_version=(1, 0), dl_device=(1, 0), copy=False)


def test_ragged_columns_are_rows(batch):
    ragged, labels = batch["bin"], batch.ints("cls")
    rows = [bytes([n] * (n % 7)) for n in labels]
    assert len(ragged) == 8 and "8 rows" in repr(ragged)
    assert [bytes(memoryview(row)) for row in ragged] == rows
    assert [bytes(memoryview(row)) for row in ragged.list()] == rows
    assert bytes(memoryview(ragged[2])) == rows[2] and bytes(memoryview(ragged[-1])) == rows[-1]
    for outside in (8, -9):
        with pytest.raises(IndexError):
            ragged[outside]
    assert bytes(memoryview(ragged.values)) == b"".join(rows)
    assert ragged.offsets.numpy().tolist() == numpy.cumsum([0, *map(len, rows)]).tolist()
    # Views, not copies.
    longest = max(range(8), key=lambda row: len(rows[row]))
    ragged[longest].numpy()[0] = 255
    assert ragged.values.numpy()[ragged.offsets.numpy()[longest]] == 255


def test_a_slot_goes_back_when_its_last_holder_lets_go(loader):
    holders = {
        "batch": lambda batch: batch,
        "column": lambda batch: batch["cls"],
        "array by DLPack": lambda batch: batch["cls"].numpy(),
        "view of it": lambda batch: batch["cls"].numpy()[2:4],
        "array by buffer": lambda batch: numpy.asarray(batch["cls"]),
        "memoryview": lambda batch: memoryview(batch["cls"]),
        "capsule": lambda batch: batch["cls"].__dlpack__(max_version=(1, 0)),
        "legacy capsule": lambda batch: batch["cls"].__dlpack__(),
        "ragged": lambda batch: batch["bin"],
        "row": lambda batch: batch["bin"][1],
        "rows": lambda batch: batch["bin"].list(),
        "array of a row": lambda batch: batch["bin"][1].numpy(),
        "view of keys": lambda batch: batch.keys(),
    }
    for name, hold in holders.items():
        held = [hold(next(iter(loader))) for _ in range(4)]
        with pytest.raises(farfeed.ConfigError, match="4 batches are held") as caught:
            next(iter(loader))
        assert "drop a batch" in caught.value.advice, name
        held.pop(0)
        assert next(iter(loader)).size > 0, f"{name}: one was let go of"
        del held
        assert next(iter(loader)).size > 0, f"{name}: all were let go of"


def test_a_released_batch_is_gone_and_its_columns_are_not(batch):
    column = batch["cls"]
    labels = batch.ints("cls")
    batch.release()
    batch.release()
    assert column.numpy().tolist() == labels
    for use in (lambda: batch["cls"], lambda: batch.size, lambda: list(batch), lambda: batch.ints("cls")):
        with pytest.raises(farfeed.ConfigError, match="released"):
            use()
    assert "released" in repr(batch)


def test_memory_outlives_the_loader(shards):
    loader = datasets.shard_loader(shards)
    batch = next(iter(loader))
    labels, array = batch.ints("cls"), batch["cls"].numpy()
    loader.close()
    del batch, loader
    gc.collect()
    assert array.tolist() == labels


def test_arrays_do_not_leak(loader):
    gone = []
    for batch in loader:
        array = batch["cls"].numpy()
        weakref.finalize(array, gone.append, None)
        del array
    assert len(gone) == len(loader)


def test_streams_mean_nothing_on_the_host(batch):
    batch.wait_on(1)
    batch.synchronize()
    batch.release(stream=2)


def test_nothing_of_it_is_made_by_hand():
    for kind in (farfeed.Batch, farfeed.Column, farfeed.Ragged, farfeed.Epoch, farfeed.Field):
        with pytest.raises(TypeError):
            kind()
