"""The client code of README.md, as it stands there, against a real server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.pipelines.serving import NAMES, scores_of, serving

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
URL = "http://127.0.0.1:8000"

pytestmark = pytest.mark.ray


def block(language: str) -> str:
    (code,) = re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert URL in code
    return code


@pytest.fixture(scope="module")
def server(ray_session, golden, tmp_path_factory):
    with serving(golden, tmp_path_factory.mktemp("clients"), "clients") as found:
        yield found


@pytest.fixture
def told(server, golden, tmp_path):
    """Runs a program with the address of the server in place of the one in the text; what it prints."""
    (tmp_path / "cat.jpg").write_bytes((golden / "files" / "photos" / "hat_1.jpg").read_bytes())

    def run(*command: str, code: str) -> str:
        done = subprocess.run(
            command, input=code.replace(URL, server.url), cwd=tmp_path, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def best(server, golden):
    """(name, score) of the three best classes."""
    scores = scores_of(server.options, (golden / "files" / "photos" / "hat_1.jpg").read_bytes())
    return [(NAMES[place], scores[place]) for place in np.argsort(-scores)[:3]]


def check(lines: list[str], best: list[tuple[str, float]]) -> None:
    assert [line.rpartition(" ")[0] for line in lines] == [name for name, _ in best]
    np.testing.assert_allclose(
        [float(line.rpartition(" ")[2]) for line in lines], [score for _, score in best], atol=1e-5
    )


def test_curl(told, best, tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("needs curl: apt install curl (Debian, Ubuntu)")
    out = told("bash", "-euo", "pipefail", "-s", code=block("bash").replace("curl ", "curl --fail --silent "))
    assert [one["name"] for one in json.loads(out)["images"][0]["top"]] == [name for name, _ in best]
    assert np.load(tmp_path / "conv1.npy").shape == (1, 4, 14, 14)


def test_python(told, best):
    check(told(sys.executable, "-", code=block("py")).splitlines(), best)


def test_javascript(told, best):
    if shutil.which("node") is None:
        pytest.skip("needs node 18 or newer: apt install nodejs (Debian, Ubuntu)")
    check(told("node", "--input-type=module", "-", code=block("js")).splitlines(), best)
