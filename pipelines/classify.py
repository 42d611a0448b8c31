"""`cortado classify`: pictures -> the classes that a net finds in them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from pipelines.job import Progress, table
from pipelines.stages.net_options import NetOptions

if TYPE_CHECKING:
    from pipelines.stages.answering import Answer

ROWS = 30  # pictures that the table shows
TABLES = (".csv", ".parquet")
SHEETS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif")


@dataclass(frozen=True, kw_only=True)
class Classify(NetOptions):
    """Name what is in pictures: the most probable classes of each, as Caffe's classification example and classify.py.

    With a hierarchy of names, also the answers that are as specific as they are safe. Numbers for millions of pictures
    come from `cortado extract --blobs prob`.

    Example: cortado classify cat.jpg --model caffenet --weights bvlc_reference_caffenet.caffemodel --labels
    synset_words.txt --mean-file 104,117,123 --oversample
    """

    images: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES|FOLDER|LIST")]
    """picture files, or one folder, list, table, tar, ..."""
    labels: Path | None = None
    """class names, one a line, the first is label 0; default: the run's"""
    top: int = 5
    """classes to name"""
    blob: str | None = None
    """blob with the scores; default: the net's softmax"""
    hierarchy: Path | None = None
    """text file, 'child parent name-of-the-child' a line: also name what is sure, however general"""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.csv|.parquet")] = None
    """write a row for each picture and class"""
    sheet: Annotated[Path | None, tyro.conf.arg(metavar="FILE.png")] = None
    """draw the pictures with their answers"""
    root: str = ""
    """put before every path of a list"""
    limit: int | None = None
    """only the first N pictures"""

    # what an extraction may choose
    pool = "none"
    dtype = "float32"
    format = "parquet"
    shards = "1"
    label_kind = "caffe"
    repeat = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.images:
            raise ValueError("IMAGES missing: picture files, or a folder or list of them")
        if self.out is not None and self.out.suffix.lower() not in TABLES:
            raise ValueError(f"--out {self.out}: expected a name that ends in .csv or .parquet")
        if self.sheet is not None and self.sheet.suffix.lower() not in SHEETS:
            raise ValueError(f"--sheet {self.sheet}: expected a picture's name, one of {', '.join(SHEETS)}")
        if self.hierarchy is not None and self.labels is None and self.run_folder is None:
            raise ValueError("--hierarchy: give the class names too, --labels FILE")

    def run(self) -> dict[str, Any]:
        from ops import hierarchy
        from ops.training.step import set_precision
        from pipelines.stages import answering
        from pipelines.stages.feature_model import model_of
        from pipelines.stages.feature_setup import Prepared

        began = time.monotonic()
        set_precision("fp32")
        model = model_of(self)
        names = model.classes
        if self.labels is not None:
            names = self.labels.read_text(encoding="utf-8", errors="replace").splitlines()
        blob, softmax = answering.score_blob(model, self.blob)
        source = answering.images_of(self.images, root=self.root)
        prepared = Prepared(self, [blob], Path.cwd(), source=source)
        classes = prepared.setup.columns.row_bytes // 4
        answering.check_names(names, classes, str(self.labels or self.run_folder))
        tree = hierarchy.read(self.hierarchy, names) if self.hierarchy is not None else None
        working = time.monotonic()
        with Progress("classify", total=prepared.plan.count) as progress:
            found = answering.answers(
                prepared,
                softmax=softmax,
                top=self.top,
                hierarchy=tree,
                gpu=self.gpu,
                tell=progress.update,
            )
        seconds = time.monotonic() - working
        bad = sum(bool(one.bad) for one in found)
        result = {
            "model": model.name,
            "weights": [str(path) for path in model.weights],
            "images": len(found),
            "bad": bad,
            "crops": 10 if self.oversample else 1,
            "answers": [described(one, names) for one in found],
            "images_per_s": round(len(found) / seconds, 1),
            "seconds": round(time.monotonic() - began, 3),
        }
        if self.out is not None:
            write_table(found, names, self.out)
            result["out"] = str(self.out)
        if self.sheet is not None:
            title = f"{Path(model.name).stem}: {len(found) - bad:,} pictures"
            result["on_sheet"] = answering.sheet(found, source.root, names, self.sheet, title)
            result["sheet"] = str(self.sheet)
        return result

    def render(self, result: dict[str, Any]) -> Any:
        from rich.console import Group

        shown = {"model": result["model"], "weights": result["weights"]}
        shown["speed"] = f"{result['images']:,} images, {result['images_per_s']:,.1f} a second"
        if result["bad"]:
            shown["bad"] = f"{result['bad']:,} could not be read"
        for name in ("out", "sheet"):
            if name in result:
                shown[name] = result[name]
        more = len(result["answers"]) - ROWS
        rest = [f"(and {more:,} more: --json or --out FILE.csv lists all)"] if more > 0 else []
        return Group(*(line for one in result["answers"][:ROWS] for line in lines_of(one)), *rest, table(shown))


def described(answer: Answer, names: list[str]) -> dict[str, Any]:
    """An answer as JSON has it."""
    from pipelines.stages.answering import named

    if answer.bad:
        return {"image": answer.image, "error": answer.bad}
    top = [
        {"label": label, "name": named(label, names), "score": score}
        for label, score in zip(answer.labels, answer.scores, strict=True)
    ]
    hedged = {"accurate": [{"name": name, "value": value} for name, value in answer.hedged]} if answer.hedged else {}
    return {"image": answer.image, "top": top, **hedged}


def lines_of(answer: dict[str, Any]) -> list[Any]:
    """A picture's name and below it its classes; with a hierarchy what is sure stands beside them."""
    from rich.table import Table
    from rich.text import Text

    if "error" in answer:
        return [Text(answer["image"], "bold"), Text(f"  {answer['error']}"), ""]
    grid = Table(box=None, pad_edge=False, show_header="accurate" in answer, padding=(0, 2, 0, 0))
    grid.add_column("", justify="right")
    grid.add_column("maximally specific")
    if "accurate" in answer:
        grid.add_column("", justify="right")
        grid.add_column("maximally accurate")
    rows = max(len(answer["top"]), len(answer.get("accurate", [])))
    for place in range(rows):
        cells = [""] * 2
        if place < len(answer["top"]):
            one = answer["top"][place]
            cells = [f"  {one['score']:.4f}", one["name"]]
        if "accurate" in answer:
            sure = answer["accurate"][place] if place < len(answer["accurate"]) else None
            cells += ["", ""] if sure is None else [f"{sure['value']:.4f}", sure["name"]]
        grid.add_row(*map(Text, cells))
    return [Text(answer["image"], "bold"), grid, ""]


def write_table(found: list[Answer], names: list[str], file: Path) -> None:
    """A row for each picture and class: image, rank, label, name, score, error; a bad picture has one, of rank 0."""
    import pandas as pd

    from pipelines.stages.answering import named

    rows: list[tuple[Any, ...]] = []
    for one in found:
        if one.bad:
            rows.append((one.image, 0, -1, "", float("nan"), one.bad))
        pairs = zip(one.labels, one.scores, strict=True)
        rows += [
            (one.image, rank, label, named(label, names), score, "") for rank, (label, score) in enumerate(pairs, 1)
        ]
    frame = pd.DataFrame(rows, columns=["image", "rank", "label", "name", "score", "error"])
    file.absolute().parent.mkdir(parents=True, exist_ok=True)
    if file.suffix.lower() == ".csv":
        frame.to_csv(file, index=False)
    else:
        frame.to_parquet(file, index=False)
