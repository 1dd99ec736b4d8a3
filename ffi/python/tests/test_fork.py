"""R4: a fork copies no threads; what belongs to the parent says so in the child, and lets it end."""

FORKED = """
import gc, os, sys, time
import datasets, farfeed

def child(work):
    # Ends in every case, and within seconds, so that a child which hangs is told from one that works.
    number = os.fork()
    if number == 0:
        import signal
        signal.alarm(20)
        work()
        gc.collect()
        sys.stdout.flush()
        os._exit(0)
    _, status = os.waitpid(number, 0)
    assert status == 0, f"the child ended with {status}"

def refused(call):
    try:
        call()
    except farfeed.UnsupportedError as error:
        assert "child" in str(error) and "spawn" in error.advice, error
    else:
        raise AssertionError(f"{call} works in a child")
"""


def test_a_loader_in_a_child_is_a_clear_error(run, tokens):
    program = FORKED + """
loader = datasets.token_loader(sys.argv[1])
batches = iter(loader)
batch = next(batches)
column = batch["tokens"]
def work():
    for call in (lambda: next(batches), lambda: iter(loader), lambda: len(loader), loader.state_dict, loader.stats, loader.close):
        refused(call)
    for call in (lambda: batch["tokens"], lambda: batch.sample_ids, column.__dlpack__, column.numpy):
        refused(call)
for _ in range(3):
    child(work)
# The parent goes on as if nothing had been.
assert sum(1 for batch in batches) == len(loader) - 1
print("well")
"""
    assert run(program, tokens).endswith("well\n")


def test_a_child_of_a_busy_loader_is_told_at_once(run, tokens):
    program = FORKED + """
import threading
loader = datasets.token_loader(sys.argv[1])
batch = next(iter(loader))
over = False
def consume():
    while not over:
        for _ in loader:
            pass
def ask():
    while not over:
        loader.state_dict(), loader.stats(), loader.explain(), loader.quarantined(), loader.trace(), loader.current_epoch, batch.keys()
threads = [threading.Thread(target=consume), threading.Thread(target=ask)]
for thread in threads:
    thread.start()
def work():
    state = {}
    for call in (
        loader.state_dict, loader.stats, loader.plan, loader.explain, loader.quarantined, loader.trace, loader.close, lambda: len(loader),
        lambda: loader.current_epoch, lambda: loader.epoch(1), lambda: loader.set_epoch(1), lambda: loader.load_state_dict(state),
        lambda: list(loader), lambda: batch.size, lambda: batch.index, lambda: list(batch), batch.synchronize, batch.release,
    ):
        refused(call)
    assert repr(loader) and repr(batch) and loader.device == "cpu"
try:
    for _ in range(20):
        child(work)
finally:
    over = True
    for thread in threads:
        thread.join()
print("well")
"""
    assert run(program, tokens).endswith("well\n")


def test_a_child_lets_go_of_everything_and_ends(run, tokens):
    program = FORKED + """
def make():
    server = farfeed.emulate.serve(os.path.dirname(sys.argv[1]))
    loader = datasets.token_loader(f"{server.url}/train.bin")
    batch = next(iter(loader))
    return [server, loader, batch, batch["tokens"].numpy(), memoryview(batch["tokens"])]
def forget():
    things.clear()
for _ in range(5):
    things = make()
    child(forget)
    assert len(things) == 5
    things[1].close()
    things[0].close()
print("well")
"""
    assert run(program, tokens).endswith("well\n")


def test_a_child_that_exits_in_the_ordinary_way_ends(run, tokens):
    program = FORKED + """
loader = datasets.token_loader(sys.argv[1])
batch = next(iter(loader))
number = os.fork()
if number == 0:
    import signal
    signal.alarm(20)
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == 7
print("well")
"""
    assert run(program, tokens).endswith("well\n")


def test_a_child_may_make_its_own(run, tokens):
    program = FORKED + """
loader = datasets.token_loader(sys.argv[1])
expected = [batch.sample_ids for batch in loader]
def work():
    assert [batch.sample_ids for batch in datasets.token_loader(sys.argv[1])] == expected
child(work)
print("well")
"""
    assert run(program, tokens).endswith("well\n")


def test_errors_come_back_from_processes_that_were_spawned(run):
    program = """
import multiprocessing
import farfeed

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        try:
            pool.apply(farfeed.Loader, ("/there/is/no/train.tar",))
        except FileNotFoundError as error:
            assert isinstance(error, farfeed.NotFoundError) and "train.tar" in error.context, error
            print("well")
"""
    assert run(program).endswith("well\n")
