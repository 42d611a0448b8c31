"""Kill anything at any time, run the same command again, get the same table; compared by content."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]

LINES, PARTS = 900, 6
PATIENCE = 240  # seconds
TRIALS = 4  # a slow moment of ours may outlast what is to be killed


@pytest.fixture(scope="module")
def command(golden, tmp_path_factory):
    """900 lines over 30 photographs, ten crops each: long enough to be killed in the middle of."""
    files = golden / "files"
    names = [line.split()[0] for line in (files / "list.txt").read_text().splitlines()]
    listed = tmp_path_factory.mktemp("kill") / "list.txt"
    listed.write_text("".join(f"{names[i % len(names)]} {i}\n" for i in range(LINES)))

    def build(out: Path, *more: str) -> list[str]:
        options = ["--input", listed, "--root", f"{files / 'photos'}/", "--out", out, "--shards", PARTS, "--oversample"]
        options += ["--model", files / "feat.prototxt", "--weights", files / "feat.caffemodel", "--blobs", "fc,pool1"]
        options += ["--images-dim", "48,64", "--json", "--batch-size", "10", *more]
        return [sys.executable, "-m", "pipelines", "extract", *map(str, options)]

    return build


TWO = ("--set", "cpus=2", "--set", "data.workers=2")


@pytest.fixture(scope="module")
def undisturbed(command, tmp_path_factory):
    """The table of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    subprocess.run(command(out, *TWO), check=True, capture_output=True)
    return table(out)


def table(out: Path) -> pa.Table:
    parts = [one["name"] for one in json.loads((out / "manifest.json").read_text())["shards"]]
    assert sorted(file.name for file in out.glob("*.parquet")) == parts
    return pa.concat_tables([pq.read_table(out / name) for name in parts])


def assert_whole(out: Path, expected: pa.Table) -> None:
    found = table(out)
    assert found["label"].to_pylist() == list(range(LINES))
    assert found.equals(expected)
    assert set(os.listdir(out / ".run")) <= {"log.txt", "lock"}


def lines_done(out: Path) -> int:
    done = 0
    for file in (*(out / ".run" / "done").glob("part-*.json"), *(out / ".run" / "attempts").glob("*/progress")):
        with contextlib.suppress(OSError, ValueError):
            text = file.read_text()
            done += json.loads(text)["lines"] if file.suffix == ".json" else int(text or 0)
    return done


def wait_for(out: Path, lines: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE
    while lines_done(out) < lines and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def workers(process: subprocess.Popen) -> list[psutil.Process]:
    """The processes that hold the net."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "MapWorker" in " ".join(one.cmdline()):
                    found.append(one)
    return found


def test_killed_workers_change_nothing(command, undisturbed, tmp_path):
    rng = random.Random(3)
    for trial in range(TRIALS):
        out = tmp_path / str(trial)
        killed = extract_and_kill(command(out, *TWO), out, rng)
        assert_whole(out, undisturbed)
        if killed == 3:
            return
    pytest.fail(f"{killed} workers were killed, and then it was over")


def extract_and_kill(command: list[str], out: Path, rng: random.Random) -> int:
    """Run it, and kill a worker at three moments; how many were killed before it was over."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    killed = 0
    for moment in sorted(rng.uniform(0.05, 0.7) for _ in range(3)):
        wait_for(out, int(moment * LINES), process)
        victims = workers(process)
        while not victims and process.poll() is None:  # those killed before have no successors yet
            time.sleep(0.02)
            victims = workers(process)
        if victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                rng.choice(victims).send_signal(signal.SIGKILL)
                killed += 1
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    return killed


@pytest.mark.parametrize("kind", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.soak)])
def test_a_killed_driver_goes_on_where_it_stopped(command, undisturbed, tmp_path, kind):
    for trial in range(TRIALS):
        out = tmp_path / str(trial)
        process = subprocess.Popen(command(out, *TWO), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + PATIENCE
        while not list((out / ".run" / "done").glob("part-*.json")) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(kind)
        process.communicate(timeout=PATIENCE)
        if not (out / "manifest.json").exists():
            break  # else it was over before it could be killed
    assert process.returncode != 0
    assert not [*out.glob("*.parquet"), *out.glob("manifest.json")]
    again = subprocess.run(command(out, *TWO), check=True, capture_output=True, text=True)
    assert json.loads(again.stdout)["skipped_shards"] >= 1
    assert "finished already and skipped" in again.stderr
    assert_whole(out, undisturbed)


def test_a_lost_node_changes_nothing(command, undisturbed, cluster_of, tmp_path):
    out = tmp_path / "out"
    with cluster_of(2, cpus=1) as outside:
        process = subprocess.Popen(
            command(out, "--set", f"address={outside.address}"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        wait_for(out, LINES // 5, process)
        outside.kill_node()
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert_whole(out, undisturbed)
