"""Starting Ray or joining a cluster: the only place that does, and a good guest where somebody else is the host."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import secrets
import shutil
import site
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from cluster.config import LEAST_STORE, Config
from cluster.kinds import cluster_address
from cluster.quiet import quiet_ray, without_chatter
from cluster.reach import probe, token_at_hand

STORE = 512_000_000  # bytes of object store unless asked otherwise: what travels is paths, keys and manifests
AUTH = "RAY_AUTH_MODE"


class Machine(NamedTuple):
    """What one node of the cluster offers to tasks."""

    cpus: int
    gpus: int
    memory: int  # bytes


@dataclass(frozen=True)
class Connection:
    """A Ray that is ready for work."""

    address: str
    owned: bool  # started by us, and stopped by us at the end
    started_s: float  # seconds that starting or joining took
    machines: tuple[Machine, ...]
    dashboard: str | None = None

    @property
    def nodes(self) -> int:
        return len(self.machines)

    @property
    def cpus(self) -> int:
        return sum(machine.cpus for machine in self.machines)

    @property
    def gpus(self) -> int:
        return sum(machine.gpus for machine in self.machines)


@contextlib.contextmanager
def connected(config: Config, *, packages: Sequence[ModuleType] = ()) -> Iterator[Connection]:
    """While open, Ray runs: our own, stopped at the end, or a cluster that was there before and stays.

    `packages` are imported packages whose code the workers need. On this machine they are found where they are; to a
    cluster that somebody else started they are sent, from where they were imported. Inside a process that has Ray
    already, that one is used and left running. Raises ConnectionError, RuntimeError or ValueError, one line each.
    """
    began = time.monotonic()
    ray = quiet_ray()
    if ray.is_initialized():
        yield _describe(ray, owned=False, began=None)
        return
    address = chosen(config)
    with without_chatter(), token_mode_restored():
        try:
            if address == "local":
                context = _start(ray, config, packages)
            else:
                context = _join(ray, config, address, packages)
            yield _describe(ray, owned=address == "local", began=began, dashboard=context.dashboard_url or None)
        finally:
            _leave(ray, owned=address == "local")


def chosen(config: Config) -> str:
    """Where to run: local, auto or host:port. RAY_ADDRESS counts where the file leaves it open."""
    named = os.environ.get("RAY_ADDRESS", "").strip()
    if config.address in (None, "auto") and named:
        try:
            return str(cluster_address(named))
        except ValueError as error:
            raise ValueError(f"RAY_ADDRESS={named}: {error}") from None
    return config.address or "local"


# -- a Ray of our own --------------------------------------------------------------------------------------------------


def _start(ray: ModuleType, config: Config, packages: Sequence[ModuleType]) -> Any:
    _ensure_token()
    roots = sorted({str(Path(package.__path__[0]).parent) for package in packages} - _site_folders())
    try:
        return ray.init(
            address="local",
            num_cpus=_cpus(ray) if config.cpus == "auto" else config.cpus,
            num_gpus=None if config.gpus == "auto" else config.gpus,
            object_store_memory=_store(config),
            include_dashboard=config.dashboard,
            log_to_driver=False,
            logging_level=logging.ERROR,
            job_config=_job(ray, roots),
            runtime_env=config.runtime_env.given() or None,
            _memory=None if config.memory == "auto" else config.memory,
        )
    except Exception as error:  # a node that does not come up in time is told as a bare one
        raise RuntimeError(f"Ray did not start on this machine: {_first_line(error)}") from error


def _ensure_token() -> None:
    """Ray keeps a token in the home folder; where that cannot be written, this process gets one of its own."""
    if any(os.environ.get(name) for name in (AUTH, "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    folder = Path(os.path.expanduser("~/.ray"))
    above = next(one for one in (folder, *folder.parents) if one.exists())
    if not (folder / "auth_token").exists() and not os.access(above, os.W_OK):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _cpus(ray: ModuleType) -> int:
    """CPUs that this process may use: Ray knows of a container's share, but not of `taskset`."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, int(ray._private.utils.get_num_cpus())))


def _store(config: Config) -> int:
    """Bytes of object store: small, and no more than the shared memory there is (containers often have 64 MB; then Ray
    keeps it in a file under its temporary folder, which is slower and for us hardly matters)."""
    if config.object_store_memory != "auto":
        return config.object_store_memory
    shared = Path("/dev/shm")
    free = int(0.9 * shutil.disk_usage(shared).free) if shared.is_dir() else STORE
    return min(STORE, free) if free >= LEAST_STORE else LEAST_STORE


def _site_folders() -> set[str]:
    """Folders of installed packages, which every worker of this interpreter searches anyway."""
    return {*site.getsitepackages(), site.getusersitepackages()}


def _job(ray: ModuleType, roots: list[str]) -> Any:
    """A job whose workers look for modules in `roots` first, and never in the folder that the user happens to be in.

    Ray puts the driver's current folder first on every worker's path, unless a working_dir is sent. A data folder may
    hold anything: a queue.py there would break Ray itself.
    """

    class Job(ray.job_config.JobConfig):  # type: ignore[name-defined, misc]
        def _runtime_env_has_working_dir(self) -> bool:
            return True

    return Job(_py_driver_sys_path=roots)


def _leave(ray: ModuleType, *, owned: bool) -> None:
    """Stop a Ray of our own; from somebody else's cluster, only this process takes its leave."""
    if owned and ray.is_initialized():
        # Its autoscaler has nothing to scale here, and Ray would wait a second for it to end by itself.
        ray._private.worker._global_node.kill_monitor(check_alive=False)
    ray.shutdown()


# -- somebody else's cluster -------------------------------------------------------------------------------------------


def _join(ray: ModuleType, config: Config, address: str, packages: Sequence[ModuleType]) -> Any:
    if address == "auto":
        address = _running_here(ray)
    if probe(address) and AUTH not in os.environ:
        if not token_at_hand(address):
            raise ConnectionError(f"the cluster at {address} wants Ray's token: set {AUTH}=token and RAY_AUTH_TOKEN")
        set_token_mode("token")
    try:
        _check_node(ray, address)
        return ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            job_config=_job(ray, []),
            runtime_env=_travelling(config, packages) or None,
        )
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ConnectionError(_why_not(error, address)) from error


def _check_node(ray: ModuleType, address: str) -> None:
    """Raises RuntimeError unless a node of the cluster runs on this machine; Ray would end the process with a dump."""
    nodes = ray._raylet.GcsClient(address=address).get_all_node_info().values()
    if not any(Path(node.raylet_socket_name).exists() for node in nodes if node.raylet_socket_name):
        raise RuntimeError(f"this machine is no node of it; run there, or `ray start --address={address}` here first")


def _running_here(ray: ModuleType) -> str:
    """The address of the cluster that runs on this machine."""
    try:
        return str(ray._private.services.canonicalize_bootstrap_address("auto"))
    except ConnectionError:
        told = "address: auto, but no Ray cluster runs on this machine"
        raise ConnectionError(f"{told}; `ray start --head` starts one, --set address=local does without") from None


def _travelling(config: Config, packages: Sequence[ModuleType]) -> dict[str, Any]:
    """The runtime environment with our own code in it, without what whoever submitted this job has sent already."""
    given = config.runtime_env.given()
    sent = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}").get("runtime_env") or {}
    variables = {name: one for name, one in given.pop("env_vars", {}).items() if name not in sent.get("env_vars", {})}
    given = {name: one for name, one in given.items() if name not in sent}  # Ray refuses what is said twice
    given |= {"env_vars": variables} if variables else {}
    if "py_modules" in sent or not packages:
        return given
    return {**given, "py_modules": [*packages, *given.get("py_modules", [])], "excludes": ["__pycache__/"]}


def _why_not(error: BaseException, address: str) -> str:
    """One line for a cluster that is there and still cannot be joined."""
    told = _chain(error)
    versions = re.findall(r"Ray: (\S+)\s+Python: (\S+)", told)
    if "ersion mismatch" in told and len(versions) == 2:
        (ray_there, python_there), (ray_here, python_here) = versions
        there, here = f"Ray {ray_there} on Python {python_there}", f"Ray {ray_here} on Python {python_here}"
        return f"the cluster at {address} runs {there}, this is {here}: they must be the same"
    if "InvalidAuthToken" in told or "AuthenticationError" in told:
        return f"the cluster at {address} refuses Ray's token: check {AUTH}, RAY_AUTH_TOKEN and ~/.ray/auth_token"
    return f"cannot join the Ray cluster at {address}: {_first_line(error)}"


# -- shared ------------------------------------------------------------------------------------------------------------


def _describe(ray: ModuleType, *, owned: bool, began: float | None, dashboard: str | None = None) -> Connection:
    found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    machines = [Machine(*(int(one.get(name, 0)) for name in ("CPU", "GPU", "memory"))) for one in found]
    address = str(ray.get_runtime_context().gcs_address)
    seconds = 0.0 if began is None else time.monotonic() - began
    return Connection(address, owned, round(seconds, 3), tuple(machines), f"http://{dashboard}" if dashboard else None)


@contextlib.contextmanager
def token_mode_restored() -> Iterator[None]:
    """Starting Ray turns its token on for this process for good; put that back, for what the process joins next."""
    before = os.environ.get(AUTH)
    try:
        yield
    finally:
        if os.environ.get(AUTH) != before:
            set_token_mode(before)


def set_token_mode(mode: str | None) -> None:
    from ray._raylet import Config as RayConfig  # type: ignore[attr-defined]

    if mode is None:
        os.environ.pop(AUTH, None)
    else:
        os.environ[AUTH] = mode
    RayConfig.initialize("")  # Ray keeps a copy


def _chain(error: BaseException | None) -> str:
    """The messages of an error and of what caused it."""
    return f"{error}\n{_chain(error.__cause__ or error.__context__)}" if error is not None else ""


def _first_line(error: BaseException) -> str:
    """What an error says, without the tail that Ray adds; the second line too where the first one says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].startswith("Failed to set up runtime env") else lines[0]
