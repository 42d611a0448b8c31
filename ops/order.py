"""Order is arithmetic: which record stands at which place, from (count, seed, epoch, position) alone.

A keyed bijection of 0..N-1 instead of a stored permutation: any slice of the order is computed on its own, in constant
memory, on any machine, and always comes out the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8  # four make a Feistel network strong; the rest is for lists of a handful of lines
BLOCK = 1 << 15  # positions worked on at a time: they stay in the cache

_MASK = (1 << 64) - 1


def _mix(x: int) -> int:
    """One step of splitmix64, on a Python integer."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _round_keys(seed: int, epoch: int) -> list[np.uint64]:
    state = _mix(_mix(seed & _MASK) ^ (epoch & _MASK))
    return [np.uint64(_mix(state + turn)) for turn in range(1, ROUNDS + 1)]


Words = Any  # one uint64, or an array of them


def _draw(half: NDArray[np.uint64], key: Words, below: Words) -> NDArray[np.uint64]:
    """A number in 0..below-1 for each entry: the high half of a mixed product, scaled without a division."""
    x = (half + key) * np.uint64(0x9E3779B97F4A7C15)
    x ^= x >> np.uint64(32)
    x *= np.uint64(0xD6E8FEB86659FD93)
    x >>= np.uint64(32)
    x *= below
    x >>= np.uint64(32)
    return x


def _turn(x: NDArray[np.uint64], rows: Words, columns: Words, keys: Sequence[Words]) -> NDArray[np.uint64]:
    """A Feistel network on the cells of a rows x columns board: each half is shifted by a draw from the other."""
    row, column = np.divmod(x, columns)
    for number, key in enumerate(keys):
        if number % 2:
            column += _draw(row, key, columns)
            column -= columns * (column >= columns)
        else:
            row += _draw(column, key, rows)
            row -= rows * (row >= rows)
    return row * columns + column


def shuffled(positions: NDArray[np.integer], count: int, *, seed: int, epoch: int = 0) -> NDArray[np.int64]:
    """The record at each of `positions` (each in 0..count-1) when `count` records are shuffled by (seed, epoch).

    A bijection of 0..count-1. The board has fewer than sqrt(count) + 1 cells too many; a position that lands on one of
    them walks on along its cycle until it is back among the records.
    """
    if not 0 <= count < 1 << 62:
        raise ValueError(f"cannot order {count} records: expected 0 to {(1 << 62) - 1}")
    out = np.array(positions, dtype=np.int64)
    if out.size and not 0 <= int(out.min()) <= int(out.max()) < count:
        raise IndexError(f"positions {int(out.min())}..{int(out.max())} outside 0..{count - 1}")
    side = max(1, math.isqrt(count))
    rows, columns = np.uint64(side), np.uint64(-(-count // side))
    keys = _round_keys(seed, epoch)
    for start in range(0, out.size, BLOCK):
        part = _turn(out[start : start + BLOCK].astype(np.uint64), rows, columns, keys)
        while (outside := np.flatnonzero(part >= count)).size:
            part[outside] = _turn(part[outside], rows, columns, keys)
        out[start : start + BLOCK] = part.astype(np.int64)
    return out


def shuffled_each(
    positions: NDArray[np.integer], counts: NDArray[np.integer], keys: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """As `shuffled`, but every position is one of another list, of `counts` records in an order of its own key."""
    count = np.asarray(counts).astype(np.uint64)
    out = np.asarray(positions).astype(np.uint64)
    if out.size and not (int(np.min(positions)) >= 0 and bool((out < count).all())):
        raise IndexError("a position outside its list")
    rows = np.maximum(np.sqrt(count.astype(np.float64)).astype(np.uint64), np.uint64(1))
    columns = (count + rows - np.uint64(1)) // rows
    steps = [np.uint64(_mix(turn)) for turn in range(1, ROUNDS + 1)]
    key = np.asarray(keys, np.uint64)
    out = _turn(out, rows, columns, [key ^ step for step in steps])
    while (far := np.flatnonzero(out >= count)).size:
        out[far] = _turn(out[far], rows[far], columns[far], [key[far] ^ step for step in steps])
    return out.astype(np.int64)


def in_blocks(positions: NDArray[np.integer], count: int, size: int, *, seed: int, epoch: int = 0) -> NDArray[np.int64]:
    """The record at each of `positions` when blocks of `size` consecutive records are shuffled, and each block inside.

    A bijection of 0..count-1 too: at any time only a block's records are read, so what lies beyond memory is read in
    long pieces. The last block may be shorter; it stands anywhere among the others.
    """
    if size < 1:
        raise ValueError(f"blocks of {size} records: expected 1 or more")
    places = np.array(positions, dtype=np.int64)
    if places.size and not 0 <= int(places.min()) <= int(places.max()) < count:
        raise IndexError(f"positions {int(places.min())}..{int(places.max())} outside 0..{count - 1}")
    blocks = -(-count // size)
    missing = blocks * size - count  # records that the last block is short of
    if missing:
        behind = places >= (_slot_of(blocks - 1, blocks, seed, epoch) + 1) * size - missing
        places += missing * behind
    slots, inside = np.divmod(places, size)
    numbers = shuffled(slots, blocks, seed=seed, epoch=epoch)
    out = numbers * size
    for block in np.unique(numbers).tolist():
        here = numbers == block
        length = size - missing if block == blocks - 1 else size
        out[here] += shuffled(inside[here], length, seed=_mix(_mix(seed & _MASK) + block + 1), epoch=epoch)
    return out


def _slot_of(block: int, blocks: int, seed: int, epoch: int) -> int:
    """Where a block stands: looked for, in pieces of constant size."""
    for start in range(0, blocks, BLOCK):
        numbers = shuffled(np.arange(start, min(start + BLOCK, blocks)), blocks, seed=seed, epoch=epoch)
        if (found := np.flatnonzero(numbers == block)).size:
            return start + int(found[0])
    raise AssertionError("a shuffle is a bijection")
