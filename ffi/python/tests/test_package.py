"""The package: what an import costs and touches, and whether the stubs tell the truth."""

import inspect
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import farfeed
from farfeed import _farfeed, surroundings


def test_an_import_is_quick_and_brings_no_framework(run):
    """≤ 50 ms on a machine with nothing else to do: measured against the interpreter's own start, the best of several."""
    program = """
import sys, time
began = time.perf_counter()
import farfeed
took = time.perf_counter() - began
assert not {"numpy", "torch", "jax", "ray", "typing", "inspect", "json"} & set(sys.modules), sorted(sys.modules)
print(took)
"""
    took = min(float(run(program, environment={"PYTHONNOUSERSITE": "1"})) for _ in range(5))
    assert took < 0.25, f"{took:.3f} s"


def test_it_says_that_it_was_built_for_debugging_and_can_be_told_not_to(run):
    def warnings(*options):
        program = "import farfeed, farfeed.errors; import farfeed"
        path = os.pathsep.join(filter(None, sys.path))
        ended = subprocess.run(
            [sys.executable, *options, "-c", program], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=60
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stderr.count("DebugBuildWarning")

    assert warnings() == (1 if _farfeed.DEBUG_BUILD else 0)
    assert warnings("-W", "ignore:farfeed was built") == 0


def test_stubs_say_what_the_binary_has(tmp_path):
    allowed = tmp_path / "allowed"
    # Before Python 3.12 a class with buffers has no such method; and to mypy a Literal of several is a union, but not when it runs.
    allowed.write_text("farfeed\\._farfeed\\.Column\\.__(buffer|release_buffer)__\nfarfeed\\.torch\\.Layout\n")
    path = str(Path(farfeed.__file__).parents[1])
    ended = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "farfeed", "--allowlist", str(allowed), "--ignore-unused-allowlist"],
        env={**os.environ, "PYTHONPATH": path, "MYPY_CACHE_DIR": str(tmp_path / "cache")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "no issues found" in ended.stdout


def test_a_program_is_checked_against_the_stubs(tmp_path):
    """What a user's type checker says of right and wrong programs."""
    (tmp_path / "program.py").write_text("""
import farfeed
loader = farfeed.Loader(["a.tar"], fields={"cls": farfeed.Int()}, shuffle=True, device="cuda:0", host_memory="4GiB")
for batch in loader:
    reveal_type(batch["cls"])
    reveal_type(batch.sample_ids)
loader.load_state_dict(loader.state_dict())
farfeed.Loader("a.tar", batchsize=3)
loader.epochs
""")
    path = str(Path(farfeed.__file__).parents[1])
    ended = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "program.py"],
        env={**os.environ, "PYTHONPATH": path, "MYPYPATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = re.findall(r"^program.py:(\d+): (?:note: Revealed type is|error:.*\[)(.*)", ended.stdout, re.MULTILINE)
    shown = [(line, what.replace("farfeed._farfeed.", "")) for line, what in found]
    assert shown == [("5", ' "Column | Ragged"'), ("6", ' "list[int]"'), ("8", "call-arg]"), ("9", "attr-defined]")], ended.stdout


def test_everything_is_documented():
    missing = []
    for name in farfeed.__all__:
        thing = getattr(farfeed, name)
        if not (inspect.isclass(thing) or callable(thing) or inspect.ismodule(thing)):
            continue
        if not inspect.getdoc(thing):
            missing.append(name)
        if inspect.isclass(thing) and thing.__module__.startswith("farfeed"):
            for member, value in vars(thing).items():
                described = isinstance(value, (types.FunctionType, property)) or inspect.isroutine(value) or inspect.isgetsetdescriptor(value)
                if described and not member.startswith("_") and not inspect.getdoc(getattr(thing, member)):
                    missing.append(f"{name}.{member}")
    assert not missing


def test_nothing_is_left_in_shared_memory(run, tokens):
    """R1: no named shared memory, so that a crash leaves nothing behind."""
    before = set(os.listdir("/dev/shm"))
    program = """
import datasets, os, sys
loader = datasets.token_loader(sys.argv[1])
batch = next(iter(loader))
print(os.listdir("/dev/shm"), flush=True)
"""
    during = run(program, tokens)
    assert set(os.listdir("/dev/shm")) - before == set()
    assert "farfeed" not in during


RANKS = """
import sys, types
import farfeed.surroundings
assert farfeed.surroundings.ranks() == eval(sys.argv[1]), farfeed.surroundings.ranks()
assert "torch" not in sys.modules
"""


@pytest.mark.parametrize(
    "environment, expected",
    [({}, (0, 1)), ({"RANK": "2", "WORLD_SIZE": "4"}, (2, 4)), ({"LOCAL_RANK": "3"}, (0, 1))],
)
def test_ranks_come_from_the_environment(run, environment, expected):
    run(RANKS, expected, environment=environment)


@pytest.mark.parametrize("environment", [{"RANK": "2"}, {"WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}])
def test_half_a_rank_is_an_error(run, tokens, environment):
    program = """
import datasets, farfeed, sys
try:
    datasets.token_loader(sys.argv[1])
except farfeed.TopologyError as error:
    assert "RANK" in error.context and error.advice
    assert datasets.token_loader(sys.argv[1], rank=0, world_size=1).world_size == 1, "given ones count"
    print("well")
"""
    assert run(program, tokens, environment=environment).endswith("well\n")


def test_ranks_come_from_torch_where_somebody_has_initialised_it(monkeypatch):
    """R2: it is looked at, never imported and never initialised."""
    monkeypatch.setenv("RANK", "7")
    monkeypatch.setenv("WORLD_SIZE", "8")
    answers = {"is_available": True, "is_initialized": True, "get_rank": 3, "get_world_size": 5}

    class Distributed(types.ModuleType):
        def __getattr__(self, name):
            assert name in answers, f"torch.distributed.{name} was asked for"
            return lambda: answers[name]

    monkeypatch.setitem(sys.modules, "torch.distributed", Distributed("torch.distributed"))
    assert surroundings.ranks() == (3, 5)
    answers["is_initialized"] = False
    assert surroundings.ranks() == (7, 8)
    answers["is_available"] = False
    assert surroundings.ranks() == (7, 8)


def test_cuda_alone_is_the_device_that_torch_has_chosen(monkeypatch):
    class Cuda:
        available = True

        def is_available(self):
            return self.available

        def current_device(self):
            assert self.available
            return 3

    torch = types.ModuleType("torch")
    torch.cuda = Cuda()
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert [surroundings.device(name) for name in ("cuda", "cuda:1", "cpu", "best")] == ["cuda:3", "cuda:1", "cpu", "best"]
    torch.cuda.available = False
    assert surroundings.device("cuda") == "cuda"
    monkeypatch.delitem(sys.modules, "torch")
    assert surroundings.device("cuda") == "cuda"
