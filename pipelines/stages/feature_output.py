"""The output folder of an extraction: as that of a conversion (stages/output.py), with other names for its parts.

OUT/part-00000.parquet ...               Parquet
OUT/data.mdb, or OUT/part-00000.lmdb/    LMDB, one part or several; of several blobs each in OUT/BLOB/
OUT/part-00000.h5 ..., OUT/list.txt      HDF5
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ops.records.features import blob_folders
from pipelines.stages.extracting import MADE, Part
from pipelines.stages.output import Output, remove
from pipelines.stages.plan import Plan
from pipelines.stages.shards import Shard


class FeatureOutput(Output):
    """The folder of one extraction, held by one driver at a time."""

    work = "extraction"
    kind = Part

    def __init__(self, folder: Path, plan: Plan, format: str, blobs: Sequence[str]):
        super().__init__(folder, plan, format)
        self.blobs = list(blobs)

    def moves(self, shard: int) -> list[tuple[str, str]]:
        """(what a part is inside its folder, what it becomes below OUT) of all its files."""
        if self.backend == "parquet":
            return [("part.parquet", f"part-{shard:05d}.parquet")]
        if self.backend == "hdf5":
            return [("part.h5", f"part-{shard:05d}.h5")]
        one = self.plan.shards == 1
        made = blob_folders(dict.fromkeys(self.blobs), "part.lmdb")
        final = blob_folders(dict.fromkeys(self.blobs), "data.mdb" if one else f"part-{shard:05d}.lmdb")
        return [(made[blob] + "/data.mdb" * one, final[blob]) for blob in self.blobs]

    def name(self, shard: int) -> str:
        """What the manifest calls a part: the first of its files."""
        return self.moves(shard)[0][1]

    def _done(self, shard: int) -> Path:
        return self.run / "done" / f"part-{shard:05d}"

    def _clear(self) -> None:
        super()._clear()
        if self.backend == "lmdb" and len(self.blobs) > 1:
            for _, final in self.moves(0):
                remove(self.folder / final.partition("/")[0])

    def _find_finished(self) -> None:
        for file in sorted((self.run / "done").glob("part-?????.json")):
            part = Part(**json.loads(file.read_text()))
            moved = [
                (self._done(part.shard) / made).exists() or (self.folder / final).exists()
                for made, final in self.moves(part.shard)
            ]
            if all(moved):
                self.finished[part.shard] = part
            else:
                file.unlink()

    def take_in(self, attempt: Path, made: Shard, done: Path) -> None:
        (attempt / MADE).replace(done)

    def told(self, made: Shard) -> str:
        return f"part {made.shard}: {made.count} rows of {made.lines} images"

    def place(self, shard: int) -> None:
        """Give the files of a part their names."""
        for made, final in self.moves(shard):
            here, there = self._done(shard) / made, self.folder / final
            if here.exists():
                there.parent.mkdir(exist_ok=True)
                here.replace(there)
        remove(self._done(shard))

    def commit(self, facts: dict[str, Any]) -> dict[str, Any]:
        for made in self.shards():
            self.place(made.shard)
        return super().commit(facts)
