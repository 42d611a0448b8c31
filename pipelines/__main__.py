"""`cortado COMMAND`: picks the job and runs it; a job's module is imported only when it is asked for."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
import sys
from typing import TYPE_CHECKING

from pipelines.caffe_names import HELP, understood

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipelines.job import Job

# command -> (module, class, one line of help), in the order in which a newcomer meets them
COMMANDS = {
    "demo": ("pipelines.demo", "Demo", "the whole chain on real pictures that ship with a dependency"),
    "prepare": ("pipelines.prepare", "Prepare", "a folder of pictures -> a ready data set"),
    "list": ("pipelines.listing", "List", "a folder, table, tar, ... -> image lists, with a split"),
    "convert": ("pipelines.convert", "Convert", "an image list -> LMDB or HDF5 record shards"),
    "mean": ("pipelines.mean", "Mean", "records -> mean.binaryproto"),
    "init": ("pipelines.init", "Init", "a data set -> train_val, deploy and solver .prototxt"),
    "train": ("pipelines.train", "Train", "a solver.prototxt -> snapshots"),
    "attach": ("pipelines.attach", "Attach", "a training that goes on by itself -> what it prints"),
    "test": ("pipelines.evaluate", "Test", "net + weights + records -> loss and accuracy"),
    "extract": ("pipelines.extract", "Extract", "net + weights + images -> any blob of every image, as a table"),
    "neighbours": ("pipelines.neighbours", "Neighbours", "features -> the images that are most alike"),
    "classify": ("pipelines.classify", "Classify", "net + weights + pictures -> the classes in them"),
    "serve": ("pipelines.serve", "Serve", "net + weights -> HTTP: an API, and a page to drop pictures on"),
    "bench-serve": ("pipelines.bench_serve", "BenchServe", "a server -> images a second, and how long answers take"),
    "plot": ("pipelines.plotting", "Plot", "runs, or logs of Caffe -> loss and accuracy in one picture"),
    "show": ("pipelines.show", "Show", "a data set or a net -> a table and pictures"),
    "time": ("pipelines.timing", "Time", "a net -> milliseconds of every layer, forward and backward"),
    "compare": ("pipelines.compare", "Compare", "two nets, weights, precisions or devices -> where they differ"),
    "check": ("pipelines.check", "Check", "is this list, data set, prototxt or ray_config.yaml right?"),
    "upgrade": ("pipelines.upgrade", "Upgrade", "an old net, caffemodel or solver -> Caffe's current format"),
    "status": ("pipelines.status", "Status", "nodes, CPUs, GPUs, versions, and who sees which data"),
    "submit": ("pipelines.submit", "Submit", "any of these -> a job on a remote cluster"),
}
USAGE = 2  # exit code of a command line that cannot be understood
FAILED = 1  # exit code of a job that could not do its work


def overview() -> str:
    """What `cortado --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {help}" for name, (_, _, help) in COMMANDS.items()]
    head = "Cortado: the Caffe workflow on Ray and PyTorch.\n\nusage: cortado COMMAND [options]\n\ncommands:"
    tail = "`cortado COMMAND --help` lists a command's options, with an example. Command lines of Caffe work as typed."
    return "\n".join([head, *lines, "", tail])


def unknown(command: str) -> str:
    """One line for a command that there is not."""
    from ops.names import nearest
    from pipelines.caffe_tools import TOOLS

    near = nearest(command, [*COMMANDS, *TOOLS])
    return f"no command named '{command}'; " + (f"did you mean '{near}'?" if near else "see `cortado --help`")


def complain(error: BaseException | str) -> None:
    """One line on stderr; the traceback too where CORTADO_DEBUG is set."""
    from pipelines.job import one_line

    if isinstance(error, BaseException) and os.environ.get("CORTADO_DEBUG"):
        import traceback

        traceback.print_exception(error)
    print(f"cortado: error: {error if isinstance(error, str) else one_line(error)}", file=sys.stderr)


def parse(command: str, arguments: list[str]) -> Job | None:
    """The job that a command line asks for; None, with one line on stderr, where it cannot be understood."""
    import tyro

    module, name, _ = COMMANDS[command]
    kind = getattr(importlib.import_module(module), name)
    known = options_of(kind)
    if strange := misspelt(arguments, known):
        complain(f"{strange} (see `cortado {command} --help`)")
        return None
    with contextlib.redirect_stderr(io.StringIO()) as told:
        try:
            return tyro.cli(kind, prog=f"cortado {command}", args=arguments)
        except SystemExit as stop:
            if stop.code != USAGE:  # --help
                raise
    lacking = [name for name, needed in known.items() if needed and not is_given(name, arguments)]
    if command == "train" and not any(is_given(name, arguments) for name in ("--solver", "--run")):
        lacking = ["--solver"]  # or a run's folder with a solver in it
    complain(brief(told.getvalue(), command, lacking))
    return None


def options_of(kind: type[Job]) -> dict[str, bool]:
    """Every option of a job as it can be typed, with hyphens -> must it be given."""
    import dataclasses
    import typing

    import tyro

    names = {"--help": False}
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        marks = getattr(hints[field.name], "__metadata__", ())
        if tyro.conf.Positional in marks:
            continue
        told = [mark for mark in marks if hasattr(mark, "aliases")]
        name = next((mark.name for mark in told if mark.name), field.name).replace("_", "-")
        names[f"--{name}"] = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        names |= {alias.replace("_", "-"): False for mark in told for alias in mark.aliases or ()}
        names |= {f"--no-{name}": False} if isinstance(field.default, bool) else {}
    return names


def misspelt(arguments: list[str], known: Iterable[str]) -> str:
    """One line for the first option that there is not; empty where there are all."""
    from ops.names import nearest

    for word in arguments[: arguments.index("--") if "--" in arguments else None]:
        name = word.partition("=")[0].replace("_", "-")
        if name.startswith("--") and name not in known and not name.startswith("--tyro-"):
            near = nearest(name, known)
            return f"no option {word.partition('=')[0]}" + (f"; did you mean {near}?" if near else "")
    return ""


def settings_fit(job: Job) -> bool:
    """Whether --config and --set can be understood, told at once and not when Ray is started."""
    if job.config or job.set:
        from cluster import config

        try:
            config.load(job.config, job.set)
        except (ValueError, OSError) as error:
            complain(error)
            return False
    return True


def is_given(option: str, arguments: list[str]) -> bool:
    return any(word.partition("=")[0].replace("_", "-") == option for word in arguments)


def brief(told: str, command: str, lacking: list[str]) -> str:
    """What tyro says of a command line in a framed page, on one line; `lacking`: required options not given."""
    text = " ".join(re.sub(r"[╭╮╰╯│─]|-{20,}|^[|+] | [|+]$", " ", told, flags=re.MULTILINE).split())
    if unrecognized := re.search(r"Unrecognized options: ([^\s,]+)", text):
        text = f"unexpected '{unrecognized[1]}'"
        if len(lacking) == 1:
            text += f"; did you mean {lacking[0]} {unrecognized[1]}?"
        elif lacking:
            text += f"; {', '.join(lacking)} missing"
    elif choice := re.search(r"invalid choice '(.*?)' for argument '(\S+?)'\. Expected one of \((.*?)\)", text):
        choices = re.findall(r"'([^']*)'", choice[3])
        text = f"{choice[2]} {choice[1]}: expected one of {', '.join(choices)}"
    elif missing := re.search(r"Missing value for argument '(\S+?)'", text):
        text = f"{missing[1]} needs a value"
    elif "Missing from" in text:
        listed = told.partition("Missing from")[2].partition("For full")[0]
        text = f"{', '.join(re.findall(r'(?m)^[│ ]{5,6}(--[a-z-]+|[A-Z_]{2,})', listed))} missing"
    else:
        text = re.split(r" For full helptext| Argument helptext", text)[0]
        text = re.sub(r"^.*?(?:Error parsing (?:[A-Z]\w+: )?|(?=invalid choice))", "", text)
        text = re.sub(r"no type matching .*(?<=Got errors:).*<class '\w+'>: ", "", text)
        text = re.sub(r"invalid literal for int\(\) with base 10:", "expected a whole number, found", text)
        text = re.sub(r"could not convert string to float:", "expected a number, found", text)
    return f"{text} (see `cortado {command} --help`)"


def run(command: str, arguments: list[str]) -> int:
    """Build the job from its arguments and run it; the exit code."""
    from pipelines.job import finish
    from pipelines.whereabouts import check_packages

    try:
        check_packages()
    except ImportError as error:
        complain(error)
        return FAILED
    job = parse(command, arguments)
    if job is None or not settings_fit(job):
        return USAGE
    try:
        result = job.run()
        finish(job, result)
        return int(result.get("exit", FAILED if result.get("ok") is False else 0))
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from here" if command in ("convert", "extract", "prepare", "demo") else ""
        complain(f"stopped by Ctrl-C{goes_on}")
        return FAILED
    except BrokenPipeError:
        raise
    except (ValueError, OSError, RuntimeError, MemoryError, ImportError) as error:
        complain(error)
        return FAILED


def main(arguments: list[str] | None = None) -> int:
    """The entry point of `cortado` and of `python -m pipelines`; 0 done, 1 the job failed, 2 usage."""
    try:
        return dispatch(sys.argv[1:] if arguments is None else arguments)
    except BrokenPipeError:  # `cortado ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def dispatch(arguments: list[str]) -> int:
    """The overview, the version, or a command; `cortado caffe train` is `cortado train`."""
    if arguments[:1] == ["caffe"]:
        arguments = arguments[1:] or ["--help"]
    if not arguments or arguments[0].lstrip("-") in HELP:
        print(overview())
        return 0 if arguments else USAGE
    if arguments[0].lstrip("-") in ("V", "version"):
        from importlib.metadata import version

        print(f"cortado {version('cortado')}")
        return 0
    try:
        typed = understood(arguments)
    except ValueError as error:
        complain(str(error))
        return USAGE
    for note in typed.notes:
        print(note, file=sys.stderr)
    codes = (command(line) for line in typed.lines)
    return next((code for code in codes if code), 0)


def command(line: list[str]) -> int:
    """One command line of ours, under the name of a command or with underscores in it."""
    name = line[0].replace("_", "-")
    if name not in COMMANDS:
        complain(unknown(line[0]))
        return USAGE
    return run(name, line[1:])


if __name__ == "__main__":
    sys.exit(main())
