"""Which layers of a file belong to a net: phase, level and stages against the layers' include and exclude rules."""

from __future__ import annotations

from collections.abc import Iterable

from ops.names import quoted
from ops.proto.caffe_pb2 import TEST, TRAIN, NetParameter, NetState, NetStateRule


def state_of(spec: NetParameter, phase: str, *, level: int = 0, stages: Iterable[str] = ()) -> NetState:
    """The state that a net is built for: phase and level as asked for, stages on top of the file's own."""
    state = NetState()
    state.CopyFrom(spec.state)
    state.phase = TEST if phase == "TEST" else TRAIN
    state.level = level
    state.stage.extend(stages)
    return state


def select(spec: NetParameter, state: NetState, name: str = "<net>") -> NetParameter:
    """The net with the layers that `state` keeps, and with `state` as its state; `spec` stays as it is.

    As Caffe: a layer with include rules is kept if any matches, one with exclude rules unless any does, never both.
    """
    kept = NetParameter()
    kept.CopyFrom(spec)
    del kept.layer[:]
    kept.state.CopyFrom(state)
    for layer in spec.layer:
        if layer.include and layer.exclude:
            raise ValueError(f"{name}: layer {quoted(layer.name)}: has include and exclude rules; give one kind")
        rules = layer.include or layer.exclude
        if any(matches(rule, state) for rule in rules) == bool(layer.include) or not rules:
            kept.layer.add().CopyFrom(layer)
    return kept


def matches(rule: NetStateRule, state: NetState) -> bool:
    """Whether everything that the rule names holds; an empty rule always does."""
    stages = set(state.stage)
    return (
        (not rule.HasField("phase") or rule.phase == state.phase)
        and (not rule.HasField("min_level") or state.level >= rule.min_level)
        and (not rule.HasField("max_level") or state.level <= rule.max_level)
        and stages.issuperset(rule.stage)
        and stages.isdisjoint(rule.not_stage)
    )
