"""`cortado serve` under closed-loop load, against a bare loop over the same pictures in one process.

`python -m tests.benchmarks.bench_serve [NET ...]`: one client's latency over the bare decode and forward of one
picture, 64 clients' rate over a bare loop in batches of 32; then the same load on a plain FastAPI server and on Ray
Serve's own example, with the same net and decoding. The clients run on the same CPUs as the servers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ops import net as nets
from ops import weights, zoo
from pipelines.serve import Serve
from pipelines.stages.serving_load import Connection, Load, Target, press
from pipelines.stages.serving_model import Classifier, served
from tests.benchmarks.common import PROJECT, cortado, row, workplace
from tests.benchmarks.pictures import pictures
from tests.ports import free_port

CLIENTS, BATCH, WARM_UP = 64, 32, 1.0  # seconds before the clock
SECONDS = float(os.environ.get("BENCH_SECONDS", "15"))
FLAGS = {
    "lenet": {"raw_scale": 1.0, "images_dim": "28,28", "gray": True},
    "caffenet": {"mean_file": "104,117,123", "images_dim": "256,256"},
}
READY = 120.0  # seconds
PEERS = {"fastapi": "plain FastAPI", "serve": "Ray Serve's example"}


def options_of(name: str, folder: Path) -> dict[str, Any]:
    """The net of the zoo with first values as its weights."""
    file = folder / f"{name}.caffemodel"
    if not file.exists():
        weights.write(nets.load(zoo.find(name, "deploy.prototxt")), file)
    return {"model": Path(name), "weights": str(file), **FLAGS[name]}


@contextlib.contextmanager
def server(options: dict[str, Any], folder: Path) -> Iterator[int]:
    """`cortado serve` in processes of its own; gives the port."""
    port = free_port()
    words = [f"--{key.replace('_', '-')}" + ("" if value is True else f"={value}") for key, value in options.items()]
    name = f"bench{os.getpid()}"
    command = cortado("serve", *words, "--name", name, "--port", str(port))
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            line = process.stderr.readline()
            if "answers" not in line:
                sys.exit(f"{' '.join(command)}\n{line}{process.stderr.read()}")
            row("seconds until it answers, Ray's start too", time.perf_counter() - began, 8.0, "s", "(Ray 2 to 4)")
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@contextlib.contextmanager
def peer(kind: str, name: str, folder: Path, picture: bytes) -> Iterator[int]:
    """A server of serving_peers; gives the port once it answers."""
    port = free_port()
    command = [sys.executable, "-m", "tests.benchmarks.serving_peers", kind, name, str(folder), str(port)]
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=PROJECT, start_new_session=True, **pipes) as process:
        try:
            until = time.monotonic() + READY
            while asyncio.run(status_of(port, picture)) != 200:
                if process.poll() is not None or time.monotonic() > until:
                    sys.exit(f"{' '.join(command)}: does not answer")
                time.sleep(0.5)
            yield port
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


async def status_of(port: int, picture: bytes) -> int:
    """Of one request; 0 where nobody answers."""
    connection = Connection(Target(f"http://127.0.0.1:{port}"))
    try:
        return (await connection.ask("POST", "/v1/classify", picture))[0]
    except OSError:
        return 0
    finally:
        connection.close()


def load(port: int, bodies: list[bytes], clients: int, *, ours: bool = True) -> tuple[float, np.ndarray]:
    """(answers a second, latencies in ms) after the warm-up. A failed request is told; of ours it is the end."""
    limits = {"seconds": SECONDS, "warm_up": WARM_UP, "seed": 1}
    taken = asyncio.run(press(Target(f"http://127.0.0.1:{port}"), Load(clients=clients), bodies, **limits))
    if taken.failed:
        told = f"{clients} clients: {taken.failed.total()} failed: {dict(taken.failed)}"
        sys.exit(told) if ours else print(told)
    return len(taken.seconds) / SECONDS, 1000 * np.array(taken.seconds)


# -- the bare loop -----------------------------------------------------------------------------------------------------


def one_by_one(classifier: Classifier, bodies: list[bytes]) -> np.ndarray:
    """Milliseconds of decode and forward of one picture."""
    found = []
    until = time.perf_counter() + SECONDS / 2
    while time.perf_counter() < until:
        began = time.perf_counter()
        classifier.answers([classifier.look(bodies[len(found) % len(bodies)])], 5)
        found.append(1000 * (time.perf_counter() - began))
    return np.array(found[3:])


def in_batches(classifier: Classifier, bodies: list[bytes]) -> float:
    """Pictures a second of a loop that decodes a batch in threads while it computes the one before."""

    def batch(number: int) -> list[bytes]:
        return [bodies[(number * BATCH + place) % len(bodies)] for place in range(BATCH)]

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:

        def ahead(number: int) -> list[Any]:
            return [pool.submit(classifier.look, one) for one in batch(number)]

        looks, done = ahead(0), 0
        began = time.perf_counter()
        while time.perf_counter() < began + SECONDS:
            ready = [look.result() for look in looks]
            looks = ahead(done + 1)
            classifier.answers(ready, 5)
            done += 1
        return done * BATCH / (time.perf_counter() - began)


def measure(name: str, folder: Path) -> None:
    options = options_of(name, folder)
    bodies = [file.read_bytes() for file in pictures(folder / "pictures", count=128)[0]]
    classifier = Classifier(served(Serve(**options)), device=torch.device("cpu"))
    with server(options, folder) as port:
        load(port, bodies[:8], 4)  # both are warm
        one_by_one(classifier, bodies)
        _, alone = load(port, bodies, 1)
        bare = one_by_one(classifier, bodies)
        for share in (50, 99):
            ours, theirs = np.percentile(alone, share), np.percentile(bare, share)
            more = f"(+{ours - theirs:.1f} ms; at most +{4 if share == 50 else 10})"
            row(f"{name}: 1 client, p{share}", ours, theirs, "ms", more)
        rate, many = load(port, bodies, CLIENTS)
        row(f"{name}: {CLIENTS} clients", rate, in_batches(classifier, bodies), "images/s", "(at least 0.8)")
        row(f"{name}: {CLIENTS} clients, p99 to median", np.percentile(many, 99), np.median(many), "ms", "(under 3)")
    for kind, told in PEERS.items():
        with peer(kind, name, folder, bodies[0]) as port:
            load(port, bodies[:8], 4, ours=False)
            _, theirs = load(port, bodies, 1, ours=False)
            row(f"{name}: 1 client, p50; {told}", np.median(alone), np.median(theirs), "ms")
            rates, theirs = load(port, bodies, CLIENTS, ours=False)
            row(f"{name}: {CLIENTS} clients; {told}", rate, rates, "images/s")
            row(f"{name}: {CLIENTS} clients, p99; {told}", np.percentile(many, 99), np.percentile(theirs, 99), "ms")


def main(arguments: list[str]) -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} CPUs; ours: HTTP; peer: a bare loop in one process")
    with workplace("serve") as folder:
        for name in arguments or FLAGS:
            measure(name, folder)


if __name__ == "__main__":
    main(sys.argv[1:])
