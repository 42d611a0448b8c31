"""What a training tells MLflow, a server or a folder: its settings, its curves as it goes, its files at the end.

MLflow is imported only here, when a Tracker is made. A thread of its own talks to it: a training waits for it at the
end alone, and goes on without a server that is lost.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

ENVIRONMENT = "env"  # in place of a URI: MLFLOW_TRACKING_URI says
EXPERIMENT = "cortado"  # unless MLFLOW_EXPERIMENT_NAME says
TELL_EVERY = 2.0  # seconds
AGAIN = 15.0  # seconds until a server that did not answer is asked again
AT_ONCE = 1000  # numbers that MLflow takes in one call, and settings 100
SETTINGS_AT_ONCE = 100
MOST = 200_000  # numbers that wait for a server; the oldest go
LONGEST = 500  # characters of a setting
# Unless the environment says otherwise: no statistics to anybody, and no minutes of waiting for a server that is lost.
DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}


def place_of(uri: str) -> str:
    """Where to log: a URI as it is, a folder with its full path. ValueError where there is none, or no MLflow here."""
    if importlib.util.find_spec("mlflow") is None:
        raise ValueError(f"--mlflow {uri}: MLflow is not installed: pip install 'cortado[mlflow]'")
    if uri == ENVIRONMENT:
        uri = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
        if not uri:
            raise ValueError(
                "--mlflow env: MLFLOW_TRACKING_URI is not set; give a server, as http://host:5000, or a folder"
            )
    if re.match(r"\w+://[^/]*@", uri):
        raise ValueError(
            "--mlflow: the URI is written down: MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD take the rest"
        )
    return uri if "://" in uri else Path(uri).resolve().as_uri()


class Tracker:
    """A run of MLflow; `id` is its id, to go on with it later.

    `settings` by name; `files`: what to keep, asked for at the end; `warn` gets one line where a server is lost.
    """

    def __init__(
        self,
        uri: str,
        name: str,
        *,
        id: str | None = None,
        settings: Mapping[str, str],
        files: Callable[[], Iterable[Path]],
        warn: Callable[[str], None],
    ):
        """ConnectionError, one line, where a new run cannot be begun; one that goes on does without."""
        self.place, self.name, self.id, self.settings = place_of(uri), name, id or "", dict(settings)
        self.files, self.warn = files, warn
        self.waiting: list[tuple[float, int, Mapping[str, float]]] = []
        self.lock, self.ending = threading.Lock(), threading.Event()
        self.status = "FINISHED"
        self.begun = self.warned = False
        for variable, value in DEFAULTS.items():
            os.environ.setdefault(variable, value)
        if self.place.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow.exceptions import MlflowException

        self.errors = (MlflowException, OSError, ValueError)
        with self.noticing(instead=None if self.id else f"--mlflow {uri}"):
            self.begin()
        self.thread = threading.Thread(target=self.work, name="mlflow", daemon=True)
        self.thread.start()

    def told(self, at: float, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name at a time (s) and step; they go out a little later."""
        with self.lock:
            self.waiting.append((at, step, values))
            del self.waiting[:-MOST]

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.status = "FINISHED" if error is None else "FAILED" if isinstance(error, Exception) else "KILLED"
        self.ending.set()
        self.thread.join()

    # -- the thread ------------------------------------------------------------------------------------------------

    def work(self) -> None:
        """Tell what waits, now and then, and at the end once more; then the files."""
        pause = TELL_EVERY
        while not self.ending.wait(pause):
            pause = TELL_EVERY if self.tell() else AGAIN
        if self.tell():
            with self.noticing():
                self.keep()

    def tell(self) -> bool:
        """Send what waits; False, with a warning the first time, where it could not be sent, and waits on."""
        with self.lock:
            taken, self.waiting = self.waiting, []
        done = 0
        with self.noticing():
            if not self.begun:
                self.begin()
            for start in range(0, len(taken), AT_ONCE):
                self.send(taken[start : start + AT_ONCE])
                done = start + AT_ONCE
            return True
        with self.lock:
            self.waiting = [*taken[done:], *self.waiting][-MOST:]
        return False

    @contextlib.contextmanager
    def noticing(self, instead: str | None = None) -> Iterator[None]:
        """MLflow's errors are told once, and passed over; with `instead` that is what the error begins with."""
        try:
            yield
        except Exception as error:
            if not self.mlflows(error):
                raise
            if instead is not None:
                raise ConnectionError(f"{instead}: {first_line(error)}") from error
            self.lost(error)

    def mlflows(self, error: Exception) -> bool:
        """Whether an error is MLflow's or the network's; MLflow's folders raise the bare Exception too."""
        return isinstance(error, self.errors) or type(error) is Exception

    def lost(self, error: BaseException) -> None:
        if not self.warned:
            self.warned = True
            self.warn(f"MLflow at {self.place} cannot be told: {first_line(error)}; the training goes on")

    # -- what MLflow is told ---------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Make the run, or take it up, with its settings; those that it has already stay."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self.client = MlflowClient(tracking_uri=self.place)
        if not self.id:
            named = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
            found = self.client.get_experiment_by_name(named)
            experiment = found.experiment_id if found is not None else self.client.create_experiment(named)
            self.id = self.client.create_run(experiment, run_name=self.name).info.run_id
        else:
            self.client.update_run(self.id, status="RUNNING")
        known = self.client.get_run(self.id).data.params
        new = [Param(clean(one), value[:LONGEST]) for one, value in self.settings.items() if clean(one) not in known]
        for start in range(0, len(new), SETTINGS_AT_ONCE):
            self.client.log_batch(self.id, params=new[start : start + SETTINGS_AT_ONCE])
        self.begun = True

    def send(self, taken: list[tuple[float, int, Mapping[str, float]]]) -> None:
        from mlflow.entities import Metric

        numbers = [
            Metric(clean(name), float(value), int(1000 * at), step)
            for at, step, values in taken
            for name, value in values.items()
        ]
        for start in range(0, len(numbers), AT_ONCE):
            self.client.log_batch(self.id, metrics=numbers[start : start + AT_ONCE])

    def keep(self) -> None:
        """The files, and how the run ended."""
        for file in self.files():
            self.client.log_artifact(self.id, str(file))
        self.client.set_terminated(self.id, status=self.status, end_time=int(1000 * time.time()))


def clean(name: str) -> str:
    """A name as MLflow allows it."""
    return re.sub(r"[^\w\-./ ]", "_", name)


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
