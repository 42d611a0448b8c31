"""A recipe: train_val, deploy and solver prototxt for a data set, by the rules of Caffe's ImageNet and fine-tuning
examples.

A tenth of the rate after every 18 times through the data, the end after 54; 0.01 to begin with, a tenth of that where
weights are trained already; a test covers the test part, once each time through the training part.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops import net as nets
from ops import weights, zoo
from ops.net import Net
from ops.proto.caffe_pb2 import NetParameter, SolverParameter
from ops.training.deploy import DERIVED, deploy
from ops.training.nets import read_solver
from pipelines.stages.recipe_data import Pictures
from pipelines.stages.recipe_net import Fitted, Wanted, fit
from pipelines.stages.recipe_text import annotated

EPOCHS_A_STEP, STEPS = 18, 3
RATE, FINE = 0.01, 0.1  # base_lr from scratch; the share of it for trained weights
CLIP = 10.0  # clip_gradients where labels are numbers
FINETUNED = ("flickr_style",)  # nets of the zoo whose solvers are for trained weights
LARGE, FEW = 5_000_000, 20_000  # weights of a net, pictures
SHORT = 500  # updates; fewer teach a net from scratch little
LARGER = 256  # pixels a side, as Caffe's ImageNet example
DISPLAY = 20  # iterations, as Caffe's ImageNet solvers
FILES = ("train_val.prototxt", "deploy.prototxt", "solver.prototxt")


@dataclass(frozen=True)
class Schedule:
    """The solver's numbers, in iterations; test_iter 0: there is no test part."""

    epoch: float
    stepsize: int
    max_iter: int
    test_iter: int
    test_interval: int
    display: int


def schedule(records: int, batch: int, tested: int, test_batch: int) -> Schedule:
    """18 and 54 times through `records`, and a test that sees all of `tested`."""
    epoch = records / batch
    stepsize, once = max(1, round(EPOCHS_A_STEP * epoch)), max(1, round(epoch))
    return Schedule(
        epoch=epoch,
        stepsize=stepsize,
        max_iter=STEPS * stepsize,
        test_iter=-(-tested // test_batch),
        test_interval=once,
        display=min(DISPLAY, once),
    )


@dataclass(frozen=True)
class Recipe:
    """The three texts, and what they say."""

    texts: dict[str, str]
    schedule: Schedule
    fitted: Fitted
    base_lr: float
    report: weights.Report | None
    said: list[str]


def cook(
    name: str,
    data: Pictures,
    folder: Path,
    *,
    finetune: str | None,
    batch: int | None,
    test_batch: int | None,
    crop: int | None,
    rate: float | None,
) -> Recipe:
    """The recipe of a net (the zoo's, or a file) for a data set, to be written into `folder`."""
    path = zoo.resolve(name, "train_val.prototxt")
    title, spec = nets.read(path)
    ours = path.is_relative_to(zoo.HERE)
    called = path.parent.name if ours else title
    fresh = ending(data.train) if finetune is not None else None
    taken = frozenset(names_in(finetune)) if finetune is not None else frozenset[str]()
    fitted = fit(called, spec, data, Wanted(batch, test_batch, crop, fresh, taken))
    net, notes = fitted.whole()
    built = build(called, net, data, fitted)
    report = compared(built["TRAIN"], finetune, data) if finetune is not None else None
    example = read_solver(zoo.find(called, "solver.prototxt")) if ours else SolverParameter(weight_decay=0.0005)
    base_lr = rate or first_rate(example, ours and called not in FINETUNED, finetune is not None)
    times = schedule(data.records, fitted.batch, data.tested, fitted.test_batch)
    last = built["TEST"] if data.test is not None else built["TRAIN"]
    texts = {
        FILES[0]: annotated(net, notes, heading(called, data, finetune)),
        FILES[1]: annotated(
            deploy(last.spec, last.inputs),
            {},
            f"{net.name or called} {DERIVED} {folder / FILES[0]} makes them",
        ),
        FILES[2]: solver(folder, data, fitted, times, base_lr=base_lr, example=example, finetune=finetune),
    }
    return Recipe(
        texts,
        times,
        fitted,
        base_lr,
        report,
        [
            *fitted.said,
            *advice(called, ours, data, fitted),
            *short(times, finetune),
            *large(built["TRAIN"], data, finetune),
        ],
    )


def build(called: str, spec: NetParameter, data: Pictures, fitted: Fitted) -> dict[str, Net]:
    """The net of each phase, without memory: it can be built for these pictures."""
    built = {}
    for phase in ("TRAIN", "TEST"):
        if phase == "TEST" and data.test is None:
            continue
        kept = nets.select(spec, nets.state_of(spec, phase), called)
        source = next(layer for layer in kept.layer if layer.type in ("Data", "HDF5Data"))
        count = fitted.batch if phase == "TRAIN" else fitted.test_batch
        side = (fitted.crop, fitted.crop) if fitted.crop else data.shape[1:]
        inputs: dict[str, Sequence[int]] = {source.top[0]: (count, data.shape[0], *side)}
        for label in source.top[1:]:
            inputs[label] = (count, data.numbers) if data.numbers else (count,)
        try:
            built[phase] = nets.assemble(called, spec, nets.state_of(spec, phase), inputs=inputs)
        except ValueError as error:
            told = f"{called} cannot be built for {side[0]}x{side[1]} of pictures of {data.shape[0]}x{data.size}"
            advice = f"; cortado prepare --size {LARGER} makes larger ones" if max(data.shape[1:]) < LARGER else ""
            raise ValueError(f"{told}: {str(error).removeprefix(f'{called}: ')}{advice}") from error
    return built


def names_in(finetune: str) -> list[str]:
    """Names of the layers that weight files have numbers for."""
    found: list[str] = []
    for path in nets.paths_of(finetune):
        with weights.read(path) as file:
            found += [layer.name for layer in file.layers if layer.blobs]
    return found


def compared(net: Net, finetune: str, data: Pictures) -> weights.Report:
    """What the weights will be copied to; ValueError where they do not fit."""
    copied: set[int] = set()
    ignored: dict[str, None] = {}
    names = {layer.spec.name for layer in net.layers}
    for path in nets.paths_of(finetune):
        with weights.read(path) as file:
            try:
                copied |= {copy.layer for copy in weights.plan(net, file)}
            except ValueError as error:
                told = f"{error}; the pictures are {data.shape[0]}x{data.size}"
                raise ValueError(told) from error
            ignored |= {layer.name: None for layer in file.layers if layer.blobs and layer.name not in names}
    return weights.Report(
        copied=tuple(net.layers[at].spec.name for at in sorted(copied)),
        ignored=tuple(ignored),
        kept=tuple(layer.spec.name for at, layer in enumerate(net.layers) if layer.blobs and at not in copied),
    )


def first_rate(example: SolverParameter, published: bool, finetuning: bool) -> float:
    """0.01, or what a net of the zoo was published with where that is less; for fine-tuning a tenth."""
    rate = min(RATE, example.base_lr) if published else RATE
    return float(f"{rate * (FINE if finetuning else 1):.6g}")


def ending(train: Path) -> str:
    """What the name of a fresh layer ends in: the data set's name."""
    folder = train.resolve().parent if train.name in ("train", "training") else train.resolve()
    plain = "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in folder.name).strip("_")
    return plain or "new"


def heading(called: str, data: Pictures, finetune: str | None) -> str:
    what = f"{data.numbers} numbers a picture" if data.numbers else f"{data.classes} classes"
    begin = f", to go on from {finetune}" if finetune else ""
    return f"{called} for {data.train}: {data.records:,} pictures of {data.shape[0]}x{data.size}, {what}{begin}"


def advice(called: str, ours: bool, data: Pictures, fitted: Fitted) -> list[str]:
    """What a person should know before a training."""
    said = []
    if ours and not fitted.crop and data.kind == "lmdb":
        side = max(nets.read(zoo.find(called))[1].layer[0].input_param.shape[0].dim[2:])
        if max(data.shape[1:]) > 1.5 * side:
            said.append(f"{called} was made for {side}x{side}, the pictures are {data.size}: prepare --size {side}")
    if data.mean is None and not data.numbers and data.kind == "lmdb":
        said.append(
            f"no mean image: cortado mean {data.train} --out {data.train.parent / 'mean.binaryproto'} makes one"
        )
    if data.test is None:
        said.append(f"no part to test with: {data.train} alone was given; --test names one")
    if data.sorted:
        said.append(f"{data.train} is sorted by class: train with --shuffle, or convert it anew with --shuffle")
    return said


def short(times: Schedule, finetune: str | None) -> list[str]:
    """What few updates are good for."""
    if finetune is not None or times.max_iter >= SHORT:
        return []
    return [
        f"{times.max_iter} updates are few for a net from scratch: raise stepsize and max_iter together, or give a "
        "smaller --batch, or go on from --finetune WEIGHTS"
    ]


def large(net: Net, data: Pictures, finetune: str | None) -> list[str]:
    """What a large net makes of few pictures."""
    numbers = sum(blob.numel() for layer in net.layers for blob in layer.blobs)
    if finetune is not None or numbers < LARGE or data.records > FEW:
        return []
    return [
        f"{numbers / 1e6:.0f} million weights and {data.records:,} pictures: --finetune WEIGHTS learns more of so few; "
        "from scratch, where the loss explodes, --rate 0.001"
    ]


# -- the solver --------------------------------------------------------------------------------------------------------


def solver(
    folder: Path,
    data: Pictures,
    fitted: Fitted,
    times: Schedule,
    *,
    base_lr: float,
    example: SolverParameter,
    finetune: str | None,
) -> str:
    """The text of solver.prototxt."""
    batch, epochs = fitted.batch, times.stepsize / times.epoch
    why = "most weights are good already" if finetune else f"{fitted.name} from scratch"
    lines: list[tuple[str, str]] = [
        (f"net: {in_quotes(folder / FILES[0])}", ""),
        *([(f"weights: {in_quotes(finetune)}", "to begin with, copied by layer name")] if finetune else []),
        ("", ""),
    ]
    if times.test_iter:
        seen = times.test_iter * fitted.test_batch
        why_tests = f"{batches(times.test_iter)} of {fitted.test_batch} for {data.tested:,} test records"
        why_tests += f": {seen - data.tested} count twice" if seen > data.tested else ": each counts once"
        lines += [
            (f"test_iter: {times.test_iter}", why_tests),
            (f"test_interval: {times.test_interval}", f"about once through {data.records:,} records"),
            ("", ""),
        ]
    lines += [
        (f"base_lr: {base_lr:g}", why),
        ('lr_policy: "step"', "a rate that falls in steps"),
        ("gamma: 0.1", "to a tenth each time"),
        (
            f"stepsize: {times.stepsize}",
            f"{epochs:.3g} times through the data: {times.epoch:.4g} iterations of {batch} are once",
        ),
        (f"max_iter: {times.max_iter}", f"{STEPS * epochs:.3g} times through"),
        ("", ""),
        ("momentum: 0.9", "a step keeps nine tenths of the one before"),
        (f"weight_decay: {example.weight_decay:g}", "weights shrink by this share of the rate"),
    ]
    if data.numbers:
        lines.append((f"clip_gradients: {CLIP:g}", "far off at the start, squared distances have huge gradients"))
    lines += [
        ("", ""),
        (f"display: {times.display}", "a line in the log"),
        (f"snapshot: {times.stepsize}", "before each fall of the rate, and at the end; they go into the run's folder"),
    ]
    wide = max(len(left) for left, why in lines if why)
    body = [f"{left:<{wide}}  # {why}" if why else left for left, why in lines]
    return "\n".join([f"# {heading(fitted.name, data, finetune)}", *body]) + "\n"


def in_quotes(path: str | Path) -> str:
    """A path as a prototxt has it."""
    plain = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{plain}"'


def batches(count: int) -> str:
    return f"{count:,} batch{'es' * (count != 1)}"


def write(folder: Path, texts: dict[str, str], *, overwrite: bool) -> None:
    """The files into the folder; a file that says something else is not written over unasked."""
    for name, content in texts.items():
        file = folder / name
        if file.exists() and not overwrite and file.read_text(encoding="utf-8", errors="replace") != content:
            raise FileExistsError(
                errno.EEXIST, "is there already, and says something else: --overwrite, or another --out", str(file)
            )
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in texts.items():
        (folder / name).write_text(content, encoding="utf-8")


def facts(recipe: Recipe, data: Pictures) -> dict[str, Any]:
    """The recipe in numbers, as JSON can say it."""
    times, fitted = recipe.schedule, recipe.fitted
    return {
        "net": fitted.name,
        "records": data.records,
        "test_records": data.tested,
        "classes": data.classes,
        "numbers": data.numbers,
        "batch": fitted.batch,
        "test_batch": fitted.test_batch,
        "iterations_per_epoch": round(times.epoch, 4),
        "stepsize": times.stepsize,
        "max_iter": times.max_iter,
        "test_iter": times.test_iter,
        "test_interval": times.test_interval,
        "base_lr": recipe.base_lr,
        "crop": fitted.crop,
        "mean": str(data.mean) if data.mean else None,
        "last_layers": fitted.heads,
        "copied": list(recipe.report.copied) if recipe.report else [],
        "fresh": list(recipe.report.kept) if recipe.report else [],
        "unused": list(recipe.report.ignored) if recipe.report else [],
        "notes": recipe.said,
    }
