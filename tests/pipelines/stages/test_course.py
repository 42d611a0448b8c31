"""What the driver makes of the loop's reports: the start's parts, lost workers, where the time went and what limits."""

from __future__ import annotations

import pytest

from pipelines.stages.clock import KINDS, Clock, limit, listed
from pipelines.stages.course import Course


class Told:
    """A course with a clock of its own: `at(second, ...)` tells it something."""

    def __init__(self):
        self.second = 0.0
        self.course = Course(now=lambda: self.second)

    def at(self, second, **told):
        self.second = second
        return self.course.take(told)

    def start(self):
        self.at(3.5, event="ray", seconds=3.0)
        self.at(4.0, event="fit")
        self.at(9.0, event="begin", world=2)
        self.at(10.0, event="ready", iteration=0, lines=["net"])


def spent(**seconds):
    return {**dict.fromkeys(KINDS, 0.0), **seconds}


def test_the_start_is_told_in_its_parts():
    told = Told()
    told.start()
    split = {"set_up": 1.0, "first_batch": 0.25, "first_step": 0.5}
    assert told.at(10.8, event="started", split=split) == [
        "started in 10.8 s: imports 1.0 s, ray.init 3.0 s, fit (workers up) 5.0 s, net and data 1.0 s, first batch "
        "0.2 s, first step 0.5 s"
    ]
    assert told.course.result(spent())["started"] == {"imports": 1.0, "ray_init": 3.0, "fit": 5.0, **split}


def test_in_this_process_there_is_no_ray_in_it():
    told = Told()
    told.at(1.5, event="begin", world=1)
    told.at(2.0, event="ready", iteration=0)
    line = told.at(2.5, event="started", split={"set_up": 0.5, "first_batch": 0.0, "first_step": 0.5})
    assert line == ["started in 2.5 s: imports 1.5 s, net and data 0.5 s, first batch 0.0 s, first step 0.5 s"]


def test_a_lost_worker_is_told_twice_and_what_it_cost_when_it_is_made_good():
    told = Told()
    told.start()
    assert told.at(20.0, iteration=640, loss=1.0, spent=spent(start=1.0, step=9.0)) == []
    assert told.at(26.0, event="begin", world=2) == ["a worker was lost at iteration 640: beginning again with 2"]
    assert told.at(27.0, event="ready", iteration=600, lines=["going on"]) == ["going on"]
    assert told.at(27.5, iteration=620, loss=1.0, spent=spent(start=1.0, step=0.5)) == []
    line = told.at(28.0, iteration=641, loss=1.0, spent=spent(start=1.0, step=1.0))
    assert line == ["a worker was lost at iteration 640; went on from 600; 8.0 seconds lost"]
    assert told.at(28.5, iteration=650, loss=1.0, spent=spent(start=1.0, step=1.5)) == []
    told.second = 30.0
    found = told.course.result(spent(start=1.0, step=2.5, snapshot=0.5))
    assert found["lost"] == [{"iteration": 640, "from": 600, "seconds": 8.0}]
    # up to 9: start; 1 of the first set-up; 9 + 2.5 steps; 20 to 27 nothing was trained; what is left is the rest
    assert found["time"] == spent(start=10.0, step=11.5, snapshot=0.5, lost=7.0, rest=1.0)
    assert sum(found["time"].values()) == 30.0


def test_workers_lost_again_before_it_was_made_good_are_one_loss():
    told = Told()
    told.start()
    told.at(20.0, iteration=100, loss=1.0)
    told.at(25.0, event="begin", world=2)
    told.at(30.0, event="begin", world=1)
    told.at(31.0, event="ready", iteration=50)
    assert told.at(33.0, iteration=100, loss=1.0) == [
        "a worker was lost at iteration 100; went on from 50; 13.0 seconds lost"
    ]


# -- the clock ---------------------------------------------------------------------------------------------------------


def test_each_moment_counts_once(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = Clock("start")
    now[0] = 1.0
    clock.turn("rest")
    now[0] = 3.0
    with clock.on("test"):
        now[0] = 4.0
        with clock.on("step"):
            now[0] = 8.0
        now[0] = 16.0
    now[0] = 32.0
    assert clock.spent() == spent(start=1.0, rest=2.0 + 16.0, test=1.0 + 8.0, step=4.0)
    assert sum(clock.spent().values()) == 32.0


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (spent(step=95, data=5), "the net limits: 95 % of the time"),
        (spent(step=80, data=20), "the feed limits: 20 % of the time the net waits for data; more --threads"),
        (spent(step=60, test=40), "the tests limit: 40 % of the time; a larger test_interval"),
        (spent(step=70, snapshot=15, data=12, rest=3), "the snapshots limit: 15 % of the time"),
        (spent(step=50, rest=50), "the steps are small: 50 % of the time goes by between them"),
        (spent(step=10, lost=10), "lost workers limit: 50 % of the time"),
        (spent(start=10, step=5), "the start-up limits: it took 67 % of the time"),
        (spent(start=10, step=20, data=1), "the net limits: 95 % of the time"),
    ],
)
def test_what_limits_is_said_in_one_sentence(seconds, told):
    assert limit(seconds).startswith(told)
    assert "\n" not in limit(seconds)


def test_the_advice_knows_the_device():
    assert "a GPU, or workers on more CPUs, helps" in limit(spent(step=1))
    assert "--precision bf16 or another GPU helps" in limit(spent(step=1), cuda=True)


def test_the_table_of_times_names_what_took_time_the_longest_first():
    assert listed(spent(step=15, start=4, data=1, rest=0.01)) == (
        "20.0 s: forward, backward, update 15.0 s (75 %), start-up 4.0 s (20 %), waiting for data 1.0 s (5 %)"
    )
    assert listed(spent()) == "0.0 s"
