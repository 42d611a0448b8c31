"""`cortado init`: a data set -> a recipe: train_val, deploy and solver prototxt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from pipelines.job import Job, say, table


@dataclass(frozen=True, kw_only=True)
class Init(Job):
    """Write train_val, deploy and solver prototxt for a data set, each line with its reason; then train by them.

    The data set is a folder that prepare or convert made. Its classes, size, mean and number of records go into a net
    of the zoo or into one of your own; labels that are numbers make it a regression. With --finetune the last layer
    gets another name, so that it starts afresh, and learns ten times as fast as the others. Rate and length follow
    Caffe's examples: a tenth of the rate after 18 times through the data, the end after 54.

    Example: cortado init --data data --net caffenet --finetune bvlc_reference_caffenet.caffemodel --out runs/a
    """

    data: Path
    """folder that prepare made, or the data set of convert to train with"""
    net: str
    """net of the zoo, as caffenet, or a train_val.prototxt"""
    out: Path
    """folder to write the recipe into; train --run takes it from there"""
    finetune: str | None = None
    """weights to begin with: .caffemodel or .h5 files, parted by commas"""
    test: Path | None = None
    """data set to test with; default: the one beside the training part that is called test or val"""
    mean: Path | None = None
    """mean image to take off; default: mean.binaryproto of the data set"""
    batch: int | None = None
    """records of a training batch; default: the net's own, for fine-tuning at most 50"""
    test_batch: int | None = None
    """records of a test batch; default: the net's own"""
    crop: int | None = None
    """side of what the net sees of a picture; 0: all of it; default: the net's own"""
    rate: float | None = None
    """base_lr; default: 0.01, for fine-tuning 0.001, less where a net of the zoo was published with less"""
    code: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FILE|DIR")] = ()
    """Python file or folder with layers of your own; may be given several times"""
    overwrite: bool = False
    """write over a recipe that is there"""

    def __post_init__(self) -> None:
        for name in ("batch", "test_batch"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} {value}: expected 1 or more")
        if self.crop is not None and self.crop < 0:
            raise ValueError(f"--crop {self.crop}: expected pixels, or 0 for none")
        if self.rate is not None and not self.rate > 0:
            raise ValueError(f"--rate {self.rate:g}: expected more than 0")
        if not self.net.strip():
            raise ValueError("--net: expected a net of the zoo, or a file")

    def run(self) -> dict[str, Any]:
        from ops import custom
        from pipelines.stages import recipe, recipe_data
        from pipelines.stages.run_folder import refuse_another

        refuse_another(self.out, "another --out NAME takes a recipe of its own")
        custom.load_code(self.code)
        data = recipe_data.look(self.data, test=self.test, mean=self.mean)
        made = recipe.cook(
            self.net,
            data,
            self.out,
            finetune=self.finetune,
            batch=self.batch,
            test_batch=self.test_batch,
            crop=self.crop,
            rate=self.rate,
        )
        recipe.write(self.out, made.texts, overwrite=self.overwrite)
        for text in made.said:
            say(f"note: {text}")
        files = [str(self.out / name) for name in made.texts]
        return {"out": str(self.out), "files": files, **recipe.facts(made, data)}

    def render(self, result: dict[str, Any]) -> Any:
        labels = f"{result['numbers']} numbers each" if result["numbers"] else f"{result['classes']:,} classes"
        once = f"{result['iterations_per_epoch']:.4g} iterations of {result['batch']}"
        tests = f"{result['test_iter']:,} x {result['test_batch']}"
        every = result["test_interval"]
        tests += f", every {every:,} iterations" if every > 1 else ", every iteration"
        shown = {
            "recipe": ", ".join(result["files"]),
            "data": f"{result['records']:,} records to train with, {result['test_records']:,} to test with, {labels}",
            "net": f"{result['net']}, last layer {', '.join(result['last_layers'])}",
            "sees": f"{result['crop']}x{result['crop']}" if result["crop"] else "whole pictures",
            "mean": result["mean"] or "none",
            "once through": once,
            "rate": f"{result['base_lr']:g}, a tenth after {result['stepsize']:,} iterations",
            "ends after": f"{result['max_iter']:,} iterations, "
            f"{result['max_iter'] / result['iterations_per_epoch']:.3g} times through",
            "test": tests if result["test_iter"] else "none",
        }
        for key in ("copied", "fresh", "unused"):
            if self.finetune:
                shown[key] = ", ".join(result[key]) or "none"
        shown["try next"] = f"cortado train --run {self.out}"
        return table(shown)
