"""docs/commands.md says what the commands take, no more and no less."""

import re

import pytest

from pipelines.__main__ import COMMANDS, main
from pipelines.job import Job
from tests.commands_page import PAGE, job, options, page


def test_the_page_is_the_one_that_the_commands_write():
    assert PAGE.read_text() == page(), "docs/commands.md is out of date: run `make docs`"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_says_what_it_means(command):
    silent = [name for name, (_, meaning) in options(job(command), of=job(command)).items() if not meaning]
    assert not silent, f"cortado {command}: no docstring under {silent}"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_the_options_of_the_page_and_an_example(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    written = {**options(job(command), of=job(command)), **options(Job, of=Job)}
    missing = [name for name in written if not re.search(rf"(^|\s){name}\b", shown)]
    assert not missing, f"cortado {command} --help does not show {missing}"
    assert "Example: cortado" in " ".join(shown.replace("│", " ").split())
