"""Training on Ray: the same loop in the workers of a TorchTrainer, what they tell the driver, and what the driver asks.

RUN/.driver.lock while a driver is at work in the folder (RUN/.lock is rank 0's)
RUN/.run/        while a run is under way: what it asks (a request), what it says (live.json, events), why it failed
RUN/.recovery/   where to go on after a lost worker: newer than the last snapshot
RUN/.ray/        Ray Train's own notes and the snapshots as its checkpoints (stages/ray_checkpoints.py)
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ops.memory import keep_memory
from pipelines.job import say
from pipelines.stages import ray_checkpoints
from pipelines.stages.held import held
from pipelines.stages.run_folder import read_json, write_json
from pipelines.stages.setup import Place, Training

if TYPE_CHECKING:
    from ops.custom import Code

TELL_EVERY = 0.3  # seconds between what rank 0 writes for the driver
LOOK_EVERY = 0.1  # seconds between looks at it
ASK_EVERY = 0.1  # seconds between looks of rank 0 for what the driver asks
COLLECTIVE_SECONDS = 180  # a worker that does not answer for so long is taken for hung
ROOM_SECONDS = 15  # what others use may become free meanwhile
LEAVE_SECONDS = 30  # workers of a driver that was killed are gone by then
OUT_OF_MEMORY = ("low on memory", "OutOfMemoryError", "memory pressure")  # as Ray tells it
READ_THEMSELVES = "data.where: cluster: no CPU is left beside the workers; they read the same batches themselves"
DIED = ("died unexpectedly", "ActorDied", "worker died", "actor died", "The actor is dead")
SOON = {  # Ray Train's clocks: a lost worker or node costs seconds
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "300",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}


class Messages:
    """Files in the run's folder through which workers and driver talk; every node sees that folder anyway."""

    def __init__(self, run: Path):
        self.folder = run / ".run"
        self.told = 0.0
        self.at = 0  # bytes of events that have been read
        self.last: dict[str, Any] | None = None

    # -- the driver ------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)  # workers of a driver that was killed may still write there

    def ask(self, bits: int) -> None:
        """STOP or SNAPSHOT, for all workers."""
        write_json(self.folder / "request.json", {"bits": bits, "id": uuid.uuid4().hex})

    def news(self) -> Iterator[dict[str, Any]]:
        """What was told since the last time."""
        with contextlib.suppress(FileNotFoundError), (self.folder / "events.jsonl").open("rb") as file:
            file.seek(self.at)
            data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self.at += len(whole)
            yield from map(json.loads, whole.splitlines())
        live = read_json(self.folder / "live.json")
        if live is not None and live != self.last:
            self.last = live
            yield live

    def failure(self) -> dict[str, str] | None:
        """Why the run cannot go on: one line, and the traceback of the user's own code where it was that."""
        return read_json(self.folder / "failure.json")

    # -- the workers -----------------------------------------------------------------------------------------------

    def requests(self) -> Callable[[], int]:
        """Each request once; asked between iterations."""
        seen: set[str] = set()
        file, looked = self.folder / "request.json", 0.0

        def look() -> int:
            nonlocal looked
            now = time.monotonic()
            if now - looked < ASK_EVERY:
                return 0
            looked = now
            found = read_json(file) if os.path.exists(file) else None
            if found is None or found["id"] in seen:
                return 0
            seen.add(found["id"])
            return int(found["bits"])

        return look

    def report(self, told: dict[str, Any]) -> None:
        """Rank 0's reports: the live line now and then, everything else at once."""
        if "iteration" in told and "loss" in told:
            now = time.monotonic()
            if now - self.told >= TELL_EVERY:
                self.told = now
                write_json(self.folder / "live.json", told)
            return
        with (self.folder / "events.jsonl").open("a") as file:
            file.write(json.dumps(told) + "\n")

    def sign_once(self, line: str) -> None:
        """A line for the user, unless the run has told it already, be it before a worker was lost."""
        sign, events = {"event": "sign", "lines": [line]}, self.folder / "events.jsonl"
        if not events.exists() or json.dumps(sign) not in events.read_text().splitlines():
            self.report(sign)

    def fail(self, told: str, trace: str = "") -> None:
        """Why the run cannot go on, however often it is begun again."""
        write_json(self.folder / "failure.json", {"told": told, "trace": trace})


# -- in a worker -------------------------------------------------------------------------------------------------------


def work(config: dict[str, Any]) -> dict[str, Any] | None:
    """What each worker of the TorchTrainer runs: the loop, from the newest point that this run has reached."""
    import ray.train
    import torch
    from ray.train.torch import get_device

    from ops import user_frames
    from ops.parallel import Group
    from pipelines.job import one_line
    from pipelines.stages.ray_checkpoints import Checkpoints
    from pipelines.worker import train

    os.chdir(config["cwd"])
    torch.set_num_threads(config["threads"])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    job = Training(**config["job"])
    messages = Messages(Path(job.run))
    if messages.failure() is not None:
        return None
    place = Place(Group(rank, world), get_device(), signals=False, threads=config["feed_threads"])
    lost = float(rank == 0 and (messages.folder / "began").exists())  # only rank 0 knows: it is who makes the file
    if place.group.sum(torch.tensor([lost], device=place.device)).item():
        job = replace(job, resume=True, snapshot=None)  # a worker was lost: all begin again where the run stands
    place.data_where = who_reads(config["data_where"], world * config["threads"])
    place.recovery_seconds = config["recovery_seconds"]
    place.patience = 60  # seconds: a worker that is replaced may take a while to be gone
    if rank == 0:
        place.requests, place.report = messages.requests(), messages.report
        (messages.folder / "live.json").unlink(missing_ok=True)  # of those that trained before
        messages.report({"event": "begin", "world": world, "pid": os.getpid()})
        (messages.folder / "began").touch()
        if place.data_where != config["data_where"]:
            messages.sign_once(READ_THEMSELVES)
    checkpoints = Checkpoints(
        place.group, place.device, lambda line: messages.report({"event": "sign", "lines": [line]})
    )
    place.snapped = checkpoints.take
    trace: list[str] = []
    try:
        with user_frames.told("", trace.append):
            config["code"].load()
            result = train(job, place)
        checkpoints.close()
    except (ValueError, OSError, MemoryError) as error:
        if not lost_another(error):
            messages.fail(one_line(error), "\n".join(trace))
        raise
    return result if rank == 0 else None


def who_reads(wanted: str, taken: float) -> str:
    """`data.where` as it can be: where nodes were lost and training workers have `taken` the CPUs that are left, they
    read themselves. The batches are the same."""
    import ray

    return "worker" if ray.cluster_resources().get("CPU", 0) <= taken else wanted


def lost_another(error: BaseException | None) -> bool:
    """Whether an error began with another worker that is gone, or hangs: also inside a layer that sums over all."""
    import torch.distributed as dist

    while error is not None:
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo/" in str(error)):
            return True
        error = error.__cause__
    return False


# -- in the driver -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def alone(run: Path) -> Iterator[None]:
    """Keep other drivers out of a run's folder, and wait for whoever trains there to leave; ValueError tells who."""
    with held(run / ".driver.lock", patience=1):
        with held(run / ".lock", patience=LEAVE_SECONDS):
            pass
        yield


def train_on_ray(
    job: Training,
    *,
    code: Code,
    workers: int | tuple[int, int],
    cpus_per_worker: int,
    gpu: bool,
    max_failures: int,
    recovery_seconds: float,
    feed_threads: int | None,
    data_where: str,
    live: Callable[[dict[str, Any]], None],
    asked: Callable[[], int],
    leave: bool = False,
) -> dict[str, Any]:
    """Train in the workers of a TorchTrainer until they are done; what rank 0 returns.

    `code`: layers from outside; `live` gets the reports; `asked` gives the user's requests (STOP, SNAPSHOT) as they
    come. `leave`: this process leaves Ray afterwards, so that what is left of a run that failed need not be waited for.
    The folder is held already (see `alone`).
    """
    for name, value in SOON.items():
        os.environ.setdefault(name, value)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    each = {"CPU": cpus_per_worker, "GPU": 1} if gpu else {"CPU": cpus_per_worker}
    wait_for_room(workers if isinstance(workers, int) else workers[0], each)
    run = Path(job.run)
    messages = Messages(run)
    messages.begin()
    storage, name = run.resolve() / ".ray", f"train-{uuid.uuid4().hex[:12]}"
    shutil.rmtree(storage, ignore_errors=True)
    config = {
        "job": asdict(job),
        "code": code,
        "cwd": os.getcwd(),
        "threads": cpus_per_worker,
        "feed_threads": feed_threads,
        "data_where": data_where,
        "recovery_seconds": recovery_seconds,
    }
    live({"event": "fit"})
    trainer = TorchTrainer(
        work,
        train_loop_config=config,
        torch_config=TorchConfig(backend=None if gpu else "gloo", timeout_s=COLLECTIVE_SECONDS),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpu, resources_per_worker=each),
        run_config=RunConfig(
            name=name,  # one of its own: Ray would resume a run of the same name unasked
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=max_failures),
            worker_runtime_env={"env_vars": keep_memory()},
            logging_config=quiet(),
        ),
    )
    try:
        return follow(trainer, messages, live, asked, leave=leave)
    finally:
        ray_checkpoints.keep(storage, name)


def wait_for_room(workers: int, each: dict[str, int]) -> None:
    """Until other work leaves enough CPUs and GPUs free; ValueError says what is free where it does not."""
    import ray

    deadline = time.monotonic() + ROOM_SECONDS
    while True:
        free, all_there_is = ray.available_resources(), ray.cluster_resources()
        lacking = [kind for kind, count in each.items() if free.get(kind, 0) < workers * count]
        if not lacking:
            return
        if time.monotonic() > deadline:
            kind = lacking[0]
            wanted = f"{workers} worker{'s' * (workers != 1)} of {each[kind]} {kind}{'s' * (each[kind] != 1)}"
            told = f"{free.get(kind, 0):g} of {all_there_is.get(kind, 0):g} {kind}s are free, other work has the rest"
            raise ValueError(f"{wanted} cannot run now: {told}; wait for it to end, or lower train.workers")
        time.sleep(0.2)


def quiet() -> Any:
    """Ray Train's own log lines: only errors."""
    from ray.train import LoggingConfig

    return LoggingConfig(log_level="ERROR")


def follow(
    trainer: Any,
    messages: Messages,
    live: Callable[[dict[str, Any]], None],
    asked: Callable[[], int],
    *,
    leave: bool,
) -> Any:
    """fit() in a side thread, since on the main thread it takes Ctrl-C for itself; reports and requests meanwhile."""
    ended: dict[str, Any] = {}

    def fit() -> None:
        try:
            ended["result"] = trainer.fit()
        except BaseException as error:  # raised again below, on the main thread
            ended["error"] = error
            raise

    thread = threading.Thread(target=fit, name="fit", daemon=True)
    with silenced(thread):
        thread.start()
        while thread.is_alive() and not (leave and messages.failure()):
            thread.join(LOOK_EVERY)
            for told in messages.news():
                live(told)
            if bits := asked():
                messages.ask(bits)
        for told in messages.news():
            live(told)
    if (failure := messages.failure()) is not None:
        if failure["trace"]:
            say(failure["trace"])
        raise ValueError(failure["told"])
    if "error" in ended:
        raise RuntimeError(reason(ended["error"])) from ended["error"]
    return ended["result"].return_value


@contextlib.contextmanager
def silenced(thread: threading.Thread) -> Iterator[None]:
    """A traceback of the side thread is not printed, whenever it ends: its error is told by the main thread."""
    before = threading.excepthook
    threading.excepthook = lambda told: None if told.thread is thread else before(told)
    try:
        yield
    finally:
        if not thread.is_alive():
            threading.excepthook = before


def reason(error: BaseException) -> str:
    """What ended a fit() that no worker explained, on one line."""
    text = " ".join(str(error).split())
    if any(words in text for words in OUT_OF_MEMORY):
        return "a worker was stopped as its machine ran out of memory; lower batch_size or train.workers, or add memory"
    if any(words in text for words in DIED):
        return (
            "a worker process died each time that it was started (train.max_failures): killed, out of memory, or "
            "crashed inside a library"
        )
    return f"training stopped: {text[:300]}"
