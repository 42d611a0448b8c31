"""What a cluster is: its nodes, whether they run the same versions, and which of them see which folders."""

from __future__ import annotations

import platform
import socket
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from cluster.connect import Connection
from cluster.errors import unwrap
from cluster.probe import Probe, leave

PATIENCE = 60.0  # seconds for all nodes to answer; one that has to unpack our code first needs some

Names = Mapping[str, Sequence[str]]  # what to call it -> distributions; the first that is installed counts


def status(connection: Connection, paths: Sequence[str] = (), distributions: Names | None = None) -> dict[str, Any]:
    """Facts about every node, as JSON has them; `problems` says in a line each what would make a job fail.

    Each of `paths` is probed from both sides: a file written here is read on every node, and the other way round.
    """
    ray: Any = import_module("ray")

    names = dict(distributions or {})
    alive = [node for node in ray.nodes() if node["Alive"]]
    probes = [leave(path) for path in paths]
    try:
        answers = _ask([node["NodeID"] for node in alive], probes, names)
        nodes = [_node(node, answers.get(node["NodeID"], {"error": "no answer"})) for node in alive]
        folders = [_folder(probe, place, answers) for place, probe in enumerate(probes)]
    finally:
        for probe in probes:
            probe.clear()
    here, free = versions(names), ray.available_resources()
    return {
        "address": connection.address,
        "started_here": connection.owned,
        "seconds_to_connect": connection.started_s,
        "dashboard": connection.dashboard,
        "cpus": connection.cpus,
        "cpus_free": int(free.get("CPU", 0)),
        "gpus": connection.gpus,
        "gpus_free": int(free.get("GPU", 0)),
        "versions_here": here,
        "same_versions": not list(_differences(nodes, here)),
        "nodes": nodes,
        "paths": folders,
        "problems": [*_silences(nodes), *_differences(nodes, here), *_blindness(folders, nodes)],
    }


def versions(distributions: Names) -> dict[str, str]:
    """Versions in this process: Python, Ray, and those asked for."""
    ray: Any = import_module("ray")

    found = {"python": platform.python_version(), "ray": str(ray.__version__)}
    for name, candidates in distributions.items():
        found[name] = next((told for one in candidates if (told := _version(one))), "not installed")
    return found


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


# -- asking ------------------------------------------------------------------------------------------------------------


def _ask(nodes: Sequence[str], probes: Sequence[Probe], names: Names) -> dict[str, dict[str, Any]]:
    """The answer of every node; the tasks need no CPU, so a busy cluster answers too."""
    ray: Any = import_module("ray")
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        task = ray.remote(num_cpus=0, max_retries=1, scheduling_strategy=there)(_answer)
        asked[task.remote(node, list(probes), names)] = node
    answers: dict[str, dict[str, Any]] = {}
    for reference in ray.wait(list(asked), num_returns=len(asked), timeout=PATIENCE)[0] if asked else ():
        try:
            answers[asked[reference]] = ray.get(reference)
        except ray.exceptions.RayError as error:
            answers[asked[reference]] = {"error": str(unwrap(error))}
    return answers


def _answer(node: str, probes: Sequence[Probe], names: Names) -> dict[str, Any]:
    """On a node: what runs here, and what is seen from here?"""
    return {"host": socket.gethostname(), "versions": versions(names), "looks": [probe.look(node) for probe in probes]}


def _node(node: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    offers = node["Resources"]
    kinds = [name.removeprefix("accelerator_type:") for name in offers if name.startswith("accelerator_type:")]
    return {
        "id": node["NodeID"],
        "host": node["NodeManagerHostname"],
        "address": node["NodeManagerAddress"],
        "head": "node:__internal_head__" in offers,
        "cpus": int(offers.get("CPU", 0)),
        "gpus": int(offers.get("GPU", 0)),
        "gpu_kind": ", ".join(kinds) or None,
        "memory": int(offers.get("memory", 0)),
        "object_store": int(offers.get("object_store_memory", 0)),
        "versions": answer.get("versions", {}),
        "error": answer.get("error"),
    }


def _folder(probe: Probe, place: int, answers: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """A path as this process and every node that answered see it."""
    looks = {node: answer["looks"][place] for node, answer in answers.items() if "looks" in answer}
    seen = {node: probe.confirm(node, look) for node, look in looks.items()}
    return {"path": probe.path, "here": probe.here(), "nodes": seen}


# -- what would go wrong -----------------------------------------------------------------------------------------------


def named(node: Mapping[str, Any]) -> str:
    """A node as messages call it; several may run on one machine."""
    return f"node {node['id'][:6]} ({node['host']})"


def _silences(nodes: Sequence[dict[str, Any]]) -> Iterator[str]:
    return (f"{named(node)}: {node['error']}" for node in nodes if node["error"])


def _differences(nodes: Sequence[dict[str, Any]], here: Mapping[str, str]) -> Iterator[str]:
    """Versions that differ from this process'; our own package need not be installed where it is sent."""
    for node in nodes:
        for name, found in node["versions"].items():
            if found != here[name] and not (name == "cortado" and found == "not installed"):
                yield f"{named(node)}: {name} {found}, here {here[name]}"


def _blindness(folders: Sequence[dict[str, Any]], nodes: Sequence[dict[str, Any]]) -> Iterator[str]:
    names = {node["id"]: named(node) for node in nodes}
    for folder in folders:
        if not folder["here"]["sees"]:
            yield f"{folder['path']}: not there for this process"
        for node, look in folder["nodes"].items():
            if not look["sees"]:
                yield f"{folder['path']}: {names[node]} does not see it ({look['reason']})"
            elif folder["here"]["writes"] and not look["writes"]:
                yield f"{folder['path']}: {names[node]} only reads it ({look['reason']})"
