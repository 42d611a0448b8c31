"""What a solver's numbers mean for its data: iterations an epoch, epochs a step and in all, images a test; and what is
unusual by the rules of Caffe's ImageNet and fine-tuning examples.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ops import weights
from ops.feed.feed import Feed, open_feed
from ops.names import quoted
from ops.net import Net, paths_of
from ops.proto.caffe_pb2 import LayerParameter, SolverParameter
from ops.training.nets import Definition, definitions_of_tests, locate, read_solver, train_definition
from pipelines.stages.recipe import EPOCHS_A_STEP, FINE, RATE, STEPS
from pipelines.stages.recipe_data import SCANNED, in_lumps

FACTOR = 3.0  # an epoch count, or a rate, so many times off is unusual
RATES = {"SGD": RATE, "Nesterov": RATE, "AdaGrad": RATE, "RMSProp": RATE, "Adam": 0.001}  # usual base_lr by type
CHOOSING = ("SoftmaxWithLoss", "HingeLoss", "MultinomialLogisticLoss", "InfogainLoss")


@dataclass
class Look:
    """What was found; facts are what JSON can say."""

    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Fed:
    """A net that was built over its own data, and the first of its feeds."""

    net: Net
    feed: Feed
    layer: LayerParameter


def check_solver(path: Path) -> dict[str, Any]:
    """{facts, problems, warnings} of a solver, its nets and their data; nothing is computed with the nets."""
    spec, look = read_solver(path), Look()
    with contextlib.ExitStack() as closing:
        train = opened(look, lambda: train_definition(spec, path), closing)
        if train is None:
            return {**look.facts, "problems": look.problems, "warnings": look.warnings}
        epochs(look, spec, train)
        rate(look, spec, train.net)
        begins(look, spec, train.net, path.parent)
        labels(look, train)
        tests: list[Definition] = []
        try:
            tests = definitions_of_tests(spec, path)
        except (ValueError, OSError) as error:
            look.problems.append(told(error))
        for number, definition in enumerate(tests):
            tested = opened(look, lambda one=definition: one, closing)  # type: ignore[misc]
            if tested is not None:
                test(look, definition, tested, number)
        if not tests and not look.problems:
            look.warnings.append("there is no test: give test_iter and test_interval")
    return {**look.facts, "problems": list(dict.fromkeys(look.problems)), "warnings": look.warnings}


def told(error: ValueError | OSError) -> str:
    return " ".join(str(error.strerror if isinstance(error, OSError) and error.strerror else error).split())


def opened(look: Look, define: Any, closing: contextlib.ExitStack) -> Fed | None:
    """The net of a definition over its data; None, and problems, where that cannot be."""
    try:
        definition = define()
        net = definition.net()
        for layer in net.layers:
            if layer.source:
                feed = open_feed(layer.spec, layer.phase, folder=layer.folder, seed=0, threads=1, ahead=1)
                closing.callback(feed.close)
                return Fed(net, feed, layer.spec)
        look.problems.append(f"{definition.name}: has no data layer to train or test with")
    except (ValueError, OSError) as error:
        look.problems.append(told(error))
    return None


# -- epochs --------------------------------------------------------------------------------------------------


def epochs(look: Look, spec: SolverParameter, fed: Fed) -> None:
    """Iterations an epoch, epochs a step, epochs in all."""
    batch, records = fed.feed.batch * spec.iter_size, fed.feed.records
    look.facts |= {"batch": batch, "records": records, "max_iter": spec.max_iter}
    if not records:
        return
    once = records / batch
    whole = spec.max_iter / once
    look.facts |= {"iterations_per_epoch": round(once, 4), "epochs": round(whole, 3)}
    if batch > records:
        look.warnings.append(f"a batch of {batch:,} holds some of the {records:,} records twice: lower batch_size")
    if spec.max_iter < 1:
        look.problems.append(f"max_iter {spec.max_iter}: expected 1 or more iterations")
        return
    unusual(look, "max_iter", spec.max_iter, whole, STEPS * EPOCHS_A_STEP, once, "training ends after")
    first = spec.stepsize if spec.lr_policy == "step" else (list(spec.stepvalue) or [0])[0]
    if spec.lr_policy not in ("step", "multistep") or not first:
        return
    look.facts["epochs_per_step"] = round(first / once, 3)
    name = "stepsize" if spec.lr_policy == "step" else "the first stepvalue"
    if first >= spec.max_iter:
        look.warnings.append(f"{name} {first:,} comes after max_iter {spec.max_iter:,}: the rate never falls")
    else:
        unusual(look, name, first, first / once, EPOCHS_A_STEP, once, "the rate falls after")
    if spec.lr_policy == "step" and not spec.gamma:
        look.problems.append("gamma is not given: the rate would fall to 0; usual is gamma: 0.1")


def unusual(look: Look, name: str, given: int, found: float, usual: int, once: float, what: str) -> None:
    """A warning where an epoch count is far from the usual one."""
    if not usual / FACTOR <= found <= usual * FACTOR:
        better = max(1, round(usual * once))
        look.warnings.append(
            f"{name} {given:,}: {what} {short(found)} epochs; about {usual} are usual, {name}: {better} of {once:.4g} "
            "iterations each"
        )


def short(count: float) -> str:
    return f"{count:,.0f}" if count >= 100 else f"{count:.3g}"


# -- rates and weights -------------------------------------------------------------------------------------------------


def rate(look: Look, spec: SolverParameter, net: Net) -> None:
    """base_lr beside what is usual."""
    fine = bool(spec.weights)
    look.facts |= {"base_lr": spec.base_lr, "type": spec.type, "finetunes": fine}
    usual = RATES.get(spec.type)
    if usual is None or not spec.base_lr:
        return
    usual *= FINE if fine and spec.type != "Adam" else 1
    if spec.base_lr > FACTOR * usual:
        what = "for fine-tuning" if fine else f"for {spec.type}"
        look.warnings.append(
            f"base_lr {spec.base_lr:g} is much {what}; usual is {usual:g}: train --lr-range looks which rates go"
        )
    if not any(one.lr_mult for one in net.learnable):
        look.problems.append("every lr_mult is 0: nothing would learn")


def begins(look: Look, spec: SolverParameter, net: Net, beside: Path) -> None:
    """The weights to begin with: do they fit, and is what starts afresh learning faster?"""
    for name in spec.weights:
        for path in paths_of(name):
            try:
                with weights.read(locate(str(path), beside)) as file:
                    copied = {copy.layer for copy in weights.plan(net, file)}
            except (ValueError, OSError) as error:
                look.problems.append(f"weights: {told(error)}")
                continue
            fresh = [at for at, layer in enumerate(net.layers) if layer.blobs and at not in copied]
            look.facts["fresh"] = [net.layers[at].spec.name for at in fresh]
            slow = [one.layer for one in net.learnable if one.layer in fresh and one.index == 0 and one.lr_mult < 5]
            if slow and len(copied) > len(fresh):
                named = quoted(net.layers[slow[0]].spec.name)
                look.warnings.append(f"layer {named} starts afresh at the rate of the trained ones: lr_mult 10 and 20")


# -- labels --------------------------------------------------------------------------------------------------


def labels(look: Look, fed: Fed) -> None:
    """Classes against outputs, and their order."""
    source, feed = getattr(fed.feed.tops, "source", None), fed.feed
    if source is None or len(fed.layer.top) < 2 or not feed.records or feed.records > SCANNED:
        return
    found = np.asarray(source.labels())
    if found.ndim != 1:
        return
    for name, outputs in heads(fed.net, fed.layer.top[1]):
        count = int(found.max()) + 1
        if count > outputs or found.min() < 0:
            look.problems.append(
                f"labels go from {int(found.min())} to {int(found.max())}, and {quoted(name)} has {outputs} outputs"
            )
        elif outputs > count:
            look.warnings.append(f"{quoted(name)} has {outputs} outputs for {count} classes: num_output: {count}")
    look.facts["classes"] = len(np.unique(found))
    shuffled = bool(fed.layer.image_data_param.shuffle or fed.layer.hdf5_data_param.shuffle)
    if in_lumps(found) and not shuffled:
        look.warnings.append(
            f"the records of layer {quoted(fed.layer.name)} are sorted by class: a batch would see one class, or two: "
            "train --shuffle, or convert the list anew with --shuffle"
        )


def heads(net: Net, label: str) -> Iterator[tuple[str, int]]:
    """The blob that each loss chooses a class from, and how many it has."""
    for layer in net.layers:
        if layer.spec.type in CHOOSING and label in layer.spec.bottom:
            blob = layer.spec.bottom[0]
            yield blob, int(net.shapes[blob][1])


# -- tests --------------------------------------------------------------------------------------------------


def test(look: Look, definition: Definition, fed: Fed, number: int) -> None:
    """How much of its data a test sees."""
    seen, records = definition.iterations * fed.feed.batch, fed.feed.records
    which = f" {number}" if number else ""
    look.facts |= {f"images_per_test{which}": seen, f"test_records{which}": records}
    if not records:
        return
    whole = -(-records // fed.feed.batch)
    if definition.iterations < whole:
        look.warnings.append(
            f"test_iter {definition.iterations} x {fed.feed.batch}: a test sees {seen:,} of {records:,} records, not "
            f"the same each time; test_iter: {whole} sees all"
        )
    elif definition.iterations > whole:
        look.warnings.append(
            f"test_iter {definition.iterations} x {fed.feed.batch}: a test sees {seen:,} images of {records:,} "
            f"records, some more often than others; test_iter: {whole} is enough"
        )
