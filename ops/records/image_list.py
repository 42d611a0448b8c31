"""Image lists: text files of `path label` lines, read as Caffe's convert_imageset and ImageData read them.

Everything before the last space of a line is the path (it may hold spaces), what follows is the label, read as C's
atoi reads it. Ten million lines are a few arrays here, never ten million objects.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

CHUNK = 1 << 25  # bytes parsed at a time
FEW = 1 << 17  # lines: below it a Python set finds duplicates as fast
SHOWN = 5  # odd lines that are named one by one
NEWLINE, SPACE, RETURN = 10, 32, 13
_ATOI = re.compile(rb"[ \t\n\v\f\r]*([+-]?[0-9]+)")


@dataclass(eq=False)
class ImageList:
    """N paths with their labels; the file of path i is `root + path`, as strings (Caffe's rule).

    raw: bytes that hold every path; starts, ends: (N,) int64 places in it; labels: (N,) int32 or (N, K) float32;
    bad: line index -> reason, for lines that have no usable label; odd: (line index, what is odd) of lines that are
    used all the same; warnings: one line each, for people.
    """

    raw: Any
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    labels: NDArray[Any]
    root: str = ""
    classes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    bad: dict[int, str] = field(default_factory=dict)
    odd: list[tuple[int, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.starts)

    def path(self, index: int) -> bytes:
        return bytes(self.raw[self.starts[index] : self.ends[index]])

    def paths(self, indices: Any) -> list[bytes]:
        raw = self.raw
        begins, ends = self.starts[indices].tolist(), self.ends[indices].tolist()
        return [bytes(raw[begin:end]) for begin, end in zip(begins, ends, strict=True)]

    @classmethod
    def of(
        cls, paths: Sequence[bytes | str], labels: NDArray[Any], *, root: str = "", classes: Sequence[str] = ()
    ) -> ImageList:
        """A list from paths and labels that are already in memory."""
        names = [path if isinstance(path, bytes) else os.fsencode(path) for path in paths]
        ends = np.cumsum(np.fromiter(map(len, names), np.int64, len(names)))
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]]) if names else ends
        return cls(b"".join(names), starts, ends, labels, root=root, classes=list(classes))

    @classmethod
    def read(cls, file: Path | str, labels: str = "caffe") -> ImageList:
        """The list in a text file.

        labels: "caffe" (atoi; odd lines are warned about), or "int", "float", "vector:N": N numbers at the end of the
        line; a line without them is bad. Raises ValueError for an empty file and for text that is not ASCII-compatible.
        """
        width = label_width(labels)
        raw = _bytes_of(Path(file))
        start = _after_mark(raw, file)
        parts = [_lines(raw, *cut, labels=labels, width=width) for cut in _cuts(raw, start)]
        if not parts:
            raise ValueError(f"{file}: an empty list; expected one 'path label' a line")
        starts, ends, values = (np.concatenate([part[i] for part in parts]) for i in range(3))
        found = cls(raw, starts, ends, values)
        if start:
            found.warnings.append(f"{file}: a byte order mark before the first path was left out")
        odd: list[tuple[int, str]] = []
        first = 0
        for part in parts:
            odd += [(first + index, reason) for index, reason in part[3]]
            first += len(part[0])
        _note_odd(found, odd, str(file), strict=labels != "caffe")
        return found

    def digest(self) -> str:
        """A checksum of the lines' text, where the paths lie in it, and every label."""
        total = xxhash.xxh3_128(self.raw)
        for part in (self.starts, self.ends, self.labels):
            total.update(np.ascontiguousarray(part).data)
        return total.hexdigest()

    def write(self, file: Path | str, indices: NDArray[np.int64] | None = None) -> None:
        """Write `path label` lines, whole and synced before they appear under their name."""
        file = Path(file)
        chosen = np.arange(len(self)) if indices is None else np.asarray(indices)
        scratch = file.with_name(f".{file.name}.{os.getpid()}")
        with scratch.open("wb") as out:
            for start in range(0, len(chosen), 1 << 16):
                part = chosen[start : start + (1 << 16)]
                lines = zip(self.paths(part), _label_texts(self.labels[part]), strict=True)
                out.writelines(b"%s %s\n" % line for line in lines)
            out.flush()
            os.fsync(out.fileno())
        scratch.replace(file)

    def duplicates(self) -> NDArray[np.int64]:
        """The lines whose path an earlier line has already, in order."""
        return _duplicates(self)


def label_width(labels: str) -> int:
    """How many numbers a line ends with: 1, or N for "vector:N"."""
    if labels in ("caffe", "int", "float"):
        return 1
    kind, _, number = labels.partition(":")
    if kind == "vector" and number.isascii() and number.isdigit() and int(number) > 0:
        return int(number)
    raise ValueError(f"--labels {labels}: expected caffe, int, float or vector:N")


def atoi(text: bytes) -> int:
    """C's atoi as glibc has it: white space, a sign, digits; 0 without digits; saturated to 64 bits, cut to 32."""
    match = _ATOI.match(text)
    if not match:
        return 0
    value = min(max(int(match[1][:40]), -(1 << 63)), (1 << 63) - 1)
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)


def _bytes_of(file: Path) -> Any:
    """The file, mapped: its pages can be dropped again, so a list of gigabytes costs no memory of ours."""
    if file.is_dir():
        raise ValueError(f"{file}: a folder; expected a text file of 'path label' lines")
    with file.open("rb") as opened:
        if not opened.seek(0, os.SEEK_END):
            raise ValueError(f"{file}: an empty list; expected one 'path label' a line")
        return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)


def _after_mark(raw: Any, file: Path | str) -> int:
    """Where the first path starts, past a UTF-8 byte order mark; other encodings are refused."""
    head = bytes(raw[:4096])
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in head:
        kind = "UTF-16 or UTF-32 text" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "not text (it holds zero bytes)"
        raise ValueError(f"{file}: {kind}; expected 'path label' lines in UTF-8 or the file system's own encoding")
    return 3 if head.startswith(b"\xef\xbb\xbf") else 0


def _cuts(raw: Any, start: int) -> list[tuple[int, int]]:
    """(start, stop) pieces of about CHUNK bytes that end after a newline."""
    cuts = []
    while start < len(raw):
        stop = raw.find(b"\n", min(start + CHUNK, len(raw)) - 1) + 1 or len(raw)
        cuts.append((start, stop))
        start = stop
    return cuts


_Lines = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any], list[tuple[int, str]]]


def _lines(raw: Any, start: int, stop: int, *, labels: str, width: int) -> _Lines:
    """Path starts, path ends, labels and odd lines (index, reason) of one piece."""
    piece = np.frombuffer(raw, np.uint8, stop - start, start)
    marks = np.flatnonzero((piece == NEWLINE) | (piece == SPACE))
    if piece[-1] != NEWLINE:
        marks = np.append(marks, piece.size)
    kinds = np.full(marks.size, NEWLINE, np.uint8)
    kinds[: marks.size - (piece[-1] != NEWLINE)] = piece[marks[: marks.size - (piece[-1] != NEWLINE)]]
    breaks = np.flatnonzero(kinds == NEWLINE)
    ends = marks[breaks]
    starts = np.concatenate([[0], ends[:-1] + 1])
    if labels == "caffe":
        before = np.maximum(breaks - 1, 0)
        spaced = (kinds[before] == SPACE) & (marks[before] >= starts)
        path_ends = np.where(spaced, marks[before], ends)
        label_starts = np.where(spaced, path_ends + 1, starts)
        values, odd = _atoi_all(piece, starts, path_ends, label_starts, ends)
    else:
        path_ends, values, odd = _numbers(piece, starts, ends, labels, width)
    return starts + start, path_ends + start, values, odd


def _atoi_all(
    piece: NDArray[np.uint8], starts: Any, path_ends: Any, label_starts: Any, ends: Any
) -> tuple[NDArray[np.int32], list[tuple[int, str]]]:
    """atoi of every label: digit by digit over all lines at once where the label is 1 to 9 digits, else one by one."""
    stops = ends - ((ends > label_starts) & (piece[np.maximum(ends - 1, 0)] == RETURN))
    lengths = stops - label_starts
    plain = (lengths > 0) & (lengths <= 9) & (path_ends > starts)
    values = np.zeros(len(starts), np.int64)
    for place in range(int(lengths[plain].max(initial=0))):
        inside = plain & (lengths > place)
        digits = piece[np.where(inside, label_starts + place, 0)].astype(np.int64) - 48
        plain &= ~inside | ((digits >= 0) & (digits <= 9))
        values = np.where(inside, values * 10 + digits, values)
    plain &= label_starts > starts
    odd = []
    for index in np.flatnonzero(~plain).tolist():
        text = piece[label_starts[index] : ends[index]].tobytes()
        values[index] = atoi(text)
        reason = _oddity(text, named=path_ends[index] > starts[index], spaced=label_starts[index] > starts[index])
        if reason:
            odd.append((index, f"{reason}, read as label {values[index]}"))
    return values.astype(np.int32), odd


def _oddity(text: bytes, *, named: bool, spaced: bool) -> str | None:
    """Why a line is worth a warning, or None."""
    if not named:
        return "no path"
    if not spaced:
        return "no space between path and label"
    if re.fullmatch(rb"[+-]?[0-9]+\r?", text) and abs(int(text)) < 1 << 31:
        return None
    return f"label {text.decode(errors='replace')!r}" if text else "a space at the end of the line"


def _numbers(
    piece: NDArray[np.uint8], starts: Any, ends: Any, labels: str, width: int
) -> tuple[NDArray[np.int64], NDArray[Any], list[tuple[int, str]]]:
    """Path ends and labels where the last `width` words must be numbers; other lines are odd."""
    convert: Any = int if labels == "int" else float
    path_ends = ends.copy()
    values = np.zeros((len(starts), width), np.int64 if labels == "int" else np.float32)
    odd = []
    for index, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        line = piece[start:end].tobytes()
        path, *words = line.rstrip(b"\r").rsplit(b" ", width)
        try:
            values[index] = [convert(word) for word in words]
            if len(words) < width or not path or not np.isfinite(values[index]).all():
                raise ValueError
            if labels == "int" and not -(1 << 31) <= values[index, 0] < 1 << 31:
                raise ValueError
        except (ValueError, OverflowError):
            values[index] = 0
            wanted = f"{width} numbers" if width > 1 else {"int": "a whole number", "float": "a number"}.get(labels)
            found = line.decode(errors="replace")
            odd.append((index, f"expected a path and {wanted or 'a number'} at the end, found {found[-60:]!r}"))
            path = line.rpartition(b" ")[0] or line
        path_ends[index] = start + len(path)
    if labels == "int":
        return path_ends, values[:, 0].astype(np.int32), odd
    return path_ends, values, odd


def _note_odd(found: ImageList, odd: list[tuple[int, str]], file: str, *, strict: bool) -> None:
    """Odd lines become warnings (Caffe's reading goes on) or bad lines (numbers were asked for)."""
    if strict:
        found.bad.update(odd)
    else:
        found.odd = odd
    for index, reason in odd[:SHOWN]:
        found.warnings.append(f"{file}:{index + 1}: {reason}")
    if len(odd) > SHOWN:
        found.warnings.append(f"{file}: {len(odd) - SHOWN:,} more odd lines")


def _label_texts(labels: NDArray[Any]) -> list[bytes]:
    """Labels as a list file has them; floats in the fewest digits that read back the same float32."""
    if labels.dtype.kind in "iu":
        return [b"%d" % value for value in labels.tolist()]
    rows = labels.reshape(len(labels), -1)
    return [" ".join(np.format_float_positional(value, trim="-") for value in row).encode() for row in rows]


def _duplicates(listed: ImageList) -> NDArray[np.int64]:
    """Few lines: a set. Many: those whose last 64 bytes are alike are found by sorting, and only they are compared."""
    candidates = range(len(listed)) if len(listed) <= FEW else _alike(listed).tolist()
    seen: set[bytes] = set()
    again = []
    for index in candidates:
        path = listed.path(index)
        if path in seen:
            again.append(index)
        seen.add(path)
    return np.array(again, np.int64)


def _alike(listed: ImageList) -> NDArray[np.int64]:
    """Lines that share length and last 64 bytes with another, in order (a few more by chance)."""
    raw = np.frombuffer(listed.raw, np.uint8)
    words = np.lib.stride_tricks.as_strided(
        raw[:8].view(np.uint64), (raw.size - 7,), (1,)
    )  # the 8 bytes from each byte
    lengths = listed.ends - listed.starts
    hashes = lengths.astype(np.uint64)
    for back in range(8, 72, 8):
        places = listed.ends - back
        word = words[np.maximum(places, 0)] << (np.clip(-places, 0, 7) * 8).astype(np.uint64)
        inside = np.clip(lengths - (back - 8), 0, 8)  # how many of the eight bytes belong to the path: the last ones
        word = np.where(inside > 0, word >> ((8 - inside) % 8 * 8).astype(np.uint64), np.uint64(0))
        hashes = (hashes ^ word) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
    order = np.argsort(hashes)
    same = np.flatnonzero(np.diff(hashes[order]) == 0)
    return np.unique(order[np.union1d(same, same + 1)])
