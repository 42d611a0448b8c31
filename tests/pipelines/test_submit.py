"""`cortado submit`: jobs on a real cluster with its job server, from a process that is no part of it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.config import Config, Train
from cluster.submit import server_of, settings
from pipelines.__main__ import main
from tests.pipelines.recipes import NET, write_pictures
from tests.pipelines.trainings import rows

# -- without a cluster -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "server"),
    [
        (None, "http://127.0.0.1:8265"),
        ("head", "http://head:8265"),
        ("head:80", "http://head:80"),
        ("http://head:8265/", "http://head:8265"),
        ("https://ray.example.org/mine", "https://ray.example.org:443/mine"),
        ("http://[::1]:8265", "http://[::1]:8265"),
    ],
)
def test_a_servers_address_may_be_short(monkeypatch, typed, server):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert server_of(typed) == server


def test_rays_own_variable_is_the_default(monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://there:1234")
    assert (server_of(None), server_of("here")) == ("http://there:1234", "http://here:8265")


def test_a_job_is_told_what_is_not_usual():
    config = Config(cpus=7, train=Train(workers={"min": 1, "max": 4}, batch="per_worker"))
    assert settings(Config()) == ["address=auto"]
    assert settings(config) == ["address=auto", 'train.workers={"min": 1, "max": 4}', 'train.batch="per_worker"']


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ((), 2, "COMMAND missing: what to run, behind --"),
        (("--", "submit", "--", "list"), 2, "submit runs other commands"),
        (("--", "trian", "--run", "a"), 2, "no command named 'trian'; did you mean 'train'?"),
        (("--", "list", "pictures", "--ot", "lists"), 2, "no option --ot; did you mean --out?"),
        (("--", "train", "--run", "a", "--detach"), 1, "leave --detach out"),
        (("--address", "head:6379", "--", "status"), 1, "http://head:8265"),
        (("--address", "ftp://head", "--", "status"), 1, "--address ftp://head: expected Ray's job server"),
        (("--address", "127.0.0.1:9", "--", "status"), 1, "no job server at http://127.0.0.1:9: connection refused"),
    ],
)
def test_what_cannot_be_is_told_on_one_line_and_nothing_is_sent(capsys, words, code, told):
    try:
        found = main(["submit", *words])
    except SystemExit as end:
        found = end.code
    error = capsys.readouterr().err
    assert (found, error.count("\n")) == (code, 1)
    assert told in error


# -- with one ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(cluster_of):
    with cluster_of(1, cpus=2, dashboard=True) as outside:
        yield outside.dashboard


def submit(server: str, folder: Path, *words: str) -> subprocess.Popen[str]:
    """A process that submits; this Python is the cluster's too."""
    command = [sys.executable, "-m", "pipelines", "submit", "--address", server, "--python", sys.executable, *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=folder, text=True, **pipes)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_works_in_this_folder_with_the_code_that_was_sent(server, tmp_path):
    """A conversion on the cluster: its tasks find the code, too, and get what ray_config.yaml says."""
    import cv2
    import numpy as np

    for name in ("dark", "light"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(4):
            picture = np.full((20, 20, 3), 200 if name == "light" else 40 + number, np.uint8)
            cv2.imwrite(str(tmp_path / "pictures" / name / f"{number}.png"), picture)
    (tmp_path / "ray_config.yaml").write_text("runtime_env: {env_vars: {GREETING: hello}}\ndata: {workers: 1}\n")
    names = [f"{path.relative_to(tmp_path)} {path.parent.name == 'light':d}" for path in tmp_path.glob("*/*/*.png")]
    (tmp_path / "list.txt").write_text("\n".join(names) + "\n")
    with submit(server, tmp_path, "--json", "--", "convert", "--list", "list.txt", "--out", "data") as process:
        out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    result = json.loads(out)
    assert (result["status"], result["exit"]) == ("SUCCEEDED", 0)
    assert "8 of 8 images, each 3x20x20" in err  # what the job prints
    assert json.loads((tmp_path / "data/manifest.json").read_text())["listed"] == 8
    from ray.job_submission import JobSubmissionClient

    info = JobSubmissionClient(server).get_job_info(result["job"])
    assert [one.split("://")[0] for one in info.runtime_env["py_modules"]] == ["gcs"] * 3
    assert info.runtime_env["env_vars"]["GREETING"] == "hello"


@pytest.mark.ray
@pytest.mark.soak
def test_the_exit_code_is_the_jobs(server, tmp_path):
    with submit(server, tmp_path, "--folder", "/nowhere", "--", "list", "a", "--out", "b") as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "cortado: error: /nowhere: no such folder on the cluster; submit --folder names one" in out


@pytest.mark.ray
@pytest.mark.soak
def test_ctrl_c_leaves_the_job_alone_and_rays_stop_is_ctrl_c_there(server, tmp_path):
    """A training goes on without us, and ends with a snapshot when it is asked to."""
    (tmp_path / "net.prototxt").write_text(NET)
    write_pictures(tmp_path / "data", train=48, test=20)
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        assert main(["init", "--data", "data", "--net", "net.prototxt", "--out", "runs/a"]) == 0
    finally:
        os.chdir(before)
    solver = tmp_path / "runs/a/solver.prototxt"
    solver.write_text(re.sub(r"(?m)^max_iter: \d+", "max_iter: 1000000", solver.read_text()))
    with submit(server, tmp_path, "--", "train", "--run", "runs/a") as process:
        wait_for(lambda: (tmp_path / "runs/a/metrics.csv").exists() and rows(tmp_path / "runs/a"), process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    (words,) = re.findall(r"left; the job goes on: .* shows it, (ray job stop .*) stops it", err)
    iterations = len(rows(tmp_path / "runs/a"))
    wait_for(lambda: len(rows(tmp_path / "runs/a")) > iterations)
    ray = Path(sys.executable).parent / "ray"
    subprocess.run([str(ray), *words.split()[1:]], check=True, capture_output=True, timeout=150)
    assert list((tmp_path / "runs/a").glob("solver_iter_*.caffemodel"))
    assert "Optimization stopped early." in (tmp_path / "runs/a/train.log").read_text()


def wait_for(holds, process: subprocess.Popen[str] | None = None, seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        if process is not None and process.poll() is not None:
            raise AssertionError(process.communicate())
        time.sleep(0.2)
