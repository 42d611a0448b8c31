"""A training that tells MLflow too: what it is called there, its settings, and the files that are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message

from ops.training.tracking import Tracker

if TYPE_CHECKING:
    from pipelines.stages.setup import Setup

FILES = ("solver.prototxt", "train.prototxt", "test.prototxt", "deploy.prototxt", "model.json", "train.log")
TABLES = ("metrics.csv", "test.csv")
NOT_SAID = ("solver", "run", "resume", "snapshot", "mlflow", "sigint", "sighup", "keep", "code")


def tracker(setup: Setup, uri: str) -> Tracker:
    """The run of MLflow that belongs to this one: a new one, or what a resumed run had."""
    return Tracker(
        uri,
        setup.folder.name,
        id=setup.before.get("mlflow"),
        settings=settings(setup),
        files=lambda: files(setup),
        warn=lambda text: warn(setup, text),
    )


def settings(setup: Setup) -> dict[str, str]:
    """The solver's fields, the options that are not at their defaults, and what is trained on what."""
    batch = max((feed.batch for feed in setup.feeds.values()), default=0)
    records = next((feed.records for feed in setup.feeds.values() if feed.records), None)
    known = {"net": setup.net.spec.name, "batch": batch, "records": records, "workers": setup.group.world}
    known |= {"device": setup.place.device.type, "folder": str(setup.folder.resolve())}
    told = {name: str(value) for name, value in known.items() if value not in (None, "", 0)}
    for field in dataclasses.fields(setup.job):
        value, default = getattr(setup.job, field.name), field.default
        if field.name not in NOT_SAID and value not in (default, (), {}):
            told[f"option.{field.name}"] = said(value)
    return told | {f"solver.{field.name}": of_solver(field, value) for field, value in setup.spec.ListFields()}


def said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={one}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def of_solver(field: Any, value: Any) -> str:
    """A field of a solver as its prototxt has it, on one line."""
    if field.enum_type is not None and isinstance(value, int):
        return str(field.enum_type.values_by_number[value].name)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str | int):
        return str(value)
    if isinstance(value, Message):
        return " ".join(str(value).split())
    return " ".join(of_solver(field, one) for one in value)


def files(setup: Setup) -> list[Path]:
    """What others need to look at this run, and to use its model: the best weights, else the last."""
    folder = setup.folder
    kept = [folder / name for name in (*FILES, *TABLES)]
    best = setup.best.held
    newest = max(Path(setup.prefix).parent.glob(f"{Path(setup.prefix).name}_iter_*.caffemodel*"), key=age, default=None)
    kept += [folder / best["weights"]] if best else [newest] if newest is not None else []
    return [file for file in kept if file.is_file()]


def age(file: Path) -> float:
    return file.stat().st_mtime


def warn(setup: Setup, text: str) -> None:
    """One line, in the log and for whoever looks on."""
    setup.log.line(f"warning: {text}")
    if setup.place.report is not None:
        setup.place.report({"event": "sign", "lines": [f"warning: {text}"]})
