"""The loader: options, epochs, states, ranks, reports."""

import json
import os
import pickle
import time
from pathlib import Path

import pytest

import datasets
import farfeed


def orders(loader) -> list[list[int]]:
    return [batch.sample_ids for batch in loader]


def test_a_loop_is_an_epoch_and_the_next_loop_the_next_one(tokens):
    with datasets.token_loader(tokens) as loader:
        assert len(loader) == 25 and loader.samples == 200 and loader.batch_size == 8 and loader.device == "cpu"
        first, second = orders(loader), orders(loader)
        assert len(first) == len(second) == 25
        assert sorted(sum(first, [])) == sorted(sum(second, [])) == list(range(200))
        assert first != second
        assert loader.current_epoch == 2
        assert orders(loader.epoch(0)) == first
        assert loader.current_epoch == 1
        loader.set_epoch(1)
        assert orders(loader) == second


def test_a_loop_that_was_left_goes_on_and_an_epoch_can_begin_again(tokens):
    with datasets.token_loader(tokens) as loader:
        whole = orders(loader.epoch(0))
        loader.set_epoch(0)
        batches = iter(loader)
        assert [next(batches).sample_ids for _ in range(3)] == whole[:3]
        assert orders(loader) == whole[3:]
        loader.set_epoch(0)
        next(iter(loader))
        loader.set_epoch(0)
        assert next(iter(loader)).sample_ids == whole[1], "it stands in that epoch already"
        loader.set_epoch(0, from_start=True)
        assert orders(loader) == whole


def test_taking_exactly_len_batches_is_an_epoch(tokens):
    """Loops that count steps never see the end of the iterator."""
    with datasets.token_loader(tokens) as loader:
        seen = []
        for _ in range(3):
            batches = iter(loader)
            seen.append([next(batches).sample_ids for _ in range(len(loader))])
            assert next(batches, None) is None
        assert [sorted(sum(epoch, [])) for epoch in seen] == [list(range(200))] * 3
        # One stream: nothing was read anew.
        assert loader.stats()["rereads"] == 0 and loader.current_epoch == 3


def test_epochs_can_end(tokens):
    with datasets.token_loader(tokens, epochs=2) as loader:
        assert [len(orders(loader)) for _ in range(4)] == [25, 25, 0, 0]


@pytest.mark.parametrize("taken", [0, 1, 7, 24, 25, 26])
def test_a_state_brings_back_the_rest(tokens, taken):
    """R14."""
    with datasets.token_loader(tokens, epochs=2) as loader:
        stream = orders(loader) + orders(loader)
    with datasets.token_loader(tokens, epochs=2) as loader:
        while taken:
            for batch in loader:
                taken -= 1
                if not taken:
                    break
        state = json.loads(json.dumps(loader.state_dict()))
        rest = orders(loader) + orders(loader)
    assert rest == stream[len(stream) - len(rest) :]
    for resumed in (datasets.token_loader(tokens, epochs=2), datasets.token_loader(tokens, epochs=2, state=state)):
        with resumed as loader:
            if loader.state_dict() != state:
                loader.load_state_dict(state)
            assert loader.state_dict() == state
            assert orders(loader) + orders(loader) == rest


def test_a_state_is_small_quick_and_counts_what_was_taken(tokens):
    """R14: O(1), cheap at each step, and not a word of what was read ahead."""
    with datasets.token_loader(tokens) as loader:
        batches = iter(loader)
        for taken in range(1, 6):
            next(batches)
            assert loader.state_dict()["position"] == 8 * taken
        state = loader.state_dict()
        assert set(state) == {"version", "fingerprint", "seed", "window", "lanes", "epoch", "position"}
        assert all(type(value) is int for value in state.values()) and len(json.dumps(state)) < 200
        began = time.perf_counter()
        for _ in range(200):
            loader.state_dict()
        assert (time.perf_counter() - began) / 200 < 1e-3


@pytest.mark.parametrize(
    "change, error, named",
    [
        ({"seed": 6}, farfeed.ConfigError, "seed"),
        ({"window": 7}, farfeed.ConfigError, "window"),
        ({"fingerprint": 7}, farfeed.ConfigError, "fingerprint"),
        ({"lanes": 7}, farfeed.TopologyError, "lanes"),
        ({"position": 3}, farfeed.TopologyError, "3 samples"),
        ({"position": 10**6}, farfeed.ConfigError, "position"),
        ({"version": 99}, farfeed.UnsupportedError, "version 99"),
        ({"version": -1}, farfeed.ConfigError, "version"),
        ({"lanes": 2**40}, farfeed.ConfigError, "lanes"),
        ({"epoch": "one"}, farfeed.ConfigError, "epoch"),
    ],
)
def test_a_state_of_another_job_is_refused(tokens, change, error, named):
    """R14: no silent mismatch."""
    with datasets.token_loader(tokens) as loader:
        before = loader.state_dict()
        with pytest.raises(error, match=named):
            loader.load_state_dict({**before, **change})
        assert loader.state_dict() == before
        for nonsense in ({}, {"epoch": 1}, [1, 2], None):
            with pytest.raises(farfeed.ConfigError, match="not a state"):
                loader.load_state_dict(nonsense)


def test_ranks_have_as_many_batches_and_each_sample_once(tokens):
    """R10, and the same stream however many ranks it is dealt to."""
    with datasets.token_loader(tokens, batch_size=12, lanes=12) as loader:
        alone = [sorted(ids) for ids in orders(loader)]
    for world_size in (2, 3, 4):
        ranks = []
        for rank in range(world_size):
            with datasets.token_loader(
                tokens, batch_size=12 // world_size, lanes=12, rank=rank, world_size=world_size
            ) as loader:
                assert (loader.rank, loader.world_size) == (rank, world_size)
                ranks.append(orders(loader))
                assert len(ranks[-1]) == len(loader)
        assert len({len(batches) for batches in ranks}) == 1
        together = [sorted(sum(parts, [])) for parts in zip(*ranks, strict=True)]
        assert together == alone


def test_a_state_goes_on_with_another_world_size(tokens):
    with datasets.token_loader(tokens, batch_size=12, lanes=12) as loader:
        batches = iter(loader)
        for _ in range(5):
            next(batches)
        state, rest = loader.state_dict(), [sorted(batch.sample_ids) for batch in batches]
    ranks = []
    for rank in range(3):
        with datasets.token_loader(tokens, batch_size=4, rank=rank, world_size=3, state=state) as loader:
            assert loader.state_dict() == state
            ranks.append(orders(loader))
    assert [sorted(sum(parts, [])) for parts in zip(*ranks, strict=True)] == rest


def test_the_same_at_any_distance(tokens):
    with datasets.token_loader(tokens) as loader:
        near = orders(loader)
    with farfeed.emulate.serve(tokens.parent, rtt_ms=15, rate="50MB", unavailable=0.1, cut=0.1, seed=3) as url:
        with datasets.token_loader(f"{url}/train.bin") as loader:
            assert orders(loader) == near


def test_shuffles_are_written_in_several_ways(tokens):
    def order(**options):
        with datasets.token_loader(tokens, **{"shuffle": None, **options}) as loader:
            return sum(orders(loader), [])

    assert order() == order(shuffle=False) == order(seed=4) == list(range(200))
    assert order(shuffle=True) == order(shuffle=farfeed.Shuffle()) == order(shuffle=farfeed.Shuffle(16_384, 0))
    assert order(shuffle=True, seed=4) == order(shuffle=farfeed.Shuffle(window=16_384, seed=4)) != order(shuffle=True)
    assert order(shuffle=farfeed.Shuffle(seed=1), seed=4) == order(shuffle=True, seed=4)


def test_shards_are_named_in_several_ways(shards, tokens):
    parts = [shards.replace("{0..1}", str(part)) for part in range(2)]
    for urls in (shards, parts, [Path(part) for part in parts], tuple(parts), f"file://{shards}"):
        with datasets.shard_loader(urls) as loader:
            assert loader.samples == 100
    with datasets.shard_loader(Path(parts[0])) as loader:
        assert loader.samples == 50
    for urls in ([], None, 3, [None], b"bytes.tar"):
        with pytest.raises((TypeError, farfeed.ConfigError)):
            datasets.shard_loader(urls)


def test_every_option_is_taken(shards, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"shard": "part-0.tar", "key": "0004"}\n')
    options = dict(
        index=shards.replace("part-{0..1}.tar", "part.ffindex"),
        drop_last=True, shuffle=True, seed=3, shrink_window=True, lanes=4, rank=0, world_size=2, epochs=3, device="cpu",
        batches_ahead=3, device_memory="1GiB", host_memory=16 << 20, page_size="64KiB", block_size="1MiB", requests=8,
        in_flight="4MiB", max_rate="1GB", retry=farfeed.Retry(patience=5), hedge=False, verify=False,
        on_error=farfeed.Skip(limit=3), quarantine=tmp_path / "bad.jsonl", patience=60.5,
        storage_options={"region": "nowhere", "allow_http": True}, trace=100,
    )
    with datasets.shard_loader(shards, **options) as loader:
        keys = [key for batch in loader for key in batch.sample_keys]
        assert len(keys) == len(set(keys)) and "0004" not in keys
        plan = loader.plan()
        assert (plan["lanes"], plan["world_size"], plan["slots"], plan["page_bytes"]) == (4, 2, 5, 65536)
        assert (plan["in_flight_bytes"], plan["requests"], plan["max_rate"]) == (4 << 20, 8, 10**9)
        explained = " ".join(loader.explain().split())
        assert str(plan) in loader.explain()
        for part in ("seed 3", "3: the stream ends then", "nothing has arrived for 5s", "not raced", "not checked", "at most 3", "1 named", "60.5s"):
            assert part in explained, f"{part} is not in {explained}"
        assert {span["lane"] for span in loader.trace()} >= {"fetch", "copy"}


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 0}, {"world_size": 2}, {"rank": 2, "world_size": 2}, {"host_memory": "4 gigs"}, {"device": "gpu"}, {"hedge": 1.5},
        {"on_error": "ignore"}, {"patience": -1.0}, {"patience": float("nan")}, {"retry": farfeed.Retry(idle=-1)},
        {"batch_size": 0}, {"host_memory": "64KiB"}, {"page_size": 1000}, {"lanes": 0},
        {"quarantine": [{"shard": 3}]}, {"storage_options": {"no_such_option": "1"}, "urls": "s3://nobody/x.tar"},
    ],
)
def test_bad_options_are_value_errors_that_say_what_to_do(shards, options):
    urls = options.pop("urls", shards)
    with pytest.raises(ValueError) as caught:
        datasets.shard_loader(urls, **options)
    assert isinstance(caught.value, farfeed.Error) and caught.value.kind in ("config", "topology")


@pytest.mark.parametrize("options", [{"batch_size": -1}, {"fields": {"cls": int}}, {"fields": ["cls"]}, {"progress": 3, "index": 4}, {"nonsense": 1}])
def test_wrong_types_are_errors_of_python(shards, options):
    with pytest.raises((TypeError, OverflowError)):
        datasets.shard_loader(shards, **{**options})


def test_a_closed_loader_says_so(tokens):
    loader = datasets.token_loader(tokens)
    batches = iter(loader)
    next(batches)
    loader.close()
    loader.close()
    for use in (lambda: next(batches), lambda: iter(loader), lambda: len(loader), loader.state_dict, loader.stats, loader.plan):
        with pytest.raises(farfeed.ConfigError, match="closed"):
            use()
    assert next(batches, None) is None
    assert "closed" in repr(loader)


def test_reports_are_dicts_of_plain_numbers_that_read_as_text(tokens):
    with datasets.token_loader(tokens) as loader:
        for _batch in loader:
            pass
        stats = loader.stats()
        assert isinstance(stats, dict) and str(stats).startswith("bound by: ") and stats["summary"] == str(stats)
        assert (stats["batches"], stats["samples"]) == (25, 200) and stats["fetch"]["bytes"] >= 3200
        assert json.loads(json.dumps(stats)) == stats == pickle.loads(pickle.dumps(stats))
        plan = loader.plan()
        assert plan["batches_per_epoch"] == 25 and "25 batches of 8 samples" in str(plan)
        assert "25 batches of 8 on cpu" in repr(loader)


def test_an_index_is_made_once_with_progress(tmp_path):
    pattern = datasets.write_shards(tmp_path, 40)
    (tmp_path / "part.ffindex").unlink()
    heard = []
    with datasets.shard_loader(pattern, progress=heard.append):
        pass
    assert heard[-1].bytes == heard[-1].bytes_total > 0
    assert (heard[-1].shards, heard[-1].shards_total, heard[-1].samples) == (2, 2, 40)
    report = farfeed.index(pattern)
    assert report["path"] == str(tmp_path / "part.ffindex") and os.path.exists(report["path"])
    assert (report["samples"], report["shards"], report["skipped"]) == (40, 2, 0) and "40 samples" in str(report)
    heard.clear()
    with datasets.shard_loader(pattern, progress=heard.append) as loader:
        assert loader.samples == 40
    assert not heard, "there is an index"
    with farfeed.emulate.serve(tmp_path) as url:
        remote = f"{url}/part-{{0..1}}.tar"
        with pytest.raises(farfeed.ConfigError, match="output"):
            farfeed.index(remote)
        other = farfeed.index(remote, tmp_path / "other.ffindex")
        with datasets.shard_loader(remote, index=other["path"]) as loader:
            assert loader.samples == 40
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".farfeed")]


def test_what_a_progress_callback_raises_ends_the_building(tmp_path):
    pattern = datasets.write_shards(tmp_path, 40)
    (tmp_path / "part.ffindex").unlink()

    def stop(progress):
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        datasets.shard_loader(pattern, progress=stop)


def test_bad_samples_are_left_out_where_that_is_asked_for(tmp_path):
    pattern = datasets.write_shards(tmp_path, 40)
    shard = tmp_path / "part-1.tar"
    data = bytearray(shard.read_bytes())
    at = data.index(b'{"n": 13}')
    data[at + 6] ^= 1
    shard.write_bytes(data)
    with datasets.shard_loader(pattern) as loader, pytest.raises(farfeed.CorruptError, match="0013"):
        for _batch in loader:
            pass
    with datasets.shard_loader(pattern, on_error="skip") as loader:
        labels = [label for batch in loader for label in batch.ints("cls")]
        assert sorted(labels) == [n for n in range(40) if n != 13]
        (bad,) = loader.quarantined()
        assert (bad["key"], bad["field"]) == ("0013", "json") and loader.stats()["left_out"] == 1
    with datasets.shard_loader(pattern, quarantine=[bad]) as loader:
        assert len([label for batch in loader for label in batch.ints("cls")]) == 39
        assert loader.quarantined() == []


def test_a_probe_measures_the_link(tokens, tmp_path):
    (tmp_path / "data.bin").write_bytes(bytes(4 << 20))
    with farfeed.emulate.serve(tmp_path, rtt_ms=5, rate="50MB") as url:
        report = farfeed.probe(f"{url}/data.bin", need="10GB", seconds=3, connections=8)
    assert report["rtt_s"] > 0.003 and report["steady"]["goodput_bytes_s"] > 1e6
    assert report["verdict"]["answer"] == "no" and report["verdict"]["text"] in str(report)


def test_options_can_be_pickled_compared_and_read():
    for option in (
        farfeed.Bytes(), farfeed.Int(), farfeed.Float(), farfeed.Json(), farfeed.Array("float32", (3, 4)), farfeed.Array("uint8", (5,)),
        farfeed.Array("uint16", (5,), widen="int64"), farfeed.Array("uint8", (8, 6, 3), channels_first=True, normalize=farfeed.Normalize.imagenet("float16")),
        farfeed.Normalize([0.1, 0.2], [0.3, 1e-7], "bfloat16"), farfeed.Normalize.scaled(), farfeed.Normalize([0.5], [2], channels_first=True),
        farfeed.Tokens("uint16", 128), farfeed.Tokens("int32", 7, with_next=True), farfeed.Tokens("uint16", 7, widen="int64"), farfeed.Shuffle(7, 8), farfeed.Retry(idle=3.5), farfeed.Skip(4),
    ):
        again = pickle.loads(pickle.dumps(option))
        assert again == option and type(again) is type(option)
        assert eval(repr(option), vars(farfeed)) == option
    assert farfeed.Bytes() != farfeed.Int() and farfeed.Shuffle(1) != farfeed.Shuffle(2)


def test_a_loader_cannot_be_sent_to_another_process(tokens):
    with datasets.token_loader(tokens) as loader, pytest.raises(TypeError, match="state_dict"):
        pickle.dumps(loader)


def test_types_are_named_in_several_ways():
    import numpy

    for dtype in ("uint16", numpy.uint16, numpy.dtype("uint16"), "torch.uint16"):
        assert farfeed.Tokens(dtype, 3) == farfeed.Tokens("uint16", 3)
    with pytest.raises(farfeed.ConfigError, match="u16") as caught:
        farfeed.Tokens("u16", 3)
    assert "uint16" in caught.value.advice
