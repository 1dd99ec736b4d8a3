"""Finishing on the device: what torch computes out of the raw column is what comes out of the finished one, bit for bit."""

import numpy
import pytest
import torch

import datasets
import farfeed

SHAPE = (8, 6, 3)


@pytest.fixture
def pictures(tmp_path):
    """Fifty pictures, with every value of a byte in every channel."""
    values = numpy.random.default_rng(3).integers(0, 256, (50, *SHAPE), dtype=numpy.uint8)
    values.reshape(-1, 3)[:256] = numpy.arange(256, dtype=numpy.uint8)[:, None]
    numpy.save(tmp_path / "pictures.npy", values)
    return tmp_path / "pictures.npy", torch.from_numpy(values)


def column(file, **steps):
    """All rows of the finished column."""
    fields = {"data": farfeed.Array("uint8", SHAPE, **steps)}
    with farfeed.Loader(file, fields=fields, batch_size=16, host_memory="16MiB", epochs=1) as loader:
        return torch.cat([torch.from_dlpack(batch["data"]).clone() for batch in loader])


def torchvision(raw, mean, std):
    """What ToTensor and Normalize compute, of channels that are last."""
    return raw.to(torch.float32).div(255).sub(torch.tensor(mean)).div(torch.tensor(std))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels_first", [False, True])
def test_pictures_are_normalised_as_torchvision_does_it(pictures, dtype, channels_first):
    file, raw = pictures
    found = column(file, channels_first=channels_first, normalize=farfeed.Normalize.imagenet(dtype))
    wanted = torchvision(raw, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]).to(dtype)
    if channels_first:
        wanted = wanted.permute(0, 3, 1, 2).contiguous()
    assert found.dtype == dtype and found.shape == wanted.shape
    assert torch.equal(found.view(torch.uint8), wanted.view(torch.uint8))


def test_pictures_that_have_channels_first_stay_so(tmp_path):
    values = numpy.random.default_rng(4).integers(0, 256, (50, 3, 8, 6), dtype=numpy.uint8)
    numpy.save(tmp_path / "planes.npy", values)
    normalize = farfeed.Normalize.imagenet("float16", channels_first=True)
    assert normalize.channels_first and "channels_first=True" in repr(normalize)
    fields = {"data": farfeed.Array("uint8", (3, 8, 6), normalize=normalize)}
    with farfeed.Loader(tmp_path / "planes.npy", fields=fields, batch_size=16, host_memory="16MiB", epochs=1) as loader:
        found = torch.cat([torch.from_dlpack(batch["data"]).clone() for batch in loader])
    raw = torch.from_numpy(values).permute(0, 2, 3, 1)
    wanted = torchvision(raw, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]).to(torch.float16).permute(0, 3, 1, 2)
    assert torch.equal(found, wanted)


def test_one_mean_is_for_all_channels_and_planes_need_no_numbers(pictures):
    file, raw = pictures
    scaled = column(file, normalize=farfeed.Normalize.scaled())
    assert torch.equal(scaled, raw.to(torch.float32).div(255))
    # Shades from nearly nothing to beyond what a half can hold.
    narrow = farfeed.Normalize([0.0], [1e-6], "float16")
    assert torch.equal(column(file, normalize=narrow), torchvision(raw, [0.0], [1e-6]).to(torch.float16))
    assert torch.equal(column(file, channels_first=True), raw.permute(0, 3, 1, 2))
    first = farfeed.Normalize(numpy.linspace(0, 1, 8), numpy.full(8, 0.25), "bfloat16", channels_first=True)
    wanted = torchvision(raw.permute(0, 2, 3, 1), numpy.linspace(0, 1, 8).astype("f"), numpy.full(8, 0.25, "f"))
    assert torch.equal(column(file, normalize=first), wanted.to(torch.bfloat16).permute(0, 3, 1, 2))


def test_tokens_travel_narrow_and_arrive_wide(tmp_path):
    file = datasets.write_tokens(tmp_path / "tokens.bin", 100)
    tokens = farfeed.Tokens("uint16", datasets.TOKENS, with_next=True, widen=torch.int64)
    with farfeed.Loader(file, tokens=tokens, batch_size=8, host_memory="16MiB", epochs=1) as loader:
        assert "uint16" in str(loader.explain()) and "int64" in str(loader.explain())
        rows = torch.cat([torch.from_dlpack(batch["tokens"]).clone() for batch in loader])
    assert rows.dtype == torch.int64
    assert torch.equal(rows, torch.arange(99)[:, None] * datasets.TOKENS + torch.arange(datasets.TOKENS + 1))
    fields = {"tokens": farfeed.Array("uint16", (datasets.TOKENS,), widen="int32")}
    with datasets.token_loader(file, fields=fields) as loader:
        assert torch.from_dlpack(next(iter(loader))["tokens"]).dtype == torch.int32


def test_what_cannot_be_is_refused(pictures):
    for steps, text in (
        ({"widen": "float32"}, "uint8 cannot be widened to float32"),
        ({"widen": "int64", "channels_first": True}, "widened and made into a picture"),
        ({"normalize": farfeed.Normalize.imagenet("float64")}, "normalised to float64"),
        ({"normalize": farfeed.Normalize([0.5, 0.5], [1, 1])}, "2 means"),
        ({"normalize": farfeed.Normalize([0.5], [0])}, "deviation of 0"),
        # Eight rows and no channels: what was meant is an array with channels first, and the error says how that is said.
        ({"normalize": farfeed.Normalize([0.5] * 8, [1] * 8)}, r"8 means.* 3 channels.*Normalize\(\.\.\., channels_first=True\)"),
    ):
        with pytest.raises(farfeed.ConfigError, match=text):
            column(pictures[0], **steps)
    with pytest.raises(TypeError):
        farfeed.Array("uint8", SHAPE, normalize=True)
