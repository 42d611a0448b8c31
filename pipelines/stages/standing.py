"""Where a training stands beside weights and history, for a snapshot's record, and going on from such a record."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops.proto import text
from ops.proto.caffe_pb2 import NetParameter, SolverParameter
from ops.solver import snapshot
from ops.training.carried import carried
from pipelines.job import say
from pipelines.stages.run_folder import deciding, net_digest, solver_digest, without_places

if TYPE_CHECKING:
    from pipelines.stages.setup import Setup, Tested, Training

# Options that may change between a run and its continuation: nets and solvers have digests, the rest decides nothing.
FREE_OPTIONS = {
    "solver",
    "run",
    "weights",
    "snapshot",
    "resume",
    "level",
    "stages",
    "compiled",
    "keep",
    "sigint",
    "sighup",
    "patience",
    "best",
    "code",
}


def options(job: Training) -> dict[str, Any]:
    """The options that decide the numbers of a training."""
    given = {name: value for name, value in dataclasses.asdict(job).items() if name not in FREE_OPTIONS}
    told: dict[str, Any] = json.loads(json.dumps(given, default=str))
    return told


def record(setup: Setup, tests: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """What a snapshot remembers; every process must ask. `tests`: where the test nets stood, if not where they do."""
    return {
        "run": setup.id,
        "feeds": {name: feed.position for name, feed in setup.feeds.items()},
        "forwards": setup.net.forwards,
        "carried": carried(setup.net, setup.group),
        "tests": [stand(setup, one) for one in setup.tests] if tests is None else tests,
        "smoother": setup.smoother.state(),
        "watch": setup.best.state(),
        "digests": setup.digests,
        "options": options(setup.job),
        "seed": setup.seed,
        "world": setup.group.world,
    }


def stand(setup: Setup, one: Tested) -> dict[str, Any]:
    """Where a test net stands."""
    return {
        "net": one.digest,
        "feeds": {name: feed.position for name, feed in one.feeds.items()},
        "forwards": one.net.forwards,
        "carried": carried(one.net, setup.group),
    }


def newest(prefixes: Iterable[str], run: str | None) -> Path | None:
    """The solver state of the newest whole snapshot, of a certain run where that is known."""
    found = [one for prefix in prefixes for one in snapshot.find_snapshots(prefix)]
    mine = [one for one in found if run is None or (one.record or {}).get("run") == run]
    for one in sorted(mine, key=lambda one: one.iteration, reverse=True):
        told = snapshot.damage(one)
        if told is None:
            return one.state
        say(f"warning: {told}: an older one is taken")
    return None


def compare(setup: Setup, path: str | Path, *, strict: bool) -> None:
    """Whether a snapshot was made with this net, solver and options: ValueError where it must, else a warning."""
    found = snapshot.of_state(path)
    held = (found.record if found is not None else None) or {}
    told = [
        f"another {what}{difference(setup, what, held['digests'][what])}"
        for what, digest in setup.digests.items()
        if held.get("digests", {}).get(what, digest) != digest
    ]
    now = options(setup.job)
    for name, value in held.get("options", {}).items():
        if name in now and now[name] != value:
            told.append(f"another {name} ({json.dumps(value)} then, {json.dumps(now[name])} now)")
    if not told:
        return
    listed = " and ".join(told)
    if strict:
        raise ValueError(
            f"{path}: was made with {listed}; give what {setup.folder} was trained with, or go on from it in a new "
            "run with --snapshot and --run"
        )
    if setup.group.rank == 0:
        say(f"warning: {path} was made with {listed}")


def difference(setup: Setup, what: str, digest: str) -> str:
    """What differs from the net or solver that the run's folder holds, where that is the snapshot's."""
    try:
        if what == "solver":
            old: Any = text.read(setup.folder / "solver.prototxt", SolverParameter)
            known, pair = solver_digest(old), (deciding(old), deciding(setup.spec))
        else:
            old = text.read(setup.folder / "train.prototxt", NetParameter)
            known, pair = net_digest(old), (without_places(old), without_places(setup.net.spec))
    except (OSError, ValueError):
        return ""
    if known != digest:
        return ""
    return f" ({apart(*pair)})"


def apart(old: Any, new: Any) -> str:
    """The first difference of two solvers, or of two nets layer by layer, in one phrase."""
    layers = [{layer.name: layer for layer in getattr(one, "layer", ())} for one in (old, new)]
    for name in [*layers[0], *layers[1]]:
        pair = [one.get(name) for one in layers]
        if pair[0] is None or pair[1] is None:
            return f"a layer {name!r} {'then' if pair[1] is None else 'now'} only"
        if pair[0] != pair[1]:
            return f"layer {name!r}: {lines_apart(*pair)}"
    return lines_apart(old, new)


def lines_apart(old: Any, new: Any) -> str:
    before, after = ([line.strip() for line in str(one).splitlines()] for one in (old, new))
    gone, came = (list((Counter(a) - Counter(b)).elements()) for a, b in ((before, after), (after, before)))
    return f"{gone[0] if gone else 'nothing'} then, {came[0] if came else 'nothing'} now"
