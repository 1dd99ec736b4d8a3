"""`python -m farfeed`: the command, from the same wheel."""

import json
import os
import signal
import subprocess
import sys
import time

import farfeed

MODULE = [sys.executable, "-W", "ignore:farfeed was built", "-m", "farfeed"]


def environment(place):
    """The demo starts a server by the same interpreter: it must find the package, and its scratch goes below `place`."""
    path = os.pathsep.join(filter(None, sys.path))
    return {**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore", "TMPDIR": str(place)}


def command(place, *arguments):
    """Exit code, standard output and standard error of a command in the folder `place`."""
    ended = subprocess.run(
        [*MODULE, *map(str, arguments)], cwd=place, env=environment(place), capture_output=True, text=True, timeout=120
    )
    return ended.returncode, ended.stdout, ended.stderr


def test_it_says_which_it_is_and_how_it_is_written(tmp_path):
    assert command(tmp_path, "--version") == (0, f"farfeed {farfeed.__version__}\n", "")
    code, out, _ = command(tmp_path, "plan", "--help")
    assert code == 0 and "Usage: python -m farfeed plan" in out
    code, out, err = command(tmp_path, "fly")
    assert code == 2 and out == "" and "unrecognized subcommand 'fly'" in err


def test_what_fails_is_said_and_counted(tmp_path):
    code, out, err = command(tmp_path, "bench", "missing-{0..3}.tar")
    assert code == 1 and out == "" and err.startswith("farfeed: not found") and "missing-0.tar" in err
    code, out, err = command(tmp_path, "serve", ".", "--fail-503", 2)
    assert code == 2 and err.startswith("farfeed: ") and "no probability" in err


def test_plan_and_bench_tell_what_a_loader_does(tmp_path, tokens):
    about = [tokens, "--tokens", "uint16:16", "--batch-size", "8", "--host-memory", "16MiB"]
    code, out, err = command(tmp_path, "plan", *about)
    assert code == 0 and "order" in out, err
    code, out, err = command(tmp_path, "bench", *about, "--json")
    figures = json.loads(out)
    loader = farfeed.Loader(tokens, tokens=farfeed.Tokens("uint16", 16), batch_size=8, host_memory="16MiB", epochs=1)
    with loader:
        seen = sum(batch.size for batch in loader)
    assert code == 0 and figures["samples"] == seen > 0, err


def test_the_demo_starts_its_server_by_the_same_interpreter(tmp_path):
    small = ["--size", "20MB", "--rtt", "0,5", "--rate", "1Gbit/s", "--device", "host", "--json"]
    code, out, err = command(tmp_path, "demo", *small)
    report = json.loads(out)
    assert code == 0 and [run["rtt_ms"] for run in report["runs"]] == [0.0, 5.0], err
    assert report["samples_checked"] == 4 * report["samples"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["farfeed-demo.svg"]


def test_ctrl_c_ends_it(tmp_path):
    # One that waits for the process to be told: it ends well.
    serve = subprocess.Popen(
        [*MODULE, "serve", ".", "--json"], cwd=tmp_path, env=environment(tmp_path), stdout=subprocess.PIPE, text=True
    )
    with serve:
        assert json.loads(serve.stdout.readline())["emulated"]
        serve.send_signal(signal.SIGINT)
        assert serve.wait(timeout=30) == 0

    # One that is at work: it dies of the signal, as any other command does.
    (tmp_path / "slow.bin").write_bytes(bytes(100_000))
    endless = ["slow.bin", "--tokens", "uint16:16", "--epochs", "1000000", "--compute-ms", "10", "--host-memory", "16MiB"]
    bench = subprocess.Popen(
        [*MODULE, "bench", *endless, "--ids", "ids"], cwd=tmp_path, env=environment(tmp_path), stderr=subprocess.DEVNULL
    )
    try:
        # It has begun when it writes what it got.
        wait_until(lambda: (tmp_path / "ids").exists())
        bench.send_signal(signal.SIGINT)
        assert bench.wait(timeout=30) == -signal.SIGINT
    finally:
        bench.kill()
        bench.wait()


def wait_until(done, seconds=60):
    """Looks now and then."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)
