"""Random numbers that depend on what they are for and on nothing else.

Philox makes each block of numbers from a key and a counter. The seed is the key; epoch, index and copy are three of
the counter's four 64-bit words, and the fourth counts the blocks. So each (seed, epoch, index, copy) has a stream,
its own, the same in every process, on every machine, in any order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORD = 1 << 64
KEY_BITS = 128
GOLDEN, ODD = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1B54A32D192ED03)  # steps of the two hashes below


def rng(seed: int, epoch: int, index: int, copy: int = 0) -> np.random.Generator:
    """The generator of one place in the sample stream, before its first draw.

    Seeds may be negative or of any length; epoch, index and copy are taken modulo 2 ** 64.
    """
    counter = np.array([0, int(copy) % WORD, int(index) % WORD, int(epoch) % WORD], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key(seed), counter=counter))


def key(seed: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Two words of key: the seed itself in two's complement, or a digest of one that is longer than they are."""
    seed = int(seed)
    if seed.bit_length() >= KEY_BITS:
        seed = int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=KEY_BITS // 8).digest(), "little")
    return np.array([seed % WORD, (seed >> 64) % WORD], dtype=np.uint64)


# -- many places at once: no stream each, a few words each -------------------------------------------------------------


def words(seed: int, purpose: str, places: NDArray[np.integer], which: Sequence[int]) -> NDArray[np.uint64]:
    """(places, which) random words: word number w of each place depends on (seed, purpose, place, w) alone.

    A keyed hash of the place, and of it and the number, by splitmix64's mixing: a microsecond a batch instead of a
    generator a record.
    """
    digest = hashlib.blake2b(f"{int(seed)}\0{purpose}".encode(), digest_size=16).digest()
    first, second = (np.uint64(int.from_bytes(part, "little")) for part in (digest[:8], digest[8:]))
    numbers = np.array(which, np.uint64) * ODD + second
    base = _mixed(np.asarray(places).astype(np.uint64) * GOLDEN + first)
    return _mixed(base[:, None] + numbers[None, :])


def folded(columns: Sequence[NDArray[np.integer]]) -> NDArray[np.uint64]:
    """One word a row out of a row of integers: another row, another word (but for one chance in 2 ** 64)."""
    out = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        out = _mixed((out ^ column.astype(np.uint64)) * ODD + GOLDEN)
    return out


def uniform(drawn: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Words as numbers in [0, 1), 53 bits each."""
    return (drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(drawn: NDArray[np.uint64], limit: Any) -> NDArray[np.int64]:
    """Words as integers in 0..limit-1; `limit` is one number, or one a word, up to 2 ** 53."""
    return (uniform(drawn) * limit).astype(np.int64)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Drawn:
    """Words drawn before, handed out one after the other as a Generator hands out its own."""

    def __init__(self, drawn: NDArray[np.uint64]):
        self.drawn, self.used = drawn, 0

    def _next(self, count: int) -> NDArray[np.uint64]:
        self.used += count
        if self.used > len(self.drawn):
            raise IndexError(f"only {len(self.drawn)} words were drawn")
        return self.drawn[self.used - count : self.used]

    def random(self, count: int) -> NDArray[np.float64]:
        return uniform(self._next(count))

    def integers(self, limit: int) -> int:
        """One integer in 0..limit-1."""
        return int(self._next(1)[0]) * limit >> 64
