"""Jobs on a cluster that this machine is no part of, through the job server in Ray's dashboard."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from cluster.config import Config
from cluster.connect import AUTH, set_token_mode, token_mode_restored
from cluster.quiet import quiet_ray
from cluster.reach import PATIENCE, token_at_hand

DEFAULT = "http://127.0.0.1:8265"
PORT = 8265
GCS_PORT = 6379
SERVERS = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # Ray would take these before what it is given
LOOK_EVERY = 0.2  # seconds
LOST = 5  # times that a broken connection is made anew, a second apart at first
CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env.packaging")
SAID_BY_RAY = re.compile(r"Running entrypoint for job |\S+ \S+\tINFO job_manager\.py")
# `ray job stop` is Ctrl-C: a training stops with a snapshot, and has the time for it.
STOPPING = {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "120"}
SECTIONS = ("data", "train", "serve")  # of ray_config.yaml: what a job is told of it


class Ended(NamedTuple):
    """How a job ended: SUCCEEDED, FAILED or STOPPED; its exit code; what Ray says of it."""

    status: str
    code: int
    message: str


def server_of(address: str | None) -> str:
    """The job server's URL, from what was typed, the environment, or Ray's default. ValueError where it cannot be."""
    named = os.environ.get(SERVERS[0], "").strip()
    text = (address or named or DEFAULT).rstrip("/")
    url = urlsplit(text if "://" in text else f"http://{text}")
    try:
        host, port = url.hostname, url.port
    except ValueError:
        host, port = None, None
    if url.scheme not in ("http", "https") or not host:
        raise ValueError(f"--address {text}: expected Ray's job server, as http://head:{PORT}")
    if port == GCS_PORT:
        told = f"{GCS_PORT} is where nodes meet; jobs go to the dashboard"
        raise ValueError(f"--address {text}: {told}, http://{host}:{PORT} unless Ray was started with another port")
    at = f"[{host}]" if ":" in host else host
    return f"{url.scheme}://{at}:{port or (443 if url.scheme == 'https' else PORT)}{url.path}"


def settings(config: Config) -> list[str]:
    """What ray_config.yaml and --set say of the work, as KEY=VALUE; where it runs is decided already."""
    usual = Config().model_dump()
    given = config.model_dump()
    changed = (
        (f"{section}.{key}", value)
        for section in SECTIONS
        for key, value in given[section].items()
        if value != usual[section][key]
    )
    return ["address=auto", *(f"{key}={json.dumps(value)}" for key, value in changed)]


class Jobs:
    """The jobs of a cluster. Raises ConnectionError or RuntimeError, one line each."""

    def __init__(self, server: str):
        self.server = server
        quiet_ray()
        self.client = self.connected()

    def connected(self) -> Any:
        url = urlsplit(self.server)
        host, port = str(url.hostname), int(url.port or PORT)
        try:
            socket.create_connection((host, port), timeout=PATIENCE).close()
        except OSError as error:
            why = f"no answer within {PATIENCE:.0f} s" if isinstance(error, TimeoutError) else error.strerror or error
            started = "is the cluster up, and its dashboard (`ray start --head --dashboard-host 0.0.0.0`)?"
            raise ConnectionError(f"no job server at {self.server}: {str(why).lower()}; {started}") from None
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        for name in CHATTY:
            logging.getLogger(name).setLevel(logging.ERROR)
        for trial in (False, True):
            try:
                with alone(), self.told():
                    return JobSubmissionClient(self.server)
            except AuthenticationError:
                if trial or AUTH in os.environ or not token_at_hand(f"{host}:{port}"):
                    break
                set_token_mode("token")
        raise ConnectionError(f"the cluster at {self.server} wants Ray's token: set {AUTH}=token and RAY_AUTH_TOKEN")

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Errors of the connection as one line."""
        from requests import RequestException

        try:
            yield
        except (RequestException, ConnectionError) as error:
            raise ConnectionError(f"the job server at {self.server} does not answer any more") from error
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            last = lines[-1].strip("'\".") if lines else type(error).__name__
            raise RuntimeError(f"the job server at {self.server}: {last}") from error

    def submit(self, command: str, name: str, config: Config, packages: Sequence[ModuleType]) -> str:
        """Begin a job; its name. `command` is the shell's; the code of `packages` goes along."""
        given = config.runtime_env.given()
        modules = [*(str(Path(one.__path__[0])) for one in packages), *given.get("py_modules", [])]
        variables = {**STOPPING, **given.get("env_vars", {})}
        environment = {**given, "py_modules": modules, "env_vars": variables, "excludes": ["__pycache__/"]}
        with self.told():
            return str(self.client.submit_job(entrypoint=command, submission_id=name, runtime_env=environment))

    # -- looking on ------------------------------------------------------------------------------------------------

    def follow(self, job: str, tell: Callable[[str], None]) -> Ended:
        """Tell what a job prints until it ends; a connection that breaks is made anew."""
        seen = 0

        def each(text: str) -> None:
            nonlocal seen
            seen += len(text)
            tell(text)

        for trial in range(LOST + 1):
            try:
                asyncio.run(self.tail(job, seen, each))
                break
            except (RuntimeError, OSError) as error:
                if trial == LOST:
                    raise ConnectionError(f"the job server at {self.server} does not answer any more") from error
                time.sleep(2**trial)
        while True:
            ended = self.ended(job)
            if ended is not None:
                return ended
            time.sleep(LOOK_EVERY)

    async def tail(self, job: str, seen: int, tell: Callable[[str], None]) -> None:
        """What a job prints, without the first `seen` characters."""
        async for text in self.client.tail_job_logs(job):
            left = text[seen:]
            seen = max(0, seen - len(text))
            if left:
                tell(left)

    def ended(self, job: str) -> Ended | None:
        """How a job ended; None while it is at work."""
        with self.told():
            info = self.client.get_job_info(job)
        if not info.status.is_terminal():
            return None
        code = info.driver_exit_code
        good = info.status.value == "SUCCEEDED"
        return Ended(info.status.value, 0 if good else int(code or 1), plain(info.message or ""))


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Without the variables that Ray would take in place of the address that it is given."""
    kept = {name: os.environ.pop(name) for name in SERVERS if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


@contextlib.contextmanager
def jobs(server: str) -> Iterator[Jobs]:
    """The job server of a cluster; Ray's token is shown where it asks for one, and forgotten afterwards."""
    with token_mode_restored():
        yield Jobs(server)


def plain(message: str) -> str:
    """What Ray says of a job, on one line, without the log that it repeats."""
    return " ".join(re.split(r"last available logs|Traceback", message)[0].split())[:300]
