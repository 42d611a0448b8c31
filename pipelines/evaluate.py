"""`cortado test`: net + weights + records -> loss, accuracy, per class, confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from pipelines.job import Job, Progress, say, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.config import Config
    from ops.net import Net
    from pipelines.stages.scoring import Found, Trial

    Each = Callable[[int, dict[str, Any]], None]  # takes the number of a batch and its outputs

ROWS = 30  # classes that the table names one by one


@dataclass(frozen=True, kw_only=True)
class Test(Job):
    """Test a net: the mean of each of its outputs over so many batches, as Caffe; accuracy of each class.

    A run's folder has all that is needed: its test net, its best weights or else its newest. Several workers
    (train.workers of ray_config.yaml, or one a GPU) each take their part of every batch, for the figures of one.

    Example: cortado test --model lenet_train_test.prototxt --weights lenet_iter_10000.caffemodel --iterations 100
    """

    model: Path | None = None
    """prototxt of a net with a data layer for TEST, or a net of the zoo; default: the run's"""
    weights: str | None = None
    """.caffemodel or .h5; default: the run's best, else its newest"""
    run_folder: Annotated[Path | None, tyro.conf.arg(name="run", aliases=["--run-folder"])] = None
    """folder of a run, in place of model and weights"""
    iterations: int = 50
    """batches"""
    local: bool = False
    """test in this process, without Ray; also without --local where one worker on this machine is all that is wanted"""
    gpu: str | None = None
    """GPUs to use: 0,1 or all; none: the CPU; default: what there is"""
    level: int | None = None
    """the net's level; default: 0, or the run's"""
    stage: str | None = None
    """the net's stages, parted by commas"""
    oversample: bool = False
    """accuracy by the mean scores of ten crops of each image: corners and centre, each mirrored too"""
    confusion: Path | None = None
    """picture file for the confusion matrix"""
    classes: Path | None = None
    """class names, one a line, the first is label 0; default: the run's"""
    caffe: bool = False
    """print Caffe's lines, batch by batch"""
    code: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FILE|DIR")] = ()
    """Python file or folder with layers of your own; may be given several times"""

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"--iterations {self.iterations}: expected 1 or more")

    def run(self) -> dict[str, Any]:
        from ops import custom, user_frames
        from pipelines.stages import scoring

        if self.confusion is not None:
            scoring.check_picture(self.confusion)
        with user_frames.told("", say):
            custom.load_code(self.code)
            tested, names = scoring.trial(self)
            net = scoring.assemble(tested)
            scores = scoring.Scores(net)
            if self.confusion is not None and scores.matrix is None:
                raise ValueError(
                    f"--confusion: {net.name} has no Accuracy or SoftmaxWithLoss layer to count classes by"
                )
            if self.oversample:
                scoring.cropped(net, scores)
            found, workers = self.followed(tested, net)
        scores.matrix = found.matrix
        result = {
            "model": net.name,
            "weights": list(tested.weights),
            "iterations": self.iterations,
            "workers": workers,
            **covered(found.batch, found.records, self.iterations),
            "loss": found.loss,
            "outputs": {name: value.ravel().tolist() for name, value in found.means.items()},
            "loss_weights": {name: weight for name, weight in net.loss_weights.items() if name in found.means},
            "crops": 10 if self.oversample else 1,
            **scores.summary(names),
        }
        if self.confusion is not None and scores.matrix is not None:
            scoring.draw(scores.matrix, self.confusion, names)
            result["confusion"] = str(self.confusion)
        return result

    def followed(self, tested: Trial, net: Net) -> tuple[Found, int]:
        """The test, with Caffe's lines or a line that says how far it is."""
        if self.caffe:
            lines = CaffesLines(net.loss_weights)
            found, workers = self.measure(tested, net, lines.batch)
            lines.end(found.means, found.loss)
            return found, workers
        with Progress("test", total=self.iterations, unit="batches") as progress:
            return self.measure(tested, net, lambda number, _: progress.update(number + 1))

    def measure(self, tested: Trial, net: Net, each: Each) -> tuple[Found, int]:
        """The test in this process, or in the workers of ray_config.yaml; how many those were.

        One worker of this machine needs no Ray: the figures are the same, seconds earlier.
        """
        from cluster import config as settings
        from ops.parallel import Group
        from pipelines.stages import ray_testing, scoring

        config = settings.load(self.config, self.set)
        if self.local or ray_testing.one_here(config, self.gpu):
            device = ray_testing.device_here(config, self.gpu)
            return scoring.run(tested, net, Group(), device, each), 1
        return self.on_ray(config, tested, net, each)

    def on_ray(self, config: Config, tested: Trial, net: Net, each: Each) -> tuple[Found, int]:
        """Each worker takes its part of every batch."""
        import cluster
        import ops
        import pipelines
        from cluster.connect import chosen, connected
        from cluster.scaling import train_pool
        from ops import custom
        from ops.parallel import Group
        from ops.spread import spread
        from pipelines.stages import ray_testing, scoring

        if self.gpu is not None and chosen(config) == "local":
            scoring.device_of(self.gpu)
        batch = min(shape[0] for shape in net.inputs.values() if shape)
        reads = config.data.model_copy(update={"where": "worker"})  # each worker reads its own part
        config = config.model_copy(update={"data": reads})
        with connected(config, packages=(ops, pipelines, cluster)) as connection:
            pool = train_pool(config, connection, gpu=self.gpu)
            workers = ray_testing.workers_for(pool, connection, config, batch, tested.model)
            spread(net, Group(0, workers))  # whether it can be divided is known before anybody starts
            say(ray_testing.division(batch, workers))
            found = ray_testing.test_on_ray(
                tested,
                custom.pack(self.code),
                workers=workers,
                cpus_per_worker=pool.cpus_per_worker,
                gpu=pool.gpu,
                each=each,
                told=self.caffe,
            )
        return found, workers

    def render(self, result: dict[str, Any]) -> Any:
        from rich.console import Group

        seen = f"{result['iterations']:,}"
        if result["records"]:
            seen += f" ({result['items']:,} items, {result['items'] / result['records']:.3g} times the data set)"
        shown = {"model": result["model"], "weights": result["weights"], "batches": seen, "loss": result["loss"]}
        for name, values in result["outputs"].items():
            weight = result["loss_weights"].get(name)
            share = f" (* {weight:g} = {weight * values[0]:g} loss)" if weight and len(values) == 1 else ""
            more = f" ... ({len(values):,} numbers)" if len(values) > 8 else ""
            shown[name] = " ".join(f"{value:.6g}" for value in values[:8]) + more + share
        if result["crops"] > 1 and result["accuracy"] is not None:
            shown["accuracy of ten crops"] = f"{result['accuracy']:.6g}"
        if "confusion" in result:
            shown["confusion matrix"] = result["confusion"]
        facts = table(shown)
        rows = result.get("per_class", [])
        return Group(facts, "", *per_class(rows)) if rows else facts


class CaffesLines:
    """What `caffe test` prints, on stderr: each output of each batch, then the loss and the means."""

    def __init__(self, loss_weights: dict[str, float]):
        import sys

        from ops.training.log import Log

        self.log, self.loss_weights = Log(None), loss_weights
        self.log.file = sys.stderr

    def say(self, text: str) -> None:
        self.log.line(text, where="caffe.cpp")

    def batch(self, number: int, outputs: dict[str, Any]) -> None:
        from ops.training.log import number as printed

        for name, value in outputs.items():
            for one in value.reshape(-1).tolist():
                self.say(f"Batch {number}, {name} = {printed(one)}")

    def end(self, means: dict[str, Any], loss: float) -> None:
        from ops.training.log import elements
        from ops.training.log import number as printed

        self.say(f"Loss: {printed(loss)}")
        for name, value in elements(means):
            weight = self.loss_weights.get(name, 0.0)
            share = f" (* {printed(weight)} = {printed(weight * value)} loss)" if weight else ""
            self.say(f"{name} = {printed(value)}{share}")


def covered(batch: int, records: int | None, iterations: int) -> dict[str, Any]:
    """How many items that was, of how many records; a line where that is no whole number of times."""
    items = batch * iterations
    if records and items % records:
        hint = f"; --iterations {records // batch} tests each once" if records % batch == 0 else ""
        say(f"note: {items:,} items of {records:,} records: some count more often than others{hint}")
    return {"items": items, "records": records}


def per_class(rows: list[dict[str, Any]]) -> list[Any]:
    """A table of the classes; of many, those with the lowest accuracy."""
    from rich.table import Table

    listed = rows
    if len(rows) > ROWS:
        present = [row for row in rows if row["of"]]
        listed = sorted(present, key=lambda row: (row["accuracy"], row["label"]))[:ROWS]
    grid = Table(box=None, pad_edge=False)
    for head in ("label", "class", "right", "of", "accuracy", "most taken for"):
        grid.add_column(head, justify="left" if head in ("class", "most taken for") else "right")
    for row in listed:
        share = f"{100 * row['accuracy']:.1f} %" if row["of"] else "-"
        grid.add_row(str(row["label"]), row["class"], f"{row['right']:,}", f"{row['of']:,}", share, row["taken_for"])
    return [grid, *([f"(the {ROWS} lowest of {len(rows):,} classes)"] if listed is not rows else [])]
