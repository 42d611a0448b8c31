"""Which record stands at a position of the sample stream. Arithmetic alone: nothing is stored but the counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ops import chance, order

Places = NDArray[np.int64]
LARGEST = 1 << 40  # epochs of a class: more than a stream of 2 ** 62 positions could count in a lifetime


class Sampling:
    """The record at each position of an endless stream over `count` records: epoch = position // count.

    Without a shuffle their own order, again and again; with one a bijection an epoch. `skip` positions are left out
    once, at the beginning. The order depends on the seed and not on the layer, so that two layers over two databases
    of the same length (pictures and their label maps) stay side by side.
    """

    def __init__(self, count: int, *, seed: int, shuffle: Any = False, block: int = 1024, skip: int = 0):
        self.count, self.seed, self.shuffle, self.block, self.skip = count, seed, shuffle, block, skip

    def records(self, positions: Places) -> Places:
        """The record at each position."""
        epochs, places = np.divmod(positions + self.skip, self.count)
        if not self.shuffle:
            return places
        out = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            out[here] = self._shuffled(places[here], epoch)
        return out

    def _shuffled(self, places: Places, epoch: int) -> Places:
        if self.shuffle == "blocks":
            return order.in_blocks(places, self.count, self.block, seed=self.seed, epoch=epoch)
        return order.shuffled(places, self.count, seed=self.seed, epoch=epoch)


class Balanced:
    """Every class once in each round of as many positions as there are classes, in an order drawn anew each round.

    The records of a class follow one another as shuffled, each once before any comes again.
    """

    def __init__(self, labels: NDArray[Any], *, seed: int):
        if labels.ndim != 1:
            raise ValueError(f"labels are vectors of {labels.shape[1]} numbers; balance needs one class a record")
        self.seed, self.count = seed, len(labels)
        self.classes, sizes = np.unique(labels, return_counts=True)
        self.grouped = np.argsort(labels, kind="stable")
        self.sizes = sizes.astype(np.int64)
        self.firsts = np.cumsum(self.sizes) - self.sizes

    def records(self, positions: Places) -> Places:
        """The record at each position."""
        kinds = len(self.classes)
        rounds, places = np.divmod(positions, kinds)
        turns, turn = np.unique(rounds, return_inverse=True)
        drawn = chance.words(self.seed, "balance: classes", turns, range(kinds))
        number = np.argsort(drawn, axis=1)[turn, places]
        sizes = self.sizes[number]
        epochs, visits = np.divmod(rounds, sizes)  # a class comes up once a round
        keys = chance.words(self.seed, "balance: records", number * LARGEST + epochs, [0])[:, 0]
        return self.grouped[self.firsts[number] + order.shuffled_each(visits, sizes, keys)]


def skipped(seed: int, rand_skip: int) -> int:
    """How many positions `rand_skip` leaves out: 0..rand_skip-1."""
    return int(chance.below(chance.words(seed, "rand_skip", np.array([0]), [0]), rand_skip)[0, 0]) if rand_skip else 0
