"""A served net whose processes die, or that is replaced, while it is asked: no request fails, none is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import requests

from cluster import deploy
from ops import net as nets
from ops import weights
from pipelines.serve import Serve
from pipelines.stages import serving_book, serving_front
from pipelines.stages.serving_model import served
from pipelines.stages.serving_replica import Replica
from tests.pipelines.serving import (
    PATIENCE,
    RAW,
    Server,
    files_of,
    front_pid,
    replica_pid,
    scores_of,
    second_front,
    serving,
)
from tests.ports import free_port

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def server(ray_session, golden, tmp_path_factory):
    with serving(golden, tmp_path_factory.mktemp("killed"), "killed", timeout=PATIENCE) as found:
        yield found


@pytest.fixture(scope="module")
def hat(golden):
    return (golden / "files" / "photos" / "hat_1.jpg").read_bytes()


class Load:
    """Clients that ask one after the other, and what they were told: (digest, scores) or an error."""

    def __init__(self, server: Server, picture: bytes, clients: int = 3):
        self.server, self.picture, self.over = server, picture, threading.Event()
        self.answers: list[tuple[str, list[float]]] = []
        self.failed: list[str] = []
        self.slowest = 0.0
        self.threads = [threading.Thread(target=self.ask) for _ in range(clients)]

    def ask(self) -> None:
        session = requests.Session()
        while not self.over.is_set():
            began = time.monotonic()
            try:
                told = session.post(f"{self.server.url}/v1/classify?top=6", self.picture, headers=RAW, timeout=PATIENCE)
            except requests.RequestException as error:
                self.failed.append(repr(error))
                continue
            self.slowest = max(self.slowest, time.monotonic() - began)
            if told.status_code != 200:
                self.failed.append(told.text)
                continue
            whole = told.json()
            by_label = sorted(whole["images"][0]["top"], key=lambda one: one["label"])
            self.answers.append((whole["weights_digest"], [one["score"] for one in by_label]))
            time.sleep(0.02)

    def more(self, count: int) -> None:
        """Wait for so many more answers."""
        wanted, until = len(self.answers) + count, time.monotonic() + PATIENCE
        while len(self.answers) < wanted:
            assert time.monotonic() < until, f"{len(self.answers)} answers, {self.failed[:3]}"
            time.sleep(0.05)

    def __enter__(self) -> Load:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join()


def test_a_killed_replica_costs_no_request(server, hat):
    expected = scores_of(server.options, hat)
    with Load(server, hat) as load:
        load.more(20)
        killed = replica_pid("killed")
        os.kill(killed, signal.SIGKILL)
        load.more(60)
    assert not load.failed
    for _, scores in load.answers:
        np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert replica_pid("killed") != killed


def test_a_replacement_costs_no_request_and_every_answer_is_of_one_model(server, hat, tmp_path):
    before = scores_of(server.options, hat)
    net = nets.load(server.options["model"], weights=server.options["weights"])
    net.params["fc"][1].data[2] += 3
    weights.write(net, tmp_path / "other.caffemodel")
    options = {**server.options, "weights": str(tmp_path / "other.caffemodel"), "batch_size": 3}
    after = scores_of(options, hat)
    assert np.abs(before - after).max() > 0.1
    with Load(server, hat) as load:
        load.more(20)
        result = Serve(**options).run()
        load.more(20)
    assert result["replaced"]
    assert not load.failed
    digests = list(dict.fromkeys(digest for digest, _ in load.answers))
    assert len(digests) == 2
    for digest, scores in load.answers:
        np.testing.assert_allclose(scores, before if digest == digests[0] else after, atol=1e-5)
    told = server.get("/v1/model").json()
    assert (told["weights"], told["batching"]["size"]) == (["other.caffemodel"], 3)
    assert Counter(digest for digest, _ in load.answers[-5:]) == {digests[1]: 5}


def test_a_model_that_cannot_start_leaves_the_one_that_runs(server, hat):
    digest = server.get("/v1/model").json()["weights_digest"]
    broken = dataclasses.replace(served(Serve(**server.options)), digest="another")
    replicas = deploy.Replicas(1, 1, 1, 1, False)
    with pytest.raises(RuntimeError, match=r"feat\.caffemodel: changed since the server was started"):
        deploy.deploy(Replica, (broken, 1, False), name="killed", replicas=replicas)
    assert server.post("/v1/classify", hat).json()["weights_digest"] == digest
    until = time.monotonic() + PATIENCE
    while len(deploy.versions("killed")) > 1:  # what failed is cleared away
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_killed_front_is_back_within_seconds(server, hat):
    killed = front_pid("killed")
    os.kill(killed, signal.SIGKILL)
    time.sleep(0.5)
    server.until_ready()
    assert front_pid("killed") != killed
    answer = server.post("/v1/classify?top=6", hat)
    assert answer.json()["weights_digest"] == server.get("/v1/model").json()["weights_digest"]


class Look(serving_front.Asker):
    """Looks after its model once, and finds it gone; `meanwhile` happens while it waits for the answer."""

    def __init__(self, meanwhile):
        self.service = SimpleNamespace(ready=True, count=lambda: None, batches=SimpleNamespace(at_once=2))
        self.meanwhile, self.handle = meanwhile, SimpleNamespace(describe=SimpleNamespace(remote=self.gone))

    async def gone(self):
        self.meanwhile(self)
        raise TimeoutError

    async def once(self) -> bool:
        """Whether it is ready then."""
        looking = asyncio.create_task(self.look())
        await asyncio.sleep(0.1)
        looking.cancel()
        return self.service.ready


def test_a_model_that_was_replaced_does_not_make_the_new_one_unready():
    assert not asyncio.run(Look(lambda front: None).once())
    assert asyncio.run(Look(lambda front: setattr(front, "handle", object())).once())


def test_a_front_that_does_not_take_a_model_in_time_is_told_in_one_line(server):
    with second_front(server, "slow"), pytest.raises(RuntimeError, match=r"^cortado\.killed\.\d+: .* run the same"):
        serving_front.take(deploy.find_front("slow"), deploy.newest("killed"), patience=0)


def test_a_server_on_a_cluster_is_stopped_though_it_is_too_busy_to_answer(server):
    with second_front(server, "deaf") as deaf:
        address = serving_book.read("killed").address
        serving_book.write(serving_book.Entry("deaf", "127.0.0.1", free_port(), "deaf", address, 0))
        assert Serve(name="deaf", stop=True).run()["stopped"]
        until = time.monotonic() + PATIENCE
        while deploy.find_front("deaf") is not None:  # Ray takes its name away when it has ended
            assert time.monotonic() < until
            time.sleep(0.1)
        with pytest.raises(requests.ConnectionError):
            deaf.get("/healthz")
    with pytest.raises(ValueError, match="no server 'deaf' runs"):
        Serve(name="deaf", stop=True).run()


def test_what_is_left_of_a_server_whose_cluster_has_ended_is_forgotten():
    serving_book.write(serving_book.Entry("left", "127.0.0.1", free_port(), "", f"127.0.0.1:{free_port()}", 0))
    assert not Serve(name="left", stop=True).run()["stopped"]
    assert serving_book.read("left") is None


def test_a_process_that_does_not_answer_is_told_and_not_forgotten(monkeypatch):
    monkeypatch.setattr(serving_book, "BUSY", 0.5)
    entry = serving_book.Entry("mute", "127.0.0.1", free_port(), "", "", os.getpid())
    serving_book.write(entry)
    try:
        with pytest.raises(RuntimeError, match=f"does not answer, but process {os.getpid()} lives: try again"):
            Serve(name="mute", stop=True).run()
        assert serving_book.read("mute") == entry
    finally:
        serving_book.forget("mute", entry.instance)


@contextlib.contextmanager
def command(folder, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`cortado serve ...` in a process of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen([sys.executable, "-m", "pipelines", "serve", *arguments], cwd=folder, **pipes)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def noted(status: str, name: str) -> bool:
    """Whether a server is listed, and ready."""
    return any(one["name"] == name and one.get("ready") for one in json.loads(status)["servers"])


def test_the_command_serves_until_it_is_stopped(golden, tmp_path, hat, run_cli):
    """With a Ray of its own, as a person starts it."""
    options, name = files_of(golden, tmp_path), f"own{os.getpid()}"
    words = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
    port = free_port()
    with command(tmp_path, *words, "--name", name, "--port", str(port), "--set", "cpus=2", "--json") as process:
        server = Server(f"http://127.0.0.1:{port}", name, options)
        server.until_ready(2 * PATIENCE)
        answer = server.post("/v1/classify?top=6", hat).json()["images"][0]["top"]
        assert answer[0]["label"] == int(np.argmax(scores_of(options, hat)))
        until = time.monotonic() + PATIENCE
        while not noted(run_cli("serve", "--status", "--json").stdout, name):  # it answers a moment before
            assert time.monotonic() < until
        stopped = run_cli("serve", "--stop", "--name", name, "--json")
        assert json.loads(stopped.stdout)["stopped"], stopped.stderr
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert json.loads(out)["ended"]
    assert [line.split(":")[0] for line in err.splitlines()] == ["serve"] * 2, err
    with pytest.raises(requests.ConnectionError):
        server.get("/healthz")
