"""`cortado upgrade`: a net or solver of an old format, written anew in the current one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from pipelines.job import Job, counted, say, table

if TYPE_CHECKING:
    from google.protobuf.message import Message

TEXT = (".prototxt", ".pbtxt", ".txt")
BINARY = (".caffemodel", ".binaryproto")
MOST_AS_TEXT = 48 * 1024 * 1024  # bytes of binary weights, whose text is about as long as a text file may be


@dataclass(frozen=True, kw_only=True)
class Upgrade(Job):
    """Bring an old net (V0, V1, input: fields), its caffemodel or an old solver to Caffe's current format.

    As upgrade_net_proto_text, upgrade_net_proto_binary and upgrade_solver_proto_text; weights are kept to the bit,
    comments are not. A file that is current already is copied as it is.

    Example: cortado upgrade old_deploy.prototxt deploy.prototxt
    """

    old: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OLD")]
    """a net or a solver; text or binary is recognized from its content"""
    new: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="NEW")]
    """file to write: text where it ends in .prototxt, .pbtxt or .txt, binary where in .caffemodel or .binaryproto, else
    as OLD"""
    text: bool = False
    """write text, whatever NEW ends in"""
    binary: bool = False
    """write binary, whatever NEW ends in"""
    overwrite: bool = False
    """replace NEW where it stands there already; it may be OLD itself"""

    def __post_init__(self) -> None:
        if self.text and self.binary:
            raise ValueError("--text and --binary: expected one of them")

    def run(self) -> dict[str, Any]:
        from ops.proto.upgrade import WARNING

        self.check_target()
        spec, form = read(self.old)
        told = upgrade(spec, str(self.old))
        target, current = self.form(form), not told
        if target == "text" != form and holds_unknown(spec):
            told.append(f"{WARNING}fields that are not known here, as forks of Caffe have, left out of the text")
        if not current or target != form:
            write(self.new, spec, target)
        else:
            copy(self.old, self.new)
        warnings = [line.removeprefix(WARNING) for line in told if line.startswith(WARNING)]
        for line in warnings:
            say(f"warning: {line}")
        return {
            "old": str(self.old),
            "new": str(self.new),
            "holds": kind(spec),
            "form": target,
            "current": current,
            "upgraded": [line for line in told if not line.startswith(WARNING)],
            "warnings": warnings,
        }

    def render(self, result: dict[str, Any]) -> Any:
        from rich.console import Group
        from rich.markup import escape
        from rich.text import Text

        was = (
            "current already" if result["current"] else f"of an old format: {counted(len(result['upgraded']), 'step')}"
        )
        facts = {
            "old": escape(f"{result['old']}, a {result['holds']}, {was}"),
            "new": escape(f"{result['new']}, {result['form']}"),
        }
        return Group(*map(Text, result["upgraded"]), table(facts))

    def check_target(self) -> None:
        """NEW can be written without taking away what nobody gave up."""
        if self.new.is_dir():
            raise IsADirectoryError(21, "Is a directory; give the file to write", str(self.new))
        if not self.old.exists():
            raise FileNotFoundError(2, "No such file or folder", str(self.old))
        if self.new.exists() and not self.overwrite:
            what = "is OLD itself" if self.new.samefile(self.old) else "stands there already"
            raise ValueError(f"{self.new}: {what}; choose another NEW, or give --overwrite")

    def form(self, old: str) -> str:
        """text or binary, as asked for, else as the name of NEW says, else as the old file."""
        ending = self.new.suffix.lower()
        if self.text or self.binary:
            return "text" if self.text else "binary"
        return "text" if ending in TEXT else "binary" if ending in BINARY else old


def kind(spec: Message) -> str:
    return {"NetParameter": "net", "SolverParameter": "solver"}[spec.DESCRIPTOR.name]


def read(path: Path) -> tuple[Any, str]:
    """A NetParameter or SolverParameter, and whether the file was text or binary; only nets are binary files."""
    from ops.proto import binary, files, text
    from ops.proto.caffe_pb2 import NetParameter, SolverParameter

    if files.sniff(path) != "text":
        return binary.read(path, NetParameter), "binary"
    errors = []
    for message_class in (NetParameter, SolverParameter):
        try:
            return text.read(path, message_class), "text"
        except ValueError as error:
            errors.append(error)
    raise max(errors, key=place)  # of the one that got further


def place(error: ValueError) -> tuple[int, ...]:
    """Line and column out of FILE:LINE:COLUMN: ..."""
    found = re.search(r":(\d+):(\d+): ", str(error))
    return tuple(map(int, found.groups())) if found else (0, 0)


def upgrade(spec: Any, name: str) -> list[str]:
    """Bring it to the current format in place; what was done, line by line."""
    from ops.proto.upgrade import upgrade_net, upgrade_solver

    return (upgrade_net if kind(spec) == "net" else upgrade_solver)(spec, name)


def holds_unknown(spec: Any) -> bool:
    """Whether there are fields of another schema in it, at any depth; text cannot say them."""
    if spec.ByteSize() > MOST_AS_TEXT:
        return False
    known = type(spec)()
    known.CopyFrom(spec)
    known.DiscardUnknownFields()
    return bool(known.ByteSize() != spec.ByteSize())


def write(path: Path, spec: Any, form: str) -> None:
    """The file, whole or not at all, folders above it too."""
    from ops.proto import binary, text

    if form == "binary" and kind(spec) == "solver":
        raise ValueError(
            f"{path}: Caffe reads solvers as text only; choose a name that ends in .prototxt, or give --text"
        )
    if form == "text" and spec.ByteSize() > MOST_AS_TEXT:
        found = f"{spec.ByteSize():,} bytes, too many for a text file"
        raise ValueError(f"{path}: {found}; choose a name that ends in .caffemodel, or give --binary")
    path.absolute().parent.mkdir(parents=True, exist_ok=True)
    (binary if form == "binary" else text).write(path, spec)


def copy(old: Path, new: Path) -> None:
    """The same bytes under another name, comments and all."""
    from ops.proto import files

    if new.exists() and new.samefile(old):
        return
    new.absolute().parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(new, files.read_bytes(old, 2**31 - 1))
