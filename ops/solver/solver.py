"""A net's solver: from accumulated gradients to new weights, in Caffe's order.

    solver = Solver(spec, net)
    net.loss(net(data=x)).backward()      # iter_size times: gradients add up
    step = solver.update()                # clip, divide by iter_size, regularize, update; iteration += 1
    solver.zero_grad()

On CUDA nothing here waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ops.names import pick
from ops.net import Net
from ops.proto.caffe_pb2 import SolverParameter
from ops.proto.upgrade import upgrade_solver
from ops.solver import schedule
from ops.solver.updates import RULES, Part, apply, flat, flat_like

REGULARIZATIONS = {"L2": "decay w", "L1": "decay sign(w)"}  # what is added to the gradient
WITHOUT_MOMENTUM = ("AdaGrad", "RMSProp")
AVERAGING = ("AdaDelta", "Adam")  # momentum is the share of an average that stays
NUMBERS = ("momentum", "momentum2", "weight_decay", "delta", "clip_gradients")
OF_FORMULAS = ("momentum", "momentum2", "rms_decay", "delta")
NORM_PIECE = 1 << 16  # elements whose squares a CPU adds up in float32; the sums are added in float64


@dataclass(frozen=True)
class Step:
    """What an update did. The tensors hold one number, on the weights' device: float() waits for it."""

    rate: float  # before lr_mult
    norm: Tensor | None = None  # of the accumulated gradient before clipping; None: no clipping, and not asked for
    clip_scale: Tensor | None = None  # what the gradients were multiplied with, 1 below the limit; None: no clipping


class Solver:
    """The state of a training: `iteration` updates done, `history`, how often the rate has fallen (`current_step`).

    `history` is in the order of Caffe's files: a tensor for each blob in net.learnable, statistics included, laid out
    in memory as the blob; AdaDelta and Adam have a second such row behind the first. Build the solver where the net
    is: it does not follow to another device or type. `name` is what errors call it.
    """

    def __init__(self, spec: SolverParameter, net: Net, *, name: str = "<solver>"):
        self.spec, self.net, self.name = SolverParameter(), net, name
        self.spec.CopyFrom(spec)
        upgrade_solver(self.spec, name)
        try:
            check(self.spec)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        self.rule, self.lasso = RULES[self.spec.type], self.spec.regularization_type == "L1"
        self.limit = self.spec.clip_gradients if self.spec.clip_gradients >= 0 else None  # of the gradient's norm
        self.share = 1 / self.spec.iter_size  # of each backward pass in the gradient
        self.numbers = {name: float(getattr(self.spec, name)) for name in OF_FORMULAS}
        self.places = [(net.layers[one.layer], f"blob{one.index}") for one in net.learnable]
        self.history = [torch.zeros_like(blob.detach()) for _ in range(self.rule.histories) for blob in self.blobs]
        keeping = self.spec.snapshot_diff and self.spec.type != "SGD"  # whose history is what the update took
        self.taken = [torch.zeros_like(blob.detach()) for blob in self.blobs] if keeping else []
        self.stand()

    def stand(
        self, iteration: int = 0, current_step: int = 0, *, minimum_loss: float = math.inf, last_event: int = 0
    ) -> None:
        """Be after `iteration` updates, with what `history` holds now; the loss and its iteration are plateau's."""
        self.iteration, self.current_step = iteration, current_step
        self.minimum_loss, self.last_event = minimum_loss, last_event
        self.updated = False
        self.rated: tuple[int, float] | None = None  # the iteration for which the rate was asked, and that rate
        self.flats: tuple[list[int], list[Tensor], list[Tensor]] | None = None  # see `flattened`
        self.grouped: tuple[tuple[list[bool], list[tuple[torch.device, torch.dtype]]], list[list[int]]] | None = None
        rows = [self.history[at :: len(self.net.learnable)] for at in range(len(self.net.learnable))]
        self.resting = [
            one.lr_mult == 0 and not any(bool(history.any()) for history in row)
            for one, row in zip(self.net.learnable, rows, strict=True)
        ]

    @property
    def blobs(self) -> list[Tensor]:
        """The blobs that learn, in the order of net.learnable."""
        return [getattr(layer, name) for layer, name in self.places]

    @property
    def diffs(self) -> list[Tensor]:
        """What the last update took from each blob, as Caffe's diffs hold it; zeros before the first. The solver's
        snapshot_diff asks for it: then every update but SGD's is rounded as Caffe's, w - value."""
        if self.taken or (self.updated and self.spec.type == "SGD"):
            return self.taken or self.history[: len(self.places)]
        return [torch.zeros_like(blob.detach()) for blob in self.blobs]

    # -- the rate --------------------------------------------------------------------------------------------------

    def rate(self) -> float:
        """The learning rate of the next update, before lr_mult. The first question of an iteration may let it fall."""
        if self.rated is None or self.rated[0] != self.iteration:
            falls = schedule.advance(self.spec, self.iteration, self.current_step, self.last_event)
            if self.spec.lr_policy == "plateau" and falls != self.current_step:
                self.last_event = self.iteration
            self.current_step = falls
            self.rated = self.iteration, schedule.rate(self.spec, self.iteration, falls)
        return self.rated[1]

    def observe(self, loss: float) -> None:
        """Tell lr_policy "plateau" the (smoothed) loss of this iteration, before its update; others take no notice."""
        if self.spec.lr_policy != "plateau":
            return
        least = schedule.single(loss)  # as a file holds it
        if least < self.minimum_loss:
            self.minimum_loss, self.last_event = least, self.iteration

    # -- the update ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def update(self, *, norm: bool = False) -> Step:
        """One update from the gradients that iter_size backward passes have added up; they are used up by it.

        A blob without gradient has zeros: it still decays, and its velocity moves it on.
        """
        rate, blobs = self.rate(), self.blobs
        gradients = [None if blob.grad is None else flat_like(blob.grad, blob) for blob in blobs]
        wanted = norm or self.limit is not None
        total = norm_of([one for one in gradients if one is not None]) if wanted else None
        clip = None if self.limit is None or total is None else clip_scale(total, self.limit)
        for part in self.parts(rate, blobs, gradients):
            apply(self.rule, part, scale=self.scale(clip, part.g[0]), lasso=self.lasso)
        self.updated = True
        self.iteration += 1
        return Step(rate, total, clip)

    def scale(self, clip: Tensor | None, gradient: Tensor) -> float | Tensor:
        """What the gradients are multiplied with first; a tensor on devices that it would be slow to wait for."""
        if clip is None:
            return self.share
        return float(clip) * self.share if clip.device.type == "cpu" else (clip * self.share).to(gradient)

    def parts(self, rate: float, blobs: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Iterator[Part]:
        """The blobs that an update changes, those of one device, type and pair of multipliers together."""
        count, decay = len(blobs), self.spec.weight_decay
        weights, history = self.flattened(blobs)
        for ats in self.together(blobs, [gradient is None for gradient in gradients]):
            one = self.net.learnable[ats[0]]
            yield Part(
                w=[weights[at] for at in ats],
                g=[torch.zeros_like(weights[at]) if (g := gradients[at]) is None else g for at in ats],
                h=[history[at] for at in ats],
                u=[history[at + count] for at in ats] if self.rule.histories == 2 else [],
                rate=rate * one.lr_mult,
                decay=decay * one.decay_mult,
                **self.numbers,
                time=self.iteration + 1,
                t=[flat(self.taken[at]) for at in ats] if self.taken else [],
            )

    def together(self, blobs: Sequence[Tensor], missing: list[bool]) -> list[list[int]]:
        """The groups of `parts`, worked out once for each pattern of missing gradients."""
        kinds = [(blob.device, blob.dtype) for blob in blobs]
        if self.grouped is None or self.grouped[0] != (missing, kinds):
            groups: dict[tuple[object, ...], list[int]] = {}
            for at, (one, kind) in enumerate(zip(self.net.learnable, kinds, strict=True)):
                if not self.rests(at, missing[at]):
                    groups.setdefault((*kind, one.lr_mult, one.decay_mult), []).append(at)
            self.grouped = (missing, kinds), list(groups.values())
        return self.grouped[1]

    def flattened(self, blobs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Blobs and histories as flat views; made anew where a blob lies elsewhere than at the last update."""
        found = [blob.data_ptr() for blob in blobs]
        if self.flats is None or self.flats[0] != found:
            self.flats = found, [flat(blob) for blob in blobs], [flat(one) for one in self.history]
        return self.flats[1:]

    def rests(self, at: int, missing: bool) -> bool:
        """Whether an update leaves a blob and its history as they are: lr_mult 0, no velocity, nothing to remember."""
        still = missing and self.spec.weight_decay * self.net.learnable[at].decay_mult == 0
        return self.resting[at] and (self.spec.type in ("SGD", "Nesterov") or still)

    def zero_grad(self, *, set_to_none: bool = False) -> None:
        """Zeros in place of the gradients, whose memory stays where it is; or none: the next backward brings its own
        instead of adding to them (of CaffeNet's step on a CPU that saves 4 %)."""
        if set_to_none:
            for blob in self.blobs:
                blob.grad = None
            return
        gradients = [blob.grad for blob in self.blobs if blob.grad is not None]
        if gradients:
            torch._foreach_zero_(gradients)


def norm_of(gradients: Sequence[Tensor]) -> Tensor:
    """The L2 norm over all of them, float64, one number on the first one's device."""
    groups: dict[tuple[object, object], list[Tensor]] = {}
    for one in gradients:
        cuts = torch.split(one, NORM_PIECE) if one.device.type == "cpu" else [one]
        groups.setdefault((one.device, one.dtype), []).extend(cuts)
    norms = [torch.stack(torch._foreach_norm(group)).double().norm() for group in groups.values()]
    if not norms:
        return torch.zeros((), dtype=torch.float64)
    return torch.stack([one.to(norms[0].device) for one in norms]).norm()


def clip_scale(norm: Tensor, limit: float) -> Tensor:
    """limit / norm where the norm is above the limit, else 1."""
    return torch.where(norm > limit, limit / norm, torch.ones_like(norm))


def check(spec: SolverParameter) -> None:
    """ValueError, without the file's name, where an update could not be computed."""
    rule = spec.type
    pick(RULES, rule, "solver type")
    schedule.check(spec)
    for name in NUMBERS:
        if not math.isfinite(getattr(spec, name)):
            raise ValueError(f"{name} is {getattr(spec, name)}; expected a number")
    if spec.iter_size < 1:
        raise ValueError(f"iter_size is {spec.iter_size}; expected 1 or more passes for each update")
    if spec.average_loss < 1:
        raise ValueError(f"average_loss is {spec.average_loss}; expected 1 or more iterations")
    if rule in WITHOUT_MOMENTUM and spec.momentum:
        raise ValueError(f"momentum is {spec.momentum:g}; {rule} has none: leave it out, or take another type")
    if rule in AVERAGING and not 0 <= spec.momentum < 1:
        raise ValueError(f"momentum is {spec.momentum:g}; {rule} wants 0 or more and less than 1")
    if rule == "Adam" and not 0 <= spec.momentum2 < 1:
        raise ValueError(f"momentum2 is {spec.momentum2:g}; Adam wants 0 or more and less than 1")
    if rule == "RMSProp" and not 0 <= spec.rms_decay < 1:
        raise ValueError(f"rms_decay is {spec.rms_decay:g}; RMSProp wants 0 or more and less than 1")
    if spec.weight_decay:
        pick(REGULARIZATIONS, spec.regularization_type, "regularization_type")
