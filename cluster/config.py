"""ray_config.yaml: where Cortado runs and on how much of it, read once and then fixed."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError

from cluster import yaml_lines
from cluster.kinds import choice, cluster_address, number_or_range, seconds, shown, size, switch, texts, whole, word

NAME = "ray_config.yaml"
SHIPPED = Path(__file__).with_name(NAME)
LEAST_STORE = 80_000_000  # bytes; Ray refuses an object store below 75 MiB
Auto = Literal["auto"]


# -- the keys; ray_config.yaml says what each means --------------------------------------------------------------------


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RuntimeEnv(Section):
    env_vars: Annotated[dict[str, str], BeforeValidator(texts)] = {}
    pip: str | list[str] | dict[str, Any] | None = None
    uv: str | list[str] | dict[str, Any] | None = None
    conda: str | dict[str, Any] | None = None
    py_modules: list[str] = []
    image_uri: str | None = None
    config: dict[str, Any] | None = None

    def given(self) -> dict[str, Any]:
        """Only what the file says, as Ray takes it."""
        return {name: found for name, found in self.model_dump().items() if found not in (None, {}, [])}


class Data(Section):
    workers: Annotated[int | Auto, whole(1, auto=True)] = "auto"
    cpus_per_worker: Annotated[int | Auto, whole(1, auto=True)] = "auto"
    memory_per_worker: Annotated[int | Auto, size()] = "auto"
    fuse: Annotated[bool, switch()] = True
    where: Annotated[Literal["worker", "cluster"], choice("worker", "cluster")] = "worker"


class Range(Section):
    """From so many to so many workers or replicas."""

    min: int
    max: int


class Train(Section):
    workers: Annotated[int | Auto | Range, number_or_range(auto=True)] = "auto"
    gpu: Annotated[bool | Auto, switch(auto=True)] = "auto"
    cpus_per_worker: Annotated[int | Auto, whole(1, auto=True)] = "auto"
    batch: Annotated[Literal["whole", "per_worker"], choice("whole", "per_worker")] = "whole"
    recovery_seconds: Annotated[float, BeforeValidator(seconds)] = 60
    max_failures: Annotated[int, whole(-1)] = 3


class Serve(Section):
    host: Annotated[str, BeforeValidator(word)] = "127.0.0.1"
    port: Annotated[int, whole(1, 65535)] = 8000
    replicas: Annotated[int | Range, number_or_range()] = 1
    scale_up_seconds: Annotated[float, BeforeValidator(seconds)] = 5
    scale_down_seconds: Annotated[float, BeforeValidator(seconds)] = 300
    cpus_per_replica: Annotated[int, whole(1)] = 1
    batch_size: Annotated[int, whole(1)] = 32
    batch_wait_seconds: Annotated[float, BeforeValidator(seconds)] = 0
    gpu: Annotated[bool | Auto, switch(auto=True)] = "auto"


class Config(Section):
    """Everything that ray_config.yaml says; `source` tells which file that was."""

    address: Annotated[str | None, BeforeValidator(cluster_address)] = None
    cpus: Annotated[int | Auto, whole(1, auto=True)] = "auto"
    gpus: Annotated[int | Auto, whole(0, auto=True)] = "auto"
    memory: Annotated[int | Auto, size()] = "auto"
    object_store_memory: Annotated[int | Auto, size(LEAST_STORE)] = "auto"
    dashboard: Annotated[bool, switch()] = False
    runtime_env: RuntimeEnv = Field(default_factory=RuntimeEnv)
    data: Data = Field(default_factory=Data)
    train: Train = Field(default_factory=Train)
    serve: Serve = Field(default_factory=Serve)
    _source: str = PrivateAttr(default="")

    @property
    def source(self) -> str:
        return self._source


# -- reading -----------------------------------------------------------------------------------------------------------


class Source(NamedTuple):
    file: Path
    name: str  # as messages call it
    told: str  # who named it; empty where nobody did


def load(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """The configuration of this run: a file, and the KEY=VALUE `overrides` of --set on top of it.

    The file is `path`, ./ray_config.yaml, the one that CORTADO_CONFIG names, or the shipped one: the first that there
    is. Raises ValueError or OSError with one line that names the file and line, or the --set, to mend.
    """
    source = find(path)
    try:
        text = source.file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source.name}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise OSError(f"{source.told}{source.name}: {error.strerror}") from None
    tree, lines = yaml_lines.parse(text, source.name)
    places = {key: f"{source.name}:{line}" for key, line in lines.items()}
    for override in overrides:
        _set(tree, places, override)
    _drop_empty(tree, set())
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise ValueError(_explain(error, places, source.name)) from None
    config._source = source.name
    return config


def find(path: str | Path | None = None) -> Source:
    """The file to read."""
    if path is not None:
        return Source(Path(path), str(path), "--config ")
    if Path(NAME).is_file():
        return Source(Path(NAME), NAME, "")
    if named := os.environ.get("CORTADO_CONFIG"):
        return Source(Path(named), named, "CORTADO_CONFIG=")
    return Source(SHIPPED, str(SHIPPED), "")


def keys(model: type[BaseModel] = Config, above: str = "") -> Iterator[str]:
    """Every key with its full name: address, ..., data, data.workers, ..."""
    for name, field in model.model_fields.items():
        yield above + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation, f"{above}{name}.")


def _set(tree: dict[str, Any], places: dict[tuple[str, ...], str], override: str) -> None:
    """Put one KEY=VALUE into `tree`, in place of what stands there."""
    name, equals, text = override.partition("=")
    path = tuple(part.strip() for part in name.split("."))
    if not equals or not all(path):
        raise ValueError(f"--set {override}: expected KEY=VALUE, as --set data.workers=4")
    try:
        found = yaml_lines.value(text)
    except ValueError as error:
        raise ValueError(f"--set {override}: {error}") from None
    for place in [place for place in places if place[: len(path)] == path]:
        del places[place]
    places[path] = f"--set {override}"
    for part in path[:-1]:
        if not isinstance(tree.get(part), dict):
            tree[part] = {}
        tree = tree[part]
    tree[path[-1]] = found


def _drop_empty(tree: dict[str, Any], seen: set[int]) -> None:
    """Keys without a value are as good as absent. An alias may name a mapping twice, or inside itself."""
    seen.add(id(tree))
    for name, found in list(tree.items()):
        if found is None:
            del tree[name]
        elif isinstance(found, dict) and id(found) not in seen:
            _drop_empty(found, seen)


def _explain(error: ValidationError, places: dict[tuple[str, ...], str], name: str) -> str:
    """One line for the first thing that is wrong, and how many more there are."""
    problems = error.errors()
    first = problems[0]
    path = tuple(str(part) for part in first["loc"])
    known = list(keys())
    while path and ".".join(path) not in known and first["type"] != "extra_forbidden":
        path = path[:-1]  # a part that pydantic adds, as which kind of a union it tried
    above = [places[path[:end]] for end in range(len(path), 0, -1) if path[:end] in places]
    below = [told for place, told in places.items() if place[: len(path)] == path]
    place = (above or below or [name])[0]
    others = {problem["loc"][:2] for problem in problems} - {first["loc"][:2]}
    more = f" (and {len(others)} more)" if others else ""
    return f"{place}: {_what(first, '.'.join(path), known)}{more}"


def _what(problem: Any, key: str, known: list[str]) -> str:
    if problem["type"] == "extra_forbidden":
        if key == "runtime_env.working_dir":
            return f"unknown key '{key}': folders are never sent to the nodes; use py_modules for your own code"
        inside, _, last = key.rpartition(".")
        beside = [name for name in known if name.rpartition(".")[0] == inside]
        near = difflib.get_close_matches(key, beside, n=1, cutoff=0.75)
        near = near or [name for name in known if name.endswith(f".{last}")][:1]
        return f"unknown key '{key}'" + (f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(beside)}")
    kinds = {
        "model_type": "expected a mapping of keys",
        "list_type": "expected a list",
        "dict_type": "expected a mapping",
    }
    fallback = f"{kinds.get(problem['type'], 'expected another kind of value')}, found {shown(problem['input'])}"
    return f"{key}: {problem.get('ctx', {}).get('error') or fallback}"
