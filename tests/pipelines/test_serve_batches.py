"""Batches of a server: sizes follow the load, and what is lost with a replica is asked again."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest

from pipelines.stages.serving_batches import Batches, BusyError, LostError


class GoneError(RuntimeError):
    """What a killed replica raises here."""


class Model:
    """Answers with the picture's length; `kills`: pictures that take the replica with them."""

    def __init__(self, kills=(), losses=0):
        self.calls: list[list[bytes]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.kills, self.losses = set(kills), losses

    async def __call__(self, key, pictures, top):
        self.calls.append(pictures)
        await self.open.wait()
        if self.kills.intersection(pictures):
            raise GoneError
        if self.losses:
            self.losses -= 1
            raise GoneError
        return [{"key": key, "length": len(one), "top": top} for one in pictures]


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr("pipelines.stages.serving_batches.PAUSE", 0)


def over(model, **limits):
    settings = {"size": 8, "most_waiting": 100, "most_bytes": 10_000, "lost": (GoneError,), **limits}
    return Batches(model, **settings)


async def turns():
    """Everything that can go on goes on as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


def run(test):
    asyncio.run(asyncio.wait_for(test(), 60))


def test_an_idle_model_gets_a_picture_at_once():
    async def test():
        model = Model()
        (answer,) = await over(model).ask(("classify",), [b"abc"], 5)
        assert answer["length"] == 3
        assert 0 <= answer["waiting"] < 5
        assert model.calls == [[b"abc"]]

    run(test)


def test_what_comes_while_the_model_is_busy_goes_together():
    async def test():
        model = Model()
        model.open.clear()
        batches = over(model)
        asked = [asyncio.create_task(batches.ask(("classify",), [bytes(n)], n)) for n in range(1, 21)]
        await asyncio.sleep(0)
        model.open.set()
        answers = [(await one)[0]["length"] for one in asked]
        assert answers == list(range(1, 21))  # each its own
        assert [len(call) for call in model.calls] == [1, 1, 8, 8, 2]

    run(test)


def test_with_a_wait_a_busy_model_gets_fuller_batches_and_an_idle_one_its_picture_at_once():
    async def test():
        model = Model()
        model.open.clear()
        batches = over(model, wait=60.0)
        asked = [asyncio.create_task(batches.ask(("classify",), [bytes(n)], n)) for n in range(1, 9)]
        await turns()
        assert [len(call) for call in model.calls] == [1]  # the second place is kept for a fuller batch
        asked += [asyncio.create_task(batches.ask(("classify",), [bytes(n)], n)) for n in range(9, 12)]
        await turns()
        assert [len(call) for call in model.calls] == [1, 8]
        model.open.set()
        assert [(await one)[0]["length"] for one in asked] == list(range(1, 12))
        assert [len(call) for call in model.calls] == [1, 8, 2]

    run(test)


def test_nobody_waits_for_a_fuller_batch_longer_than_was_said():
    async def test():
        model = Model()
        model.open.clear()
        batches = over(model, wait=0.5)
        asked = [asyncio.create_task(batches.ask(("classify",), [b"1"], 1)) for _ in range(3)]
        while len(model.calls) < 2:
            await asyncio.sleep(0.01)
        assert [len(call) for call in model.calls] == [1, 2]
        model.open.set()
        await asyncio.gather(*asked)

    run(test)


def test_pictures_that_are_asked_other_things_go_apart():
    async def test():
        model = Model()
        batches = over(model)
        batches.at_once = 1
        keys = [("classify",), ("classify",), ("features", "fc"), ("classify",)]
        asked = [asyncio.create_task(batches.ask(key, [b"1"], 1)) for key in keys]
        assert [(await one)[0]["key"] for one in asked] == keys
        assert [len(call) for call in model.calls] == [1, 1, 1, 1]

    run(test)


def test_a_lost_call_is_made_again():
    async def test():
        batches = over(Model(losses=1))
        answers = await batches.ask(("classify",), [b"1", b"22", b"333"], 1)
        assert [one["length"] for one in answers] == [1, 2, 3]
        assert batches.retried == 3

    run(test)


def test_a_picture_that_kills_replicas_takes_no_other_with_it():
    async def test():
        model = Model(kills=[b"bad"])
        batches = over(model)
        batches.at_once = 1
        good = asyncio.create_task(batches.ask(("classify",), [b"1", b"22"], 1))
        bad = asyncio.create_task(batches.ask(("classify",), [b"bad"], 1))
        more = asyncio.create_task(batches.ask(("classify",), [b"4444"], 1))
        with pytest.raises(LostError, match="again and again"):
            await bad
        assert [one["length"] for one in await good + await more] == [1, 2, 4]

    run(test)


def test_pauses_grow_and_what_is_given_up_is_told_at_once(monkeypatch):
    monkeypatch.setattr("pipelines.stages.serving_batches.PAUSE", 0.05)

    async def test():
        model, times = Model(kills=[b"bad"]), []

        async def timed(key, pictures, top):
            times.append(time.perf_counter())
            return await model(key, pictures, top)

        with pytest.raises(LostError):
            await over(timed).ask(("classify",), [b"bad"], 1)
        times.append(time.perf_counter())
        pauses = [after - before for before, after in itertools.pairwise(times)]
        assert all(one > 0.9 * least for one, least in zip(pauses, [0.05, 0.1, 0.2, 0.4, 0.8, 0], strict=True))
        assert pauses[-1] < 1  # the pause that would come next is 1.6

    run(test)


def test_pictures_that_kill_replicas_keep_no_other_from_the_model_while_they_pause(monkeypatch):
    monkeypatch.setattr("pipelines.stages.serving_batches.PAUSE", 0.05)

    async def test():
        batches = over(Model(kills=[b"bad", b"worse"]))
        bad = [asyncio.create_task(batches.ask(("classify",), [one], 1)) for one in (b"bad", b"worse")]
        await turns()
        assert batches.running == batches.at_once
        assert [one["length"] for one in await batches.ask(("classify",), [b"1", b"22"], 1)] == [1, 2]
        assert not any(one.done() for one in bad)
        assert [type(one) for one in await asyncio.gather(*bad, return_exceptions=True)] == [LostError] * 2
        assert (batches.running, batches.bytes, len(batches.waiting)) == (0, 0, 0)

    run(test)


def test_a_full_queue_says_so_and_when_to_come_back():
    async def test():
        model = Model()
        model.open.clear()
        batches = over(model, most_waiting=3)
        waiting = [asyncio.create_task(batches.ask(("classify",), [b"1"], 1)) for _ in range(5)]
        await asyncio.sleep(0)
        with pytest.raises(BusyError) as refused:
            await batches.ask(("classify",), [b"1"], 1)
        assert 1 <= refused.value.seconds <= 30
        model.open.set()
        await asyncio.gather(*waiting)
        await batches.ask(("classify",), [b"1"], 1)

    run(test)


def test_bytes_are_counted_until_the_answer_is_there():
    async def test():
        batches = over(Model(), most_bytes=10)
        for _ in range(3):
            await batches.ask(("classify",), [bytes(8)], 1)
        with pytest.raises(BusyError):
            await batches.ask(("classify",), [bytes(8), bytes(3)], 1)

    run(test)


def test_a_request_that_was_given_up_is_not_computed():
    async def test():
        model = Model()
        model.open.clear()
        batches = over(model)
        batches.at_once = 1
        first = asyncio.create_task(batches.ask(("classify",), [b"1"], 1))
        await asyncio.sleep(0)
        second = asyncio.create_task(batches.ask(("classify",), [b"22"], 1))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        model.open.set()
        await first
        assert model.calls == [[b"1"]]
        assert batches.bytes == 0

    run(test)


@pytest.mark.filterwarnings("ignore")
def test_an_error_of_the_model_reaches_who_asked():
    async def test():
        async def broken(key, pictures, top):
            raise MemoryError("too large")

        with pytest.raises(MemoryError, match="too large"):
            await over(broken).ask(("classify",), [b"1"], 1)

    run(test)
