"""Classes in a tree of more and more general names, and answers that hedge their bets: as specific as they are safe.

The value of a name is its probability (the sum over the classes below it) times what it tells (log2 of all classes over
those below it, in bits). The web demo of Caffe calls the best by value "maximally accurate", the most probable classes
"maximally specific".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ops.names import hint, quoted

CHAIN = 0.1  # bits: of two names for the same classes the narrower one counts more, as in the demo
PICKLES = (b"\x80", b"(dp", b"(lp", b"ccopy_reg", b"(i")


@dataclass(frozen=True)
class Hierarchy:
    """names: of every node · below: (nodes, classes) which classes a node stands for · told: (nodes,) bits."""

    names: list[str]
    below: NDArray[np.bool_]
    told: NDArray[np.float64]

    def values(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """(n, classes) probabilities -> (n, nodes) expected bits."""
        found: NDArray[np.float64] = (scores.astype(np.float64) @ self.below.T.astype(np.float64)) * self.told
        return found


def read(file: Path, classes: Sequence[str]) -> Hierarchy:
    """The tree in a text file: `child parent` a line, and behind them the child's name where it has one.

    A leaf is a class: its id is the class's whole name, its first word (n01440764 tench), or its number. ValueError for
    a pickle, a circle, a class that is nowhere in the tree.
    """
    raw = file.read_bytes()
    if raw.startswith(PICKLES):
        raise ValueError(f"{file}: a pickle, which is never loaded; write one 'child parent' a line, names beside")
    parents: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    for number, line in enumerate(raw.decode("utf-8", "replace").splitlines(), 1):
        words = line.split(None, 2)
        if not words or line.lstrip().startswith("#"):
            continue
        if len(words) == 1:
            raise ValueError(f"{file}:{number}: found {quoted(words[0])} alone, expected 'child parent'")
        parents.setdefault(words[0], []).append(words[1])
        parents.setdefault(words[1], [])
        if len(words) == 3:
            names[words[0]] = words[2].strip()
    if not parents:
        raise ValueError(f"{file}: holds no 'child parent' lines")
    return tree(parents, names, classes, file)


def tree(parents: dict[str, list[str]], names: dict[str, str], classes: Sequence[str], file: Path) -> Hierarchy:
    nodes = list(parents)
    place = {node: number for number, node in enumerate(nodes)}
    below = np.zeros((len(nodes), len(classes)), np.bool_)
    for label, name in enumerate(classes):
        leaf = next((one for one in (name, *name.split()[:1], str(label)) if one in place), None)
        if leaf is None:
            near = hint(name.split()[0] if name.split() else name, nodes)
            raise ValueError(f"{file}: class {label}, {quoted(name)}, is not in it{near}")
        names.setdefault(leaf, name)
        for node in upwards(leaf, parents, file):
            below[place[node], label] = True
    counts = below.sum(1)
    used = np.flatnonzero(counts)
    told = np.array([math.log2(len(classes) / counts[node]) for node in used])
    chains = [single_steps(nodes[node], parents, counts, place) for node in used]
    told -= CHAIN * np.array(chains)
    shown = [names.get(nodes[node], nodes[node]) for node in used]
    return Hierarchy(shown, below[used], told)


def upwards(leaf: str, parents: dict[str, list[str]], file: Path) -> set[str]:
    """A node and all above it; ValueError where the way up comes back to where it was."""
    found: set[str] = set()
    waiting = [(leaf, frozenset[str]())]
    while waiting:
        node, way = waiting.pop()
        if node in way:
            raise ValueError(f"{file}: {quoted(node)} stands above itself: a circle")
        if node in found:
            continue
        found.add(node)
        waiting += [(parent, way | {node}) for parent in parents[node]]
    return found


def single_steps(node: str, parents: dict[str, list[str]], counts: NDArray[np.int64], place: dict[str, int]) -> int:
    """How many nodes below stand for the same classes as this one."""
    same = [one for one, above in parents.items() if node in above and counts[place[one]] == counts[place[node]]]
    return 1 + single_steps(same[0], parents, counts, place) if same else 0
