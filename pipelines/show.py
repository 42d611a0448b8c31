"""`cortado show`: a data set as a table and a contact sheet; a net as a table, a drawing, filters; features."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from pipelines.job import Job, Progress, counted, say, size, table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipelines.stages.survey import Survey

ROWS = 30  # classes that the table names one by one
SHEETS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif")
DRAWINGS = (".svg", ".png", ".dot")
BAR = 30  # characters of the longest bar


SETS_ONLY = ("sheet", "images", "columns", "seed", "classes", "root", "labels", "rebase")  # options of data sets
PICTURES_ONLY = ("weights", "image", "mean", "scale", "tiles", "out")  # options of --filters and --responses
NETS_ONLY = ("phase", "stage", "level", "input", "batch", "code", "draw", "filters", "responses", *PICTURES_ONLY)


@dataclass(frozen=True, kw_only=True)
class Show(Job):
    """Show a data set (a table of its records, sizes and labels, and a contact sheet), a net (a table of its layers
    with shapes, parameters, multiply-adds and memory; --draw, --filters, --responses: pictures), or features that
    extract made (rows, blobs, the net and weights behind them, how to read them).

    A data set is a folder made by convert, Caffe's LMDB or LevelDB, HDF5, a list, folders of pictures, a tar, ... A net
    is a prototxt, a .caffemodel, or one of the zoo by its name: caffenet, caffenet/train_val. Multiply-adds are those
    of a forward by convolutions, inner products and recurrent layers; biases and other layers are not counted.

    Example: cortado show googlenet --draw googlenet.svg
    """

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA|NET|FEATURES")]
    """what to show: a data set, a net or features; its kind is recognized from its content"""
    sheet: Path = Path("contact-sheet.png")
    """data set: picture file to write the contact sheet to"""
    images: int = 40
    """data set: pictures on the sheet, taken from all classes in turn; 0: no sheet"""
    columns: int | None = None
    """data set: pictures in a row; default: a sheet of about 3:2"""
    seed: int = 0
    """data set: of the choice of pictures"""
    classes: Path | None = None
    """data set: class names, one a line, the first is label 0; default: the data set's own, or classes.txt in or beside
    it"""
    root: str = ""
    """list: put before every path"""
    labels: str = "caffe"
    """list: how labels are read: caffe, int, float, vector:N"""
    rebase: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="OLD=NEW")] = ()
    """list: replace the beginning of paths that somebody else wrote; may be given several times"""
    phase: Literal["TRAIN", "TEST"] = "TEST"
    """net: TRAIN or TEST"""
    stage: str = ""
    """net: its stages, with commas"""
    level: int = 0
    """net: its level"""
    input: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="CxHxW")] = ()
    """net: shape of the first input, as 3x227x227 (the batch is the file's), or NAME=10x3x227x227 of any input; the
    data source is not opened; may be given several times"""
    batch: int | None = None
    """net: show it for batches of this size; default: the file's"""
    code: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FILE|DIR")] = ()
    """net: Python files or folders with layers of your own; may be given several times"""
    draw: Path | None = None
    """net: draw it into FILE.svg, .png or .dot; .svg and .png need Graphviz"""
    weights: str | None = None
    """net: .caffemodel or .h5 with the weights for --filters and --responses; several with commas"""
    filters: Annotated[str | None, tyro.conf.arg(metavar="LAYER")] = None
    """net: draw the filters of a convolution"""
    responses: Annotated[str | None, tyro.conf.arg(metavar="LAYER")] = None
    """net: draw what a layer (or blob) makes of --image, map by map"""
    image: Path | None = None
    """net: the picture for --responses; its middle is resized to the net's input"""
    mean: str | None = None
    """net: subtracted from the picture: a binaryproto, a .npy, or a value a channel as 104,117,123"""
    scale: float = 1.0
    """net: the picture is multiplied by this after the mean, as 0.00390625"""
    tiles: int = 256
    """net: most tiles in a picture of filters or responses"""
    out: Path | None = None
    """net: picture file of --filters or --responses; default: LAYER-filters.png, LAYER-responses.png"""

    def __post_init__(self) -> None:
        for name, least in (("images", 0), ("columns", 1), ("batch", 1), ("tiles", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name} {value}: expected {least} or more")
        for name, file in (("sheet", self.sheet), ("out", self.out)):
            if file is not None and file.suffix.lower() not in SHEETS:
                raise ValueError(f"--{name} {file}: expected a name that ends in {', '.join(SHEETS)}")
        if self.draw and self.draw.suffix.lower() not in DRAWINGS:
            raise ValueError(f"--draw {self.draw}: expected a name that ends in {', '.join(DRAWINGS)}")
        if self.filters is not None and self.responses is not None:
            raise ValueError("--filters and --responses: expected one of them")
        if self.responses is not None and self.image is None:
            raise ValueError("--responses needs --image FILE")
        if self.draw and (self.filters is not None or self.responses is not None):
            raise ValueError("--draw goes with the table; leave out --filters and --responses")

    def run(self) -> dict[str, Any]:
        from pipelines.stages import feature_table
        from pipelines.stages.netshow import net_file

        features = feature_table.find(Path(self.data)) if Path(self.data).exists() else None
        if features is not None:
            self.check_options((*SETS_ONLY, *NETS_ONLY), "features")
            return feature_table.describe(features)
        file = net_file(self.data)
        self.check_options(NETS_ONLY if file is None else SETS_ONLY, "a data set" if file is None else "a net")
        if file is None:
            return self.show_dataset()
        from ops import custom, user_frames

        with user_frames.told("", say):
            custom.load_code(self.code)
            return self.show_net(file)

    def render(self, result: dict[str, Any]) -> Any:
        from pipelines.stages import feature_table
        from pipelines.stages.netpage import net_page, picture_page

        if "features" in result:
            return feature_table.page(result)
        if "layers" in result:
            return net_page(result)
        return picture_page(result) if "picture" in result else dataset_page(result)

    def check_options(self, foreign: tuple[str, ...], kind: str) -> None:
        """An option that says nothing of what is shown is a slip."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        given = [name for name in foreign if getattr(self, name) != defaults[name]]
        if given:
            raise ValueError(f"{self.data} is {kind}: --{given[0]} says nothing of it")

    # -- nets ------------------------------------------------------------------------------------------------------

    def show_net(self, file: Path) -> dict[str, Any]:
        from pipelines.stages.netshow import Asked, facts

        stages = [name.strip() for name in self.stage.split(",") if name.strip()]
        asked = Asked(file, self.phase, stages=stages, level=self.level)
        layer = self.filters if self.filters is not None else self.responses
        if layer is None:
            self.check_options(PICTURES_ONLY, "shown as a table")
            asked.give(self.input, self.batch)
            return facts(asked, self.draw)
        from pipelines.stages.netpictures import Picture, filters, responses

        what = "filters" if self.filters is not None else "responses"
        self.check_options(
            ("batch", *(("image", "mean", "scale") if what == "filters" else ())), f"shown by its {what}"
        )
        picture = Picture(self.out or Path(f"{layer.replace('/', '-')}-{what}.png"), self.tiles)
        if self.filters is not None:
            return filters(asked, layer, self.weights, picture)
        assert self.image is not None
        asked.give(self.input, None)
        return responses(asked, layer, self.image, self.weights, picture, mean=self.mean, scale=self.scale)

    # -- data sets -------------------------------------------------------------------------------------------------

    def show_dataset(self) -> dict[str, Any]:
        from pipelines.stages.survey import choose, order_of, survey, whole

        with Progress("show", total=0, unit="records") as progress:
            found = survey(
                self.data,
                root=self.root,
                labels=self.labels,
                rebase=self.rebase,
                seed=self.seed,
                update=lambda done, total: advance(progress, done, total),
            )
        for warning in found.warnings:
            say(f"warning: {warning}")
        labels = whole(found.labels)
        names = class_names(self.classes, found, Path(self.data))
        places = choose(labels, found.count, self.images, self.seed)
        sheet, unreadable = self.draw_sheet(found, places, labels, names) if places else (None, 0)
        return {
            "data": self.data,
            "kind": found.kind,
            "shards": found.shards,
            "records": found.count,
            "sizes": extremes(found),
            "bytes": found.bytes,
            "estimated": found.estimated,
            "labels": [] if labels is None else counts(labels, names),
            "values": [] if labels is not None else spans(found.labels),
            "order": order_of(labels) if labels is not None and found.count else None,
            "sheet": str(sheet) if sheet else None,
            "shown": places,
            "unreadable": unreadable,
        }

    def draw_sheet(
        self, found: Survey, places: list[int], labels: NDArray[np.int64] | None, names: list[str]
    ) -> tuple[Path, int]:
        """Write the contact sheet; a picture that cannot be decoded is an empty cell that says why, and counted."""
        import numpy as np

        from ops import image
        from ops.contact_sheet import contact_sheet, thumbnail

        cells, unreadable = {}, 0
        for view in found.views(sorted(places)):
            small, about = np.zeros((0, 0, 3), np.uint8), view.reason
            unreadable += view.image is None
            if view.image is not None:
                small, about = thumbnail(view.image), f"{view.image.shape[0]} x {view.image.shape[1]}"
            numbers = " ".join(f"{value:g}" for value in np.ravel(found.labels[view.place]))
            head = numbers if labels is None else named(int(labels[view.place]), names)
            cells[view.place] = small, f"{head}\n#{view.place}  {about}"
        pictures, captions = zip(*(cells[place] for place in places), strict=True)
        title = f"{Path(self.data).absolute().name}: {len(places) - unreadable:,} of {counted(found.count, 'record')}"
        title += f", {unreadable:,} unreadable" if unreadable else ""
        drawn = contact_sheet(pictures, captions, self.columns, title=title)
        self.sheet.absolute().parent.mkdir(parents=True, exist_ok=True)
        self.sheet.write_bytes(image.encode(drawn, self.sheet.suffix))
        return self.sheet, unreadable


def dataset_page(result: dict[str, Any]) -> Any:
    """The facts of a data set and the bars of its classes."""
    from rich.console import Group

    shown = {
        "data set": result["data"],
        "kind": result["kind"] + (f", {result['shards']:,} shards" if result["shards"] > 1 else ""),
        "records": result["records"],
        "sizes": sizes_text(result["sizes"]),
        "bytes": ("about " if result["estimated"] else "") + size(result["bytes"]),
        "labels": labels_text(result),
        "order": result["order"],
        "contact sheet": sheet_text(result),
    }
    facts = table({name: value for name, value in shown.items() if value is not None})
    return Group(facts, "", histogram(result["labels"])) if result["labels"] else facts


def advance(progress: Progress, done: int, total: int) -> None:
    """The count of records is known only when the data set is open."""
    if progress.total != total:
        progress.total = total
        if progress.bar:
            progress.bar.update(progress.task, total=total)
    progress.update(done)


def class_names(given: Path | None, found: Survey, source: Path) -> list[str]:
    """One name a line from the file given, else the data set's own, else classes.txt in or beside it."""
    if given is None and found.classes:
        return found.classes
    beside = [source / "classes.txt"] if source.is_dir() else []
    files = [given] if given else [*beside, source.absolute().parent / "classes.txt"]
    file = next((file for file in files if given or file.is_file()), None)
    if file is None:
        return []
    return [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").rstrip("\n").split("\n")]


def named(label: int, names: list[str]) -> str:
    """The class name of a label, or its number where there is none."""
    return names[label] if 0 <= label < len(names) and names[label] else f"label {label}"


def counts(labels: NDArray[np.int64], names: list[str]) -> list[dict[str, Any]]:
    """Records of each label, and of each named class that has none."""
    import numpy as np

    values, numbers = np.unique(labels, return_counts=True)
    every = dict.fromkeys(range(len(names)), 0) | dict(zip(values.tolist(), numbers.tolist(), strict=True))
    return [{"label": label, "class": named(label, names), "records": every[label]} for label in sorted(every)]


def spans(labels: NDArray[Any]) -> list[dict[str, float]]:
    """Least, mean and greatest value of each number of a label."""
    columns = labels.reshape(len(labels), -1).astype(float).T if len(labels) else []
    return [{"least": float(c.min()), "mean": float(c.mean()), "greatest": float(c.max())} for c in columns]


def extremes(found: Survey) -> dict[str, Any]:
    """The smallest and the largest (height, width, channels), each number by itself, and of how many records."""
    known = found.sizes[(found.sizes[:, :2] > 0).all(axis=1)]
    if not len(known):
        return {"of": 0, "spans": None}
    return {"of": len(known), "spans": [known.min(axis=0).tolist(), known.max(axis=0).tolist()]}


def sizes_text(sizes: dict[str, Any]) -> str:
    """As "256 x 256 x 3 (height x width x channels)"; sides that differ as "400..647"."""
    if not sizes["of"]:
        return "unknown"
    sides = [f"{low:,}" if low == high else f"{low:,}..{high:,}" for low, high in zip(*sizes["spans"], strict=True)]
    names = ["height", "width", "channels"]
    shown = 3 if sizes["spans"][1][2] else 2  # without decoding, the channels of a file are not known
    return f"{' x '.join(sides[:shown])} ({' x '.join(names[:shown])})"


def sheet_text(result: dict[str, Any]) -> str | None:
    """Where the contact sheet is, and how many pictures are on it."""
    if not result["sheet"]:
        return None
    readable = len(result["shown"]) - result["unreadable"]
    more = f", {result['unreadable']:,} unreadable" if result["unreadable"] else ""
    return f"{result['sheet']}: {counted(readable, 'picture')}{more}"


def labels_text(result: dict[str, Any]) -> str:
    """How many classes, and how even; or the range of each number."""
    if result["values"]:
        told = [f"{v['least']:g}..{v['greatest']:g} (mean {v['mean']:g})" for v in result["values"][:5]]
        return f"{len(result['values'])} numbers each: " + ", ".join(told) + (", ..." if result["values"][5:] else "")
    sizes = [row["records"] for row in result["labels"]]
    if not sizes:
        return "none"
    if len(sizes) == 1:
        return f"1 class, {counted(sizes[0], 'record')}"
    even = "" if min(sizes) == max(sizes) else f"{min(sizes):,} to "
    return f"{len(sizes):,} classes, {even}{counted(max(sizes), 'record')} each"


def histogram(rows: list[dict[str, Any]]) -> Any:
    """One bar a class; of many classes the first ones, and how many more there are."""
    from rich.table import Table

    most = max(row["records"] for row in rows) or 1
    grid = Table(box=None, pad_edge=False)
    for name, side in (("label", "right"), ("class", "left"), ("records", "right"), ("", "left")):
        grid.add_column(name, justify=side, no_wrap=True, style="cyan" if not name else None)  # type: ignore[arg-type]
    grid.columns[1].header = "class" if any(row["class"] != named(row["label"], []) for row in rows) else ""
    for row in rows[:ROWS]:
        bar = "█" * round(row["records"] / most * BAR) or ("▏" if row["records"] else "")
        grid.add_row(str(row["label"]), row["class"] if grid.columns[1].header else "", f"{row['records']:,}", bar)
    if len(rows) > ROWS:
        grid.add_row("", f"and {len(rows) - ROWS:,} more {'classes' if len(rows) > ROWS + 1 else 'class'}", "", "")
    return grid
