"""Folders of pictures: every image file below a folder, in the order of its bytes, at the speed of the directory reads.

Sub-folders are read by a few threads (the system calls release Python's lock); names stay in arrays from the kernel's
records to the list.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ops.inputs import dirents
from ops.inputs.dirents import SKIPPED, Entries, Words
from ops.inputs.magic import EXTENSIONS, is_image
from ops.records.image_list import ImageList

TOGETHER = 16  # folders that a thread reads before it parses
BLOCK = 8 << 20  # bytes
SPLITS = {
    "train",
    "training",
    "val",
    "valid",
    "validation",
    "test",
    "testing",
    "eval",
}  # names of parts, not of classes
_LOWER = np.uint64(0x2020202020202020)  # set in every byte: upper case becomes lower case, a dot stays one


def _codes(size: int) -> Words:
    """Extensions of `size` bytes, dot included, as the top bytes of a tail."""
    texts = [b"." + name.encode() for name in EXTENSIONS if len(name) + 1 == size]
    return np.array([int.from_bytes(text, "little") for text in texts], np.uint64)


_BY_SIZE = {size: _codes(size) for size in (4, 5, 3)}


@dataclass
class Folder:
    """A folder to be read: its path below the root ("" or ending in a slash), and from which folders, by their real
    paths, links led here."""

    path: bytes
    chain: tuple[bytes, ...] = ()


@dataclass
class Counts:
    """What was seen and not listed."""

    not_images: int = 0
    newlines: int = 0
    broken: int = 0
    loops: int = 0
    others: int = 0

    def add(self, other: Counts) -> None:
        for name in vars(self):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def warnings(self, root: str) -> list[str]:
        """One line for each kind."""
        lines = {
            "not_images": "files that are no images, by their extension, were left out",
            "newlines": "names with a newline were left out: a list holds one path a line",
            "broken": "links that lead nowhere were left out",
            "loops": "links to a folder above them were not followed",
            "others": "entries that are neither files nor folders were left out",
        }
        return [f"{root}: {getattr(self, name):,} {text}" for name, text in lines.items() if getattr(self, name)]


@dataclass
class Part:
    """Images of some folders, folder by folder, each folder's in the order of their names.

    words: (n, w) uint64, a name in each row from byte SKIPPED on; lengths: (n,) bytes of each name; counts: (folders,)
    images in each; below: the folders in these.
    """

    folders: list[Folder]
    counts: NDArray[np.int64]
    words: Words = field(default_factory=lambda: np.zeros((0, 1), np.uint64))
    lengths: NDArray[np.uint16] = field(default_factory=lambda: np.zeros(0, np.uint16))
    below: list[Folder] = field(default_factory=list)
    seen: Counts = field(default_factory=Counts)

    @property
    def front(self) -> int:
        """How many words the longest folder path needs before the word in which the name starts."""
        return max(0, -(-(max(len(folder.path) for folder in self.folders) - SKIPPED) // 8))

    @property
    def width(self) -> int:
        """Words of a row that holds folder path and name."""
        return self.front + self.words.shape[1]


def listing(source: Path, workers: int | None = None) -> ImageList:
    """The images below a folder. Sub-folders with images, and none beside them, are classes, numbered in the order of
    their names; otherwise every label is 0."""
    root = os.path.join(os.path.abspath(source), "")
    workers = workers or _cores()
    with ThreadPoolExecutor(workers) as pool:
        parts = _scan(os.fsencode(root), pool, workers, sniff=False)
        if not any(len(part.words) for part in parts):
            parts = _scan(os.fsencode(root), pool, workers, sniff=True)
        return _classified(parts, root, pool)


def _cores() -> int:
    """CPUs that this process may use, 32 at most."""
    return min(32, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _scan(root: bytes, pool: ThreadPoolExecutor, workers: int, *, sniff: bool) -> list[Part]:
    """The images below `root` (which ends in a slash), level by level; with `sniff`, files are known by their first
    bytes instead of their extension."""
    level, parts = [Folder(b"")], []
    while level:
        share = max(1, min(TOGETHER, len(level) // workers))
        groups = [level[start : start + share] for start in range(0, len(level), share)]
        new = list(pool.map(partial(_read, root, sniff), groups))
        parts += new
        level = sorted((folder for part in new for folder in part.below), key=_place_of)
    return parts


def _place_of(folder: Folder) -> list[bytes]:
    return folder.path.split(b"/")[:-1]


def _read(root: bytes, sniff: bool, folders: list[Folder]) -> Part:
    """The images in some folders, and the folders in them."""
    entries = dirents.read([root + folder.path for folder in folders])
    part = Part(folders, np.zeros(len(folders), np.int64), seen=Counts(others=entries.others))
    part.below = [Folder(folders[owner].path + name + b"/", folders[owner].chain) for owner, name in entries.folders]
    if entries.links:
        entries = _follow(root, entries, part)
    if len(entries.words):
        chosen = _sniffed(root, folders, entries) if sniff else _images(entries.tails)
        part.seen.not_images += len(chosen) - int(np.count_nonzero(chosen))
        if dirents.holds(entries.words, ord("\n")) or any(b"\n" in folder.path for folder in folders):
            chosen = _without_newlines(folders, entries, chosen, part.seen)
        if not chosen.all():
            entries = entries.only(np.flatnonzero(chosen))
        bounds = np.searchsorted(entries.owners, np.arange(len(folders) + 1))
        order = _order(entries.words, bounds)
        part.counts = np.diff(bounds)
        part.words = _kept.copy(entries.words, order)
        part.lengths = (entries.lengths if order is None else entries.lengths[order]).astype(np.uint16)
    return part


class _Kept(threading.local):
    """Names that stay until the list is made, in large blocks: the system gives those in large pages, in less time."""

    def __init__(self) -> None:
        self.block = np.zeros(0, np.uint64)

    def copy(self, words: Words, order: NDArray[np.int64] | None) -> Words:
        """The rows of `words`, in an order."""
        if self.block.size < words.size:
            self.block = np.empty(max(BLOCK // 8, words.size), np.uint64)
        own, self.block = self.block[: words.size].reshape(words.shape), self.block[words.size :]
        if order is None:
            own[:] = words
        else:
            np.take(words, order, axis=0, out=own, mode="clip")
        return own


_kept = _Kept()


def _without_newlines(
    folders: list[Folder], entries: Entries, chosen: NDArray[np.bool_], seen: Counts
) -> NDArray[np.bool_]:
    """The chosen files whose paths fit on one line; the others are counted."""
    split = (entries.words.view(np.uint8) == ord("\n")).any(axis=1)
    split |= np.array([b"\n" in folder.path for folder in folders])[entries.owners]
    seen.newlines += int(np.count_nonzero(chosen & split))
    return chosen & ~split


def _images(tails: Words) -> NDArray[np.bool_]:
    """Which files have an image's extension."""
    low = tails | _LOWER
    first = bytes(low[:1])
    for size, codes in _BY_SIZE.items():
        shift = np.uint64(64 - 8 * size)
        if first[-size:].startswith(b".") and (low >> shift == low[0] >> shift).all():  # all are of one kind
            return np.full(len(low), low[0] >> shift in codes)
    return np.logical_or.reduce([np.isin(low >> np.uint64(64 - 8 * size), codes) for size, codes in _BY_SIZE.items()])


def _sniffed(root: bytes, folders: list[Folder], entries: Entries) -> NDArray[np.bool_]:
    """Which files start as an image does."""
    rows = entries.words.view(np.uint8)
    paths = [
        root + folders[owner].path + row[SKIPPED : SKIPPED + length].tobytes()
        for row, length, owner in zip(rows, entries.lengths.tolist(), entries.owners.tolist(), strict=True)
    ]
    return np.fromiter(map(is_image, paths), np.bool_, len(paths))


def _follow(root: bytes, entries: Entries, part: Part) -> Entries:
    """Links to files become files, links to folders become folders, unless they lead back to where we came from."""
    files: list[tuple[bytes, int]] = []
    for owner, name in entries.links:
        above = part.folders[owner]
        path = root + above.path + name
        if os.path.isfile(path):
            files.append((name, owner))
        elif not os.path.isdir(path):
            part.seen.broken += 1
        elif not os.path.islink(path):
            part.below.append(Folder(above.path + name + b"/", above.chain))
        else:
            target, here = os.path.realpath(path), os.path.realpath(root + above.path)
            if any((passed + b"/").startswith(target.rstrip(b"/") + b"/") for passed in (*above.chain, here)):
                part.seen.loops += 1
            else:
                part.below.append(Folder(above.path + name + b"/", (*above.chain, here)))
    if not files:
        return entries
    more = dirents.of_names(*zip(*files, strict=True))
    both = dirents.joined([entries, more])
    return both.only(np.argsort(both.owners, kind="stable"))


def _order(words: Words, bounds: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """The rows bounds[i]..bounds[i + 1] of each folder in the order of their bytes; None when they are so already."""
    varying = np.flatnonzero([(column != column[:1]).any() for column in words.T])
    keys = [words[:, column].byteswap() for column in varying]  # words whose numbers are in the order of their bytes
    if not keys:
        return None
    ahead = _ahead(keys)  # whether a row comes before the next one
    order: NDArray[np.int64] | None = None
    for start, stop in pairwise(bounds.tolist()):
        ascending = np.count_nonzero(ahead[start : stop - 1]) if stop > start else 0
        if ascending >= stop - start - 1:
            continue
        if order is None:
            order = np.arange(len(words))
        if ascending == 0:
            order[start:stop] = order[start:stop][::-1]
            continue
        own = [key[start:stop] for key in keys if (key[start:stop] != key[start]).any()]
        order[start:stop] = start + _argsort(own)
    return order


def _argsort(keys: list[Words]) -> NDArray[np.int64]:
    """The order of rows by their first key, then the next ones; no two rows are alike. Faster than np.lexsort."""
    order = np.argsort(keys[-1])
    for key in reversed(keys[:-1]):
        order = order[np.argsort(key[order], kind="stable")]
    return order


def _ahead(keys: list[Words]) -> NDArray[np.bool_]:
    ahead = keys[-1][:-1] < keys[-1][1:]
    for key in reversed(keys[:-1]):
        ahead = (key[:-1] < key[1:]) | ((key[:-1] == key[1:]) & ahead)
    return ahead


def _classified(parts: Sequence[Part], root: str, pool: ThreadPoolExecutor) -> ImageList:
    """The parts as one list, in the order of the folders' paths, with labels."""
    seen = Counts()
    for part in parts:
        seen.add(part.seen)
    warnings = seen.warnings(root)
    folders = [folder for part in parts for folder in part.folders]
    counts = np.concatenate([part.counts for part in parts])
    filled = [folders[place] for place in np.flatnonzero(counts).tolist()]
    classes = sorted({_place_of(folder)[0] for folder in filled if folder.path})
    numbers = {name: index for index, name in enumerate(classes)}
    if not classes:
        warnings.append(f"{root}: no sub-folders to be classes: every label is 0")
    elif counts[0]:  # the first folder is the root
        warnings.append(f"{root}: {counts[0]:,} images beside {len(classes):,} folders of images: every label is 0")
        classes, numbers = [], {}
    elif {os.fsdecode(name).lower() for name in classes} <= SPLITS:
        named = ", ".join(map(os.fsdecode, classes))
        warnings.append(f"{root}: the folders {named} became classes; if they are parts of a data set, list each alone")
    listed = _assembled(parts, pool)
    listed.labels = np.repeat(
        np.array([numbers.get(_place_of(f)[0], 0) if f.path else 0 for f in folders], np.int32), counts
    )
    _reorder(listed, folders, counts)
    listed.root, listed.classes, listed.warnings = root, list(map(os.fsdecode, classes)), warnings
    return listed


def _assembled(parts: Sequence[Part], pool: ThreadPoolExecutor) -> ImageList:
    """The paths, part by part, without labels."""
    lines = np.cumsum([0] + [len(part.words) for part in parts])
    places = np.cumsum([0] + [part.words.shape[0] * part.width for part in parts])
    raw, starts, ends = np.empty(places[-1], np.uint64), np.empty(lines[-1], np.int64), np.empty(lines[-1], np.int64)

    def fill(index: int) -> None:
        rows, own = slice(places[index], places[index + 1]), slice(lines[index], lines[index + 1])
        _place(parts[index], 8 * int(places[index]), raw[rows], starts[own], ends[own])

    list(pool.map(fill, range(len(parts))))
    return ImageList(raw.view(np.uint8).data, starts, ends, np.zeros(0, np.int32))


def _place(part: Part, base: int, raw: Words, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
    """Write each folder's path in front of its names, in rows of one width; `base`: the place of the first row."""
    front, rows = part.front, raw.reshape(-1, part.width)
    paths = b"".join(f.path.rjust(8 * front + SKIPPED, b"\0").ljust(8 * front + 8, b"\0") for f in part.folders)
    heads = np.repeat(np.frombuffer(paths, np.uint64).reshape(-1, front + 1), part.counts, axis=0)
    rows[:, :front] = heads[:, :front]
    rows[:, front] = part.words[:, 0] | heads[:, front]
    rows[:, front + 1 :] = part.words[:, 1:]
    starts[:] = np.arange(len(rows)) * (8 * part.width) + (base + 8 * front + SKIPPED)
    np.add(starts, part.lengths, out=ends)
    starts -= np.repeat(np.array([len(folder.path) for folder in part.folders]), part.counts)


def _reorder(listed: ImageList, folders: list[Folder], counts: NDArray[np.int64]) -> None:
    """Bring the folders' blocks into the order of their paths, where folders stand in folders."""
    places = [_place_of(folder) for folder in folders]
    order = sorted(range(len(places)), key=places.__getitem__)
    if order == list(range(len(places))):
        return
    stops = np.cumsum(counts)
    lines = np.concatenate([np.arange(stops[place] - counts[place], stops[place]) for place in order])
    listed.starts, listed.ends, listed.labels = listed.starts[lines], listed.ends[lines], listed.labels[lines]
