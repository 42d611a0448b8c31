"""Errors on workers come back as themselves, on one line."""

import os

import pytest

from cluster.errors import unwrap

pytestmark = pytest.mark.ray


class RefusedError(ValueError):
    """An error of our own, that only says what is wrong."""


class OddError(Exception):
    """One that cannot travel: it is not made from its message."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def missing(batch):
    raise FileNotFoundError(2, "No such file or directory", "photos/it's.jpg")


def refused(batch):
    raise RefusedError("image 3: two\nlines")


def chained(batch):
    try:
        return 1 / 0
    except ZeroDivisionError as error:
        raise ValueError("label 'cat': not a number") from error


def odd(batch):
    raise OddError(1, 2)


def wordless(batch):
    raise ValueError


def unknown_key(batch):
    return {}["label"]


def dies(batch):
    os._exit(1)


class Fails:
    """An actor that works and then fails, or does not even start."""

    def __init__(self, start: bool):
        if not start:
            raise OSError(2, "No such file or directory", "model")

    def __call__(self, batch):
        return refused(batch)


def data_error(fn, **options):
    import ray

    with pytest.raises(Exception) as raised:  # noqa: PT011
        list(ray.data.range(2, override_num_blocks=1).map_batches(fn, **options).iter_rows())
    return unwrap(raised.value)


def task_error(fn):
    import ray

    with pytest.raises(Exception) as raised:  # noqa: PT011
        ray.get(ray.remote(max_retries=0)(fn).remote(None))
    return unwrap(raised.value)


EXPECTED = {
    missing: (FileNotFoundError, '[Errno 2] No such file or directory: "photos/it\'s.jpg"'),
    refused: (ValueError, "image 3: two\nlines"),
    chained: (ValueError, "label 'cat': not a number"),
    odd: (RuntimeError, "OddError: 1 and 2"),
    wordless: (ValueError, ""),
    unknown_key: (KeyError, "'label'"),
}


@pytest.mark.parametrize("fn", EXPECTED, ids=lambda fn: fn.__name__)
@pytest.mark.parametrize("original", [False, True])
def test_an_exception_in_a_ray_data_stage(ray_session, monkeypatch, fn, original):
    import ray

    monkeypatch.setattr(ray.data.DataContext.get_current(), "raise_original_map_exception", original)
    kind, told = EXPECTED[fn]
    found = data_error(fn)
    assert isinstance(found, kind)
    assert str(found) == told
    if fn is missing:
        assert found.filename == "photos/it's.jpg"


@pytest.mark.parametrize("fn", EXPECTED, ids=lambda fn: fn.__name__)
def test_an_exception_in_a_plain_task(ray_session, fn):
    kind, told = EXPECTED[fn]
    found = task_error(fn)
    assert isinstance(found, kind)
    assert str(found) == told


@pytest.mark.parametrize(("start", "kind", "told"), [(True, ValueError, "two"), (False, FileNotFoundError, "'model'")])
def test_an_exception_in_a_ray_data_actor(ray_session, start, kind, told):
    import ray

    pool = ray.data.ActorPoolStrategy(size=1)
    found = data_error(Fails, fn_constructor_args=(start,), compute=pool)
    assert isinstance(found, kind)
    assert told in str(found)


def test_a_worker_that_dies_is_said_in_words(ray_session):
    found = task_error(dies)
    assert isinstance(found, RuntimeError)
    assert str(found) == "a worker process died: killed, out of memory, or crashed inside a library"


def test_what_can_never_run_is_said_in_words(ray_session):
    import ray

    with pytest.raises(ray.exceptions.GetTimeoutError) as raised:
        ray.get(ray.remote(num_cpus=0)(dies_later).remote(), timeout=0.01)
    assert str(unwrap(raised.value)) == "the cluster did not answer in time"


def dies_later():
    import time

    time.sleep(0.5)


def test_failures_of_training_workers(ray_session):
    from ray.train import ControllerError, WorkerGroupError

    assert str(unwrap(WorkerGroupError("long text", {1: ValueError("one"), 0: OSError("zero")}))) == "zero"
    assert str(unwrap(ControllerError(ValueError("the driver's side")))) == "the driver's side"


def test_an_error_of_nobodys_comes_back_as_it_is(ray_session):
    error = ValueError("mine")
    assert unwrap(error) is error
    stopped = KeyboardInterrupt()
    assert unwrap(stopped) is stopped
