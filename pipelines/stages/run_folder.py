"""A run's folder: what was run, what came of it, and where to go on.

RUN/solver.prototxt, train.prototxt    the solver and the net as they were used
RUN/train.log                          Caffe's lines
RUN/metrics.csv, test.csv              a row an iteration; a row an output of each test
RUN/model.json                         what test, classify, extract and serve need to know of the model
RUN/run.json                           options, digests
RUN/PREFIX_iter_N.caffemodel, ...      snapshots, or links to where snapshot_prefix puts them
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from google.protobuf.message import Message

from ops.proto import text
from ops.training.deploy import DERIVED
from ops.training.log import writing

METRICS = ("iteration", "loss", "loss_last", "lr", "seconds", "images", "data_wait", "batch_digest")
TESTS = ("iteration", "net", "output", "value")
# What may change between a run and its continuation.
FREE = ("max_iter", "display", "test_iter", "test_interval", "test_initialization", "test_compute_loss", "test_net")
FREE += ("test_net_param", "test_state", "snapshot", "snapshot_prefix", "snapshot_diff", "snapshot_format")
FREE += ("snapshot_after_train", "debug_info", "solver_mode", "device_id", "net", "train_net", "weights")
FREE += ("net_param", "train_net_param", "layer_wise_reduce")


class Table:
    """A CSV file that is appended to, and cut back to an iteration when a run goes on from there."""

    def __init__(self, path: Path, columns: Iterable[str], *, before: int | None):
        """`before`: keep the rows of iterations below this (None: begin anew)."""
        self.path, self.columns = path, tuple(columns)
        found = self.rows() if before is not None else []
        kept = [row for row in found if int(row[0]) < (before or 0)]
        self.last = kept[-1] if kept else None
        self.undone = found[len(kept) :]  # rows that were cut
        with writing(path):
            scratch = path.with_name(f".{path.name}.new")
            with scratch.open("w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([self.columns, *kept])
            scratch.replace(path)
            self.file: IO[str] = path.open("a", newline="", buffering=1 << 16)
        self.writer = csv.writer(self.file, lineterminator="\n")

    def rows(self) -> list[list[str]]:
        """What stands in the file; a row that a killed run left half written is not one."""
        if not self.path.exists():
            return []
        with self.path.open(newline="", errors="replace") as file:
            rows = list(csv.reader(line for line in file if "\0" not in line))
        return [row for row in rows if len(row) == len(self.columns) and row[0].isdecimal()]

    def add(self, *values: object) -> None:
        with writing(self.path):
            self.writer.writerow([format(value, ".9g") if isinstance(value, float) else value for value in values])

    def flush(self) -> None:
        with writing(self.path):
            self.file.flush()

    def close(self) -> None:
        with writing(self.path):
            self.file.close()

    def __enter__(self) -> Table:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError) if error is not None else contextlib.nullcontext():
            self.close()


def stays(path: Path, message: Message, solver: str) -> bool:
    """Whether a file is left as it is: it says the same, maybe with a recipe's reasons, or is the solver given."""
    with contextlib.suppress(OSError, ValueError):
        return text.read(path, type(message)) == message or path.samefile(solver)
    return False


def keep_or_write(path: Path, message: Message, solver: str) -> None:
    if not stays(path, message, solver):
        text.write(path, message)


def derived(path: Path) -> bool:
    """Whether a recipe made it of its net: then it is made anew of what the net has become."""
    with path.open(encoding="utf-8", errors="replace") as file:
        heading = takewhile(lambda line: line.startswith("# "), file)
        return DERIVED in " ".join(line[2:].strip() for line in heading)


def refuse_to_overwrite(folder: Path, texts: Mapping[str, Message], solver: str) -> None:
    """FileExistsError where a run would write over a net or solver that no run has written."""
    if (folder / "run.json").exists():
        return
    for name, message in texts.items():
        path = folder / name
        if path.exists() and not stays(path, message, solver) and not derived(path):
            advice = "is there already, no run wrote it, and this run would write its own: take another --run"
            raise FileExistsError(errno.EEXIST, advice, str(path))


def refuse_another(folder: Path, advice: str = "--resume goes on with it, another --run NAME begins anew") -> None:
    """A new run wants a folder in which no run has got anywhere yet."""
    with contextlib.suppress(FileNotFoundError), (folder / "metrics.csv").open("rb") as file:
        file.readline()
        if file.readline():
            raise FileExistsError(errno.EEXIST, f"holds a run already: {advice}", str(folder))


def digest_of(*messages: Any) -> str:
    """A fingerprint of protobuf messages, the same wherever they are read."""
    summed = hashlib.sha256()
    for message in messages:
        data = message.SerializeToString(deterministic=True)
        summed.update(len(data).to_bytes(8, "little") + data)
    return summed.hexdigest()[:32]


def solver_digest(spec: Any) -> str:
    """The fingerprint of what decides the numbers of a training."""
    return digest_of(deciding(spec))


def deciding(spec: Any) -> Any:
    """A solver without FREE, and without what says no more than the default."""
    copy = type(spec)()
    copy.CopyFrom(spec)
    for field in FREE:
        copy.ClearField(field)
    if spec.lr_policy != "plateau":  # which looks at the smoothed loss
        copy.ClearField("average_loss")
    for field, value in copy.ListFields():
        if field.has_presence and field.message_type is None and value == field.default_value:
            copy.ClearField(field.name)
    return copy


def net_digest(spec: Any) -> str:
    """The fingerprint of a net, without where its data lies."""
    return digest_of(without_places(spec))


def without_places(spec: Any) -> Any:
    copy = type(spec)()
    copy.CopyFrom(spec)
    for layer in copy.layer:
        del layer.blobs[:]
        for param in ("data_param", "image_data_param", "hdf5_data_param", "window_data_param"):
            if layer.HasField(param):
                held = getattr(layer, param)
                for field in ("source", "root_folder", "prefetch", "backend"):
                    with contextlib.suppress(ValueError):
                        held.ClearField(field)
        if layer.infogain_loss_param.source:
            layer.infogain_loss_param.source = Path(layer.infogain_loss_param.source).name
        if layer.HasField("transform_param") and layer.transform_param.HasField("mean_file"):
            layer.transform_param.mean_file = Path(layer.transform_param.mean_file).name
    return copy


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.new")
    scratch.write_text(json.dumps(content, indent=1) + "\n")
    scratch.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(path.read_text())
        return content if isinstance(content, dict) else None
    return None


def link(run: Path, files: Iterable[Path]) -> None:
    """Make files that lie elsewhere appear in the run's folder; where links cannot be, they lie elsewhere only."""
    for file in files:
        place = run / file.name
        if file.parent.resolve() == run.resolve():
            continue
        with contextlib.suppress(OSError):
            if place.is_symlink():
                place.unlink()
            if file.exists() and not place.exists():
                place.symlink_to(os.path.relpath(file.resolve(), run.resolve()))
