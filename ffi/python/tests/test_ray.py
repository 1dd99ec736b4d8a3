"""Ray Train with two local workers: each sample once, also where a worker is lost and Ray starts anew from the checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "ray_train.py"
STEPS, GLOBAL_BATCH = 24, 32


def test_two_workers_see_each_sample_once_though_one_is_lost():
    ran = subprocess.run(
        [sys.executable, EXAMPLE, "--fall-once", "--json"], capture_output=True, text=True, timeout=560,
        # Workers import torch before they answer, which takes longer than Ray waits for where many do it at once.
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "240", "RAY_AUTH_MODE": "disabled"},
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    report = json.loads(ran.stdout.splitlines()[-1])
    assert report["step"] == STEPS
    first, second = report["seen"]
    assert len(first) == len(second) == STEPS * GLOBAL_BATCH // 2
    assert sorted(first + second) == list(range(STEPS * GLOBAL_BATCH))
    assert report["fell"]
