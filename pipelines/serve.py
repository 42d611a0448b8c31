"""`cortado serve`: a net behind HTTP, with an API for programs and a page for people."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import secrets
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from pipelines.job import duration, human, say, table
from pipelines.stages.net_options import NetOptions

if TYPE_CHECKING:
    from cluster.config import Config
    from cluster.connect import Connection
    from pipelines.stages.serving_book import Entry
    from pipelines.stages.serving_front import FrontOptions
    from pipelines.stages.serving_model import Served

TOKEN = "CORTADO_SERVE_TOKEN"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
STOPPING = 40.0  # seconds that a server may take to end


@dataclass(frozen=True, kw_only=True)
class Serve(NetOptions):
    """Answer over HTTP which classes a net finds in pictures, on Ray Serve: POST /v1/classify, POST /v1/features, and a
    page to drop pictures on.

    Runs until Ctrl-C; on a cluster that was there before, until --stop. The same command again, with other weights,
    replaces the model: no request fails meanwhile. Host, port and replicas are in ray_config.yaml (serve.*): by default
    only this machine is answered.

    Example: cortado serve --run runs/lenet
    """

    name: str = "default"
    """of the server, where several run"""
    labels: Path | None = None
    """class names, one a line, the first is label 0; default: the run's"""
    hierarchy: Path | None = None
    """text file, 'child parent name-of-the-child' a line: also name what is sure, however general"""
    blob: str | None = None
    """blob with the scores; default: the net's softmax"""
    port: int | None = None
    """in place of serve.port"""
    token_file: Path | None = None
    """file with a word that requests must bring (Authorization: Bearer); default: $CORTADO_SERVE_TOKEN, else none"""
    samples: Path | None = None
    """folder of pictures that the page offers to try; default: a few that the run was tested with, else ours"""
    max_body: int = 32_000_000
    """bytes of one request"""
    max_images: int = 64
    """pictures of one request"""
    max_pixels: int = 50_000_000
    """pictures that announce more pixels are refused"""
    max_waiting: int = 512
    """pictures in the queue; beyond, the answer is 503"""
    timeout: float = 60.0
    """seconds until a request that got no answer is given up"""
    status: bool = False
    """tell which servers run, and end"""
    stop: bool = False
    """end the server of that name"""

    build: Annotated[Path | None, tyro.conf.arg(metavar="FILE.yaml")] = None
    """write a config file for Ray's own `serve deploy`, and end"""

    # what an extraction may choose
    pool = "none"
    dtype = "float32"
    format = "parquet"
    shards = "1"
    label_kind = "caffe"
    limit = None
    root = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not NAME.fullmatch(self.name):
            raise ValueError(f"--name {self.name}: expected letters, digits, - and _")
        for name in ("max_body", "max_images", "max_waiting", "timeout"):
            if getattr(self, name) <= 0:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected more than 0")
        if self.port is not None and not 1 <= self.port <= 65535:
            raise ValueError(f"--port {self.port}: expected 1 to 65535")
        if self.status and self.stop:
            raise ValueError("--status and --stop: give one of them")
        if self.hierarchy is not None and self.labels is None and self.run_folder is None:
            raise ValueError("--hierarchy: give the class names too, --labels FILE")

    def run(self) -> dict[str, Any]:
        if self.status:
            return self.tell()
        if self.stop:
            return self.end()
        from cluster import config
        from pipelines.stages import serving_book
        from pipelines.stages.serving_model import served

        began = time.monotonic()
        settings = config.load(self.config, self.set)
        token = self.token()
        size, wait = self.batch_size or settings.serve.batch_size, settings.serve.batch_wait_seconds
        model = dataclasses.replace(served(self), size=size, wait=wait)
        if self.build is not None:
            return self.write(self.build, settings, model)
        there = serving_book.running(self.name)
        if there is not None:
            return self.replace(there, settings, model, began)
        return self.host(settings, model, token, began)

    # -- a new server ----------------------------------------------------------------------------------------------

    def host(self, settings: Config, model: Served, token: str | None, began: float) -> dict[str, Any]:
        """Serve until Ctrl-C; where Ray is somebody else's, leave the server there."""
        import cluster
        import ops
        import pipelines
        from cluster.connect import connected
        from cluster.errors import unwrap

        options, stays = self.front(settings, token), False
        with connected(settings, packages=(ops, cluster, pipelines)) as connection, sigterm_as_ctrl_c():
            try:
                entry = self.begin(options, settings, model, connection)
                seconds = time.monotonic() - began
                self.tell_begun(entry, options, seconds)
                if not connection.owned:
                    told, stays = {**self.described(entry, model), "ready_s": round(seconds, 3)}, True
                    return told
                wait_for_the_end()
            except BaseException as error:
                raise unwrap(error) from error
            finally:
                if not stays:
                    self.clear(options.instance)
        return {"server": entry.url, "name": entry.name, "ready_s": round(seconds, 3), "ended": True}

    def tell_begun(self, entry: Entry, options: FrontOptions, seconds: float) -> None:
        say(f"serve: {entry.url} answers ({duration(seconds)}); the page is there too, /docs tells the API")
        if options.token is None and not entry.host.startswith(("127.", "localhost", "::1")):
            say(f"serve: anybody who reaches {entry.host}:{entry.port} is answered: set {TOKEN} for a token")

    def front(self, settings: Config, token: str | None) -> FrontOptions:
        from pipelines.stages.serving_body import Limits
        from pipelines.stages.serving_front import FrontOptions, bound

        limits = Limits(
            body=self.max_body,
            images=self.max_images,
            pixels=self.max_pixels,
            answer_seconds=self.timeout,
            waiting=self.max_waiting,
        )
        port = self.port or settings.serve.port
        bound(settings.serve.host, port).close()  # whether it is free is told before anything is started
        samples = self.samples.absolute() if self.samples else None
        options = {"limits": limits, "token": token, "samples": samples}
        return FrontOptions(self.name, settings.serve.host, port, secrets.token_hex(8), **options)

    def begin(self, options: FrontOptions, settings: Config, model: Served, connection: Connection) -> Entry:
        """Deploy the model while the front starts, and note them."""
        from pipelines.stages import serving_book, serving_front

        front = serving_front.start(options)
        serving_front.take(front, self.deploy(settings, model, connection))
        pid = os.getpid() if connection.owned else 0
        entry = serving_book.Entry(self.name, options.host, options.port, options.instance, connection.address, pid)
        if not serving_book.still(entry, patience=30):
            raise OSError(f"{entry.url}: the server does not answer")
        serving_book.write(entry)
        return entry

    def deploy(self, settings: Config, model: Served, connection: Connection) -> str:
        from cluster import deploy
        from pipelines.stages.serving_replica import Replica

        replicas = deploy.replicas_for(settings, connection, gpu=self.gpu)
        return deploy.deploy(Replica, (model, replicas.threads, replicas.gpu), name=self.name, replicas=replicas)

    def clear(self, instance: str) -> None:
        with interrupts_ignored():
            from cluster import deploy
            from pipelines.stages import serving_book

            serving_book.forget(self.name, instance)
            deploy.remove(self.name)

    # -- one that runs ---------------------------------------------------------------------------------------------

    def replace(self, there: Entry, settings: Config, model: Served, began: float) -> dict[str, Any]:
        """Give the server that runs another model."""
        from ray.exceptions import RayError

        import cluster
        import ops
        import pipelines
        from cluster import deploy
        from cluster.connect import connected
        from cluster.errors import unwrap
        from pipelines.stages import serving_front

        if self.port not in (None, there.port):
            told = f"the server '{self.name}' runs at {there.url}"
            raise ValueError(f"--port {self.port}: {told}; end it with --stop, or give the new one a --name")
        joined = settings.model_copy(update={"address": there.address})
        with connected(joined, packages=(ops, cluster, pipelines)) as connection:
            front = deploy.find_front(self.name)
            if front is None:
                raise RuntimeError(
                    f"{there.url}: answers, but its cluster at {there.address} has no front of that name"
                )
            try:
                app = self.deploy(settings, model, connection)
                serving_front.take(front, app)
                deploy.retire(self.name, app)
            except (RuntimeError, RayError) as error:
                raise unwrap(error) from error
        seconds = time.monotonic() - began
        say(f"serve: {there.url} answers with the new model ({duration(seconds)})")
        return {**self.described(there, model), "replaced": True, "ready_s": round(seconds, 3)}

    def tell(self) -> dict[str, Any]:
        """--status."""
        from pipelines.stages import serving_book

        token, found = self.token(), []
        for entry in serving_book.listed():
            one: dict[str, Any] = {"name": entry.name, "url": entry.url, "answers": entry.alive()}
            if one["answers"]:
                status, model = entry.ask("/v1/model", token=token)
                one["ready"] = entry.ask("/readyz")[0] == 200
                if status == 200:
                    one |= {key: model[key] for key in ("net", "weights", "weights_digest", "classes")}
            found.append(one)
        return {"servers": found}

    def end(self) -> dict[str, Any]:
        """--stop: ask the process that Ray belongs to, or take the server off the cluster."""
        from pipelines.stages import serving_book

        entry = serving_book.read(self.name)
        if entry is None:
            listed = ", ".join(one.name for one in serving_book.listed())
            raise ValueError(
                f"no server '{self.name}' runs on this machine" + (f"; there is {listed}" if listed else "")
            )
        there = self.end_process(entry) if entry.pid else self.take_off(entry)
        serving_book.forget(entry.name, entry.instance)
        return {"server": entry.url, "name": entry.name, "stopped": there}

    def end_process(self, entry: Entry) -> bool:
        """End the process that a server's Ray belongs to; whether it was there."""
        from pipelines.stages import serving_book

        if not serving_book.still(entry):
            if serving_book.process_lives(entry.pid):
                told = f"{entry.url}: does not answer, but process {entry.pid} lives"
                file = serving_book.folder() / f"{entry.name}.json"
                raise RuntimeError(f"{told}: try again, or end it with `kill`; if it is no server, delete {file}")
            return False
        os.kill(entry.pid, signal.SIGTERM)
        until = time.monotonic() + STOPPING
        while serving_book.process_lives(entry.pid) and time.monotonic() < until:
            time.sleep(0.1)
        if serving_book.process_lives(entry.pid):
            raise RuntimeError(f"{entry.url}: process {entry.pid} has not ended within {STOPPING:.0f} s")
        return True

    def take_off(self, entry: Entry) -> bool:
        """Take a server off somebody else's cluster, also one that is too busy to answer; whether it was there."""
        from cluster import config, deploy
        from cluster.connect import connected
        from pipelines.stages import serving_book

        if serving_book.refused(entry.address) and not entry.alive():
            return False  # the cluster has ended, and the server with it
        settings = config.load(self.config, self.set).model_copy(update={"address": entry.address})
        with connected(settings):
            there = deploy.find_front(self.name) is not None or bool(deploy.versions(self.name))
            if there:
                deploy.remove(self.name)
        return there

    def write(self, file: Path, settings: Config, model: Served) -> dict[str, Any]:
        """--build."""
        from pipelines.stages import serving_app

        given = {**{name: getattr(self, name) for name in serving_app.known()}, "host": settings.serve.host}
        text = serving_app.config_text(given, settings.serve, port=self.port, gpu=self.gpu, model=model)
        file.absolute().parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        facts = model.facts()
        named = {name: facts[name] for name in ("net", "weights", "weights_digest")}
        return {"written": str(file), **named, "next": f"serve deploy {file}"}

    # -- words -----------------------------------------------------------------------------------------------------

    def token(self) -> str | None:
        if self.token_file is None:
            return os.environ.get(TOKEN) or None
        word = self.token_file.read_text(encoding="utf-8").strip()
        if not word or not word.isascii() or not word.isprintable() or " " in word:
            raise ValueError(f"{self.token_file}: expected one word of ASCII letters, digits and signs")
        return word

    def described(self, entry: Entry, model: Served) -> dict[str, Any]:
        facts = model.facts()
        names = ("net", "weights", "weights_digest", "classes")
        return {"server": entry.url, "name": entry.name, **{name: facts[name] for name in names}}

    def render(self, result: dict[str, Any]) -> Any:
        from rich.console import Group

        if "servers" not in result:
            return table(result)
        if not result["servers"]:
            return "no server runs on this machine; `cortado serve --run DIR` starts one"
        return Group(*(table({key: human(value) for key, value in one.items()}) for one in result["servers"]))


def wait_for_the_end() -> None:
    """Until Ctrl-C, or SIGTERM (--stop)."""
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        say("serve: finishing what has been asked")


@contextlib.contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Ray has put a handler of its own on SIGTERM, which would end the process as it is."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class interrupts_ignored:  # noqa: N801
    """While open, Ctrl-C and SIGTERM wait: what is being cleared away is cleared away."""

    def __enter__(self) -> None:
        self.before = {one: signal.signal(one, signal.SIG_IGN) for one in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *exception: object) -> None:
        for one, handler in self.before.items():
            signal.signal(one, handler)
