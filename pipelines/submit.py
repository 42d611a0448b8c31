"""`cortado submit`: any command -> a job on a cluster that this machine is no part of."""

from __future__ import annotations

import os
import shlex
import sys
import uuid
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from pipelines.job import Job, say, table

USAGE = 2  # exit code of a command line that cannot be understood


@dataclass(frozen=True, kw_only=True)
class Submit(Job):
    """Run a command of Cortado on a cluster that this machine is no part of, through Ray's job server.

    Cortado's code goes along; data does not: the command runs in this folder, which the cluster's nodes must see, or
    in --folder. ray_config.yaml and --set say how much of the cluster to use, as always. What the job prints is shown
    until it ends; its exit code is this command's. Ctrl-C leaves it alone.

    Example: cortado submit --address http://head:8265 --set train.workers=4 -- train --run runs/a
    """

    command: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="-- COMMAND ...")]
    """the command, behind --: train --run runs/a"""
    address: str | None = None
    """job server, as http://head:8265; default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265"""
    folder: str | None = None
    """folder to run in, as the cluster's nodes see it; default: this one"""
    python: str = "python"
    """Python on the cluster's head node, 3.11 or later, with Cortado's dependencies"""
    wait: bool = True
    """stay until the job ends; --no-wait comes back at once"""

    def __post_init__(self) -> None:
        if not self.command:
            raise ValueError("COMMAND missing: what to run, behind --, as -- train --run runs/a")
        if self.command[0] == "submit":
            raise ValueError("submit runs other commands: give one of those behind --")

    def run(self) -> dict[str, Any]:
        import cluster
        import ops
        import pipelines
        from cluster import config as settings
        from cluster.submit import jobs, server_of

        config, server = settings.load(self.config, self.set), server_of(self.address)
        lines = self.lines()
        command = self.entrypoint(lines, config)
        name = f"cortado-{lines[0][0]}-{uuid.uuid4().hex[:8]}"
        with jobs(server) as there:
            job = there.submit(command, name, config, (ops, pipelines, cluster))
            say(f"job {job} at {server}")
            result = {"job": job, "address": server, "command": command}
            look, stop = (f"ray job {verb} --address {server} {job}" for verb in ("logs --follow", "stop"))
            if not self.wait:
                return {**result, "status": "SUBMITTED", "look": look, "stop": stop}
            try:
                ended = there.follow(job, self.tell)
            except KeyboardInterrupt:
                say(f"\nleft; the job goes on: {look} shows it, {stop} stops it")
                return {**result, "status": "RUNNING", "look": look, "stop": stop}
        if ended.message and ended.code:
            say(f"job {job}: {ended.message}")
        return {**result, "status": ended.status, "exit": ended.code}

    def render(self, result: dict[str, Any]) -> Any:
        shown = {name: result[name] for name in ("job", "status", "look", "stop") if name in result}
        return table({**shown, "status": result["status"].lower()})

    def tell(self, text: str) -> None:
        """What the job prints, as it is; stdout is for the result alone where that is JSON."""
        from cluster.submit import SAID_BY_RAY

        kept = [line for line in text.splitlines(keepends=True) if not SAID_BY_RAY.match(line)]
        print("".join(kept), end="", file=sys.stderr if self.json else sys.stdout, flush=True)

    # -- the command -----------------------------------------------------------------------------------------------

    def lines(self) -> list[list[str]]:
        """The command as ours, one or, for some of Caffe's, several; ends with 2 where it cannot be understood."""
        from pipelines.__main__ import COMMANDS, complain, parse, unknown
        from pipelines.caffe_names import understood

        words = [*self.command]
        try:
            typed = understood(words[words[0] == "caffe" :])
        except ValueError as error:
            complain(str(error))
            raise SystemExit(USAGE) from None
        for note in typed.notes:
            say(note)
        for line in typed.lines:
            if line[0] not in COMMANDS:
                complain(unknown(line[0]))
                raise SystemExit(USAGE)
            job = parse(line[0], line[1:])
            if job is None:
                raise SystemExit(USAGE)
            if getattr(job, "detach", False):
                raise ValueError("leave --detach out: a job goes on by itself; submit --no-wait comes back at once")
        return typed.lines

    def entrypoint(self, lines: list[list[str]], config: Any) -> str:
        """What the shell of the head node runs."""
        from cluster.submit import settings

        folder = self.folder or os.getcwd()
        missing = f"cortado: error: {folder}: no such folder on the cluster; submit --folder names one that is"
        begin = f"cd {shlex.quote(folder)} 2>/dev/null || {{ echo {shlex.quote(missing)} >&2; exit 1; }}"
        given = [f"--set={one}" for one in settings(config)]
        calls = [shlex.join([self.python, "-P", "-m", "pipelines", line[0], *given, *line[1:]]) for line in lines]
        return f"{begin}; {' && '.join(calls)}"
