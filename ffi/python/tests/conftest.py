"""Datasets whose every value is known, and programs that must run in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import datasets

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """The pattern of two WebDataset shards with 100 samples and an index."""
    return datasets.write_shards(tmp_path_factory.mktemp("shards"), 100)


@pytest.fixture(scope="session")
def tokens(tmp_path_factory):
    """A token file of 200 samples."""
    return datasets.write_tokens(tmp_path_factory.mktemp("tokens") / "train.bin", 200)


@pytest.fixture
def run():
    """Runs a program in a process of its own, for at most a minute: what it prints, if it ends well."""

    def run(program: str, *arguments: object, environment: dict[str, str] | None = None) -> str:
        path = os.pathsep.join([str(HERE), *filter(None, sys.path)])
        known = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
        ended = subprocess.run(
            [sys.executable, "-W", "ignore:farfeed was built", "-c", program, *map(str, arguments)],
            env={**known, "PYTHONPATH": path, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        assert ended.returncode == 0, f"exit status {ended.returncode}\n{ended.stdout}"
        return ended.stdout

    return run
