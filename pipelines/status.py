"""`cortado status`: what there is to run on, and who sees which data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from pipelines.job import Job, say, size, table

if TYPE_CHECKING:
    from rich.console import RenderableType

# what a version is called here -> the distributions that bring it
DISTRIBUTIONS = {
    "cortado": ("cortado",),
    "opencv": ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python"),
    "numpy": ("numpy",),
    "lmdb": ("lmdb",),
    "h5py": ("h5py",),
}


@dataclass(frozen=True, kw_only=True)
class Status(Job):
    """Show the nodes, CPUs, GPUs and versions of the cluster, and whether each node sees your data.

    Without a cluster, that is this machine: a Ray of our own is started for the answer and stopped again.

    With --gpu: what torch knows of GPUs of this machine, as caffe device_query; no Ray is started.

    Example: cortado status --path data/ --path photos/
    """

    path: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATH")] = ()
    """folders or files to look for on every node; a small probe file is written there and removed; may be given
    several times"""
    gpu: str | None = None
    """tell of these GPUs of this machine instead: 0,1 or all"""

    def __post_init__(self) -> None:
        if self.gpu is not None and self.path:
            raise ValueError("--gpu and --path: give one of them")

    def run(self) -> dict[str, Any]:
        if self.gpu is not None:
            return {"gpus_here": devices(self.gpu)}
        import cluster
        import ops
        import pipelines
        from cluster import config
        from cluster.connect import connected
        from cluster.status import status

        settings = config.load(self.config, self.set)
        with connected(settings, packages=(ops, pipelines, cluster)) as connection:
            if connection.owned:
                say("no running cluster is configured: a local Ray was started for this check")
            found = status(connection, [str(path) for path in self.path], DISTRIBUTIONS)
        return {"config": settings.source, **found, "ok": not found["problems"]}

    def render(self, result: dict[str, Any]) -> RenderableType:
        from rich.console import Group

        if self.gpu is not None:
            pages = [part for one in result["gpus_here"] for part in (table(one), "")]
            return Group(*pages[:-1]) if pages else "this machine has no GPU that torch can use"
        parts = [table(self.overview(result)), nodes(result)]
        if result["paths"]:
            parts.append(folders(result))
        problems = [f"problem: {told}" for told in result["problems"]] or ["no problems found"]
        return Group(*(part for one in parts for part in (one, "")), *problems)

    def overview(self, result: dict[str, Any]) -> dict[str, Any]:
        kind = "a local Ray, started for this check" if result["started_here"] else "a running cluster"
        free = {"CPUs": ("cpus", "cpus_free"), "GPUs": ("gpus", "gpus_free")}
        return {
            "address": f"{result['address']}  ({kind}, ready in {result['seconds_to_connect']:.1f} s)",
            **{name: f"{result[all]}, {result[left]} free" for name, (all, left) in free.items()},
            **({"dashboard": result["dashboard"]} if result["dashboard"] else {}),
            "versions": ", ".join(f"{name} {told}" for name, told in result["versions_here"].items()),
            "configuration": result["config"],
        }


# what `caffe device_query` says -> what torch calls it; older versions of torch do not know all
DEVICE = {
    "major revision number": "major",
    "minor revision number": "minor",
    "name": "name",
    "total global memory": "total_memory",
    "total shared memory per block": "shared_memory_per_block",
    "total registers per multiprocessor": "regs_per_multiprocessor",
    "warp size": "warp_size",
    "maximum threads per block": "max_threads_per_block",
    "maximum threads per multiprocessor": "max_threads_per_multi_processor",
    "clock rate": "clock_rate",
    "memory clock rate": "memory_clock_rate",
    "memory bus width": "memory_bus_width",
    "second level cache": "L2_cache_size",
    "number of multiprocessors": "multi_processor_count",
}


def devices(gpu: str) -> list[dict[str, Any]]:
    """The facts of GPUs: "0,1" or "all"; ValueError for one that there is not."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    words = list(map(str, range(count))) if gpu.strip() == "all" else [word.strip() for word in gpu.split(",")]
    for word in words:
        if not (word.isdecimal() and int(word) < count):
            found = f"0 to {count - 1}, or all" if count else "torch finds no GPU here"
            raise ValueError(f"--gpu {gpu}: {f'expected {found}' if count else found}")
    told = []
    for number in map(int, words):
        facts = torch.cuda.get_device_properties(number)
        known = {name: getattr(facts, field) for name, field in DEVICE.items() if hasattr(facts, field)}
        told.append({"device id": number, **known, "torch": torch.__version__, "CUDA": torch.version.cuda})
    return told


def nodes(result: dict[str, Any]) -> RenderableType:
    """One row a node."""
    from rich.table import Table

    grid = Table(box=None, pad_edge=False)
    for title in ("node", "host", "CPUs", "GPUs", "memory", "object store", "versions"):
        grid.add_column(title, justify="right" if title in ("CPUs", "GPUs", "memory", "object store") else "left")
    for node in result["nodes"]:
        differ = [f"{name} {told}" for name, told in node["versions"].items() if told != result["versions_here"][name]]
        gpus = f"{node['gpus']} {node['gpu_kind']}" if node["gpu_kind"] else str(node["gpus"])
        grid.add_row(
            node["id"][:6] + ("  (head)" if node["head"] else ""),
            node["host"],
            str(node["cpus"]),
            gpus,
            size(node["memory"]),
            size(node["object_store"]),
            node["error"] or ", ".join(differ) or "as here",
        )
    return grid


def folders(result: dict[str, Any]) -> RenderableType:
    """One row a path, one column a node."""
    from rich.table import Table

    grid = Table(box=None, pad_edge=False)
    grid.add_column("path", overflow="fold")
    grid.add_column("here")
    for node in result["nodes"]:
        grid.add_column(node["id"][:6])
    for folder in result["paths"]:
        looks = [folder["here"], *(folder["nodes"].get(node["id"]) for node in result["nodes"])]
        grid.add_row(folder["path"], *map(view, looks))
    return grid


def view(look: dict[str, Any] | None) -> str:
    if look is None:
        return "no answer"
    if look["sees"]:
        return "reads, writes" if look["writes"] else "reads only"
    return look["reason"]
