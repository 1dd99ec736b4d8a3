"""Tensors from batches: what is in them, whose memory it is, and how a loop under torch's own loaders goes on after an interruption."""

import json

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.utils.data import DataLoader, IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

import farfeed
import farfeed.torch
from datasets import TOKENS, ids_of, shard_loader, token_loader

SAMPLES = 200
BATCHES = SAMPLES // 8


def consumed(batches) -> list[list[int]]:
    return [ids_of(batch["tokens"]) for batch in batches]


def test_dense_columns_are_tensors_in_the_slots_memory(tokens):
    with token_loader(tokens) as loader:
        batch = next(iter(loader))
        tensor = farfeed.torch.tensors(batch)["tokens"]
        assert tensor.shape == (8, TOKENS) and tensor.dtype == torch.uint16 and tensor.device.type == "cpu"
        assert tensor.data_ptr() == batch["tokens"].numpy().__array_interface__["data"][0]
        assert tensor.long().tolist() == [[TOKENS * id + n for n in range(TOKENS)] for id in batch.sample_ids]


def test_numbers_become_tensors_of_one_element_for_each_sample(shards):
    with shard_loader(shards) as loader:
        first = farfeed.torch.tensors(next(iter(loader)))
        numbers = first["cls"]
        assert numbers.dtype == torch.int64 and numbers.shape == (8,)
        assert first["score"].dtype == torch.float64
        assert first["score"].tolist() == [n / 4 for n in numbers.tolist()]


@pytest.mark.parametrize("ragged", ["pair", "list", "nested"])
def test_ragged_columns_come_in_three_layouts(shards, ragged):
    seen = []
    with shard_loader(shards, epochs=1) as loader:
        for batch in farfeed.torch.Dataset(loader, ragged=ragged):
            column = batch["bin"]
            rows = {"pair": lambda: column.rows(), "list": lambda: column, "nested": lambda: column.unbind()}[ragged]()
            assert len(rows) == len(batch["cls"])
            for n, row in zip(batch["cls"].tolist(), rows):
                assert row.dtype == torch.uint8 and row.tolist() == [n] * (n % 7)
                seen.append(n)
            del batch, column, rows, row
    assert sorted(seen) == list(range(100))


def test_rows_are_views_of_the_values(shards):
    with shard_loader(shards) as loader:
        values, offsets = column = farfeed.torch.tensors(next(iter(loader)))["bin"]
        assert offsets.dtype == torch.int64 and offsets[-1] == len(values)
        begins = [values.data_ptr() + begin for begin in offsets[:-1].tolist()]
        found = [row.data_ptr() for row in column.rows()]
        assert [a for a, row in zip(found, column.rows()) if len(row)] == [a for a, row in zip(begins, column.rows()) if len(row)]


def test_each_column_may_have_its_own_layout(shards):
    with shard_loader(shards) as loader:
        batch = next(iter(farfeed.torch.Dataset(loader, ragged={"json": "json"})))
        assert batch["json"] == [{"n": n} for n in batch["cls"].tolist()]
        assert isinstance(batch["bin"], farfeed.torch.Ragged)


def test_an_unknown_layout_is_refused(shards):
    with shard_loader(shards) as loader, pytest.raises(ValueError, match="'pairs'"):
        farfeed.torch.tensors(next(iter(loader)), ragged="pairs")


def test_the_dataset_takes_a_loader_or_its_arguments(tokens):
    options = {"tokens": farfeed.Tokens("uint16", TOKENS), "batch_size": 8, "host_memory": "16MiB", "epochs": 1}
    dataset = farfeed.torch.Dataset(tokens, **options)
    assert isinstance(dataset, IterableDataset) and len(dataset) == BATCHES
    assert sorted(sum(consumed(dataset), [])) == list(range(SAMPLES))
    with pytest.raises(TypeError, match="batch_size"):
        farfeed.torch.Dataset(dataset.loader, batch_size=8)
    dataset.loader.close()


def test_under_a_dataloader_without_workers_batches_are_the_same(tokens):
    with token_loader(tokens) as alone, token_loader(tokens) as under:
        loader = DataLoader(farfeed.torch.Dataset(under), batch_size=None)
        assert len(loader) == BATCHES
        for _epoch in range(2):
            assert consumed(loader) == consumed(farfeed.torch.Dataset(alone))


def test_ragged_pairs_pass_through_a_dataloader(shards):
    with shard_loader(shards) as loader:
        batch = next(iter(DataLoader(farfeed.torch.Dataset(loader), batch_size=None)))
        assert isinstance(batch["bin"], farfeed.torch.Ragged)


# R4: processes are forked or spawned around a loader, and say what is wrong instead of hanging. In a process of its own: this one may have
# threads of other packages, which do not stand forking.
@pytest.mark.parametrize("context, error", [("fork", "RuntimeError"), ("spawn", "TypeError")])
def test_workers_are_refused_with_advice(run, tokens, context, error):
    program = f"""
import sys
from torch.utils.data import DataLoader
import farfeed.torch
from datasets import token_loader
if __name__ == "__main__":
    with token_loader(sys.argv[1]) as loader:
        dataset = farfeed.torch.Dataset(loader)
        try:
            next(iter(DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="{context}", timeout=60)))
        except {error} as refused:
            assert "num_workers=0" in str(refused), refused
        else:
            raise AssertionError("a worker gave a batch")
        assert sum(1 for batch in dataset) == {BATCHES}, "the parent's loader is whole"
        print("refused")
"""
    assert run(program, tokens).endswith("refused\n")


def test_tensors_hold_their_slot_and_letting_go_gives_it_back(tokens):
    with token_loader(tokens, batches_ahead=1) as loader:
        held = []
        with pytest.raises(farfeed.Error, match="held"):
            for batch in farfeed.torch.Dataset(loader):
                held.append(batch["tokens"])
        contents = [tensor.clone() for tensor in held]
        assert 0 < len(held) < BATCHES
        assert all(tensor.equal(copy) for tensor, copy in zip(held, contents))
        held.clear()
        assert len(consumed(farfeed.torch.Dataset(loader))) == BATCHES - len(contents), "the rest of the epoch"


def test_tensors_outlive_the_loader(tokens):
    with token_loader(tokens) as loader:
        batch = next(iter(loader))
        ids, tensor = list(batch.sample_ids), farfeed.torch.tensors(batch)["tokens"]
    del batch, loader
    assert ids_of(tensor) == ids


def test_a_state_taken_anywhere_gives_the_rest(tokens):
    with token_loader(tokens) as loader:
        dataset = farfeed.torch.Dataset(loader)
        first, states = [], []
        for batch in dataset:
            first.append(ids_of(batch["tokens"]))
            states.append(json.loads(json.dumps(dataset.state_dict())))
            del batch
        second = consumed(dataset)
    for done in (1, 7, BATCHES - 1):
        with token_loader(tokens) as loader:
            dataset = farfeed.torch.Dataset(loader)
            dataset.load_state_dict(states[done - 1])
            assert consumed(dataset) == first[done:]
            assert consumed(dataset) == second


# R14: a state says what it belongs to, and another job refuses it.
def test_the_state_of_another_order_is_refused(tokens):
    with token_loader(tokens) as loader, token_loader(tokens, shuffle=farfeed.Shuffle(window=64, seed=6)) as other:
        with pytest.raises(ValueError, match="seed"):
            farfeed.torch.Dataset(other).load_state_dict(farfeed.torch.Dataset(loader).state_dict())


def test_a_stateful_dataloader_goes_on_where_the_consumer_stood(tokens):
    def stateful(loader) -> StatefulDataLoader:
        return StatefulDataLoader(farfeed.torch.Dataset(loader), batch_size=None)

    with token_loader(tokens) as loader:
        epochs = [consumed(stateful(loader)) for _epoch in range(3)]
    for done in (0, 5, BATCHES - 1):
        with token_loader(tokens) as loader:
            batches = stateful(loader)
            consumed(batches)
            iterator = iter(batches)
            before = [ids_of(next(iterator)["tokens"]) for _ in range(done)]
            state = json.loads(json.dumps(batches.state_dict()))
        with token_loader(tokens) as loader:
            batches = stateful(loader)
            batches.load_state_dict(state)
            assert before + consumed(batches) == epochs[1]
            assert consumed(batches) == epochs[2]


def test_a_stateful_dataloader_that_ended_an_epoch_begins_the_next(tokens):
    with token_loader(tokens) as loader:
        batches = StatefulDataLoader(farfeed.torch.Dataset(loader), batch_size=None)
        first = consumed(batches)
        state = batches.state_dict()
        second = consumed(batches)
    assert first != second
    with token_loader(tokens) as loader:
        batches = StatefulDataLoader(farfeed.torch.Dataset(loader), batch_size=None)
        batches.load_state_dict(state)
        assert consumed(batches) == second


def test_a_distributed_checkpoint_keeps_the_state(tokens, tmp_path):
    with token_loader(tokens) as loader:
        dataset = farfeed.torch.Dataset(loader)
        iterator = iter(dataset)
        before = [ids_of(next(iterator)["tokens"]) for _ in range(4)]
        dcp.save({"data": dataset, "weight": torch.ones(3)}, checkpoint_id=tmp_path / "checkpoint")
    with token_loader(tokens) as loader:
        epoch = consumed(farfeed.torch.Dataset(loader))
    with token_loader(tokens) as loader:
        dataset = farfeed.torch.Dataset(loader)
        dcp.load({"data": dataset, "weight": torch.zeros(3)}, checkpoint_id=tmp_path / "checkpoint")
        assert before + consumed(dataset) == epoch


# R2: a process group is the program's business.
def test_nothing_here_initialises_a_process_group(tokens, monkeypatch):
    def refuse(*_arguments, **_options):
        raise AssertionError("a process group was initialised")

    monkeypatch.setattr(torch.distributed, "init_process_group", refuse)
    with token_loader(tokens) as loader:
        consumed(DataLoader(farfeed.torch.Dataset(loader), batch_size=None))
    assert not torch.distributed.is_initialized()
