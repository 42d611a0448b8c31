"""The learning rate of each iteration: Caffe's lr_policies, and cosine, plateau and a warm-up.

    rate(spec, 0)      the rate of the first update
    rate(spec, i, k)   of iteration i when the rate has fallen k times (multistep, plateau: `advance` counts them)

A warm-up (warmup_iter, warmup_start_lr) goes before any policy: the policy's own rate begins at warmup_iter.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from ctypes import c_float

from ops.names import pick
from ops.proto.caffe_pb2 import SolverParameter

Policy = Callable[[SolverParameter, int, int], float]

# (solver parameters, iteration i, falls k) -> rate; iteration 0 is the first update.
POLICIES: dict[str, Policy] = {
    "fixed": lambda s, i, k: s.base_lr,
    "step": lambda s, i, k: s.base_lr * s.gamma**k,
    "multistep": lambda s, i, k: s.base_lr * s.gamma**k,
    "plateau": lambda s, i, k: s.base_lr * s.gamma**k,
    "exp": lambda s, i, k: s.base_lr * s.gamma**i,
    "inv": lambda s, i, k: s.base_lr * (1 + s.gamma * i) ** -s.power,
    "poly": lambda s, i, k: s.base_lr * left(s, i) ** s.power,
    "cosine": lambda s, i, k: s.min_lr + (s.base_lr - s.min_lr) * (1 + math.cos(math.pi * (1 - left(s, i)))) / 2,
    "sigmoid": lambda s, i, k: s.base_lr / (1 + math.exp(-s.gamma * (i - s.stepsize))),
}
FALLING = ("step", "multistep", "plateau", "exp", "inv", "sigmoid")  # they look at gamma
STEPPING = ("step", "sigmoid")  # they look at stepsize
ENDING = ("poly", "cosine")  # they look at max_iter


def left(spec: SolverParameter, iteration: int) -> float:
    """The share of max_iter that is still to come; 0 from max_iter on."""
    return max(0.0, 1 - iteration / spec.max_iter)


def rate(spec: SolverParameter, iteration: int, falls: int | None = None) -> float:
    """The learning rate, before lr_mult, rounded to float32 as Caffe holds it.

    Without `falls`: what a run from iteration 0 has counted by then; plateau, which goes by losses, has not fallen.
    """
    if iteration < spec.warmup_iter:
        share = iteration / spec.warmup_iter
        return single(spec.warmup_start_lr + (spec.base_lr - spec.warmup_start_lr) * share)
    count = falls_by(spec, iteration) if falls is None else falls
    try:
        value = POLICIES[spec.lr_policy](spec, iteration, count)
    except OverflowError:
        value = 0.0 if spec.lr_policy == "sigmoid" else math.inf
    except ZeroDivisionError:  # poly with a negative power, at the end
        value = math.inf
    return single(value)


def single(number: float) -> float:
    """A number rounded to float32; beyond its range infinite."""
    return c_float(number).value


def advance(spec: SolverParameter, iteration: int, falls: int, last_event: int = 0) -> int:
    """How often the rate has fallen once it is asked for at `iteration`: SolverState's current_step.

    As Caffe: multistep (and plateau) fall at most once each time, so repeated or past values catch up one by one.
    `last_event`: of plateau, the iteration of the least loss so far or of the last fall.
    """
    if iteration < spec.warmup_iter:
        return falls
    if spec.lr_policy == "step":
        return iteration // spec.stepsize
    if spec.lr_policy == "multistep":
        return falls + (falls < len(spec.stepvalue) and iteration >= spec.stepvalue[falls])
    if spec.lr_policy == "plateau":
        windows = spec.plateau_winsize
        return falls + (falls < len(windows) and iteration >= last_event + windows[falls])
    return falls


def falls_by(spec: SolverParameter, iteration: int) -> int:
    """What `advance` has counted when it was asked at every iteration up to this one."""
    if spec.lr_policy == "step":
        return advance(spec, iteration, 0)
    falls, reached = 0, spec.warmup_iter - 1
    for value in spec.stepvalue if spec.lr_policy == "multistep" else ():
        reached = max(value, reached + 1)
        falls += reached <= iteration
    return falls


def check(spec: SolverParameter) -> None:
    """ValueError, without the file's name, where a policy lacks what it looks at."""
    policy = spec.lr_policy
    if not policy:
        raise ValueError(f"has no lr_policy; write one of {', '.join(sorted(POLICIES))}")
    pick(POLICIES, policy, "lr_policy")
    for name in ("base_lr", "gamma", "power", "warmup_start_lr", "min_lr"):
        if not math.isfinite(getattr(spec, name)):
            raise ValueError(f"{name} is {getattr(spec, name)}; expected a number")
    if not spec.HasField("base_lr"):
        raise ValueError("has no base_lr; write the learning rate, as base_lr: 0.01")
    if policy in FALLING and spec.gamma < 0:
        raise ValueError(f"gamma is {spec.gamma:g}; lr_policy {policy!r} wants 0 or more")
    if policy in STEPPING and spec.stepsize <= 0:
        raise ValueError(f"stepsize is {spec.stepsize}; lr_policy {policy!r} wants 1 or more iterations")
    if policy in ENDING and spec.max_iter <= 0:
        raise ValueError(f"max_iter is {spec.max_iter}; lr_policy {policy!r} wants 1 or more, to end at")
    if policy == "plateau" and (not spec.plateau_winsize or min(spec.plateau_winsize) <= 0):
        told = ", ".join(map(str, spec.plateau_winsize)) or "not given"
        raise ValueError(f"plateau_winsize is {told}; lr_policy 'plateau' wants 1 or more iterations for each fall")
    if spec.warmup_iter < 0:
        raise ValueError(f"warmup_iter is {spec.warmup_iter}; expected 0 or more iterations")
