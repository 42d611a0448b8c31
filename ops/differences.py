"""Centred numerical differences of a function of many numbers, against the gradient that somebody claims.

(f(x + h) - f(x - h)) / 2h, for single elements of x and for all of them at once along random directions. Where f has a
kink between x - h and x + h the step is made smaller; at a kink itself any slope between those of its two sides is
right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

STEP, LONG_STEP = 1e-5, 1e-6  # h, in units of the blob, of an element and along a direction
FINER = (0.1, 0.01, 10.0)  # of h: other steps that are tried before a gradient is called wrong
DIRECTIONS = 2
ROUNDING = 4 * torch.finfo(torch.float64).eps

Place = tuple[int, ...]


@dataclass(frozen=True)
class Tried:
    """What the gradient and the differences say of an element, or of a direction (`at` None)."""

    at: Place | None
    gradient: float
    differences: float
    noise: float  # of the differences, by rounding
    spread: float = 0.0  # of a direction: how large such sums usually are
    kink: bool = False

    @property
    def finite(self) -> bool:
        return math.isfinite(self.differences)

    def scale(self, level: float, tolerance: float) -> float:
        """What an error is measured by: at least the blob's usual gradient, and what rounding leaves to be seen."""
        return max(abs(self.gradient), abs(self.differences), level, self.spread, self.noise / tolerance, 1e-300)

    def error(self, level: float, tolerance: float) -> float:
        """Relative; 0 where the function has no numbers, inf where only the gradient has none."""
        if not self.finite:
            return 0.0
        found = abs(self.gradient - self.differences) / self.scale(level, tolerance)
        return found if math.isfinite(found) else math.inf


@dataclass(frozen=True)
class Verdict:
    """The worst of all that was tried for one blob; None: nothing could be."""

    error: float
    worst: Tried | None
    elements: int
    kinks: int


class Probe:
    """f(x) = the sum over the tensors that `run` gives, each element times its factor; float64."""

    def __init__(
        self,
        run: Callable[[], list[Tensor]],
        factors: Sequence[Tensor],
        chance: torch.Generator,
        tolerance: float,
    ):
        self.run, self.factors, self.chance, self.tolerance = run, factors, chance, tolerance

    def compare(self, x: Tensor, gradient: Tensor, places: Iterable[Place]) -> Verdict:
        """Move the elements of `x`, which `run` reads, and see whether f goes as `gradient` says."""
        with torch.no_grad():
            tried = [self.element(x, gradient, at)[0] for at in places]
            finite = [one.differences for one in tried if one.finite]
            level = math.sqrt(sum(value**2 for value in finite) / max(len(finite), 1)) / 10
            elements = [self.again(one, x, gradient, level) for one in tried]
            count = DIRECTIONS if x.numel() > 1 and finite else 0
            every = elements + [self.direction(x, gradient, level) for _ in range(count)]
        judged = [(one.error(level, self.tolerance), one) for one in every if one.finite and not one.kink]
        error, worst = max(judged, key=lambda pair: pair[0], default=(0.0, None))
        return Verdict(error, worst, len(elements), sum(one.kink for one in every))

    def element(self, x: Tensor, gradient: Tensor, at: Place, finer: float = 1.0) -> tuple[Tried, tuple[float, float]]:
        """Differences of one element; and, with another step than the usual, the slopes of its two sides."""
        value = float(x[at])
        h = STEP * finer * max(abs(value), unit(x))
        x[at] = value + h
        after = self.run()
        x[at] = value - h
        before = self.run()
        x[at] = value
        total, noise = self.change(after, before)
        sides = (0.0, 0.0) if finer == 1.0 else self.sides(after, before, h)
        return Tried(at, float(gradient[at]), total / (2 * h), noise / (2 * h)), sides

    def again(self, one: Tried, x: Tensor, gradient: Tensor, level: float) -> Tried:
        """The same with other steps where it seems wrong: the best of them, or a kink."""
        if one.error(level, self.tolerance) <= self.tolerance:
            return one
        assert one.at is not None
        best = one
        for finer in FINER:
            found, sides = self.element(x, gradient, one.at, finer)
            best = min(best, found, key=lambda other: other.error(level, self.tolerance))
            room = self.tolerance * found.scale(level, self.tolerance)
            low, high = min(sides), max(sides)
            if high - low > room and low - room <= found.gradient <= high + room:
                return replace(found, kink=True)
        return best

    def direction(self, x: Tensor, gradient: Tensor, level: float) -> Tried:
        """Differences of all elements at once, along random signs; the best of a few steps."""
        along = signs(x, self.chance)
        told, spread = float((gradient * along).sum()), float(gradient.square().sum().sqrt())
        tried: list[Tried] = []
        kept = x.clone()
        for finer in (1.0, *FINER[:2]):
            h = LONG_STEP * finer * unit(kept)
            after = self.moved(x, kept, along, h)
            before = self.moved(x, kept, along, -h)
            x.copy_(kept)
            total, noise = self.change(after, before)
            one = Tried(None, told, total / (2 * h), noise / (2 * h), spread)
            if one.error(level, self.tolerance) <= self.tolerance:
                return one
            left, right = self.sides(after, before, h)
            tried.append(replace(one, kink=2 * abs(left - right) > abs(told - one.differences)))
        return min(tried, key=lambda other: other.error(level, self.tolerance))

    def moved(self, x: Tensor, kept: Tensor, along: Tensor, by: float) -> list[Tensor]:
        x.copy_(kept).add_(along, alpha=by)
        return self.run()

    def sides(self, after: list[Tensor], before: list[Tensor], h: float) -> tuple[float, float]:
        """The slopes of the two sides of x."""
        here = self.run()
        return self.change(after, here)[0] / h, self.change(here, before)[0] / h

    def change(self, after: Sequence[Tensor], before: Sequence[Tensor]) -> tuple[float, float]:
        """How f changes, and how much of that may be rounding."""
        total, noise = 0.0, 0.0
        for factor, high, low in zip(self.factors, after, before, strict=True):
            apart = high - low
            total += float((factor * apart).sum())
            noise += float((factor * high)[apart != 0].square().sum())
        return total, ROUNDING * math.sqrt(noise)


def unit(x: Tensor) -> float:
    """How large its numbers usually are: the root of the mean square, 1 for zeros."""
    return (float(x.detach().square().mean().sqrt()) if x.numel() else 0.0) or 1.0


def signs(like: Tensor, chance: torch.Generator) -> Tensor:
    """-1 or 1 for every element."""
    return torch.rand(like.shape, generator=chance, dtype=torch.float64).sub_(0.5).sign_().to(like.device)


def places(shape: Sequence[int], most: int, chance: torch.Generator) -> list[Place]:
    """Every element of a tensor, or `most` of them."""
    count = math.prod(shape)
    if count <= most:
        return [unravel(place, shape) for place in range(count)]
    chosen = set(torch.randint(count, (most,), generator=chance).tolist())
    return [unravel(place, shape) for place in sorted(chosen)]


def unravel(place: int, shape: Sequence[int]) -> Place:
    """The index of the element that is `place`th in row-major order."""
    index: list[int] = []
    for size in reversed(shape):
        place, at = divmod(place, size)
        index.insert(0, at)
    return tuple(index)
