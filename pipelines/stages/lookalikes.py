"""What `cortado neighbours` needs beside the table: the query's numbers, and the pictures behind rows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ops import image
from ops.contact_sheet import contact_sheet, thumbnail
from ops.inputs import recognize
from ops.inputs.fetch import Fetcher
from ops.neighbours import FeatureTable
from pipelines.stages.answering import images_of
from pipelines.stages.feature_setup import Prepared
from pipelines.stages.featuring import Extractor


@dataclass(frozen=True)
class Recorded:
    """The options of the extraction that made a table, as one of its own would have them."""

    model: Path | None
    weights: str | None
    run_folder: Path | None
    oversample: bool
    images_dim: str | None
    mean_file: str | None
    raw_scale: float | None
    input_scale: float | None
    channel_swap: str | None
    gray: bool
    stage: str | None
    level: int
    pool: str
    code: tuple[str, ...]
    max_pixels: int = 100_000_000
    dtype: str = "float32"
    format: str = "parquet"
    shards: str = "1"
    label_kind: str = "caffe"
    batch_size: int | None = 1
    limit: int | None = None
    repeat: bool = False


def recorded(facts: dict[str, Any]) -> Recorded:
    """From a table's metadata."""
    options = dict(facts["options"])
    for name in ("model", "run_folder"):
        options[name] = Path(options[name]) if options[name] else None
    return Recorded(**{**options, "code": tuple(options["code"])})


def features_of(table: FeatureTable, picture: str) -> NDArray[np.float32]:
    """The numbers of a picture that is not in the table, by the net that made it. ValueError where it has changed."""
    if not table.facts.get("options"):
        raise ValueError(f"--of {picture}: is no row of the table, whose file does not say which net made it")
    prepared = Prepared(recorded(table.facts), [table.blob], Path.cwd(), source=images_of([picture]))
    if prepared.weights != table.facts["weights_digest"]:
        told = ", ".join(map(str, prepared.model.weights))
        raise ValueError(f"{told}: not the weights that made the table; extract the picture with it")
    with Extractor(prepared.setup, prepared.net, threads=1, device=torch.device("cpu")) as extractor:
        for rows, notes in extractor.rows(0):
            if notes[0].bad is not None:
                raise ValueError(f"--of {picture}: {notes[0].bad}")
            return rows.blobs[table.blob].reshape(-1)
    raise AssertionError(picture)


class Pictures:
    """The pictures behind the rows of a table, where they can still be found."""

    def __init__(self, table: FeatureTable):
        self.table, self.fetcher = table, Fetcher()
        self.places = [""]
        if table.name == "path":
            self.places = [str(table.facts.get("root") or "")]
        elif table.facts.get("input"):
            try:
                found = recognize.find(table.facts["input"])
                self.places = [f"{file}#" for file in found.files]
            except (OSError, ValueError):
                self.places = []

    def get(self, name: str) -> NDArray[Any] | None:
        """(H, W, C) pixels; None where there are none any more."""
        for place in self.places:
            try:
                return pixels_of(self.fetcher, place + name)
            except (OSError, ValueError):
                continue
        return None


def pixels_of(fetcher: Fetcher, path: str) -> NDArray[Any]:
    source = fetcher.fetch(os.fsencode(path))
    return image.decode(source, all_formats=True) if isinstance(source, bytes) else source


def draw(shown: Sequence[tuple[NDArray[Any] | None, str]], file: Path, title: str) -> int:
    """A sheet of pictures and captions; those that are gone are left out. How many are on it."""
    there = [(thumbnail(pixels), caption) for pixels, caption in shown if pixels is not None]
    if not there:
        raise ValueError(f"--sheet {file}: none of the pictures can be found any more")
    drawn = contact_sheet([pixels for pixels, _ in there], [caption for _, caption in there], title=title)
    file.absolute().parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(image.encode(drawn, file.suffix))
    return len(there)
