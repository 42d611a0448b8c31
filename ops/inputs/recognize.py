"""What an input is, from its first bytes or from what a folder holds; never from its name."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ops.inputs import magic, text
from ops.inputs.magic import EXTENSIONS, is_hdf5, is_image, is_leveldb, starts_as_image
from ops.records.lmdb import is_lmdb

HEAD = 1 << 16  # bytes of a text that are looked at
ENTRIES = 10_000  # entries of a folder that are looked at
SETS = 20  # folders among which data sets are looked for
ACCEPTED = "an image list, a folder, CSV, Parquet, tar, IDX, CIFAR-10, LMDB, LevelDB or HDF5"
SHARDED = {"tar", "parquet", "csv", "idx", "cifar10", "hdf5"}  # kinds of files that a folder may hold many of
_BRACES = re.compile(r"\{([^{}]*)\}")


@dataclass
class Found:
    """An input: its kind, and the files or folders that it consists of; tables: how text tables are cut."""

    kind: str
    files: list[Path]
    tables: list[text.Table] = field(default_factory=list)


def find(source: str | Path) -> Found:
    """What is at a path or behind a pattern. ValueError or OSError, naming what was found, where it is no input."""
    path = Path(source)
    if os.path.lexists(path):
        return _folder(path) if path.is_dir() else _file(path)
    files = matching(str(source))
    if not files:
        raise FileNotFoundError(2, "No such file or folder", str(source))
    return _many(files, str(source))


def matching(pattern: str) -> list[Path]:
    """The files behind a pattern with {000..009}, {a,b}, * or ?; [] where there is none."""
    if not any(mark in pattern for mark in "*?[{"):
        return []
    names = list(_expanded(pattern))
    found = [name for one in names for name in (sorted(glob.glob(one)) if glob.has_magic(one) else [one])]
    missing = [name for name in found if not os.path.exists(name)]
    if missing and len(missing) < len(found):
        raise FileNotFoundError(2, "No such file or folder", missing[0])
    return [] if missing else [Path(name) for name in found]


def _expanded(pattern: str) -> Iterator[str]:
    """A pattern's braces written out: shard-{00..11}.tar, {train,val}.csv."""
    braces = _BRACES.search(pattern)
    if not braces:
        yield pattern
        return
    first, dots, last = braces[1].partition("..")
    if dots and first.isdigit() and last.isdigit() and int(last) - int(first) < 1_000_000:
        choices = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    else:
        choices = braces[1].split(",")
    for choice in choices:
        yield from _expanded(pattern[: braces.start()] + choice + pattern[braces.end() :])


def _many(files: list[Path], where: str) -> Found:
    """Several inputs of one kind as one."""
    found = [find(file) for file in files]
    kinds = sorted({one.kind for one in found})
    if len(kinds) > 1 or kinds[0] not in {*SHARDED, "lmdb"}:
        raise ValueError(
            f"{where}: {len(files)} inputs of kind {', '.join(kinds)}; expected tar, Parquet, ... of one kind"
        )
    return Found(
        kinds[0], [file for one in found for file in one.files], [look for one in found for look in one.tables]
    )


# -- files -------------------------------------------------------------------------------------------------------------


def _file(path: Path) -> Found:
    if not path.is_file():
        raise ValueError(f"{path}: neither a file nor a folder; expected {ACCEPTED}")
    size = path.stat().st_size
    with path.open("rb") as opened:
        head = opened.read(HEAD)
    if not size:
        raise ValueError(f"{path}: an empty file; expected {ACCEPTED}")
    kind = _by_magic(path, head, size)
    if kind:
        return Found(kind, [path])
    return _text(path, head, size)


def _by_magic(path: Path, head: bytes, size: int) -> str | None:
    if head.startswith(magic.HDF5):
        return "hdf5"
    if head.startswith(magic.PARQUET):
        return "parquet"
    if magic.is_tar_head(head[: magic.TAR_BLOCK]) or (size >= 2 * magic.TAR_BLOCK and not any(head)):  # or an empty tar
        return "tar"
    if magic.is_idx(head):
        return "idx"
    if head.startswith(magic.GZIP):
        if magic.is_idx(magic.unpacked_head(path)):
            return "idx"
        raise ValueError(f"{path}: compressed with gzip, but no IDX file; unpack it first (gunzip)")
    if b"\0" in head[:4096] or not _is_text(head):
        return "cifar10" if magic.is_cifar(path, size) else None
    return None


def _is_text(head: bytes) -> bool:
    """Hardly any control characters."""
    odd = sum(byte < 32 and byte not in b"\t\n\v\f\r\x1b" for byte in head[:4096])
    return odd <= len(head[:4096]) // 50


def _text(path: Path, head: bytes, size: int) -> Found:
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"{path}: UTF-16 text; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
    if starts_as_image(head):
        raise ValueError(f"{path}: one image; expected {ACCEPTED}: give its folder")
    if b"\0" in head[:4096] or not _is_text(head):
        hint = ""
        if size % magic.CIFAR_RECORD and size > magic.CIFAR_RECORD and head[0] < 10:
            hint = f" (CIFAR-10 batches are whole records of {magic.CIFAR_RECORD:,} bytes: cut short?)"
        raise ValueError(f"{path}: {size:,} bytes starting {head[:8].hex(' ')}; expected {ACCEPTED}{hint}")
    if text.hdf5_sources(head, path.parent):
        return Found("hdf5", text.hdf5_sources(path.read_bytes(), path.parent))
    lines = head.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    lines = [line for line in (lines[:-1] if len(head) == HEAD else lines) if line.strip()][: text.LINES]
    look = text.table(lines)
    if look:
        return Found("csv", [path], [look])
    if text.is_list(lines):
        return Found("list", [path])
    if not lines:
        raise ValueError(f"{path}: an empty list; expected one 'path label' a line")
    shown = lines[0][:60].decode(errors="replace").strip()
    raise ValueError(f"{path}: text, but no image list or table: it starts {shown!r}; expected 'path label' lines")


# -- folders -----------------------------------------------------------------------------------------------------------


def _folder(path: Path) -> Found:
    database = _database(path)
    if database:
        return database
    files, folders = _entries(path)
    pictures = sum(_is_image_name(file.name) for file in files)
    sets = [folder for folder in folders if _shards(folder)] if len(folders) <= SETS and pictures <= 1 else []
    if sets and not any(_holds_images(folder) for folder in folders if folder not in sets):  # but a contact sheet
        names = ", ".join(folder.name for folder in sets)
        raise ValueError(f"{path}: holds the data sets {names}; name one of them, as {sets[0]}")
    if pictures:
        return Found("folder", [path])
    if any(map(_holds_images, folders)):
        return Found("classes", [path])
    kinds: dict[str, list[Found]] = {}
    for file in files:
        found = _shard(file)
        if found:
            kinds.setdefault(found.kind, []).append(found)
    if len(kinds) == 1:
        ((kind, found_files),) = kinds.items()
        every = [file for one in found_files for file in one.files]
        return Found(kind, every, [look for one in found_files for look in one.tables])
    if kinds:
        counted = ", ".join(f"{len(found)} of kind {kind}" for kind, found in sorted(kinds.items()))
        raise ValueError(f"{path}: a folder with files {counted}: give one kind alone, as a pattern like {path}/*.tar")
    for folder, kind in ((path, "folder"), *((folder, "classes") for folder in folders)):
        if any(is_image(file) for file in _entries(folder)[0][:20]):  # images without an extension
            return Found(kind, [path])
    if not files and not folders:
        raise ValueError(f"{path}: an empty folder; expected images, folders of images, or {ACCEPTED}")
    shown = ", ".join(sorted(entry.name for entry in [*files, *folders])[:4])
    raise ValueError(f"{path}: a folder without images; it holds {shown}; expected {ACCEPTED}")


def _database(path: Path) -> Found | None:
    """A data set of ours, an LMDB or LevelDB folder, or a folder of LMDBs."""
    names = sorted(os.listdir(path))
    parts = [path / name for name in names if name.endswith(".lmdb") and is_lmdb(path / name)]
    files = [path / name for name in names if re.fullmatch(r"part-.*\.h5", name) and is_hdf5(path / name)]
    if (path / "manifest.json").is_file() and (is_lmdb(path) or parts or files):
        return Found("dataset", [path] if is_lmdb(path) else parts or files)
    lost = _shards(path)
    if lost:
        there = [name for name in lost if (path / name).exists()]
        state = f"{there[0]} is damaged" if there else f"{lost[0]} is missing"
        raise ValueError(f"{path}: a data set with manifest.json, but {state}; convert again")
    if (path / ".run" / "plan").is_dir():
        raise ValueError(f"{path}: a conversion that is not finished; run its command again")
    if is_lmdb(path):
        return Found("lmdb", [path])
    if is_leveldb(path):
        return Found("leveldb", [path])
    return Found("lmdb", parts) if parts else None


def _shards(path: Path) -> list[str]:
    """The names of the shards of a data set of ours, by its manifest; [] where there is none."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        return [shard["name"] for shard in manifest["shards"]] if "cortado" in manifest else []
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _entries(path: Path) -> tuple[list[Path], list[Path]]:
    """Files and folders in a folder, hidden ones left out, sorted; of a huge one the first that the system names."""
    files: list[Path] = []
    folders: list[Path] = []
    with os.scandir(path) as entries:
        for entry, _ in zip(entries, range(ENTRIES), strict=False):
            if not entry.name.startswith("."):
                (folders if entry.is_dir() else files).append(Path(entry.path))
    return sorted(files), sorted(folders)


def _is_image_name(name: str) -> bool:
    return name.rpartition(".")[2].lower() in EXTENSIONS and "." in name


def _holds_images(folder: Path) -> bool:
    """Whether there is an image somewhere below; a link that leads upwards is met once."""
    seen, waiting = set(), [folder]
    while waiting:
        here = waiting.pop()
        real = os.path.realpath(here)
        if real in seen:
            continue
        seen.add(real)
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    waiting.append(Path(entry.path))
                elif _is_image_name(entry.name):
                    return True
    return False


def _shard(file: Path) -> Found | None:
    """A file of a kind that a folder may hold many of, or None."""
    try:
        found = _file(file)
    except (ValueError, OSError):
        return None
    return found if found.kind in SHARDED else None
