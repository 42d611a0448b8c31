"""The same server as an application of Ray Serve's own: for `serve deploy FILE`, which `cortado serve --build` writes.

There Ray Serve's proxy answers HTTP: how long a head may be and how long it may take to arrive are the proxy's limits.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from ray import serve

from cluster import deploy
from ops.names import hint
from pipelines.stages.serving_api import make_app
from pipelines.stages.serving_body import Limits
from pipelines.stages.serving_front import Asker, FrontOptions
from pipelines.stages.serving_model import Served, served
from pipelines.stages.serving_replica import Replica

TOKEN = "CORTADO_SERVE_TOKEN"
PATHS = ("labels", "hierarchy", "run_folder", "samples", "model")
# every option that an application takes, with its default
DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(("model", "weights", "run_folder", "labels", "hierarchy", "blob", "samples"), None),
    **dict.fromkeys(("images_dim", "mean_file", "raw_scale", "input_scale", "channel_swap", "stage"), None),
    **{"oversample": False, "gray": False, "batch_size": None, "level": 0, "name": "default", "host": "127.0.0.1"},
    **{"max_body": 32_000_000, "max_images": 64, "max_pixels": 50_000_000, "max_waiting": 512, "timeout": 60.0},
    **{"code": (), "threads": 1, "gpu": False, "digest": None, "batch_wait": 0.0},
}
# what `served` asks of a job beside
FIXED = {"pool": "none", "dtype": "float32", "format": "parquet", "shards": "1", "label_kind": "caffe", "root": ""}


def known() -> list[str]:
    """Options of the command that stand in the file."""
    return [name for name in DEFAULTS if name not in ("host", "threads", "gpu", "digest", "batch_wait")]


def as_written(name: str, value: Any) -> Any:
    """An option's value in the file: paths are absolute, because the file is read elsewhere."""
    if name == "code":
        return [os.path.abspath(one) for one in value]
    if name == "weights":
        return ",".join(os.path.abspath(one.strip()) for one in value.split(","))
    if name in (*PATHS, "mean_file"):  # a net may be one of the zoo, a mean may be numbers
        return os.path.abspath(value) if os.path.exists(value) else str(value)
    return value


@serve.ingress()
class Ingress(Asker):
    """Behind Ray Serve's proxy."""

    async def __init__(self, options: FrontOptions, model: Any):
        Asker.__init__(self, options)
        self.model, self.version = model, serve.get_replica_context().app_name
        self.looking = asyncio.create_task(self.look())

    def __serve_build_asgi_app__(self) -> Any:
        return make_app(self.service)

    async def find(self) -> None:
        if self.handle is None:
            await self.use(self.model, await asyncio.to_thread(self.count))

    def count(self) -> int:
        return deploy.running_of(self.version)

    async def known(self) -> dict[str, Any]:
        """What the model has told of itself."""
        return self.facts


def build(args: Mapping[str, Any]) -> Any:
    """The application that the `args` of a config file ask for; ValueError for an option that there is not."""
    for name in args:
        if name not in DEFAULTS:
            raise ValueError(f"args: no option '{name}'{hint(name, DEFAULTS)}")
    given = {**DEFAULTS, **args}
    paths = {name: Path(given[name]) for name in PATHS if given[name] is not None}
    job = SimpleNamespace(**{**FIXED, **given, **paths, "limit": None})
    model = served(job)
    if job.digest not in (None, model.digest):
        raise ValueError(f"args: digest {job.digest}: the weights there have {model.digest}; build the file anew")
    limits = Limits(
        body=job.max_body,
        images=job.max_images,
        pixels=job.max_pixels,
        answer_seconds=job.timeout,
        waiting=job.max_waiting,
    )
    model = dataclasses.replace(model, size=job.batch_size or model.size, wait=float(job.batch_wait))
    more = {"limits": limits, "token": os.environ.get(TOKEN) or None, "samples": paths.get("samples")}
    options = FrontOptions(job.name, job.host, 0, job.name, **more)
    calls = deploy.MOST_CALLS
    replica = serve.deployment(name="model", max_ongoing_requests=calls, max_constructor_retry_count=2)(Replica)
    ingress = serve.deployment(name="ingress", max_ongoing_requests=1000)(Ingress)
    return ingress.bind(options, replica.bind(model, int(job.threads), bool(job.gpu)))


def config_text(given: Mapping[str, Any], asked: Any, *, port: int | None, gpu: str | None, model: Served) -> str:
    """The file: `given` options, `asked` the serve section of ray_config.yaml. Checked with Ray Serve's own schema."""
    from ray.serve.schema import ServeDeploySchema

    use = asked.gpu is True if gpu is None else gpu != "none"
    args = {name: as_written(name, value) for name, value in given.items() if value != DEFAULTS[name]}
    args |= {"threads": asked.cpus_per_replica, "digest": model.digest, **({"gpu": True} if use else {})}
    args = {"batch_size": asked.batch_size, "batch_wait": asked.batch_wait_seconds, **args}
    resources = {"num_cpus": asked.cpus_per_replica, "num_gpus": int(use)}
    replicas = deploy.scaling(*deploy.ends_of(asked.replicas), asked.scale_up_seconds, asked.scale_down_seconds)
    tree = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": asked.host, "port": port or asked.port, "request_timeout_s": given["timeout"]},
        "applications": [
            {
                "name": f"cortado-{given['name']}",
                "route_prefix": "/",
                "import_path": f"{__name__}:build",
                "args": args,
                "deployments": [
                    {"name": "model", **replicas, "ray_actor_options": resources},
                    {"name": "ingress", "num_replicas": 1, "ray_actor_options": {"num_cpus": 0}},
                ],
            }
        ],
    }
    check_keys(tree, ServeDeploySchema, "")
    ServeDeploySchema.model_validate(tree)
    return f"# {TOKEN} in the replicas' environment sets a token.\n" + yaml.safe_dump(tree, sort_keys=False)


def check_keys(tree: Mapping[str, Any], schema: Any, above: str) -> None:
    """ValueError for a key that the schema has not: Ray Serve would take it in silence."""
    from ray.serve.config import AutoscalingConfig
    from ray.serve.schema import DeploymentSchema, HTTPOptionsSchema, RayActorOptionsSchema, ServeApplicationSchema

    inside = {
        "autoscaling_config": AutoscalingConfig,
        "http_options": HTTPOptionsSchema,
        "applications": ServeApplicationSchema,
        "deployments": DeploymentSchema,
        "ray_actor_options": RayActorOptionsSchema,
    }
    for name, value in tree.items():
        if name not in schema.model_fields:
            raise ValueError(f"{above}{name}: Ray Serve knows no such key{hint(name, schema.model_fields)}")
        if name in inside:
            for one in value if isinstance(value, list) else [value]:
                check_keys(one, inside[name], f"{above}{name}.")
