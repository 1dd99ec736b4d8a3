"""Weights: what the package safetensors writes comes back as it was, across a link, on the memory that it was read into."""

import gc

import numpy
import pytest
import safetensors.numpy
import safetensors.torch
import torch

import farfeed
import farfeed.emulate

RANDOM = numpy.random.default_rng(3)


def tensors(prefix):
    """Some of each kind: long, short, empty, without dimensions."""
    return {
        f"{prefix}.embed": RANDOM.standard_normal((300, 5000), dtype=numpy.float32),
        f"{prefix}.half": RANDOM.standard_normal((17, 3)).astype(numpy.float16),
        f"{prefix}.steps": numpy.array(7 << 40, dtype=numpy.int64),
        f"{prefix}.none": numpy.zeros((0, 4), dtype=numpy.uint16),
        f"{prefix}.mask": RANDOM.integers(0, 2, (5, 7, 2)).astype(bool),
        f"{prefix}.bytes": RANDOM.integers(0, 256, 100_001, dtype=numpy.uint8),
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Two files, and what is in them."""
    place = tmp_path_factory.mktemp("model")
    everything = {}
    for number in range(2):
        part = tensors(f"layer.{number}")
        safetensors.numpy.save_file(part, place / f"model-{number}.safetensors", metadata={"format": "np"})
        everything |= part
    return place, everything


def same(loaded, expected):
    assert set(loaded) == set(expected)
    for name, array in expected.items():
        column = loaded[name]
        assert column.shape == array.shape and column.dtype == array.dtype.name and column.device == "cpu", name
        assert numpy.array_equal(column.numpy(), array), name


def test_files_come_back_as_they_were(model):
    place, everything = model
    same(farfeed.load_safetensors(place / "model-{0..1}.safetensors"), everything)
    same(farfeed.load_safetensors([place / f"model-{n}.safetensors" for n in (1, 0)], host_memory="16MiB"), everything)


def test_across_a_link_with_faults(model):
    place, everything = model
    with farfeed.emulate.serve(place, rtt_ms=10, rate="125MB", cut=0.1, unavailable=0.1, seed=4) as url:
        same(farfeed.load_safetensors(f"{url}/model-{{0..1}}.safetensors"), everything)


def test_torch_takes_them_without_a_copy(tmp_path):
    expected = {
        "weight": torch.randn(64, 32, dtype=torch.bfloat16),
        "bias": torch.randn(64, dtype=torch.float64),
    }
    safetensors.torch.save_file(expected, tmp_path / "m.safetensors")
    columns = farfeed.load_safetensors(tmp_path / "m.safetensors", device=torch.device("cpu"))
    state = {name: torch.from_dlpack(column) for name, column in columns.items()}
    assert state["weight"].data_ptr() == torch.from_dlpack(columns["weight"]).data_ptr()
    assert state["weight"].data_ptr() % 256 == state["bias"].data_ptr() % 256 == 0
    # A tensor keeps the memory of all; nothing else needs to be held.
    del columns
    gc.collect()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    state["bias"].zero_()
    assert not state["bias"].any() and torch.equal(state["weight"], expected["weight"])


def test_what_is_wrong_is_named(model, tmp_path):
    place, _ = model
    with pytest.raises(farfeed.NotFoundError, match="model-2"):
        farfeed.load_safetensors(place / "model-{2..3}.safetensors")
    with pytest.raises(farfeed.ConfigError, match="is in .*model-0.safetensors and in"):
        farfeed.load_safetensors([place / "model-0.safetensors", place / "model-0.safetensors"])
    whole = (place / "model-0.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-1])
    with pytest.raises(farfeed.CorruptError, match="cut.safetensors.*end at byte"):
        farfeed.load_safetensors(tmp_path / "cut.safetensors")
    torch_only = {"scale": torch.zeros(8, dtype=torch.float8_e4m3fn)}
    safetensors.torch.save_file(torch_only, tmp_path / "f8.safetensors")
    with pytest.raises(farfeed.UnsupportedError, match="'scale'.*F8_E4M3"):
        farfeed.load_safetensors(tmp_path / "f8.safetensors")
