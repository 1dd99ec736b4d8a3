"""Errors: R4 (picklable, and a panic never crosses), and what they give away."""

import copy
import pickle

import pytest

import farfeed

CLASSES = {
    farfeed.NotFoundError: ("not_found", FileNotFoundError),
    farfeed.AuthError: ("auth", PermissionError),
    farfeed.ThrottledError: ("throttled", Exception),
    farfeed.StalledError: ("stalled", TimeoutError),
    farfeed.CorruptError: ("corrupt", Exception),
    farfeed.ConfigError: ("config", ValueError),
    farfeed.TopologyError: ("topology", ValueError),
    farfeed.DeviceError: ("device", Exception),
    farfeed.UnsupportedError: ("unsupported", Exception),
    farfeed.IoError: ("io", OSError),
}


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_can_be_caught_pickled_and_made_of_its_text(kind):
    name, base = CLASSES[kind]
    error = kind("what: where (do this)", context="where", advice="do this")
    assert isinstance(error, farfeed.Error) and isinstance(error, base) and error.kind == name
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is kind and str(again) == "what: where (do this)"
        assert (again.kind, again.context, again.advice) == (name, "where", "do this")
    # torch rebuilds a worker's error from its text alone.
    rebuilt = kind("Caught in worker 0")
    assert str(rebuilt) == rebuilt.context == "Caught in worker 0" and rebuilt.advice is None


def test_errors_of_the_library_say_what_where_and_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        farfeed.Loader(tmp_path / "none.tar")
    error = caught.value
    assert type(error) is farfeed.NotFoundError and "none.tar" in error.context and error.context in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.context, again.advice) == (type(error), str(error), error.context, error.advice)
    with pytest.raises(farfeed.ConfigError) as caught:
        farfeed.Loader(tmp_path / "none.tar", device="abacus")
    assert caught.value.advice and caught.value.advice in str(caught.value)


def test_a_broken_shard_is_named(tmp_path):
    (tmp_path / "broken.tar").write_bytes(b"this is no archive " * 100)
    with pytest.raises(farfeed.CorruptError, match="broken.tar"):
        farfeed.Loader(tmp_path / "broken.tar")


def test_secrets_are_not_repeated():
    secret = "hunter2-hunter2"
    for url in (f"http://user:{secret}@127.0.0.1:9/x.tar", f"http://127.0.0.1:9/x.tar?token={secret}"):
        with pytest.raises(farfeed.Error) as caught:
            farfeed.Loader(url, retry=farfeed.Retry(patience=0.1))
        assert secret not in str(caught.value) + repr(caught.value) + str(caught.value.__dict__)
    options = {"access_key_id": "me", "secret_access_key": secret, "endpoint": "http://127.0.0.1:9", "allow_http": "true", "region": "nowhere"}
    with pytest.raises(farfeed.Error) as caught:
        farfeed.Loader("s3://bucket/x.tar", storage_options=options, retry=farfeed.Retry(patience=0.1))
    assert secret not in str(caught.value) + str(caught.value.__dict__)


def test_a_gpu_that_is_not_there_is_an_error_that_says_so():
    with pytest.raises(farfeed.Error) as caught:
        farfeed.Loader("/nowhere/x.tar", device="cuda:4000")
    assert caught.value.kind in ("unsupported", "device") and caught.value.advice
