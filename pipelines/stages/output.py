"""The output folder of a conversion: what is finished, what may be taken over, and the one moment when it exists.

OUT/.run/plan/        the lines in order (stages/plan.py)
OUT/.run/attempts/    a folder for each attempt at a shard; made.json in it, written last: it is whole
OUT/.run/done/        finished shards, each with part-00000.json, written after the shard was renamed to here
OUT/.run/log.txt      the full log; it alone stays
OUT/...               shards, errors.csv and, last of all, manifest.json: with it the data set exists
"""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ops.mean import PixelSum
from pipelines.job import log, say
from pipelines.stages.plan import Plan, read_facts
from pipelines.stages.shards import TOLD, Shard

MANIFEST, ERRORS, RUN = "manifest.json", "errors.csv", ".run"
FORMAT = 1  # of the manifest
FULL = (errno.ENOSPC, errno.EDQUOT)
SHARED = "the output must lie on storage that every node sees (`cortado status --path` asks them)"


class NoSpaceError(OSError):
    """A full disk, with the folder and the bytes that are still needed."""


class Output:
    """The folder that a plan is carried out in, held by one driver at a time."""

    work = "conversion"  # as messages call it
    kind = Shard  # what an attempt tells

    def __init__(self, folder: Path, plan: Plan, backend: str, *, wants_sum: bool = False):
        self.folder, self.plan, self.backend, self.wants_sum = folder, plan, backend, wants_sum
        self.run = folder / RUN
        self.finished: dict[int, Shard] = {}
        self.odd_lines: list[tuple[int, str, str]] = []  # of the list itself: number, path, what is odd

    def name(self, shard: int) -> str:
        """A shard's name; the only shard of an LMDB is the plain folder that Caffe expects."""
        if self.backend == "hdf5":
            return f"part-{shard:05d}.h5"
        return "data.mdb" if self.plan.shards == 1 else f"part-{shard:05d}.lmdb"

    def refuse_foreign(self) -> None:
        """ValueError where the folder holds something that no conversion made: that is not ours to replace."""
        if not self.folder.exists() or (self.folder / MANIFEST).exists() or (self.run / "lock").exists():
            return
        others = sorted(set(os.listdir(self.folder)) - {RUN})
        if others:
            raise ValueError(f"{self.folder}: holds {others[0]!r}, which no {self.work} made; choose an empty folder")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other drivers out while this one works; the system lets go of the lock however the process ends."""
        self.run.mkdir(parents=True, exist_ok=True)
        with (self.run / "lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise ValueError(f"{self.folder}: another run is writing here ({lock.read().strip()})") from None
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}")
            lock.flush()
            yield

    def take_up(self, *, overwrite: bool) -> str:
        """Look at what stands here: "new", "resumed" or "complete". ValueError when it is not ours to go on with."""
        manifest = read_manifest(self.folder)
        earlier = facts_of(manifest) if manifest else read_facts(self.run / "plan")
        if earlier is None:
            others = sorted(set(os.listdir(self.folder)) - {RUN, ERRORS})
            if others and not overwrite:
                raise ValueError(
                    f"{self.folder}: holds {others[0]!r}, which no {self.work} made; choose an empty folder"
                )
            self._clear()
            return "new"
        differences = self.plan.differences(earlier)
        begun = manifest or any((self.run / "done").glob("part-?????.json"))
        if differences and begun and not overwrite:
            told = "; ".join(differences[:3])
            raise ValueError(
                f"{self.folder}: made with other options ({told}); choose another --out, or give --overwrite"
            )
        if differences or overwrite:
            self._clear()
            return "new"
        if manifest:
            missing = [one["name"] for one in manifest["shards"] if not (self.folder / one["name"]).exists()]
            if missing:
                raise ValueError(f"{self.folder}: its {missing[0]} is gone; give --overwrite to make it again")
            return "complete"
        self._find_finished()
        self._take_over()
        for name in ("attempts", "fragments"):
            remove(self.run / name)
        return "resumed"

    def _clear(self) -> None:
        """Take away an earlier result: first what makes it one."""
        (self.folder / MANIFEST).unlink(missing_ok=True)
        for name in os.listdir(self.folder):
            if name == "data.mdb" or name.startswith("part-") or name in (ERRORS, "list.txt"):
                remove(self.folder / name)
        for name in ("plan", "attempts", "fragments", "done"):
            remove(self.run / name)

    def _find_finished(self) -> None:
        for file in sorted((self.run / "done").glob("part-?????.json")):
            shard = Shard(**json.loads(file.read_text()))
            here = [self._done(shard.shard), self.folder / self.name(shard.shard)]
            summed = not self.wants_sum or not shard.count or self._sum(shard.shard).exists()
            if summed and any(path.exists() for path in here):
                self.finished[shard.shard] = shard
            else:
                file.unlink()

    def _take_over(self) -> None:
        """Attempts that were whole when their driver was killed, before it heard of them; those with bad lines are made
        again: somebody may have mended the pictures."""
        for file in sorted((self.run / "attempts").glob(f"*/{TOLD}")):
            made = self.kind(**json.loads(file.read_text()))
            if not made.bad:
                self.accept(made)

    def _done(self, shard: int) -> Path:
        return self.run / "done" / self.name(shard)

    def _sum(self, shard: int) -> Path:
        return self.run / "done" / f"part-{shard:05d}.sum.npz"

    def accept(self, made: Shard) -> None:
        """Rename an attempt to a finished shard; a second attempt at the same shard is dropped."""
        attempt = self.run / "attempts" / made.attempt
        if made.shard in self.finished:
            remove(attempt)
            return
        if not attempt.exists():
            told = f"a worker wrote {attempt.name} here, but this machine does not see it; {SHARED}"
            raise FileNotFoundError(errno.ENOENT, told, str(self.folder))
        done = self._done(made.shard)
        done.parent.mkdir(exist_ok=True)
        remove(done)
        (attempt / TOLD).unlink(missing_ok=True)  # from here on it is not whole
        self.take_in(attempt, made, done)
        write_json(self.run / "done" / f"part-{made.shard:05d}.json", vars(made))
        remove(attempt)
        self.finished[made.shard] = made
        speed = made.lines / made.seconds if made.seconds else 0.0
        told = f"{self.told(made)}, {made.bytes} bytes, {speed:.0f}/s"
        log.info("%s, %d bad, %d warned, checksum %s", told, len(made.bad), len(made.warned), made.checksum)

    def take_in(self, attempt: Path, made: Shard, done: Path) -> None:
        """Move what an attempt built to where finished shards are."""
        if self.wants_sum and made.count:
            (attempt / "sum.npz").replace(self._sum(made.shard))
        built = "shard.h5" if self.backend == "hdf5" else "shard/data.mdb" if done.name == "data.mdb" else "shard"
        (attempt / built).replace(done)

    def told(self, made: Shard) -> str:
        """What the log says of a finished shard."""
        return f"shard {made.shard}: {made.count} records of {made.lines} lines"

    def no_space(self, attempt: Shard | None = None) -> NoSpaceError:
        """What to say of a full disk; finished shards and the attempt that failed tell how much a line takes."""
        seen = [*self.shards(), *([attempt] if attempt else [])]
        lines, written = sum(one.lines for one in seen), sum(one.bytes for one in seen)
        if not lines:
            lines, written = self._under_way()
        left = self.plan.count - sum(one.lines for one in self.shards())
        need = written / lines * left if lines else 0
        free = shutil.disk_usage(self.folder).free
        more = f"about {need:,.0f} bytes more are needed, " if need else ""
        told = f"no space left on the device; {more}{free:,} are free; finished shards are kept"
        return NoSpaceError(errno.ENOSPC, f"{told}: make room and run the same command", str(self.folder))

    def _under_way(self) -> tuple[int, int]:
        """Lines and bytes of the attempts that nobody has told of yet, as far as they got."""
        lines = written = 0
        for file in (self.run / "attempts").glob("*/progress"):
            with contextlib.suppress(OSError, ValueError):
                lines += int(file.read_bytes() or b"0")
                written += sum(path.stat().st_blocks * 512 for path in file.parent.rglob("*") if path.is_file())
        return lines, written

    def forget_bad(self) -> None:
        """Drop shards with bad lines, so that the same command tries them again once the pictures are mended."""
        for shard, made in list(self.finished.items()):
            if made.bad:
                (self.run / "done" / f"part-{shard:05d}.json").unlink()
                remove(self._done(shard))
                del self.finished[shard]

    def progress(self) -> int:
        """Lines done so far, those of attempts under way among them."""
        done = sum(one.lines for one in list(self.finished.values()))
        latest: dict[str, int] = {}
        with contextlib.suppress(FileNotFoundError):
            for attempt in os.scandir(self.run / "attempts"):
                shard = attempt.name.partition("-")[0]
                if int(shard) not in self.finished:
                    with contextlib.suppress(OSError, ValueError):
                        lines = int(Path(attempt.path, "progress").read_bytes() or b"0")
                        latest[shard] = max(lines, latest.get(shard, 0))
        return done + sum(latest.values())

    def shards(self) -> list[Shard]:
        return [self.finished[shard] for shard in sorted(self.finished)]

    def list_errors(self) -> None:
        """errors.csv: line number (from 1), path, reason; a kept picture's warning starts with `warning: `."""
        odd = [(*row, "") for one in self.shards() for row in one.bad]
        odd += [(*row, "warning: ") for one in self.shards() for row in one.warned]
        odd += [(*row, "warning: ") for row in self.odd_lines]
        scratch = self.run / ERRORS
        with scratch.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            out = csv.writer(file, lineterminator="\n")
            out.writerow(["line", "path", "reason"])
            out.writerows((line, path, kind + reason) for line, path, reason, kind in sorted(odd))
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(self.folder / ERRORS)

    def sums(self) -> PixelSum:
        """The sum of every record's pixels."""
        total = PixelSum()
        for made in self.shards():
            if made.count:
                total.merge(PixelSum.load(self._sum(made.shard)))
        return total

    def commit(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Give every shard its name, then write the manifest; done twice, or broken off anywhere, it ends the same."""
        for made in self.shards():
            done, final = self._done(made.shard), self.folder / self.name(made.shard)
            if done.exists():
                done.replace(final)
        self.list_errors()
        if self.backend == "hdf5":
            names = [self.name(made.shard) for made in self.shards() if made.count]
            if any(letter.isspace() for letter in str(self.folder.resolve())):
                told = "Caffe's HDF5Data splits its list at white space, and this path holds some"
                say(f"warning: {self.folder}/list.txt: {told}")
            write_text(self.folder / "list.txt", "".join(f"{(self.folder / name).resolve()}\n" for name in names))
        sync_folder(self.folder)
        manifest = {"cortado": FORMAT, "format": self.backend, **summary(self.shards()), **self.plan.facts(), **facts}
        keys = ("count", "bytes", "checksum", "first_key", "last_key")
        manifest["warned"] += len(self.odd_lines)
        manifest["shards"] = [
            {"name": self.name(made.shard), **{key: getattr(made, key) for key in keys}} for made in self.shards()
        ]
        write_json(self.folder / MANIFEST, manifest)
        sync_folder(self.folder)
        for name in ("plan", "attempts", "fragments", "done"):
            remove(self.run / name)
        log.info("committed %s: %d records", self.folder, manifest["records"])
        return manifest


def summary(shards: list[Shard]) -> dict[str, Any]:
    """The counts of a data set: listed = used + bad, records the sum of the copies."""
    shapes = {tuple(made.shape) for made in shards if made.count}
    lines, bad = sum(made.lines for made in shards), sum(len(made.bad) for made in shards)
    return {
        "listed": lines,
        "used": lines - bad,
        "bad": bad,
        "warned": sum(len(made.warned) for made in shards),
        "records": sum(made.count for made in shards),
        "bytes": sum(made.bytes for made in shards),
        "shape": list(shapes.pop()) if len(shapes) == 1 else [],
    }


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished data set; None where there is none. ValueError when it cannot be read."""
    try:
        text = (folder / MANIFEST).read_text()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        found = dict(json.loads(text))
        if found["cortado"] > FORMAT:
            raise ValueError(f"format {found['cortado']} is newer than this cortado understands ({FORMAT})")
        facts_of(found)
        return found
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / MANIFEST}: not a manifest: {error}") from None


def facts_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """What a plan compares itself with."""
    return {
        **{key: manifest[key] for key in ("list", "options")},
        "count": manifest["listed"],
        "shards": len(manifest["shards"]),
    }


def remove(path: Path) -> None:
    """A file or a folder, whether or not it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_json(file: Path, content: dict[str, Any]) -> None:
    write_text(file, json.dumps(content, indent=1) + "\n")


def write_text(file: Path, text: str) -> None:
    """Whole and synced before it appears under its name."""
    scratch = file.with_name(f".{file.name}.new")
    with scratch.open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    scratch.replace(file)


def sync_folder(folder: Path) -> None:
    """Make renames in this folder outlast a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
