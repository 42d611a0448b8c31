"""Models on Ray Serve, and the actor in front of them: deploying, replacing without a gap, finding and removing.

A model is an application `cortado.NAME.N` of one deployment; N counts its replacements. Ray Serve's own HTTP proxy is
not used, and applications and actors of others are left alone.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Iterable
from importlib import import_module
from typing import Any, NamedTuple

from cluster.config import Range
from cluster.connect import Connection
from cluster.scaling import places, there

NAMESPACE = "cortado"
LOOK_EVERY = 0.1  # seconds
HEALTH_PERIOD, HEALTH_PATIENCE = 2.0, 30.0  # seconds
FINISHING = 30.0  # seconds that a replica has for what it is working on
MOST_CALLS = 16  # that a replica is given at once
TARGET = 1.5  # calls that a replica has on average before there are more: a front gives each two, if it has them
LOOK_BACK = 15.0  # seconds of load that are averaged; handles tell theirs every 10
ERROR = re.compile(r"^\s*(?:[\w.]+\.)?(\w*(?:Error|Exception))(?:\([\w.]+\))?: (.*)$", re.MULTILINE)


class Replicas(NamedTuple):
    """How many there are of a model, and how large each is."""

    least: int
    most: int
    cpus: int  # that are kept for each
    threads: int
    gpu: bool
    up: float = 5.0  # seconds of too much load until there are more
    down: float = 300.0  # seconds of little load until there are fewer

    def scaling(self) -> dict[str, Any]:
        """As Ray Serve takes it: a number, or how the number follows the load."""
        return scaling(self.least, self.most, self.up, self.down)


def scaling(least: int, most: int, up: float, down: float) -> dict[str, Any]:
    """num_replicas, or the autoscaling_config of a deployment."""
    if least == most:
        return {"num_replicas": least}
    ends = {"min_replicas": least, "max_replicas": most, "initial_replicas": least}
    delays = {"upscale_delay_s": up, "downscale_delay_s": down, "look_back_period_s": LOOK_BACK}
    return {"autoscaling_config": {**ends, "target_ongoing_requests": TARGET, **delays}}


def ends_of(asked: Any) -> tuple[int, int]:
    """serve.replicas as (least, most)."""
    return (asked.min, asked.max) if isinstance(asked, Range) else (asked, asked)


def replicas_for(config: Any, connection: Connection, *, gpu: str | None = None) -> Replicas:
    """From ray_config.yaml and what there is; on a Ray of our own a replica computes on all the CPUs that are left.

    `gpu` is the command line's. Raises ValueError, one line, where so many do not fit.
    """
    asked = config.serve
    use = connection.gpus > 0 if asked.gpu == "auto" else asked.gpu
    use = use if gpu is None else gpu != "none"
    if use and not connection.gpus:
        said = f"--gpu {gpu}" if gpu is not None else "serve.gpu: true"
        raise ValueError(f"{said}: {there(connection)} has no GPU; --gpu none computes on CPUs")
    room = places(connection.machines, asked.cpus_per_replica, None, gpu=use)
    least, most = ends_of(asked.replicas)
    wanted = most if connection.owned else least  # to a cluster of others nodes may come
    if wanted > room:
        told = f"{wanted} replicas of {asked.cpus_per_replica} CPUs{' and a GPU' if use else ''}"
        raise ValueError(f"{told} cannot run at once: {there(connection)} has room for {room}; lower serve.replicas")
    threads = max(asked.cpus_per_replica, connection.cpus // most if connection.owned else 1)
    each = (asked.cpus_per_replica, threads, use)
    return Replicas(least, most, *each, asked.scale_up_seconds, asked.scale_down_seconds)


def ray_serve() -> Any:
    """Ray Serve, without its notes on what it does."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    return import_module("ray.serve")


def deploy(kind: type, arguments: tuple[Any, ...], *, name: str, replicas: Replicas, patience: float = 300.0) -> str:
    """A new version of the model `name` beside the one that runs; what it is called, when it is ready.

    RuntimeError or ValueError in one line where its constructor fails, or no room comes up in `patience` seconds.
    """
    serve = ray_serve()

    if not serve.status().applications:
        serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
    app = f"cortado.{name}.{max((number for number, _ in versions(name)), default=0) + 1}"
    model = serve.deployment(
        name="model",
        **replicas.scaling(),
        ray_actor_options={"num_cpus": replicas.cpus, "num_gpus": int(replicas.gpu)},
        max_ongoing_requests=MOST_CALLS,
        health_check_period_s=HEALTH_PERIOD,
        health_check_timeout_s=HEALTH_PATIENCE,
        graceful_shutdown_timeout_s=FINISHING,
        graceful_shutdown_wait_loop_s=0.1,
        max_constructor_retry_count=1,
    )(kind)
    target = serve.api.RunTarget(target=model.bind(*arguments), name=app, route_prefix=None)
    serve.run_many([target], wait_for_applications_running=False)
    try:
        wait(app, patience)
    except BaseException:
        serve.delete(app, _blocking=False)
        raise
    return app


def wait(app: str, patience: float) -> None:
    """Until an application runs."""
    serve = ray_serve()

    until = time.monotonic() + patience
    while True:
        found = serve.status().applications.get(app)
        status = str(getattr(found, "status", "")).rpartition(".")[2]
        if status == "RUNNING":
            return
        told = "\n".join([*(one.message for one in found.deployments.values()), found.message]) if found else ""
        if status == "DEPLOY_FAILED":
            raise RuntimeError(f"the model could not be started: {last_error(told)}")
        if time.monotonic() > until:
            raise RuntimeError(f"the model was not ready after {patience:.0f} s: is there room for its replicas?")
        time.sleep(LOOK_EVERY)


def last_error(told: str) -> str:
    """What the innermost exception of a traceback says."""
    found = ERROR.findall(told)
    return " ".join(found[-1][1].split()) if found else (told.strip().splitlines() or ["no reason was given"])[-1]


def versions(name: str) -> list[tuple[int, str]]:
    """(number, application) of every version of a model that there is, oldest first."""
    return versions_in(ray_serve().status().applications, name)


def versions_in(applications: Iterable[str], name: str) -> list[tuple[int, str]]:
    mark = re.compile(rf"cortado\.{re.escape(name)}\.(\d+)")
    found = [(mark.fullmatch(app), app) for app in applications]
    return sorted((int(match[1]), app) for match, app in found if match)


def newest(name: str) -> str | None:
    """The newest version of a model that runs."""
    status = ray_serve().status().applications
    running = [app for _, app in versions_in(status, name) if str(status[app].status).endswith("RUNNING")]
    return running[-1] if running else None


def handle_of(app: str) -> tuple[Any, int]:
    """The handle of an application's deployment, and how many replicas of it run."""
    return ray_serve().get_app_handle(app), running_of(app)


def running_of(app: str) -> int:
    """How many replicas of an application's model run; at least 1."""
    found = ray_serve().status().applications.get(app)
    model = found.deployments.get("model") if found else None
    return max(1, model.replica_states.get("RUNNING", 0)) if model else 1


def retire(name: str, keep: str | None) -> list[str]:
    """Remove all versions of a model but `keep`; what they are working on is finished first."""
    serve = ray_serve()

    old = [app for _, app in versions(name) if app != keep]
    for app in old:
        serve.delete(app)
    return old


# -- the actor in front ------------------------------------------------------------------------------------------------


def start_front(kind: type, options: Any, *, name: str) -> Any:
    """An actor on this machine that Ray starts anew whenever it dies, under a name that `find_front` knows."""
    ray: Any = import_module("ray")
    strategies: Any = import_module("ray.util.scheduling_strategies")

    here = strategies.NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(kind).options(
        name=f"front.{name}",
        namespace=NAMESPACE,
        lifetime="detached",
        num_cpus=0,
        max_restarts=-1,
        max_concurrency=1000,
        scheduling_strategy=here,
    )
    return actor.remote(options)


def find_front(name: str) -> Any | None:
    ray: Any = import_module("ray")

    try:
        return ray.get_actor(f"front.{name}", namespace=NAMESPACE)
    except ValueError:
        return None


def remove(name: str) -> None:
    """Stop the front, and then all versions of the model."""
    ray: Any = import_module("ray")

    front = find_front(name)
    if front is not None:
        with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
            ray.get(front.stop.remote(), timeout=20)
        ray.kill(front, no_restart=True)
    retire(name, None)
