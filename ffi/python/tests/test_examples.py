"""Every example runs as it is shown, with fewer steps, and what it claims is so."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments, timeout_s: float = 240) -> str:
    ran = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)], capture_output=True, text=True, timeout=timeout_s,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    return ran.stdout


@pytest.mark.parametrize("name, steps", [("images.py", 48), ("language.py", 64)])
def test_training_is_the_same_near_far_and_interrupted(name, steps):
    output = run(name, "--steps", steps, "--json")
    report = json.loads(output.splitlines()[-1])
    assert report["steps"] == steps == len(report["losses"])
    # The example itself compares every loss, and fails where one differs in a bit.
    assert "the same, bit for bit" in output
    tenth = steps // 10
    assert sum(report["losses"][-tenth:]) < 0.9 * sum(report["losses"][:tenth]), "it learns"
    # Their steps were taken in turn, so that other work on this machine lengthens both.
    assert report["median_ms"]["far"] < 1.2 * report["median_ms"]["near"]
    assert report["step_ms"]["far"] < 1.5 * report["step_ms"]["near"] + 5


def test_the_usual_loop_and_ours_go_the_same_number_of_steps():
    rows = json.loads(run("usual.py", "--steps", 16, "--rtt-ms", 0, 15, "--json"))
    assert [(row["loop"], row["rtt_ms"]) for row in rows] == [("usual", 0), ("farfeed", 0), ("usual", 15), ("farfeed", 15)]
    assert all(row["steps"] == 16 and row["step_ms"] > 0 for row in rows)


def test_jax_trains_on_several_devices():
    assert "40 steps on 4 devices" in run("jax_sharded.py")


def test_every_example_is_run_by_a_test():
    tested = {"images.py", "language.py", "usual.py", "jax_sharded.py", "distributed.py", "ray_train.py"}
    shared = {"corpus.py", "rehearsal.py"}
    assert {file.name for file in EXAMPLES.glob("*.py")} == tested | shared
