"""`cortado neighbours`: features -> the images that are most alike, and near-duplicates."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from pipelines.job import Job, table

if TYPE_CHECKING:
    from ops.neighbours import FeatureTable

SHEETS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif")
ROWS = 30  # groups that the table shows
ON_SHEET = 60  # pictures of duplicates


@dataclass(frozen=True, kw_only=True)
class Neighbours(Job):
    """Find the images whose features are most alike (cosine, exact): those nearest to one, or all near-duplicates.

    Example: cortado neighbours features --of photos/cat.jpg --sheet alike.png
    """

    features: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FEATURES")]
    """folder that `cortado extract` made, or one Parquet file of it"""
    of: Annotated[str | None, tyro.conf.arg(metavar="KEY|IMAGE")] = None
    """a row of the table by its key or path, or any picture file: it goes through the net that made the table"""
    duplicates: bool = False
    """report groups of images that are nearly the same"""
    blob: str | None = None
    """which blob to compare; default: the only one"""
    top: int = 10
    """how many neighbours"""
    threshold: float = 0.98
    """duplicates: cosine from which two images are nearly the same"""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.csv")] = None
    """write the result as a table"""
    sheet: Annotated[Path | None, tyro.conf.arg(metavar="FILE.png")] = None
    """draw the pictures of the result"""

    def __post_init__(self) -> None:
        if (self.of is None) == (not self.duplicates):
            raise ValueError("give --of KEY|IMAGE, or --duplicates")
        if self.top < 1:
            raise ValueError(f"--top {self.top}: expected 1 or more")
        if not -1 <= self.threshold <= 1:
            raise ValueError(f"--threshold {self.threshold}: a cosine, expected -1 to 1")
        if self.sheet is not None and self.sheet.suffix.lower() not in SHEETS:
            raise ValueError(f"--sheet {self.sheet}: expected a picture's name, one of {', '.join(SHEETS)}")

    def run(self) -> dict[str, Any]:
        from ops.neighbours import FeatureTable

        found = FeatureTable.open(self.features, self.blob)
        began = time.monotonic()
        made = self.groups(found) if self.duplicates else self.nearest(found)
        if self.out is not None:
            self.write(made)
            made["out"] = str(self.out)
        return {"features": str(self.features), "blob": found.blob, "rows": len(found), **made, **since(began)}

    def nearest(self, found: FeatureTable) -> dict[str, Any]:
        from ops import neighbours

        assert self.of is not None
        root = str(found.facts.get("root") or "")
        whole = os.path.abspath(self.of)
        place = found.find(whole.removeprefix(root) if root and whole.startswith(root) else self.of)
        if place is None and os.path.isfile(self.of):
            from pipelines.stages.lookalikes import features_of

            name, query = self.of, features_of(found, self.of)
        elif place is None:
            told = f"no row of {self.features} has this {found.name}, and it is no picture file"
            raise ValueError(f"--of {self.of}: {told}")
        else:
            name, query = found.row(place)
        places, scores = neighbours.nearest(found, query, self.top, without=place)
        names = found.names(places[0])
        rows = [
            {"rank": rank, found.name: one, "cosine": float(score)}
            for rank, (one, score) in enumerate(zip(names, scores[0], strict=True), 1)
        ]
        return {"of": name, "neighbours": rows, **self.drawn(found, name, rows, known=place is not None)}

    def drawn(self, found: FeatureTable, name: str, rows: list[dict[str, Any]], *, known: bool) -> dict[str, Any]:
        """The query and its neighbours, where --sheet asks for it."""
        if self.sheet is None:
            return {}
        from pipelines.stages.lookalikes import Pictures, draw, pixels_of

        pictures = Pictures(found)
        first = pictures.get(name) if known else pixels_of(pictures.fetcher, name)
        shown = [(first, f"{os.path.basename(name)}\nasked for")]
        shown += [
            (pictures.get(row[found.name]), f"{row['cosine']:.4f}\n{os.path.basename(row[found.name])}") for row in rows
        ]
        return {"on_sheet": draw(shown, self.sheet, f"Nearest by {found.blob}"), "sheet": str(self.sheet)}

    def groups(self, found: FeatureTable) -> dict[str, Any]:
        import numpy as np

        from ops import neighbours

        groups = neighbours.duplicates(found, self.threshold)
        names = found.names(np.array([place for group in groups for place in group], np.int64))
        named, at = [], 0
        for group in groups:
            named.append(names[at : at + len(group)])
            at += len(group)
        result = {"threshold": self.threshold, "groups": named, "duplicates": len(names) - len(named)}
        if self.sheet is not None and named:
            from pipelines.stages.lookalikes import Pictures, draw

            pictures, shown = Pictures(found), []
            for number, members in enumerate(named, 1):
                shown += [(pictures.get(one), f"group {number}\n{os.path.basename(one)}") for one in members]
                if len(shown) >= ON_SHEET:
                    break
            result |= {"on_sheet": draw(shown[:ON_SHEET], self.sheet, "Near-duplicates"), "sheet": str(self.sheet)}
        return result

    def write(self, made: dict[str, Any]) -> None:
        import pandas as pd

        if self.duplicates:
            rows = [{"group": number, "image": one} for number, group in enumerate(made["groups"], 1) for one in group]
            frame = pd.DataFrame(rows, columns=["group", "image"])
        else:
            frame = pd.DataFrame(made["neighbours"])
        assert self.out is not None
        self.out.absolute().parent.mkdir(parents=True, exist_ok=True)
        frame.to_csv(self.out, index=False)

    def render(self, result: dict[str, Any]) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        grid.add_column("", justify="right")
        grid.add_column("", overflow="fold")
        if self.duplicates:
            for number, group in enumerate(result["groups"][:ROWS], 1):
                grid.add_row(f"  {number}", Text("\n".join(group)))
            facts = {"near-duplicates": f"{result['duplicates']:,} in {len(result['groups']):,} groups"}
            facts["cosine"] = f"{result['threshold']:g} and more"
            if len(result["groups"]) > ROWS:
                facts["shown"] = f"the {ROWS} largest groups: --json or --out FILE.csv lists all"
        else:
            names = [
                next(value for key, value in row.items() if key in ("key", "path")) for row in result["neighbours"]
            ]
            for row, name in zip(result["neighbours"], names, strict=True):
                grid.add_row(f"  {row['cosine']:.4f}", Text(name))
            facts = {"nearest to": result["of"]}
        facts |= {"compared": f"{result['rows']:,} rows of {result['blob']} in {result['seconds']:.2f} s"}
        facts |= {name: result[name] for name in ("out", "sheet") if name in result}
        return Group(grid, "", table(facts))


def since(began: float) -> dict[str, float]:
    return {"seconds": round(time.monotonic() - began, 3)}
