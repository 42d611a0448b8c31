"""What tests of all parts share: one Ray for the whole session, clusters of several nodes, and the command line."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

TESTS = Path(__file__).resolve().parent
SETTINGS = ("RAY_ADDRESS", "CORTADO_CONFIG", "CORTADO_DEBUG", "COLUMNS")  # of whoever runs the tests; not for the tests
# An example takes as long as it takes: machines with two slow cores run Ray beside it.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in SETTINGS if name in os.environ}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs in the background ignores it, and so would
    # every command that a test starts
    yield
    os.environ.update(kept)


@pytest.fixture(scope="session")
def golden() -> Path:
    """Files that real Caffe wrote, and what it made of them."""
    return TESTS / "golden"


@pytest.fixture(scope="session")
def ray_session() -> Iterator[Any]:
    """One Ray of this machine for all tests that ask: 4 logical CPUs, no dashboard. Gives the Connection.

    `connected()` inside a test uses it and leaves it running.
    """
    import cluster
    import ops
    import pipelines
    from cluster.config import Config
    from cluster.connect import connected

    config = Config(address="local", cpus=4, object_store_memory=300_000_000)
    with connected(config, packages=(ops, pipelines, cluster)) as connection:
        yield connection


@dataclass
class Outside:
    """A cluster that a test started as somebody else would."""

    address: str
    process: subprocess.Popen[str]
    dashboard: str = ""  # its URL, where there is one

    def kill_node(self) -> None:
        """Take the last node away without a goodbye."""
        assert self.process.stdin
        self.process.stdin.write("kill\n")
        self.process.stdin.flush()
        self.line("killed")

    def line(self, start: str) -> str:
        """The next line that begins so; Ray prints others between."""
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith(start):
                return line.removeprefix(start).strip()
        raise AssertionError(f"the cluster ended with {self.process.wait()}")


@pytest.fixture(scope="session")
def cluster_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., contextlib.AbstractContextManager[Outside]]:
    """`with cluster_of(2, cpus=1) as outside:` several nodes in processes of their own, at `outside.address`.

    With `dashboard`, Ray's dashboard and job server are at `outside.dashboard`.
    """

    @contextlib.contextmanager
    def start(
        nodes: int = 2, *, cpus: int = 1, env: dict[str, str] | None = None, dashboard: bool = False
    ) -> Iterator[Outside]:
        command = [sys.executable, str(TESTS / "outside_cluster.py"), str(nodes), str(cpus)]
        command += ["dashboard"] if dashboard else []
        settings = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", **(env or {})}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        folder = tmp_path_factory.mktemp("cluster")
        with subprocess.Popen(command, cwd=folder, env=settings, text=True, **pipes) as process:
            outside = Outside("", process)
            outside.address = outside.line("address")
            if dashboard:
                outside.dashboard = outside.line("dashboard")
            try:
                yield outside
            finally:
                process.communicate(timeout=120)

    return start


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def run_cli(tmp_path: Path) -> Callable[..., Done]:
    """`run_cli("list", "photos", "--out", "lists")`: `python -m pipelines ...` in a process of its own.

    It runs in the test's own folder unless `cwd` says otherwise; `env` adds to the environment (None takes away).
    """

    def run(*arguments: object, cwd: Path | None = None, timeout: float = 240, **env: str | None) -> Done:
        settings = {name: value for name, value in {**os.environ, **env}.items() if value is not None}
        command = [sys.executable, "-m", "pipelines", *map(str, arguments)]
        pipes: dict[str, Any] = {"capture_output": True, "text": True, "timeout": timeout, "check": False}
        done = subprocess.run(command, cwd=cwd or tmp_path, env=settings, stdin=subprocess.DEVNULL, **pipes)
        return Done(done.returncode, done.stdout, done.stderr)

    return run
