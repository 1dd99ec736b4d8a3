"""Two processes under torchrun: each sample once, the same weights on both, and a checkpoint that one process goes on with."""

import json
import os
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "distributed.py"
STEPS = 48
STOPPED = 20


def torchrun(ranks: int, *arguments) -> list[dict]:
    """What the ranks told of every step."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    ran = subprocess.run(
        [*launch, str(EXAMPLE), *map(str, arguments), "--json"],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    return [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]


def by_batch(notes: list[dict]) -> dict[int, list[dict]]:
    batches: dict[int, list[dict]] = {}
    for note in notes:
        batches.setdefault(note["batch"], []).append(note)
    return batches


def test_two_processes_stop_and_one_goes_on(tmp_path):
    two = by_batch(torchrun(2, tmp_path, "--stop-after", STOPPED))
    rest = by_batch(torchrun(1, tmp_path))
    (tmp_path / "checkpoint").rename(tmp_path / "checkpoint-of-two")
    whole = by_batch(torchrun(1, tmp_path))

    assert sorted(two) == list(range(STOPPED)) and sorted(rest) == list(range(STOPPED, STEPS)) and sorted(whole) == list(range(STEPS))
    for batch, notes in two.items():
        assert sorted(note["rank"] for note in notes) == [0, 1]
        assert notes[0]["weight"] == notes[1]["weight"], f"the ranks' weights differ after batch {batch}"
        assert sorted(notes[0]["ids"] + notes[1]["ids"]) == sorted(whole[batch][0]["ids"]), f"global batch {batch}"
    for batch, notes in rest.items():
        assert notes[0]["ids"] == whole[batch][0]["ids"]
    seen = [id for notes in (*two.values(), *rest.values()) for note in notes for id in note["ids"]]
    assert sorted(seen) == list(range(STEPS * 32)), "each sample once, over both world sizes"
    # The mean over the ranks is taken in another order than over one batch, so it is not the same to the last bit.
    assert abs(rest[STEPS - 1][0]["loss"] - whole[STEPS - 1][0]["loss"]) < 1e-3
