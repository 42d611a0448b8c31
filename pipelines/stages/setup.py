"""A training, set up: nets, solver, feeds, files, from the options and, where there is one, a snapshot."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from google.protobuf.message import Message

from ops.feed.feed import Batch, Feed, FeedOptions, open_feed
from ops.feed.handed import Elsewhere
from ops.layers.inputs import unadvised
from ops.net import Net, paths_of
from ops.parallel import Group
from ops.phases import select
from ops.proto.caffe_pb2 import NetParameter
from ops.solver import snapshot
from ops.solver.solver import Solver
from ops.spread import spread
from ops.training import targets
from ops.training.carried import carry_on
from ops.training.deploy import deploy
from ops.training.log import NET, TOOL, Log, Smoother
from ops.training.nets import Definition, definitions_of_tests, locate, read_solver, train_definition
from ops.training.step import Precision, Trainer
from ops.training.tensorboard import Events
from ops.training.tracking import Tracker
from pipelines.stages.best import Best
from pipelines.stages.held import held
from pipelines.stages.model_facts import model_facts
from pipelines.stages.run_folder import (
    METRICS,
    TESTS,
    Table,
    keep_or_write,
    net_digest,
    read_json,
    refuse_another,
    refuse_to_overwrite,
    solver_digest,
    write_json,
)
from pipelines.stages.standing import compare, newest
from pipelines.stages.tracked import tracker

READING = ("labels", "all_formats", "max_pixels", "arrays")  # options of a feed that say how records are read


@dataclass(frozen=True)
class Training:
    """What is trained; everything that decides the numbers beside the solver's own fields."""

    solver: str
    run: Annotated[str, tyro.conf.arg(aliases=["--folder"])]  # torchrun takes --run for an option of its own
    weights: tuple[str, ...] = ()
    snapshot: str | None = None  # a .solverstate to go on from
    resume: bool = False  # go on from the newest snapshot, or begin
    level: int | None = None
    stages: tuple[str, ...] = ()
    precision: Precision = "fp32"
    synchronize: bool = True  # BatchNorm over the whole batch
    compiled: bool = False
    keep: int | None = None  # snapshots that stay
    shuffle: bool | str | None = None
    feed: Mapping[str, Any] = field(default_factory=dict)  # more of FeedOptions
    per_worker: bool = False  # batch_size is each worker's, as Caffe's
    label_smoothing: float = 0.0
    class_weights: str | None = None  # a file, or "balanced"
    patience: int | None = None  # tests without a better score before the end
    best: str | None = None  # the score that counts: accuracy, loss, or an output
    sigint: str = "stop"
    sighup: str = "snapshot"
    code: tuple[str, ...] = ()  # files and folders with layers of one's own
    mlflow: str | None = None  # a tracking server's URI, a folder, or "env"


@dataclass
class Place:
    """Where this process stands."""

    group: Group = field(default_factory=Group)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    report: Callable[[dict[str, Any]], None] | None = None
    signals: bool = True  # take SIGINT and SIGHUP
    threads: int | None = None  # of the feed
    data_where: str = "worker"  # who reads: threads of this process, or (cluster) Ray tasks
    recovery_seconds: float = 0  # between recovery points beside the snapshots; 0: none
    requests: Callable[[], int] = lambda: 0  # what somebody else asks for: STOP, SNAPSHOT
    patience: float = 1.0  # seconds to wait for another run to leave the folder
    # told of each snapshot: iteration, loss, and who writes it
    snapped: Callable[[int, float, snapshot.Snapshotter | None], None] = lambda *_: None


@dataclass
class Tested:
    """A test net with its feeds."""

    definition: Definition
    net: Net
    feeds: dict[str, Feed]
    digest: str
    current: list[Batch] = field(default_factory=list)  # what is in the net


class Setup:
    """Everything that a training needs, and where it stands."""

    def __init__(self, job: Training, place: Place, closing: contextlib.ExitStack):
        self.job, self.place, self.group, self.closing = job, place, place.group, closing
        self.spec = read_solver(job.solver)
        self.folder = Path(job.run)
        self.seed = max(0, self.spec.random_seed)
        self.prefix = self.snapshot_prefix()
        if self.group.rank == 0:
            self.hold()
        self.tracker: Tracker | None = None
        self.before = (read_json(self.folder / "run.json") or {}) if job.resume else {}
        self.id = str(self.before.get("id") or uuid.uuid4().hex)
        self.path, self.strict = self.going_on_from()
        self.net = self.build_net()
        self.solver = Solver(self.spec, self.net, name=job.solver)
        self.digests = {"solver": solver_digest(self.spec), "net": net_digest(self.written())}
        self.record = self.restore()
        spread(self.net, self.group, synchronize=job.synchronize and not job.per_worker)
        carry_on(self.net, self.group, self.record.get("carried", {}))
        self.feeds = self.open_feeds(self.net, self.record.get("feeds", {}), self.spec.iter_size)
        self.tests = [self.build_test(one, k) for k, one in enumerate(definitions_of_tests(self.spec, job.solver))]
        self.soften()
        self.best = Best(self)
        self.trainer = Trainer(self.solver, self.net, self.group, precision=job.precision, compiled=job.compiled)
        self.open_files()

    # -- what is set up --------------------------------------------------------------------------------------------

    def build_net(self) -> Net:
        """The net to train, with its first weights: from files, the rest filled."""
        if self.job.compiled and self.spec.debug_info:
            raise ValueError(f"{self.job.solver}: debug_info looks at each layer by itself: leave --compile out")
        definition = train_definition(self.spec, self.job.solver, level=self.job.level, stages=self.job.stages)
        if self.job.per_worker:
            definition = dataclasses.replace(definition, spec=multiplied(definition.spec, self.group.world))
        net = self.defined(definition, "TRAIN")
        net.materialize(self.place.device, weights=self.first_weights())
        return net

    def defined(self, definition: Definition, phase: str) -> Net:
        """The net; where labels are of another kind than Caffe's, with the shapes that its feeds find."""
        options, given = self.feed_options(phase), {}
        if options.labels != FeedOptions().labels:
            for layer in select(definition.spec, definition.state, definition.name).layer:
                if layer.type == "ImageData":
                    with open_feed(layer, phase, folder=definition.folder, seed=0, options=options) as feed:
                        given |= feed.shapes
        try:
            return definition.net(seed=self.seed, inputs=given)
        except ValueError as error:
            raise ValueError(unadvised(str(error))) from error

    def first_weights(self) -> list[Path]:
        """Files to begin with: the command line's, else the solver's; none where a snapshot holds them."""
        if self.path is not None:
            return []
        names = self.job.weights or tuple(self.spec.weights)
        return [locate(str(path), Path(self.job.solver).parent) for name in names for path in paths_of(name)]

    def written(self) -> NetParameter:
        """The trained net as its file has it, on any number of workers."""
        return multiplied(self.net.spec, 1 / self.group.world) if self.job.per_worker else self.net.spec

    def hold(self) -> None:
        """Keep other runs away from this one's folder and snapshots; refuse a folder that holds another run."""
        opening, patience, prefix = self.closing.enter_context, self.place.patience, Path(self.prefix)
        opening(held(self.folder / ".lock", patience=patience))
        if self.folder.resolve() != prefix.parent.resolve():
            opening(held(prefix.with_name(f".{prefix.name}.lock"), patience=patience))
        if not (self.job.resume or self.job.snapshot):
            refuse_another(self.folder)

    def snapshot_prefix(self) -> str:
        """Where snapshots go: where snapshot_prefix says, as Caffe, else into the run's folder."""
        if self.spec.snapshot_prefix:
            if self.spec.snapshot_prefix.endswith("/"):
                Path(self.spec.snapshot_prefix).mkdir(parents=True, exist_ok=True)
            prefix = snapshot.prefix_of(self.spec, self.job.solver)
            Path(prefix).parent.mkdir(parents=True, exist_ok=True)
            return prefix
        return str(self.folder / Path(self.job.solver).stem)

    def going_on_from(self) -> tuple[str | None, bool]:
        """The solver state to go on from, and whether it must be this run's own.

        With --resume: the newest of this run, else what the run itself began with.
        """
        if not self.job.resume:
            return self.job.snapshot, False
        found = newest((self.prefix, self.recovery_prefix), self.before.get("id"))
        return (str(found), True) if found is not None else (self.before.get("from"), False)

    def restore(self) -> dict[str, Any]:
        """Take up a snapshot's weights and history; what it recorded beside them. Every process takes the same one."""
        iteration, record = -1, dict[str, Any]()
        if self.path is not None:
            compare(self, self.path, strict=self.strict)
            restored, found = snapshot.resume(self.solver, self.path)
            iteration = restored.iteration
            told = found.record if found is not None else None
            record = {"forwards": iteration * self.spec.iter_size, **(told or {}), "iteration": iteration}
            self.net.forwards = record["forwards"]
        agreed = self.group.sum(torch.tensor([float(iteration)], device=self.place.device)).item()
        if agreed != iteration * self.group.world:
            raise ValueError(f"{self.folder}: the workers find other snapshots there: all of them must see one folder")
        return record

    def open_feeds(self, net: Net, positions: Mapping[str, int], parts: int) -> dict[str, Feed]:
        """A feed for each data layer; without a position on record, as many batches on as iterations were done."""
        feeds: dict[str, Feed] = {}
        for layer in net.layers:
            if not layer.source:
                continue
            feed = open_feed(
                layer.spec,
                layer.phase,
                folder=layer.folder,
                seed=self.seed,
                part=(self.group.rank, self.group.world),
                threads=self.place.threads,
                device=self.place.device,
                digest=net is self.net,
                options=self.feed_options(layer.phase),
                elsewhere=self.elsewhere(),
            )
            self.closing.callback(feed.close)
            begin = self.record.get("iteration", 0) * parts * feed.batch if parts else 0
            key = layer.spec.name
            while key in feeds:  # Caffe lets several layers have one name
                key += "+"
            feed.seek(positions.get(key, begin))
            feeds[key] = feed
        return feeds

    def feed_options(self, phase: str) -> FeedOptions:
        """What was asked for; of a test, only how its records are read."""
        given = {**({} if self.job.shuffle is None else {"shuffle": self.job.shuffle}), **self.job.feed}
        return FeedOptions(**(given if phase == "TRAIN" else {name: given[name] for name in READING if name in given}))

    def elsewhere(self) -> Elsewhere | None:
        """Who reads for the feeds, where it is not this process."""
        if self.place.data_where != "cluster":
            return None
        from pipelines.stages.cluster_feed import Window

        return functools.partial(Window, world=self.group.world)

    def build_test(self, definition: Definition, number: int) -> Tested:
        """A test net that has the trained net's blobs for its own."""
        net = self.defined(definition, "TEST")
        net.adopt(self.net)
        net.materialize(self.place.device, weights=[])
        spread(net, self.group)
        digest, recorded = net_digest(net.spec), self.record.get("tests", [])
        told = recorded[number] if number < len(recorded) and recorded[number]["net"] == digest else {}
        net.forwards = told.get("forwards", 0)
        carry_on(net, self.group, told.get("carried", {}))
        return Tested(definition, net, self.open_feeds(net, told.get("feeds", {}), 0), digest)

    def soften(self) -> None:
        """Label smoothing and class weights, in the net that is trained; the weights of each class, by layer."""
        targets.smooth(self.net, self.job.label_smoothing)
        self.class_weights: dict[str, list[float]] = {}
        if wanted := self.job.class_weights:
            if wanted != targets.BALANCED:
                try:
                    wanted = str(locate(wanted, Path(self.job.solver).parent))
                except FileNotFoundError as error:
                    raise FileNotFoundError(2, f"--class-weights {wanted}: {error.strerror}") from None
            self.class_weights = targets.weigh(self.net, wanted, self.feeds)

    # -- files -------------------------------------------------------------------------------------------------------

    def open_files(self) -> None:
        """Log, tables and snapshots: rank 0's alone."""
        first = self.group.rank == 0
        begun = self.record.get("iteration")
        if first:
            self.folder.mkdir(parents=True, exist_ok=True)
            refuse_to_overwrite(self.folder, self.texts(), self.job.solver)
            self.note()
        opening = self.closing.enter_context
        self.log = opening(Log(self.folder / "train.log" if first else None, append=begun is not None))
        self.tracker = opening(tracker(self, self.job.mlflow)) if first and self.job.mlflow else None
        if self.tracker is not None:
            self.note()
        self.metrics = opening(Table(self.folder / "metrics.csv", METRICS, before=begun)) if first else None
        self.scores = opening(Table(self.folder / "test.csv", TESTS, before=begun)) if first else None
        also = self.tracker.told if self.tracker is not None else None
        self.events = opening(Events(self.folder if first else None, step=begun or 0, also=also))
        self.snapshots = opening(self.snapshotter()) if first else None
        self.recovering: snapshot.Snapshotter | None = None
        self.smoother = Smoother.going_on(self.spec.average_loss, **self.record.get("smoother", {}))
        self.seconds = float(self.metrics.last[4]) if self.metrics is not None and self.metrics.last else 0.0
        if first:
            self.describe()

    def snapshotter(self) -> snapshot.Snapshotter:
        hdf5 = self.spec.snapshot_format == self.spec.HDF5
        return snapshot.Snapshotter(
            self.solver,
            self.prefix,
            format="HDF5" if hdf5 else "BINARYPROTO",
            diff=self.spec.snapshot_diff,
            keep=self.job.keep,
        )

    @property
    def recovery_prefix(self) -> str:
        return str(self.folder / ".recovery" / "state")

    def recovery(self) -> snapshot.Snapshotter:
        """Where points to recover from go; made when the first one is due."""
        if self.recovering is None:
            Path(self.recovery_prefix).parent.mkdir(exist_ok=True)
            self.recovering = self.closing.enter_context(
                snapshot.Snapshotter(self.solver, self.recovery_prefix, keep=1)
            )
        return self.recovering

    def forget_recovery(self) -> None:
        """The run has ended: its snapshot is where to go on."""
        if self.recovering is not None:
            self.recovering.wait()
        shutil.rmtree(Path(self.recovery_prefix).parent, ignore_errors=True)

    def note(self) -> None:
        """run.json, before anything else: which run this is, and what it began with."""
        began = str(Path(self.path).resolve()) if self.path is not None else None
        facts = {"id": self.id, "from": self.before.get("from") if self.before else began, "prefix": self.prefix}
        facts |= {"options": dataclasses.asdict(self.job), "digests": self.digests, "epoch": self.epoch()}
        facts |= {
            **self.best.facts(),
            "mlflow": self.tracker.id if self.tracker is not None else self.before.get("mlflow"),
        }
        write_json(self.folder / "run.json", {**facts, "precision": self.job.precision, "seed": self.seed})

    def epoch(self) -> float | None:
        """Iterations in which the net sees as many records as its data layer has."""
        feed = next((feed for feed in self.feeds.values() if feed.records), None)
        return feed.records / (feed.batch * self.spec.iter_size) if feed is not None and feed.records else None

    def describe(self) -> None:
        """The solver, the net and the options as they are used."""
        for name, message in self.texts().items():
            keep_or_write(self.folder / name, message, self.job.solver)
        if self.net.report is not None:
            for path in self.first_weights():
                self.log.line(f"Finetuning from {path}", where=TOOL)
            for name in self.net.report.ignored:
                self.log.line(f"Ignoring source layer {name}", where=NET)
        self.describe_model()

    def texts(self) -> dict[str, Message]:
        """The solver and the nets as the run's folder has them, by file."""
        tests = {"test.prototxt": self.tests[0].net.spec} if self.tests else {}
        used = self.tests[0].net if self.tests else self.net
        trained = {"solver.prototxt": self.spec, "train.prototxt": self.written()}
        return {**trained, "deploy.prototxt": deploy(used.spec, used.inputs), **tests}

    def describe_model(self) -> None:
        """model.json: how images become its input, and where weights and classes are."""
        tested = self.tests[0] if self.tests else None
        net = tested.net if tested is not None else self.net
        facts = {**model_facts(net, self.folder), "digests": self.digests}
        facts["test_net"] = "test.prototxt" if tested is not None else None
        beside = tested.definition.folder if tested is not None else None
        facts["beside"] = None if beside is None else str(beside.resolve())
        facts |= self.best.facts()
        write_json(self.folder / "model.json", facts)


def multiplied(spec: NetParameter, factor: float) -> NetParameter:
    """The net with the batch of every data layer so many times as large: as many workers as that have what it says."""
    copy = NetParameter()
    copy.CopyFrom(spec)
    for layer in copy.layer:
        for param in ("data_param", "image_data_param", "hdf5_data_param", "window_data_param", "memory_data_param"):
            if layer.HasField(param):  # type: ignore[arg-type]
                data = getattr(layer, param)
                data.batch_size = round(data.batch_size * factor)
    return copy
