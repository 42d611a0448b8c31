"""Command lines that cannot be meant, for every command: exit code 2 and one line, with the right name near it."""

import dataclasses
import functools
import re
import typing

import pytest
import tyro

from pipelines.__main__ import COMMANDS, main
from pipelines.job import Job
from tests.commands_page import job, options

SHORT = 4  # letters: a slip in a shorter name may mean anything


@functools.cache
def rows(command):
    """Option, or POSITIONAL -> its default."""
    kind = job(command)
    return {name: told[0] for name, told in {**options(kind, of=kind), **options(Job, of=Job)}.items()}


def positional(command):
    """The names under which positional arguments are shown."""
    hints = typing.get_type_hints(job(command), include_extras=True)
    shown = []
    for field in dataclasses.fields(job(command)):
        marks = getattr(hints[field.name], "__metadata__", ())
        if tyro.conf.Positional in marks:
            shown.append(next((mark.metavar for mark in marks if getattr(mark, "metavar", None)), field.name.upper()))
    return shown


def required(command):
    return [name for name, default in rows(command).items() if default == "required"]


def whole(command, *, without=None):
    """A line with everything that is required, but one thing."""
    line = []
    for name in required(command):
        if name != without:
            line += [name, "1"] if name.startswith("--") else ["1"]
    return line


def refused(capsys, *arguments):
    """The one line that is said."""
    assert main(list(arguments)) == 2, arguments
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1, told.err
    assert told.err.startswith("cortado: error: ")
    return told.err


ANY_NUMBER = ("plot", "classify", "submit")  # of words
NEEDY = [command for command in COMMANDS if required(command)]


@pytest.mark.parametrize("command", NEEDY)
def test_everything_that_is_missing_is_named(capsys, command):
    told = refused(capsys, command)
    assert f"cortado {command} --help" in told
    if command not in ANY_NUMBER:
        shown = [re.split(r"\W", name)[0] for name in positional(command)]
        shown += [name for name in required(command) if name.startswith("--")]
        assert "missing" in told
        assert all(name in told for name in shown), told


@pytest.mark.parametrize(
    ("command", "left_out"),
    [(command, name) for command in NEEDY for name in required(command) if name.startswith("--")],
)
def test_one_thing_that_is_missing_is_named(capsys, command, left_out):
    assert f"{left_out} missing" in refused(capsys, command, *whole(command, without=left_out))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_slip_in_an_option_is_mended(capsys, command):
    for option in (name for name in rows(command) if name.startswith("--") and len(name) > 2 + SHORT):
        for slip in (option + "s", f"{option[:4]}{option[5]}{option[4]}{option[6:]}"):
            if slip.replace("_", "-") not in rows(command):
                told = refused(capsys, command, *whole(command), slip, "1")
                assert f"no option {slip}; did you mean --" in told
                assert f"did you mean {option}?" in told or slip != option + "s", told


@pytest.mark.parametrize("command", COMMANDS)
def test_one_dash_is_as_good_as_two(capsys, command):
    option = next(name for name in rows(command) if name.startswith("--") and len(name) > 2 + SHORT)
    assert f"no option -{option[1:]}x;" in refused(capsys, command, f"-{option[2:]}x", "1")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_without_its_value_is_named(capsys, command):
    hints = typing.get_type_hints(job(command), include_extras=True)
    for field in dataclasses.fields(job(command)):
        name = next((one for one in rows(command) if one == f"--{field.name.replace('_', '-')}"), None)
        if name is None or isinstance(field.default, bool) or hints[field.name] is bool:
            continue
        assert f"{name} needs a value" in refused(capsys, command, *whole(command, without=name), name)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_word_too_many_is_told(capsys, command):
    if command not in ANY_NUMBER:
        assert "unexpected 'stray'" in refused(capsys, command, *whole(command), "stray")


CONTRADICTIONS = {
    "train --solver s --weights a --snapshot b": "--weights and --snapshot: a snapshot has its weights",
    "train --solver s --resume --snapshot b": "--resume and --snapshot: give one of them",
    "train --solver s --balance --class-weights balanced": "--balance and --class-weights balanced",
    "test --model m --iterations 0": "--iterations 0: expected 1 or more",
    "convert --list l --out o --resize-height 3": "--resize-height and --resize-width go together",
    "convert --list l --out o --encoded --scale 2": "--encoded stores files",
    "upgrade a b --text --binary": "--text and --binary: expected one of them",
    "status --gpu 0 --path x": "--gpu and --path: give one of them",
    "show net --filters a --responses b": "--filters and --responses: expected one of them",
    "time net --phase TRIAN": "--phase TRIAN: expected one of TRAIN, TEST",
    "train --solver s --sigint-effect halt": "--sigint-effect halt: expected one of stop, snapshot, none",
    "plot run --smooth x": "--smooth: expected a whole number, found 'x'",
    "plot run --epoch x": "--epoch: expected a number, found 'x'",
    "train solver.prototxt": "unexpected 'solver.prototxt'; did you mean --solver solver.prototxt?",
    "convert list.txt": "unexpected 'list.txt'; --list, --out missing",
    "test --model m --set train.wrokers=2": "unknown key 'train.wrokers'; did you mean 'train.workers'?",
    "trian --solver s": "no command named 'trian'; did you mean 'train'?",
    "convert_imgeset a b c": "no command named 'convert_imgeset'; did you mean 'convert_imageset'?",
    "frobnicate": "no command named 'frobnicate'; see `cortado --help`",
}


@pytest.mark.parametrize("line", CONTRADICTIONS)
def test_what_cannot_be_meant_is_told(capsys, line):
    assert CONTRADICTIONS[line] in refused(capsys, *line.split())
