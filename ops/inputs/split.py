"""Splits of a list: every record in exactly one, each class shared out as the whole is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray


def parse(text: str) -> dict[str, Fraction]:
    """ "train=0.8,test=0.2" or "train=80%,test=20%" as shares that sum to 1."""
    shares: dict[str, Fraction] = {}
    for part in text.split(","):
        name, equals, share = part.strip().partition("=")
        try:
            value = Fraction(share.strip().rstrip("%")) / (100 if share.strip().endswith("%") else 1)
        except (ValueError, ZeroDivisionError):
            value = Fraction(0)
        if not name or not equals or value <= 0 or name in shares:
            raise ValueError(f"--split {text}: expected names with shares above 0, as train=0.8,test=0.2")
        if name != name.strip(". ") or set(name) & set('/\\:*?"<>|\0\n') or name == "classes":
            raise ValueError(f"--split {text}: {name!r} cannot be the name of a list")
        shares[name] = value
    total = sum(shares.values(), Fraction())
    if abs(total - 1) > Fraction(1, 1000):
        raise ValueError(f"--split {text}: the shares sum to {float(total):g}; expected 1")
    return {name: share / total for name, share in shares.items()}


def assign(strata: NDArray[np.int64], shares: Sequence[Fraction], seed: int) -> NDArray[np.uint8]:
    """The split of each record; strata: (N,) the class of each, 0 to K-1.

    Who goes where in a class is drawn; how many is not: counts are those of `seats`. Depends on nothing but its
    arguments (Philox's stream of numbers is fixed by its definition).
    """
    sizes = np.bincount(strata)
    counts = seats(sizes, shares)
    draws = np.random.Philox(key=seed).random_raw(len(strata))
    order = np.lexsort((draws, strata))  # class by class, in the order of the draws
    pattern = np.tile(np.arange(len(shares), dtype=np.uint8), len(sizes))
    splits = np.empty(len(strata), np.uint8)
    splits[order] = np.repeat(pattern, counts.ravel())
    return splits


def seats(sizes: NDArray[np.int64], shares: Sequence[Fraction]) -> NDArray[np.int64]:
    """(K, S) how many of each class go to each split: rounded up or down, so that each row sums to its size.

    Of what rounding down leaves over, one goes to each split that would get none but deserves at least half a record
    (of a class with one for each split), the others to the splits that have been short-changed most in the classes so
    far: so the whole keeps its shares even where all classes are tiny.
    """
    scale = math.lcm(*(share.denominator for share in shares))
    parts = [int(share * scale) for share in shares]
    counts = np.empty((len(sizes), len(shares)), np.int64)
    debts = [0] * len(shares)  # records owed to each split, times scale
    for row, size in enumerate(sizes.tolist()):
        due = [size * part for part in parts]
        count = [one // scale for one in due]
        debts = [debt + one - scale * got for debt, one, got in zip(debts, due, count, strict=True)]
        roomy = size >= len(shares)
        first = [roomy and not got and 2 * one >= scale for one, got in zip(due, count, strict=True)]
        wanting = sorted(range(len(shares)), key=lambda split: (not first[split], -debts[split], split))
        fractions = [split for split in wanting if due[split] % scale]  # a whole number is not rounded up
        for split in fractions[: size - sum(count)]:
            count[split] += 1
            debts[split] -= scale
        counts[row] = count
    return counts
