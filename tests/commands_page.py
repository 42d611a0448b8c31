"""docs/commands.md, written from the commands themselves: `make docs`. tests/test_commands.py compares the two."""

import ast
import dataclasses
import enum
import importlib
import inspect
import itertools
import textwrap
import typing
from pathlib import Path
from typing import Any

import tyro

from pipelines.__main__ import COMMANDS
from pipelines.job import Job

PAGE = Path(__file__).resolve().parent.parent / "docs/commands.md"
HEAD = """# Every command and every option

`cortado COMMAND [options]`; `cortado COMMAND --help` prints the same at the terminal. Hyphens and underscores both
work in option names. stdout is the result, stderr the progress; exit code 0 done, 1 the job failed, 2 the command line
is wrong.

This page is written by `make docs` from the commands; a test compares the two.
"""


def meanings(kind: type) -> dict[str, str]:
    """Field name -> the string that stands under it in the source, one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body  # type: ignore[attr-defined]
    return {
        field.target.id: " ".join(inspect.cleandoc(text.value.value).split())
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


def flag(name: str, hint: Any) -> str:
    """The option as it is typed: `--resize-height`, or `SOURCE` where it needs no name."""
    marks = getattr(hint, "__metadata__", ())
    if tyro.conf.Positional in marks:
        return name.upper()
    named = next((mark.name for mark in marks if getattr(mark, "name", None)), name)
    return "--" + named.replace("_", "-")


def default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    elif field.default is dataclasses.MISSING:
        return "required"
    else:
        value = field.default
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, enum.Enum):
        value = value.value
    return f"`{' '.join(map(str, value)) if isinstance(value, tuple) else value}`" if value != "" else "none"


def options(kind: type, *, of: type) -> dict[str, tuple[str, str]]:
    """Option -> (default, meaning) of the fields of `kind` that its class `of` declares."""
    hints, says = typing.get_type_hints(kind, include_extras=True), meanings(of)
    fields = [field for field in dataclasses.fields(kind) if field.name in of.__annotations__]
    return {flag(field.name, hints[field.name]): (default(field), says.get(field.name, "")) for field in fields}


def table(rows: dict[str, tuple[str, str]]) -> list[str]:
    escape = {name: (value, meaning.replace("|", "\\|")) for name, (value, meaning) in rows.items()}
    body = [f"| `{name}` | {value} | {meaning} |" for name, (value, meaning) in escape.items()]
    return ["| option | default | meaning |", "|---|---|---|", *body, ""]


def job(command: str) -> type:
    module, name, _ = COMMANDS[command]
    return getattr(importlib.import_module(module), name)


def section(command: str) -> list[str]:
    """A command's heading, its description and its table."""
    kind = job(command)
    text, _, example = (inspect.getdoc(kind) or "").partition("Example: ")
    shown = ["```console", " ".join(example.split()), "```", ""]
    return [f"## {command}", "", text.strip(), "", *shown, *table(options(kind, of=kind))]


def page() -> str:
    shared = ["## Options of every command", "", *table(options(Job, of=Job))]
    lines = [line for command in COMMANDS for line in section(command)]
    return "\n".join([HEAD, *lines, *shared]).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
