"""`cortado demo`: the whole chain on real pictures, handwritten digits and photographs, which other packages ship, from
lists to a trained net that is tested.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import time
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from pipelines.job import Job, duration, human, say, size, table

if TYPE_CHECKING:
    from pipelines.train import Train

SIDE = 160  # pixels of the photographs' records
ACCIDENTS = "rotate=15,translate=0.1,scale=0.2,brightness=0.2,contrast=0.2,noise=6"
SHORT_SIDE = {"resize_mode": "short-side", "resize_width": SIDE}
OPERATIONS: dict[str, dict[str, Any]] = {  # data set -> options of convert, each shown in the sheet
    "exact": {"resize_height": SIDE, "resize_width": SIDE},
    "long-side": {"resize_mode": "long-side", "resize_width": SIDE},
    "centre-crop": {**SHORT_SIDE, "crop": SIDE},
    "random-crops": {**SHORT_SIDE, "crop": SIDE * 5 // 8, "crop_at": "random", "crops": 2, "mirror": "random"},
    "augmented": {**SHORT_SIDE, "crop": SIDE, "augment": ACCIDENTS, "copies": 3},
}


@dataclass(frozen=True, kw_only=True)
class Demo(Job):
    """Run the whole chain on real pictures that ship with a dependency, and show the command of each step.

    1,797 handwritten digits (scikit-learn) become lists, record shards, their mean and a contact sheet; six photographs
    (scikit-image, scikit-learn) show what happens to a picture on its way. LeNet learns the digits and is tested with
    those that it has not seen, and again over HTTP; stopped in the middle and resumed, it ends with the same weights.
    What an earlier run finished is skipped.

    Example: cortado demo --out demo-out
    """

    out: Path = Path("demo-out")
    """folder for everything that is made"""
    seed: int = 0
    """of the split into digits to learn from and digits to test with"""

    def run(self) -> dict[str, Any]:
        import cluster
        import ops
        import pipelines
        from cluster import config
        from cluster.connect import connected

        began = time.monotonic()
        pictures = self.write_pictures()
        say("\nstarting Ray on this machine ...")
        with connected(config.load(self.config, self.set), packages=(ops, pipelines, cluster)) as connection:
            say(f"Ray: {connection.cpus:.0f} CPUs, ready after {duration(time.monotonic() - began)}")
            digits = self.digits()
            photographs = self.photographs()
            learnt = self.lenet(digits["records"])
            served = self.serve(Path(learnt["run"]))
        resumed = self.stop_and_resume(Path(learnt["weights"]))
        made = {"out": str(self.out), "pictures": pictures, **digits, **photographs, **learnt, **served, **resumed}
        return {**made, "seconds": round(time.monotonic() - began, 3)}

    def render(self, result: dict[str, Any]) -> Any:
        from rich.console import Group

        run, apart, asked = result["run"], result["resumed"]["difference"], result["served"]
        same = f"weights within {apart:.1e} of the undisturbed run's" if apart else "the same weights, to the bit"
        made = {
            "took": f"{duration(result['seconds'])}, under {self.out}",
            "pictures": f"{result['pictures']:,} files in digits/ and photographs/",
            "lists": "lists/: train.txt, test.txt, classes.txt",
            "data sets": ", ".join(f"{name}/ ({count:,} records)" for name, count in result["records"].items()),
            "mean": result["mean"],
            "recipe": f"{result['solver']}, and train_val.prototxt beside it",
            "trained": f"{run}/: {Path(result['weights']).name}, deploy.prototxt, train.log, metrics.csv",
            "accuracy": f"{100 * result['accuracy']:.2f} % of {result['records']['test']:,} digits it has not seen",
            "served": f"{asked['right']:,} of {asked['images']:,} such digits right, asked over HTTP",
            "stopped, resumed": f"{result['resumed_run']}/: {same}",
            "look at": f"{result['digits_sheet']}  (what the net sees)",
            "and at": f"{result['confusion']}  (what it takes for what)",
            "and": f"{result['operations_sheet']}  (what convert can do to a picture)",
            **({"and too": f"{asked['page']}  (the page of the server)"} if asked["page"] else {}),
        }
        tries = [line for words, command in self.next_steps(result).items() for line in (f"  {words}", folded(command))]
        return Group(table(made), "", "[bold]try next[/bold]", *tries)

    def next_steps(self, result: dict[str, Any]) -> dict[str, str]:
        """What a person may want to do now: in words -> the command."""
        from pipelines.evaluate import Test
        from pipelines.serve import Serve
        from pipelines.show import Show
        from pipelines.train import Train

        solver, again = Path(result["solver"]), self.out / "runs/mine"
        train = Train(solver=solver, run_folder=again, local=True, shuffle=True)
        look = Show(data=result["weights"], filters="conv1", out=self.out / "conv1.png")
        return {
            f"change {solver} and train by it": command_line(train),
            "test what came of it": command_line(Test(run_folder=again, iterations=1)),
            "see the filters that LeNet has learnt": command_line(look),
            "drop digits of your own on the page of this net": command_line(Serve(run_folder=Path(result["run"]))),
            "your own pictures, in a folder for each class": "cortado prepare PICTURES --out data",
            "every command, every option": "cortado --help, cortado COMMAND --help",
        }

    # -- the pictures ----------------------------------------------------------------------------------------------

    def write_pictures(self) -> int:
        """Write what stands for a user's own pictures; how many files there are."""
        from pipelines.stages import demo_pictures

        demo_pictures.check_packages()
        say("Pictures: handwritten digits of scikit-learn, photographs of scikit-image and scikit-learn")
        writers = {"digits": demo_pictures.write_digits, "photographs": demo_pictures.write_photographs}
        folders = [self.out / name for name in writers]
        for folder, write in zip(folders, writers.values(), strict=True):
            new = demo_pictures.filled(folder, write)
            say(f"  {folder}{'' if new else ': written by an earlier run, skipped'}")
        return demo_pictures.count(*folders)

    # -- the chain -------------------------------------------------------------------------------------------------

    def digits(self) -> dict[str, Any]:
        """list -> convert -> mean -> check -> contact sheet."""
        from pipelines.check import Check
        from pipelines.convert import Convert
        from pipelines.listing import List
        from pipelines.mean import Mean
        from pipelines.show import Show

        pictures, lists, train, test = (self.out / name for name in ("digits", "lists", "train", "test"))
        self.step(
            "Lists: four of five pictures of each class to learn from, the rest to test with",
            List(source=str(pictures), out=lists, split="train=0.8,test=0.2", seed=self.seed),
            lambda found: "  ".join(f"{name}.txt {count:,} lines" for name, count in found["lists"].items()),
        )
        same = {"root": f"{pictures}/", "gray": True, "resize_height": 28, "resize_width": 28}
        records = {}
        for out, more in ((train, {"shuffle": True, "seed": 1, "shards": "4"}), (test, {})):
            job = Convert(image_list=str(lists / f"{out.name}.txt"), out=out, **same, **more)
            title = f"Records: {out.name}.txt, grey, enlarged to 28x28"
            records[out.name] = self.step(title, job, converted)["records"]
        mean = self.out / "mean.binaryproto"
        self.step("Mean: what training subtracts", Mean(data=train, out=mean), averaged, makes=mean)
        self.step("Check: every record, against the checksums of the manifest", Check(path=train), checked)
        sheet = self.out / "digits.png"
        self.step("Contact sheet", Show(data=str(train), sheet=sheet), lambda _: str(sheet), makes=sheet)
        return {"records": records, "mean": str(mean), "digits_sheet": str(sheet)}

    def photographs(self) -> dict[str, Any]:
        """The same few pictures through different options, side by side on one sheet."""
        from pipelines.convert import Convert
        from pipelines.stages.demo_pictures import write_sheet

        pictures, sheet = self.out / "photographs", self.out / "operations.png"
        for name, more in OPERATIONS.items():
            job = Convert(image_list=str(pictures / "list.txt"), out=self.out / "operations" / name, **more)
            self.step(f"Photographs: {name}", job, converted)
        say(f"\nAll of them side by side: {sheet}")
        write_sheet(sheet, pictures, {name: self.out / "operations" / name for name in OPERATIONS})
        return {"operations_sheet": str(sheet)}

    def lenet(self, records: Mapping[str, int]) -> dict[str, Any]:
        """recipe -> train -> test."""
        from pipelines.evaluate import Test
        from pipelines.stages import demo_lenet
        from pipelines.stages.demo_pictures import filled

        recipe, confusion, job = self.out / "lenet", self.out / "confusion.png", self.lenet_job("lenet")
        say("\nRecipe: LeNet of the zoo for these digits, and a solver")
        new = filled(recipe, partial(demo_lenet.write_recipe, place=recipe, data=self.out, records=records))
        left_alone = "" if new else ": written by an earlier run, left as they are"
        say(f"  {recipe / 'train_val.prototxt'}, {job.solver}{left_alone}")
        weights = self.train("Training: digits moved a little each time, in another order each epoch", job)
        test = Test(run_folder=job.run_folder, iterations=1, confusion=confusion)
        tested = self.step("Test: the digits that were held out", test, answers)
        return {
            "solver": str(job.solver),
            "run": str(job.run_folder),
            "weights": str(weights),
            "accuracy": tested["accuracy"],
            "confusion": str(confusion),
        }

    def serve(self, run: Path) -> dict[str, Any]:
        """The net behind HTTP for a moment: the held-out digits once more, and a picture of the page."""
        from pipelines.serve import Serve
        from pipelines.stages import demo_serving

        told, page = self.out / "served.json", self.out / "page.png"
        job = Serve(run_folder=run, name="demo", port=demo_serving.free_port())
        say(f"\nServer: the same digits over HTTP, POST /v1/classify\n  $ {command_line(job)}")
        if told.exists():
            say("  asked by an earlier run, skipped")
            return {"served": json.loads(told.read_text(encoding="utf-8"))}
        served = dataclasses.replace(job, config=self.config, set=self.set)
        url = served.run()["server"]
        try:
            pictures = demo_serving.held_out(self.out / "lists/test.txt", self.out / "digits")
            found = demo_serving.classify(url, pictures)
            why = demo_serving.screenshot(url, page)
        finally:
            dataclasses.replace(served, stop=True).run()
        found["page"] = None if why else str(page)
        per_second = found["images"] / max(found["seconds"], 1e-9)
        say(f"  {found['right']:,} of {found['images']:,} right, {per_second:,.0f} images/s; {why or page}")
        told.write_text(json.dumps(found), encoding="utf-8")
        return {"served": found}

    def lenet_job(self, name: str) -> Train:
        """Training by the recipe, into runs/NAME."""
        from pipelines.stages.demo_lenet import AUGMENT
        from pipelines.train import Train

        solver, run = self.out / "lenet/solver.prototxt", self.out / "runs" / name
        return Train(solver=solver, run_folder=run, local=True, shuffle=True, augment=AUGMENT)

    def train(self, title: str, job: Train) -> Path:
        """Train, going on where an earlier run was stopped; the weights at the end."""
        from pipelines.stages import demo_lenet

        assert job.run_folder is not None
        weights = demo_lenet.last_weights(job.solver, job.run_folder)
        if demo_lenet.begun(job.run_folder) and not weights.exists():
            job = dataclasses.replace(job, resume=True)
        if self.step(title, job, trained, makes=weights).get("stopped"):
            raise KeyboardInterrupt  # the training heard it, and took a snapshot
        return weights

    def stop_and_resume(self, undisturbed: Path) -> dict[str, Any]:
        """The training once more, interrupted as Ctrl-C does, and resumed; how it differs from the undisturbed one."""
        from pipelines.stages import demo_lenet

        job = self.lenet_job("lenet-stopped")
        assert job.run_folder is not None
        say(f"\nThe same training once more, stopped in its middle as by Ctrl-C\n  $ {command_line(job)}")
        if demo_lenet.begun(job.run_folder):
            say("  stopped by an earlier run, skipped")
        else:
            words = shlex.split(command_line(job))[1:]
            at = demo_lenet.stop_midway(words, job.run_folder, demo_lenet.ITERATIONS // 2)
            say(f"  stopped after {at:,} iterations; a snapshot is in {job.run_folder}")
        weights = self.train("... and resumed", dataclasses.replace(job, resume=True))
        found = demo_lenet.compare(undisturbed, weights)
        say(f"  {compared(found)}")
        return {"resumed_run": str(job.run_folder), "resumed": found}

    def step(
        self, title: str, job: Job, told: Callable[[dict[str, Any]], str], *, makes: Path | None = None
    ) -> dict[str, Any]:
        """Run one job and say what it did, under the command line that does the same; not again if `makes` is there."""
        say(f"\n{title}\n  $ {command_line(job)}")
        if makes and makes.exists():
            say("  finished by an earlier run, skipped")
            return {}
        result = dataclasses.replace(job, config=self.config, set=self.set).run()
        say(f"  {told(result)}")
        return result


def converted(result: dict[str, Any]) -> str:
    shards = f"{result['shards']} shard{'s' * (result['shards'] != 1)}"
    made = f"{result['records']:,} records in {shards}, {size(result['bytes'])}"
    return f"{made}, in {duration(result['seconds'])}" if result["seconds"] else made  # 0: an earlier run made it


def averaged(result: dict[str, Any]) -> str:
    return f"of {result['records']:,} records, mean of each channel {human(result['channel_means'])}"


def checked(result: dict[str, Any]) -> str:
    problems = result["problems"]
    return f"{result['checked']:,} records: {problems[0] if problems else 'right'}"


def trained(result: dict[str, Any]) -> str:
    done, seconds = result["iterations"] - result["from"], duration(result["seconds"])
    scores = [f", test net: accuracy {one['accuracy'][0]:.4f}" for one in result["tests"] if "accuracy" in one]
    return f"{done:,} iterations in {seconds}, {result['images_per_s']:,.0f} images/s{''.join(scores)}"


def answers(result: dict[str, Any]) -> str:
    from pipelines.stages.demo_lenet import mistakes

    names = [row["class"] for row in result["per_class"]]
    wrong = mistakes(result["matrix"], names)
    right = f"{100 * result['accuracy']:.2f} % of {result['items']:,} right"
    return f"{right}; taken for another: {', '.join(wrong)}" if wrong else right


def compared(found: dict[str, Any]) -> str:
    same = f"loss, rate and batch of {found['same_iterations']:,} of {found['iterations']:,} iterations"
    if found["difference"] == 0:
        return f"as if nothing had happened: {same} and the weights are the same, to the bit"
    return f"beside the undisturbed run: {same} are the same, the weights are within {found['difference']:.1e}"


def command_line(job: Job) -> str:
    """What to type for the same: the options that are not at their defaults."""
    words = ["cortado", type(job).__name__.lower()]
    hints = typing.get_type_hints(type(job), include_extras=True)
    for field in dataclasses.fields(job):
        value = getattr(job, field.name)
        if value == field.default or field.name in ("config", "set", "json"):
            continue
        marks = getattr(hints[field.name], "__metadata__", ())
        named = [mark.name for mark in marks if getattr(mark, "name", None)]
        option = "--" + (named[0] if named else field.name).replace("_", "-")
        words += [] if tyro.conf.Positional in marks else [option]
        words += [] if value is True else [str(value)]
    return shlex.join(words)


def folded(command: str, indent: int = 6, width: int = 72) -> str:
    """A command over several lines that can be pasted as they are, each begun with an option and at most `width` long
    where that can be."""
    lines = [""]
    for part in command.replace(" --", "\n--").split("\n"):
        line = f"{lines[-1]} {part}".strip()
        lines = [*lines[:-1], line] if len(line) <= width or not lines[-1] else [*lines, part]
    return " " * indent + f" \\\n{' ' * (indent + 4)}".join(lines)
