"""What users of other loaders suffer from, held off: those requirements that no other file here has a test for (docs/python.md has all)."""

import os
import re
import threading
from collections import namedtuple
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import datasets
import farfeed

Asked = namedtuple("Asked", "method path range if_match")


@contextmanager
def plain_server(directory: Path, cut: int = 0):
    """A web server of Python's own for `directory`, which breaks off its first `cut` bodies of some length half-way. Gives URL,
    log, and the bytes that were the first ones not to be sent."""
    log, broken, lock = [], [], threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body):
            wanted = self.headers.get("Range")
            with lock:
                log.append(Asked(self.command, self.path, wanted, self.headers.get("If-Match")))
            file = directory / self.path.lstrip("/")
            if not file.is_file():
                return self.send_error(404)
            data = file.read_bytes()
            start, end = 0, len(data)
            if wanted:
                first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted).groups()
                start, end = int(first), min(int(last or len(data) - 1) + 1, len(data))
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(end - start))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", '"one"')
            self.end_headers()
            if not body:
                return None
            data = data[start:end]
            with lock:
                breaks = len(data) > 1000 and len(broken) < cut
                if breaks:
                    broken.append(start + len(data) // 2)
            self.wfile.write(data[: len(data) // 2] if breaks else data)
            self.close_connection = self.close_connection or breaks
            return None

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", log, broken
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_nothing_is_written_to_disk(run, tokens, tmp_path):
    """R5: there is no cache that could be left half-written, shared wrongly, or delete what it did not download."""
    program = """
import datasets, farfeed, os, sys
os.chdir(sys.argv[2])
with farfeed.emulate.serve(os.path.dirname(sys.argv[1])) as url:
    loader = datasets.token_loader(url + "/" + os.path.basename(sys.argv[1]))
    assert sum(batch.size for batch in loader) == 200
"""
    places = {name: str(tmp_path) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")}
    run(program, tokens, tmp_path, environment=places)
    assert os.listdir(tmp_path) == []


def test_training_lists_nothing(shards):
    """R6: the index in one request, and for each shard no more than its size, before the first byte of a sample."""
    directory = Path(shards).parent
    with plain_server(directory) as (url, log, _):
        loader = datasets.shard_loader(f"{url}/{Path(shards).name}")
        before = list(log)
        assert sum(batch.size for batch in loader) == 100
        loader.close()
    assert {asked.path for asked in log} == {f"/{name}" for name in os.listdir(directory)}
    indexes = [asked for asked in before if asked.path.endswith("index") and asked.method == "GET"]
    assert len(indexes) == 1
    assert len(before) <= 2 + 2 * 2, before


def test_a_body_that_breaks_off_goes_on_where_it_broke(tmp_path):
    """R7: a retry asks for the rest, of the same version of the object, and not for everything again."""
    samples = 4000
    datasets.write_tokens(tmp_path / "train.bin", samples)
    with plain_server(tmp_path, cut=3) as (url, log, broken):
        loader = datasets.token_loader(f"{url}/train.bin", shuffle=None)
        ids = [n for batch in loader for n in datasets.ids_of(memoryview(batch["tokens"]).tolist())]
        stats = loader.stats()
        loader.close()
    assert ids == list(range(samples))
    assert stats["retries"] >= 3
    assert len(broken) == 3
    for at in broken:
        assert any(asked.range.startswith(f"bytes={at}-") and asked.if_match == '"one"' for asked in log if asked.range), (at, log)


def test_memory_has_one_bound(run, tmp_path):
    """R9: pages, slots and what is beside them stay below what was asked for, however much is read."""
    datasets.write_tokens(tmp_path / "train.bin", 8000)
    program = """
import datasets, farfeed, resource, sys
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
loader = datasets.token_loader(sys.argv[1], host_memory="32MiB")
for epoch in range(200):
    assert sum(batch.size for batch in loader) == 8000
plan = loader.plan()
bound = (32 << 20) + plan["slots"] * plan["slot_bytes"] + (64 << 20)
assert peak() - before <= bound, (peak() - before, bound)
"""
    run(program, tmp_path / "train.bin")
