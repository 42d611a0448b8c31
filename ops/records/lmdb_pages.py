"""LMDB's pages, read without trusting them: every offset is checked, so a damaged file is an error and never a crash.

The library maps the file and follows what it finds there; a file that was cut short or altered kills the process. This
reader knows what reading needs of data format 1 (LMDB 0.9): the newer of two meta pages, and branch, leaf and overflow
pages of the unnamed database. Several may be open on one file, in any number of threads and processes.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

MAGIC = 0xBEEFC0DE
BRANCH, LEAF, OVERFLOW = 0x01, 0x02, 0x04
BIG = 0x01  # the value of this node lies in overflow pages
SUB, DUP = 0x02, 0x04  # a named database; sorted duplicates: neither is a record
HEAD = 16  # bytes of a page's header; a node's is half of it
DEEPEST = 64  # levels of a tree
LEAST = 10  # bytes of a record, with what points to it
_META = struct.Struct("<II16x")  # magic, version; then the address and the map's size
_TREE = struct.Struct("<IHHQQQQQ")  # page size, flags, depth, branch, leaf and overflow pages, entries, root
_PAGE = struct.Struct("<8x2xHHH")  # flags, lower, upper
_NODE = struct.Struct("<HHHH")  # low and high half of the value's size, flags, key size


class Pages:
    """The records of one LMDB folder. ValueError, when it is opened or later, where the file is damaged."""

    def __init__(self, folder: Path | str):
        self.path = Path(folder) / "data.mdb"
        with self.path.open("rb") as file:
            if file.seek(0, 2) < 2 * 512:
                raise self._damaged("cut short in its first page")
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.view = memoryview(self.map)
        first = self._meta(0)
        if first is None:
            raise self._damaged("no meta page of LMDB's data format 1")
        self.size = first[0]
        second = self._meta(self.size) if 512 <= self.size <= 1 << 16 else first
        newest = max((meta for meta in (first, second) if meta), key=lambda meta: meta[-1])
        _, flags, self.depth, self.count, self.root, last, _ = newest
        if self.size != newest[0] or self.size & (self.size - 1) or not 512 <= self.size <= 1 << 16:
            raise self._damaged(f"a page size of {self.size} bytes")
        if flags & DUP:
            raise ValueError(f"{self.path}: several values for one key; expected one record a key")
        if (last + 1) * self.size > len(self.view):
            raise self._damaged(f"cut short: {len(self.view):,} bytes of {(last + 1) * self.size:,}")
        if self.depth > DEEPEST or bool(self.depth) != bool(self.count):
            raise self._damaged(f"a tree of {self.depth} levels for {self.count:,} records")
        if self.count * LEAST > len(self.view):
            raise self._damaged(f"{len(self.view):,} bytes for {self.count:,} records")

    def _damaged(self, what: str) -> ValueError:
        return ValueError(f"{self.path}: damaged LMDB: {what}")

    def _meta(self, place: int) -> tuple[int, int, int, int, int, int, int] | None:
        """Page size, flags, depth, entries, root, last page, transaction of a meta page; None where there is none."""
        start = place + HEAD
        if start + 136 > len(self.view):
            return None
        magic, version = _META.unpack_from(self.view, start)
        if magic != MAGIC or version & 0xFFFF != 1:
            return None
        size, *_ = _TREE.unpack_from(self.view, start + 24)
        _, flags, depth, _, _, _, entries, root = _TREE.unpack_from(self.view, start + 72)
        last, transaction = struct.unpack_from("<QQ", self.view, start + 120)
        return size, flags, depth, entries, root, last, transaction

    def __len__(self) -> int:
        return self.count

    def _nodes(self, number: int, level: int) -> tuple[memoryview, bool, tuple[int, ...]]:
        """A page, whether it is a leaf, and where in it its nodes start; it must be what its level says."""
        start = number * self.size
        page = self.view[start : start + self.size]
        if len(page) < self.size:
            raise self._damaged(f"page {number} lies behind the end")
        flags, lower, upper = _PAGE.unpack_from(page)
        leaf = level == self.depth - 1
        if flags & (BRANCH | LEAF | OVERFLOW) != (LEAF if leaf else BRANCH) or not HEAD <= lower <= upper <= self.size:
            raise self._damaged(f"page {number} is no {'leaf' if leaf else 'branch'} page")
        places = struct.unpack_from(f"<{(lower - HEAD) // 2}H", page, HEAD)
        if not places or min(places) < lower or max(places) > self.size - 8:
            raise self._damaged(f"page {number}: a node lies outside it")
        return page, leaf, places

    def _key(self, page: memoryview, place: int) -> memoryview:
        length = page[place + 6] | page[place + 7] << 8
        if place + 8 + length > len(page):
            raise self._damaged("a key reaches beyond its page")
        return page[place + 8 : place + 8 + length]

    def _child(self, page: memoryview, place: int) -> int:
        low, high, top, _ = _NODE.unpack_from(page, place)
        return int(low | high << 16 | top << 32)

    def _value(self, page: memoryview, place: int) -> memoryview:
        low, high, flags, length = _NODE.unpack_from(page, place)
        size, start = low | high << 16, place + 8 + length
        if flags & (SUB | DUP):
            raise ValueError(f"{self.path}: holds named databases or several values for one key; expected records")
        if not flags & BIG:
            if start + size > len(page):
                raise self._damaged("a value reaches beyond its page")
            return page[start : start + size]
        if start + 8 > len(page):
            raise self._damaged("a page number reaches beyond its page")
        begin = int.from_bytes(page[start : start + 8], "little") * self.size
        if begin + HEAD + size > len(self.view) or not self.view[begin + 10] & OVERFLOW:
            raise self._damaged("a large value lies behind the end")
        return self.view[begin + HEAD : begin + HEAD + size]

    def get(self, key: bytes) -> memoryview:
        """The value of a key; KeyError where there is none."""
        number = self.root
        for level in range(self.depth):
            page, leaf, places = self._nodes(number, level)
            low, high = 0 if leaf else 1, len(places)  # a branch page's first key is empty: smaller than any
            while low < high:
                middle = (low + high) // 2
                if bytes(self._key(page, places[middle])) <= key:
                    low = middle + 1
                else:
                    high = middle
            if low == 0:
                break
            place = places[low - 1]
            if leaf:
                if bytes(self._key(page, place)) != key:
                    break
                return self._value(page, place)
            number = self._child(page, place)
        raise KeyError(key)

    def ends(self) -> tuple[bytes, bytes]:
        """The first and the last key; two empty ones where there is no record."""
        keys = []
        for side in (0, -1):
            number, key = self.root, b""
            for level in range(self.depth):
                page, leaf, places = self._nodes(number, level)
                key = bytes(self._key(page, places[side]))
                number = number if leaf else self._child(page, places[side])
            keys.append(key)
        return keys[0], keys[1]

    def items(self) -> Iterator[tuple[bytes, memoryview]]:
        """(key, value) in the order of the keys; a value is a view of the file."""
        found, budget, stack = 0, len(self.view) // self.size, [(self.root, 0)] if self.count else []
        while stack:
            number, level = stack.pop()
            budget -= 1
            page, leaf, places = self._nodes(number, level)
            if budget < 0:
                raise self._damaged("pages refer to one another in a circle")
            if not leaf:
                stack += [(self._child(page, place), level + 1) for place in reversed(places)]
                continue
            for place in places:
                found += 1
                yield bytes(self._key(page, place)), self._value(page, place)
        if found != self.count:
            raise self._damaged(f"{found:,} records where its head says {self.count:,}")
