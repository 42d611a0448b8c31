"""What folders hold, read thousands of entries at a time.

On Linux the kernel's directory records (getdents64) of many folders are gathered in one buffer and parsed as arrays,
so that no Python object is made for a file; elsewhere os.scandir gives the same answer entry by entry. No entry is
asked for more than its record says (no stat), save where the file system does not tell folders from files.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOM = 1 << 20  # bytes of directory records that are parsed at once: some 20,000 entries
ENOUGH = 1 << 15  # bytes left in the buffer below which it is parsed before the next call
SKIPPED = 3  # bytes of a record's third word before the name: the record's length (2) and type (1)
FOLDER, FILE, LINK, UNKNOWN = 4, 8, 10, 0  # d_type
SLOW = 1e-4  # seconds: an open that takes longer waits for a disk or a network, and others may run meanwhile
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_POWERS = np.array([1 << (8 * i) for i in range(8)], np.uint64)
Words = NDArray[np.uint64]


@dataclass
class Entries:
    """Entries, in no order, whose names do not start with a dot.

    words: (n, w) uint64, file names padded with zeros, from byte 3 of a row on (the first three bytes are zero);
    lengths: (n,) int64, bytes of each; tails: (n,) uint64, the last eight bytes of each, the last one on top (of a
    short name: with what stood before it);
    owners: (n,) int64, the place of the file's folder among those asked for; folders, links: (owner, name) of
    sub-folders and of symbolic links (or of entries of unknown type); others: how many sockets, devices and the like.
    """

    words: Words = field(default_factory=lambda: np.zeros((0, 1), np.uint64))
    lengths: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    tails: Words = field(default_factory=lambda: np.zeros(0, np.uint64))
    owners: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    folders: list[tuple[int, bytes]] = field(default_factory=list)
    links: list[tuple[int, bytes]] = field(default_factory=list)
    others: int = 0

    def only(self, places: NDArray[np.int64]) -> Entries:
        """The files at some places."""
        return Entries(self.words[places], self.lengths[places], self.tails[places], self.owners[places])


def read(paths: Sequence[bytes]) -> Entries:
    """The entries of some folders. OSError, naming the folder, as os.scandir raises it."""
    return joined(list(_batches(paths))) if _getdents64 else read_slowly(paths)


def read_slowly(paths: Sequence[bytes]) -> Entries:
    """The same by os.scandir."""
    found = Entries()
    names: list[bytes] = []
    owners: list[int] = []
    for owner, path in enumerate(paths):
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith(b"."):
                    continue
                if entry.is_symlink():
                    found.links.append((owner, entry.name))
                elif entry.is_dir(follow_symlinks=False):
                    found.folders.append((owner, entry.name))
                elif entry.is_file(follow_symlinks=False):
                    names.append(entry.name)
                    owners.append(owner)
                else:
                    found.others += 1
    return joined([found, of_names(names, owners)])


def holds(words: Words, byte: int) -> bool:
    """Whether a byte is among the words'."""
    if _libc is None or not words.flags.c_contiguous:
        return bool((words.view(np.uint8) == byte).any())
    return bool(_libc.memchr(ctypes.c_void_p(words.ctypes.data), byte, ctypes.c_size_t(words.nbytes)))


def of_names(names: Sequence[bytes], owners: Sequence[int]) -> Entries:
    """Files as Entries."""
    if not names:
        return Entries()
    lengths = np.fromiter(map(len, names), np.int64, len(names))
    width = -(-(SKIPPED + int(lengths.max())) // 8) * 8
    rows = np.zeros((len(names), width), np.uint8)
    rows[:, SKIPPED:] = np.array(names, f"S{width - SKIPPED}").view(np.uint8).reshape(len(names), -1)
    tails = np.frombuffer(b"".join(name[-8:].rjust(8, b"\0") for name in names), np.uint64)
    return Entries(rows.view(np.uint64), lengths, tails, np.array(owners, np.int64))


def joined(parts: list[Entries]) -> Entries:
    """Several Entries as one."""
    if len(parts) == 1:
        return parts[0]
    width = max((part.words.shape[1] for part in parts), default=1)
    return Entries(
        np.concatenate(
            [np.pad(part.words, ((0, 0), (0, width - part.words.shape[1]))) for part in (*parts, Entries())]
        ),
        np.concatenate([part.lengths for part in (*parts, Entries())]),
        np.concatenate([part.tails for part in (*parts, Entries())]),
        np.concatenate([part.owners for part in (*parts, Entries())]),
        [name for part in parts for name in part.folders],
        [name for part in parts for name in part.links],
        sum(part.others for part in parts),
    )


def _find_libc() -> Any:
    """The C library, or None where there is none to be found so."""
    try:
        library = ctypes.CDLL(None)
        library.memchr.restype = ctypes.c_void_p
        return library
    except (OSError, TypeError, AttributeError):
        return None


_libc = _find_libc()


def _find_getdents64(library: Any) -> Any:
    """The C library's getdents64 (glibc 2.30 and later, musl), or None."""
    if not sys.platform.startswith("linux") or sys.byteorder != "little" or sys.maxsize < 1 << 32:
        return None
    return getattr(library(None, use_errno=True), "getdents64", None)


_getdents64 = _find_getdents64(ctypes.CDLL)  # releases Python's lock while the kernel reads
_getdents64_at_end = _find_getdents64(ctypes.PyDLL)  # keeps it: not worth the hand-over where nothing is left to read


_quiet: Any = ctypes.PyDLL(None) if _getdents64 else None


class _Buffer(threading.local):
    """One buffer a thread: a fresh one for each folder would cost more page faults than the reading."""

    def __init__(self) -> None:
        self.words = np.zeros(ROOM // 8, np.uint64)
        self.address = self.words.ctypes.data
        self.quick = True  # opening a folder takes less time than handing Python's lock to another thread and back

    def open(self, path: bytes) -> int:
        """A descriptor of a folder. OSError as os.open raises it."""
        if self.quick:
            began = time.perf_counter()
            handle: int = _quiet.open(path, _FLAGS)
            self.quick = time.perf_counter() - began < SLOW
            if handle >= 0:
                return handle
        return os.open(path, _FLAGS)


_buffer = _Buffer()


def _batches(paths: Sequence[bytes]) -> Iterator[Entries]:
    """Buffers full of records, parsed; a large folder's may be spread over several."""
    words, address = _buffer.words, _buffer.address
    used, owners, stops = 0, [], []
    for owner, path in enumerate(paths):
        handle = _buffer.open(path)
        try:
            call = _getdents64
            while count := call(handle, ctypes.c_void_p(address + used), ctypes.c_size_t(ROOM - used)):
                if count < 0:
                    error = ctypes.get_errno()
                    raise OSError(error, os.strerror(error), os.fsdecode(path))
                call = _getdents64 if ROOM - used - count < ENOUGH else _getdents64_at_end
                used += count
                owners.append(owner)
                stops.append(used)
                if ROOM - used < ENOUGH:
                    yield _parse(words[: used // 8], owners, stops)
                    used, owners, stops = 0, [], []
        finally:
            _quiet.close(handle)
    if used:
        yield _parse(words[: used // 8], owners, stops)


def _parse(words: Words, owners: list[int], stops: list[int]) -> Entries:
    """The records in a buffer, each of a multiple of eight bytes; those before byte stops[i] belong to owners[i]."""
    firsts = _starts(words)
    counts = np.searchsorted(firsts, np.array(stops) >> 3)
    owner = np.repeat(np.array(owners), np.diff(counts, prepend=0))
    heads = words[firsts + 2]
    sizes = (heads & np.uint64(0xFFFF)).astype(np.int64) >> 3  # words
    special = heads & np.uint64(0xFF0000) != np.uint64(FILE << 16)
    hidden = heads & np.uint64(0xFF000000) == np.uint64(ord(".") << 24)
    words[firsts + 2] = heads & np.uint64(0xFFFFFFFFFF000000)  # only the name is left
    found = Entries()
    for index in np.flatnonzero(special & ~hidden).tolist():
        kind = int(heads[index]) >> 16 & 0xFF
        name = words[firsts[index] + 2 : firsts[index] + sizes[index]].tobytes()[SKIPPED:].rstrip(b"\0")
        if kind == FOLDER:
            found.folders.append((int(owner[index]), name))
        elif kind in (LINK, UNKNOWN):
            found.links.append((int(owner[index]), name))
        else:
            found.others += 1
    plain = np.flatnonzero(~(special | hidden))
    if plain.size:
        found.owners = owner[plain]
        _take_names(found, words, firsts[plain] + 2, sizes[plain] - 2)
    words[:] = 0  # the kernel writes nothing between a name and the next record
    return found


def _starts(words: Words) -> NDArray[np.int64]:
    """In which words records start: each starts where the one before it ends, the first at 0.

    Candidates are the words whose third can be a record's length, type and a name; offsets and inode numbers may look
    so too, hence the chain is followed wherever a candidate is not the next one.
    """
    thirds = words[2:]  # record length (16 bits, a multiple of 8), type (8 bits, 0 to 15), the name's first byte, ...
    likely = np.flatnonzero(thirds & np.uint64(0xF0F007) == 0)
    heads = thirds[likely]
    likely, heads = (column[heads & np.uint64(0xFF000000) != 0] for column in (likely, heads))
    ends = likely + ((heads & np.uint64(0xFFFF)) >> np.uint64(3)).astype(np.int64)
    chained = np.ones(len(likely), np.bool_)
    after = 0
    for place in np.flatnonzero(ends[:-1] != likely[1:]).tolist():
        if place >= after:
            after = int(np.searchsorted(likely, ends[place]))
            chained[place + 1 : after] = False
    starts, ends = likely[chained], ends[chained]
    if len(starts) and starts[0] == 0 and ends[-1] == words.size and (starts[1:] == ends[:-1]).all():
        return starts
    return _walked(thirds)


def _walked(thirds: Words) -> NDArray[np.int64]:
    """The same, record by record; for lengths beyond those that are looked for."""
    place, starts = 0, []
    lengths = ((thirds & np.uint64(0xFFFF)) >> np.uint64(3)).tolist()
    while place < len(lengths):
        starts.append(place)
        place += max(lengths[place], 3)
    return np.array(starts)


def _take_names(found: Entries, words: Words, firsts: NDArray[np.int64], counts: NDArray[np.int64]) -> None:
    """Names that start in the fourth byte of word `firsts` and end, zeros behind them, within `counts` words."""
    rows = np.empty((len(firsts), int(counts.max())), np.uint64)
    shortest = int(counts.min())
    for column in range(rows.shape[1]):
        rows[:, column] = words.take(firsts + column, mode="clip")
        if column >= shortest:
            rows[counts <= column, column] = 0
    if shortest == rows.shape[1] > 1:
        last, before = rows[:, -1], rows[:, -2]
    else:
        last, before = words[firsts + (counts - 1)], words[firsts + (counts - 2)]
    used = np.searchsorted(_POWERS, last, side="right")  # 0..7: bytes of the name in its last word
    shift = (used * 8).astype(np.uint64)
    found.tails = (last << (np.uint64(56) - shift) << np.uint64(8)) | (before >> shift)
    found.words, found.lengths = rows, counts * 8 - (8 + SKIPPED) + used
