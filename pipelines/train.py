"""`cortado train`: a solver.prototxt -> snapshots."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from pipelines.job import Job, say, share, table

if TYPE_CHECKING:
    import torch

    from cluster.scaling import TrainPool
    from pipelines.stages.live import Live
    from pipelines.stages.setup import Training


@dataclass(frozen=True, kw_only=True)
class Train(Job):
    """Train the net of a solver.prototxt, by Caffe's rules.

    Weights to fine-tune from are copied by layer name. Ctrl-C stops with a snapshot, SIGHUP takes one and goes on;
    --resume goes on from the newest, or begins where there is none.

    Example: cortado train --solver lenet_solver.prototxt --run runs/lenet --local
    """

    solver: Path | None = None
    """solver.prototxt; default: the one in the run's folder, as init writes it"""
    run_folder: Annotated[Path | None, tyro.conf.arg(name="run")] = None
    """folder for log, metrics and model; default: runs/ and the solver's name"""
    weights: str | None = None
    """weights to begin with, copied by layer name: .caffemodel or .h5 files, parted by commas"""
    snapshot: Path | None = None
    """go on from this .solverstate (.h5): Caffe's or ours"""
    resume: bool = False
    """go on from the newest snapshot of this run; begin where there is none"""
    local: bool = False
    """train in this process, without Ray"""
    gpu: str | None = None
    """GPUs to use: 0,1 or all; none: the CPU; default: what there is"""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """fp32 is strict; tf32 and bf16 are faster on a GPU and round more"""
    level: int | None = None
    """the net's level"""
    stage: str | None = None
    """the net's stages, parted by commas"""
    keep: int | None = None
    """snapshots that stay; default: all"""
    shuffle: bool = False
    """another order each epoch, for any data layer"""
    shuffle_blocks: bool = False
    """the same in pieces of 1,024 neighbouring records: for data larger than memory, on disks that seek slowly"""
    labels: str = "caffe"
    """how the lists of ImageData layers are read: caffe (as atoi does), int, float, vector:N"""
    max_bad: str = "0"
    """share of the records that may be unreadable: the next good one takes the place of such a one, and RUN/errors.csv
    lists them"""
    augment: str | None = None
    """small random changes of each image: rotate=DEGREES,translate=SHARE,scale=SHARE,brightness=SHARE,..."""
    balance: bool = False
    """draw every class equally often"""
    batch_norm: Literal["whole", "local"] = "whole"
    """with several workers: statistics of the whole batch, or of each worker's part, as Caffe's"""
    label_smoothing: float = 0.0
    """SoftmaxWithLoss: share of each label that is spread over all classes"""
    class_weights: str | None = None
    """SoftmaxWithLoss: file with a weight a line for each class, or balanced: rare classes weigh more"""
    patience: int | None = None
    """stop when the score has not got better in so many tests; the best weights are kept as RUN/best.caffemodel"""
    best: str | None = None
    """score that decides which weights are the best: accuracy, loss, or an output of a test net, as error:min"""
    compiled: Annotated[bool, tyro.conf.arg(name="compile")] = False
    """run the net through torch.compile"""
    code: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FILE|DIR")] = ()
    """Python file or folder with layers of your own; may be given several times"""
    threads: int | None = None
    """threads that read and transform; default: what the CPUs allow"""
    explain: bool = False
    """say where batches are read faster, in the training workers or by Ray tasks elsewhere, and why; train nothing"""
    lr_range: bool = False
    """in place of a training: let the rate rise from iteration to iteration, draw the loss (RUN/lr_range.png), and say
    which base_lr to take; in this process"""
    overfit: int | None = None
    """in place of a training: can the net learn the first N records by heart? In this process"""
    range_iterations: int = 200
    """iterations of --lr-range; fewer are less sure"""
    detach: bool = False
    """go on in the background, whatever becomes of the terminal; cortado attach RUN looks at it"""
    mlflow: Annotated[str | None, tyro.conf.arg(metavar="URI|FOLDER|env")] = None
    """tell MLflow too: a tracking server, as http://host:5000, a folder, or env: what MLFLOW_TRACKING_URI says"""
    sigint_effect: Literal["stop", "snapshot", "none"] = "stop"
    """what Ctrl-C does: stop (with a snapshot), snapshot, none"""
    sighup_effect: Literal["stop", "snapshot", "none"] = "snapshot"
    """what SIGHUP does"""

    def __post_init__(self) -> None:
        if self.solver is None and self.run_folder is None:
            raise ValueError("--solver missing: a solver.prototxt, or --run with the folder of a recipe")
        if self.lr_range and self.overfit is not None:
            raise ValueError("--lr-range and --overfit: give one of them")
        if self.detach and self.looks:
            raise ValueError("--detach is for trainings; --explain, --lr-range and --overfit take a minute")
        if self.mlflow is not None and self.looks:
            raise ValueError("--mlflow is for trainings, not for --explain, --lr-range and --overfit")
        if self.weights and self.snapshot:
            raise ValueError("--weights and --snapshot: a snapshot has its weights; give one of them")
        if self.resume and self.snapshot:
            raise ValueError("--resume and --snapshot: give one of them")
        if self.keep is not None and self.keep < 1:
            raise ValueError(f"--keep {self.keep}: expected 1 or more")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"--patience {self.patience}: expected 1 test or more")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"--label-smoothing {self.label_smoothing:g}: expected a share from 0 to below 1")
        if self.shuffle and self.shuffle_blocks:
            raise ValueError("--shuffle and --shuffle-blocks: give one of them")
        if share(self.max_bad, "--max-bad") == 1:
            raise ValueError("--max-bad 100%: expected less; some records must be good")
        if self.explain and self.local:
            raise ValueError("--explain compares places on a Ray cluster: leave --local out")
        if self.balance and self.class_weights == "balanced":
            raise ValueError("--balance and --class-weights balanced even out the classes twice; give one of them")

    def run(self) -> dict[str, Any]:
        began = time.monotonic()
        if self.solver is None:
            return dataclasses.replace(self, solver=recipe_in(self.run_folder)).run()
        from ops import custom, user_frames
        from pipelines.stages.clock import limit
        from pipelines.stages.live import Live

        job = self.training()
        if self.explain:
            from cluster import config as settings
            from pipelines.stages.feed_choice import explained

            return explained(job, settings.load(self.config, self.set), gpu=self.gpu)
        if self.detach:
            from pipelines.stages.detached import launch

            return launch(Path(job.run), "train", self)
        live = Live(max_iter(self.solver), began=began)
        try:
            with user_frames.told("", say):
                custom.load_code(self.code)
                if self.lr_range or self.overfit is not None:
                    return self.look_first(job)
                result = self.here(job, live) if self.local else self.on_ray(job, live)
        finally:
            live.clear()
        result |= live.course.result(result["time"])
        return {**result, "limited_by": limit(result["time"], cuda=result["device"] == "cuda")}

    @property
    def looks(self) -> bool:
        """Whether nothing is trained: a look at what a training would be."""
        return self.explain or self.lr_range or self.overfit is not None

    def look_first(self, job: Training) -> dict[str, Any]:
        """The range test, or a few records by heart."""
        from pipelines.stages import lr_range, overfit
        from pipelines.stages.setup import Place

        place = Place(device=self.device(), threads=self.threads, signals=False)
        if self.overfit is None:
            return lr_range.lr_range(job, place, iterations=self.range_iterations)
        return overfit.overfit(job, place, records=self.overfit)

    def here(self, job: Training, live: Live) -> dict[str, Any]:
        """In this process."""
        from pipelines.stages.setup import Place
        from pipelines.worker import train

        live({"event": "begin", "world": 1})
        return train(job, Place(device=self.device(), threads=self.threads, report=live))

    def on_ray(self, job: Training, live: Live) -> dict[str, Any]:
        """In the workers of a TorchTrainer, one or many."""
        import cluster
        import ops
        import pipelines
        from cluster import config as settings
        from cluster.connect import connected
        from cluster.scaling import train_pool
        from ops import custom
        from pipelines.stages.ray_training import alone, train_on_ray
        from pipelines.stages.requests import Requests

        config = settings.load(self.config, self.set)
        with alone(Path(job.run)), connected(config, packages=(ops, pipelines, cluster)) as connection:
            live({"event": "ray", "seconds": connection.started_s})
            pool = train_pool(config, connection, gpu=self.gpu)
            job = dataclasses.replace(job, per_worker=config.train.batch == "per_worker")
            check_batch(self.solver, job, pool)
            with Requests(self.sigint_effect, self.sighup_effect) as requests:
                return train_on_ray(
                    job,
                    code=custom.pack(self.code),
                    workers=pool.workers,
                    cpus_per_worker=pool.cpus_per_worker,
                    gpu=pool.gpu,
                    max_failures=config.train.max_failures,
                    recovery_seconds=config.train.recovery_seconds,
                    feed_threads=self.threads,
                    data_where=config.data.where,
                    live=live,
                    asked=requests.take,
                    leave=connection.started_s > 0,
                )

    def render(self, result: dict[str, Any]) -> Any:
        from pipelines.stages.clock import listed
        from pipelines.stages.live import best, scores

        if self.detach:
            return table({**result, "process": str(result["process"])})
        if self.looks:
            return table({name: value for name, value in result.items() if value is not None and name != "ok"})
        shown = {
            "run": result["run"],
            "iterations": result["iterations"],
            "loss": result["loss"],
            **{f"test net {one['net']}": scores(outputs(one)) for one in result["tests"]},
            **({"left out": f"{result['bad']:,} records  ({result['run']}/errors.csv)"} if result["bad"] else {}),
            **({"stopped": result["enough"] or "as asked; --resume goes on"} if result["stopped"] else {}),
            **({"best": best(result["best"])} if result["best"] else {}),
            "snapshot": next((name for name in reversed(result["snapshots"]) if ".caffemodel" in name), "none"),
            "time": listed(result["time"]),
            "speed": f"{result['images_per_s']:,.0f} images/s; {result['limited_by']}",
        }
        return table(shown)

    def training(self) -> Training:
        """The options as the loop takes them."""
        from pipelines.stages.setup import Training

        folder = self.run_folder or Path("runs") / self.solver.stem
        check_folder(folder, self.solver, new=not (self.resume or self.snapshot or self.looks))
        if self.mlflow is not None:
            from ops.training.tracking import place_of

            place_of(self.mlflow)  # here at once, and not when Ray has started
        options = {
            "shuffle": "blocks" if self.shuffle_blocks else self.shuffle or None,
            "augment": self.augment,
            "balance": self.balance or None,
            "labels": self.labels if self.labels != "caffe" else None,
            "max_bad": share(self.max_bad, "--max-bad") or None,
        }
        return Training(
            solver=str(self.solver),
            run=str(folder),
            weights=(self.weights,) if self.weights else (),
            snapshot=str(self.snapshot) if self.snapshot else None,
            resume=self.resume,
            level=self.level,
            stages=tuple(stage.strip() for stage in (self.stage or "").split(",") if stage.strip()),
            precision=self.precision,
            synchronize=self.batch_norm == "whole",
            compiled=self.compiled,
            keep=self.keep,
            label_smoothing=self.label_smoothing,
            class_weights=self.class_weights,
            patience=self.patience,
            best=self.best,
            feed={name: value for name, value in options.items() if value is not None},
            sigint=self.sigint_effect,
            sighup=self.sighup_effect,
            code=tuple(map(str, self.code)),
            mlflow=self.mlflow,
        )

    def device(self) -> torch.device:
        """The GPU that --gpu names, else the first there is, else the CPU."""
        import torch

        from ops.training.nets import read_solver
        from pipelines.stages.scoring import device_of

        if self.gpu == "none":
            return torch.device("cpu")
        if not torch.cuda.is_available():
            if self.gpu is not None:
                raise ValueError(f"--gpu {self.gpu}: torch finds no GPU here; --gpu none trains on the CPU")
            spec = read_solver(self.solver)
            if spec.HasField("solver_mode") and spec.solver_mode == spec.GPU:
                say("warning: solver_mode: GPU, and there is none: training on the CPU")
            return torch.device("cpu")
        wanted, there = read_solver(self.solver).device_id, torch.cuda.device_count()
        device = device_of(self.gpu or str(wanted if wanted < there else 0))
        if self.gpu is not None and (self.gpu == "all" or "," in self.gpu) and there > 1:
            say(f"warning: --local trains on one GPU: on {device}")
        return device


def check_batch(solver: Path, job: Training, pool: TrainPool) -> None:
    """ValueError where a batch is too small for every worker to get a part."""
    from ops.training.nets import read_solver, train_definition

    net = train_definition(read_solver(solver), solver, level=job.level, stages=job.stages)
    sizes = [size for layer in net.spec.layer if (size := batch_of(layer)) and kept(layer, net.state)]
    most = pool.workers if isinstance(pool.workers, int) else pool.workers[1]
    if sizes and min(sizes) < most and not job.per_worker:
        told = f"a batch of {min(sizes)} for {most} workers"
        raise ValueError(f"{solver}: {told}; lower train.workers, or raise batch_size")


def batch_of(layer: Any) -> int:
    """The batch_size of a data layer; 0 for others."""
    for name in ("data_param", "image_data_param", "hdf5_data_param", "window_data_param", "memory_data_param"):
        if layer.HasField(name):
            return int(getattr(layer, name).batch_size)
    return 0


def kept(layer: Any, state: Any) -> bool:
    from ops.phases import matches

    rules = layer.include or layer.exclude
    return not rules or any(matches(rule, state) for rule in rules) == bool(layer.include)


def outputs(test: dict[str, Any]) -> dict[str, list[float]]:
    return {name: value for name, value in test.items() if isinstance(value, list)}


def max_iter(solver: Path) -> int:
    from ops.training.nets import read_solver

    return read_solver(solver).max_iter


def recipe_in(run: Path) -> Path:
    """The solver that lies in a run's folder."""
    solver = run / "solver.prototxt"
    if not solver.is_file():
        told = f"there is no solver.prototxt in it: cortado init --out {run} writes a recipe; or give --solver"
        raise ValueError(f"{run}: {told}")
    return solver


def check_folder(folder: Path, solver: Path, *, new: bool) -> None:
    """A new run wants a folder without another run's tables."""
    from pipelines.stages.run_folder import refuse_another

    if new:
        refuse_another(folder)
    if not solver.is_file():
        raise FileNotFoundError(2, "no such solver", str(solver))
