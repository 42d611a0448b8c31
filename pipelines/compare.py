"""`cortado compare`: two nets, weights, precisions or devices, blob by blob."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from pipelines.job import Job, say, table

if TYPE_CHECKING:
    import torch

    from ops.compare import Difference
    from ops.net import Net
    from ops.precision import Precision
    from pipelines.stages.netinput import Content
    from pipelines.stages.netshow import Asked

PRECISIONS = ("fp32", "tf32", "bf16")
# of a relative difference, that nobody wonders about: the coarser of two precisions, and other kernels
ROUNDING = {"fp32": 1e-5, "tf32": 1e-2, "bf16": 1e-1}
OTHER_DEVICE = 1e-4
SHOWN = 5  # layers whose weights differ that are named one by one


@dataclass(frozen=True, kw_only=True)
class Compare(Job):
    """Run two nets on the same input and say where they begin to differ: two definitions, two weight files, two devices
    or two precisions.

    Blobs are matched by layer and name. The first layer whose top differs by more than the tolerance is named; then the
    exit code is 1.

    Example: cortado compare caffenet:a.caffemodel caffenet:b.caffemodel --input cat.jpg --mean 104,117,123
    """

    first: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FIRST")]
    """a prototxt, a .caffemodel, or a net of the zoo by its name; behind a colon its weights, several with commas"""
    second: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SECOND")]
    """what it is compared with"""
    input: str = "0"
    """what both get: an image, a .npy for the first input that it fits, a .npz by blob names, or the seed of random
    numbers, as 7"""
    mean: str | None = None
    """for an image: subtracted from it, a binaryproto, a .npy, or a value a channel as 104,117,123"""
    scale: float = 1.0
    """for an image: it is multiplied by this after the mean"""
    shape: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="CxHxW")] = ()
    """shape of the first input, as 3x227x227 (the batch is the file's), or NAME=10x3x227x227 of any input; may be given
    several times"""
    batch: int | None = None
    """size of the batch of random numbers; default: the file's"""
    phase: Literal["TRAIN", "TEST"] = "TEST"
    """TRAIN or TEST"""
    stage: str = ""
    """the nets' stages, with commas"""
    level: int = 0
    """the nets' level"""
    device: str = "cpu"
    """cpu, cuda or cuda:N; cpu,cuda: the first net on one, the second on the other"""
    precision: str = "fp32"
    """fp32, tf32 or bf16; fp32,bf16: the first net in one, the second in the other"""
    tolerance: float | None = None
    """relative difference (norms) that is none; default: 1e-5, across devices 1e-4, for tf32 1e-2, for bf16 1e-1"""
    code: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FILE|DIR")] = ()
    """Python file or folder with layers of your own; may be given several times"""

    def __post_init__(self) -> None:
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"--batch {self.batch}: expected 1 or more")
        if self.tolerance is not None and not self.tolerance >= 0:
            raise ValueError(f"--tolerance {self.tolerance:g}: expected 0 or more")
        for word in pair(self.precision, "precision"):
            if word not in PRECISIONS:
                raise ValueError(f"--precision {word}: expected fp32, tf32 or bf16, two with a comma")
        pair(self.device, "device")

    def run(self) -> dict[str, Any]:
        from ops import custom, user_frames
        from ops.compare import compare, fill_zeros
        from pipelines.stages.netinput import Content
        from pipelines.stages.netrun import device_name, device_of

        devices = [device_of(word) for word in pair(self.device, "device")]
        precisions: Any = pair(self.precision, "precision")
        content = Content(self.input, mean=self.mean, scale=self.scale)
        with user_frames.told("", say):
            custom.load_code(self.code)
            sides = [self.load(word, content, device) for word, device in zip(self.both, devices, strict=True)]
            (first, _), (second, _) = sides
            values = content.values(first)
            others = counterparts(first, second, values, content)
            if first.report is None and second.report is None:
                say("no weights given: both nets get the same random ones")
                fill_zeros(first)
                fill_zeros(second)
            found = compare(first, second, values, others=others, precisions=precisions)
        tolerance = self.allowed(devices, precisions)
        beyond, differing = found.beyond(tolerance), found.first
        return {
            "ok": beyond is None,
            "nets": [asked_name for _, asked_name in sides],
            "devices": [device_name(device) for device in devices],
            "precisions": list(precisions),
            "phase": self.phase,
            "input": self.input,
            "shapes": {name: list(value.shape) for name, value in values.items()},
            "tolerance": tolerance,
            "first": differing and named(differing),
            "beyond": beyond and named(beyond),
            "blobs": [facts(one) for one in found.tops],
            "weights": [facts(one) for one in found.weights],
            "only_in_first": list(found.only_first),
            "only_in_second": list(found.only_second),
        }

    @property
    def both(self) -> tuple[str, str]:
        return self.first, self.second

    def load(self, word: str, content: Content, device: torch.device) -> tuple[Net, str]:
        """A net at the shapes of its input, and what messages call it."""
        from pipelines.stages.netrun import ask, open_net

        name, weights = split(word)
        asked = ask(name, self.phase, stage=self.stage, level=self.level)
        try:
            asked.give(self.shape, self.batch)
            asked.inputs.update(self.decided(asked, content))
            return open_net(asked, device, weights), f"{asked.file}{f' with {weights}' if weights else ''}"
        except ValueError as error:
            raise ValueError(str(error).replace("--input", "--shape")) from error

    def decided(self, asked: Asked, content: Content) -> Any:
        return {} if content.seed is not None else content.shapes(asked.load(device="meta"))

    def allowed(self, devices: list[torch.device], precisions: tuple[Precision, Precision]) -> float:
        """The tolerance, as given or as one expects of what is compared."""
        if self.tolerance is not None:
            return self.tolerance
        apart = OTHER_DEVICE if devices[0].type != devices[1].type else 0.0
        return max(apart, *(ROUNDING[word] for word in precisions))

    def render(self, result: dict[str, Any]) -> Any:
        return page(result)


def pair(words: str, option: str) -> tuple[str, str]:
    """One word for both nets, or two with a comma."""
    found = [word.strip() for word in words.split(",")]
    if len(found) > 2 or not all(found):
        raise ValueError(f"--{option} {words}: expected one, or two with a comma")
    return found[0], found[-1]


def split(word: str) -> tuple[str, str | None]:
    """NET and WEIGHTS of NET:WEIGHTS; a path may have colons of its own."""
    if Path(word).exists():
        return word, None
    places = [place for place, letter in enumerate(word) if letter == ":"]
    net = next((place for place in places if Path(word[:place]).exists()), places[0] if places else None)
    return (word, None) if net is None else (word[:net], word[net + 1 :] or None)


def counterparts(first: Net, second: Net, values: dict[str, Any], content: Content) -> dict[str, Any]:
    """What the second net gets: the same, by names; where a single input has another name, by its place."""
    from ops.layers.registry import text
    from ops.random_inputs import random_inputs

    found = random_inputs(second, content.seed or 0)
    same = {name: values[name] for name in found if name in values}
    if not same and len(found) == len(values) == 1:
        same = dict(zip(found, values.values(), strict=True))
    if not same and found:
        raise ValueError(
            f"{second.name} has inputs {', '.join(second.inputs)}, {first.name} has {', '.join(first.inputs)}: none in "
            "common"
        )
    for name, value in same.items():
        if tuple(value.shape) != tuple(second.inputs[name]):
            told = f"{text(tuple(value.shape))} in {first.name}, {text(tuple(second.inputs[name]))} in {second.name}"
            advice = f"nets of different shapes cannot be compared; --shape {name}=... gives both the same"
            raise ValueError(f"input {name!r} is {told}: {advice}")
    return {**found, **same}


def named(one: Difference) -> dict[str, str]:
    return {"layer": one.layer, "type": one.type, "blob": one.blob}


def facts(one: Difference) -> dict[str, Any]:
    """A difference as JSON can say it; infinite ones as None."""
    from math import isfinite

    return {
        "layer": one.layer,
        "type": one.type,
        "blob": one.blob,
        "shape": list(one.shape),
        "other_shape": list(one.other),
        "largest": one.largest if isfinite(one.largest) else None,
        "relative": one.relative if isfinite(one.relative) else None,
        "equal": one.equal,
    }


# -- for people ------------------------------------------------------------------------------------------------------


def page(result: dict[str, Any]) -> Any:
    """A line a blob, the first that is beyond the tolerance marked; then the verdict."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    grid = Table(box=None, pad_edge=False)
    for name in ("", "layer", "type", "blob", "shape", "largest |a - b|", "relative"):
        grid.add_column(name, justify="right" if name in ("largest |a - b|", "relative") else "left", overflow="fold")
    first = next((row for row in result["blobs"] if is_beyond(row, result["tolerance"])), None)
    for row in result["blobs"]:
        mark = ">" if row is first else ""
        cells = (mark, row["layer"], row["type"], row["blob"], shape_of(row), number(row, "largest"))
        style = "bold red" if mark else "red" if is_beyond(row, result["tolerance"]) else None
        grid.add_row(*map(escape, cells), number(row, "relative"), style=style)
    return Group(grid, "", table({name: escape(words) for name, words in verdict(result).items()}))


def is_beyond(row: dict[str, Any], tolerance: float) -> bool:
    return row["relative"] is None or row["relative"] > tolerance


def verdict(result: dict[str, Any]) -> dict[str, str]:
    rows, tolerance = result["blobs"], result["tolerance"]
    different = next((row for row in rows if not row["equal"]), None)
    beyond = next((row for row in rows if is_beyond(row, tolerance)), None)
    told = {}
    for place, name in enumerate(("first net", "second net")):
        told[name] = f"{result['nets'][place]}, {result['precisions'][place]}, {result['devices'][place]}"
    told["input"] = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in result["shapes"].items())
    told["first that differs"] = "no blob differs" if different is None else where(different)
    if different is not None:
        told[f"first beyond {tolerance:g}"] = "none" if beyond is None else where(beyond)
    if result["weights"]:
        names = [f"{one['layer']} {one['blob']} (relative {number(one, 'relative')})" for one in result["weights"]]
        more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
        told["weights that differ"] = ", ".join(names[:SHOWN]) + more
    for name in ("only_in_first", "only_in_second"):
        if result[name]:
            told[name.replace("_", " ")] = ", ".join(result[name])
    return told


def where(row: dict[str, Any]) -> str:
    """As "layer conv2 (Convolution): relative 1.2e-03"; the blob too where it is called otherwise."""
    head = f"layer {row['layer']} ({row['type']})" + (f", {row['blob']}" if row["blob"] != row["layer"] else "")
    if row["shape"] != row["other_shape"]:
        return f"{head}: shapes {shape_of(row)}"
    return f"{head}: relative {number(row, 'relative')}"


def shape_of(row: dict[str, Any]) -> str:
    shapes = [row["shape"]] + [row["other_shape"]] * (row["shape"] != row["other_shape"])
    return " / ".join("x".join(map(str, shape)) or "1" for shape in shapes)


def number(row: dict[str, Any], what: str) -> str:
    return "0" if row["equal"] else "inf" if row[what] is None else f"{row[what]:.2e}"
