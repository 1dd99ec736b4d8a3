"""The way onto a GPU, on the double of the driver: who waits for whom, and when a slot may be filled again.

Each program runs in a process of its own, with the double in the driver's place. A "kernel" is a read, some time after it was enqueued,
that wants to find the bytes of its batch: the double notes a violation when it finds others.
"""

import pytest

PREPARE = """
import sys, time, gc
import datasets, farfeed
from double import Consumer, Double, Unversioned, Versioned
ORDINAL = 3
double = Double(ORDINAL)
rate = 50_000_000
def loader(path, **options):
    return datasets.token_loader(path, device=f"cuda:{ORDINAL}", batches_ahead=1, **options)
def bytes_of(batch):
    # The token file counts from 0, so what a sample holds follows from its number.
    return b"".join(n.to_bytes(2, "little") for id in batch.sample_ids for n in range(id * 8, id * 8 + 8))
"""

END = """
double.drain()
gc.collect()
assert double.violations() == "", double.violations()
live = double.live()
assert (live.allocations, live.registrations) == (0, 0), (live.allocations, live.registrations)
print("well")
"""


def on_the_double(run, program, path):
    assert run(PREPARE + program + END, path).endswith("well\n")


def test_columns_say_where_they_lie(run, tokens):
    program = """
with loader(sys.argv[1]) as batches:
    assert batches.device == "cuda:3"
    batch = next(iter(batches))
    column = batch["tokens"]
    assert (batch.device, column.device, column.__dlpack_device__()) == ("cuda:3", "cuda:3", (2, 3))
    for refused in (lambda: memoryview(column), column.numpy):
        try:
            refused()
        except BufferError as error:
            assert "cuda:3" in str(error) or "DLPack" in str(error), error
        else:
            raise AssertionError("host memory was made up")
    interface = column.__cuda_array_interface__
    assert interface["shape"] == (8, 8) and interface["typestr"] == "<u2" and interface["version"] == 3
    assert interface["stream"] == 1 and interface["strides"] is None and interface["data"][1] is False
    consumer = Consumer(column.__dlpack__(max_version=(1, 0)))
    assert consumer.tensor.data == interface["data"][0]
    assert (consumer.tensor.device.kind, consumer.tensor.device.id) == (2, 3)
    # Read back to the host, where that was asked for.
    assert b"".join(batch.bytes("tokens")) == bytes_of(batch)
    batch.synchronize()
    consumer.done()
    del batch, column, consumer, refused
"""
    on_the_double(run, program, tokens)


@pytest.mark.parametrize("layout", ["Versioned", "Unversioned"])
def test_a_slot_waits_for_what_its_consumers_stream_was_given(run, tokens, layout):
    """R11, and the deleter's hazard: it knows no stream, and is called with kernels still queued."""
    program = f"""
layout, version = {layout}, {"(1, 0)" if layout == "Versioned" else "None"}
stream = double.stream()
with loader(sys.argv[1]) as batches:
    for epoch in range(2):
        for batch in batches:
            consumer = Consumer(batch["tokens"].__dlpack__(stream=stream, max_version=version), layout)
            double.consume(stream, consumer.tensor.data, bytes_of(batch), after_ms=4)
            consumer.done()
            del batch
"""
    on_the_double(run, program, tokens)


def test_the_double_would_notice_a_slot_that_does_not_wait(run, tokens):
    """The check above can fail: a consumer that asks for no synchronisation, and gives none, reads what is not its own."""
    program = """
stream = double.stream()
with loader(sys.argv[1]) as batches:
    for batch in batches:
        consumer = Consumer(batch["tokens"].__dlpack__(stream=-1, max_version=(1, 0)))
        batch.synchronize()
        double.consume(stream, consumer.tensor.data, bytes_of(batch), after_ms=20)
        consumer.done()
        del batch
double.drain()
assert double.violations() != ""
print("well")
"""
    assert run(PREPARE + program, tokens).endswith("well\n")


def test_streams_that_are_named_count_as_well(run, tokens):
    program = """
class Stream:
    def __init__(self, handle):
        self.cuda_stream = handle
first, second = double.stream(), double.stream()
with loader(sys.argv[1]) as batches:
    for number, batch in enumerate(batches):
        pointer = batch["tokens"].__cuda_array_interface__["data"][0]
        if number % 2:
            batch.wait_on(Stream(first))
            double.consume(first, pointer, bytes_of(batch), after_ms=3)
            del batch
        else:
            batch.wait_on(second)
            double.consume(second, pointer, bytes_of(batch), after_ms=3)
            batch.release(stream=first)
"""
    on_the_double(run, program, tokens)


def test_default_streams_and_impossible_ones(run, tokens):
    program = """
with loader(sys.argv[1]) as batches:
    for batch in batches:
        column = batch["tokens"]
        for stream, pointer_stream in ((None, 0), (1, 0), (2, 2)):
            consumer = Consumer(column.__dlpack__(stream=stream, max_version=(1, 0)))
            double.consume(pointer_stream, consumer.tensor.data, bytes_of(batch), after_ms=1)
            consumer.done()
        del batch, column
batch = next(iter(loader(sys.argv[1])))
for options in ({"stream": 0}, {"stream": -2}, {"dl_device": (1, 0)}, {"dl_device": (2, 4)}, {"copy": True}):
    try:
        batch["tokens"].__dlpack__(max_version=(1, 0), **options)
    except BufferError:
        pass
    else:
        raise AssertionError(options)
Consumer(batch["tokens"].__dlpack__(max_version=(1, 0), dl_device=(2, 3), copy=False)).done()
del batch
"""
    on_the_double(run, program, tokens)


def test_what_was_imported_outlives_the_loader(run, tokens):
    program = """
stream = double.stream()
batches = loader(sys.argv[1])
batch = next(iter(batches))
consumer = Consumer(batch["tokens"].__dlpack__(stream=stream, max_version=(1, 0)))
expected = bytes_of(batch)
batch.release()
batches.close()
del batch, batches
gc.collect()
assert double.live().allocations == 1, double.live().allocations
double.consume(stream, consumer.tensor.data, expected, after_ms=20)
consumer.done()
"""
    on_the_double(run, program, tokens)


def test_only_the_devices_own_context_is_touched(run, tokens):
    """R12."""
    program = """
with loader(sys.argv[1]) as batches:
    for batch in batches:
        pass
    del batch
for ordinal in range(16):
    other = double.control.live(ordinal)
    assert (other.contexts > 0) == (ordinal == ORDINAL) or ordinal == ORDINAL, ordinal
assert double.control.contexts_on_this_thread() == 0
"""
    on_the_double(run, program, tokens)


def test_a_failing_copy_is_an_error_of_the_device(run, tokens):
    program = """
batches = loader(sys.argv[1])
double.fail_copy(5)
try:
    for batch in batches:
        pass
except farfeed.DeviceError as error:
    assert error.kind == "device" and "CUDA" in str(error), error
else:
    raise AssertionError("no copy failed")
print("well")
"""
    assert run(PREPARE + program, tokens).endswith("well\n")


def test_rows_are_known_before_they_have_landed(run, shards):
    """Where a row begins is known on the host: nobody waits for the device to ask it."""
    program = """
with datasets.shard_loader(sys.argv[1], device=f"cuda:{ORDINAL}") as batches:
    double.set_rate(200)
    batch = next(iter(batches))
    began = time.monotonic()
    rows = batch["bin"].list()
    lengths = [row.shape[0] for row in rows]
    starts = [Consumer(row.__dlpack__(stream=-1, max_version=(1, 0))) for row in rows]
    known = time.monotonic() - began
    batch.synchronize()
    landed = time.monotonic() - began
    assert landed > 0.3 and known < landed / 2, (known, landed)
    double.set_rate(1 << 40)
    assert lengths == [n % 7 for n in batch.ints("cls")], lengths
    at = [start.tensor.data - starts[0].tensor.data for start in starts]
    assert at == [sum(lengths[:row]) for row in range(8)], at
    assert batch.bytes("bin") == [bytes([n] * (n % 7)) for n in batch.ints("cls")]
    for start in starts:
        start.done()
    del batch, rows, starts, start
"""
    on_the_double(run, program, shards)
