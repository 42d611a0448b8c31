"""Kill anything at any time, run the same command again, get the same data set."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipelines.stages.dataset import open_dataset

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

LINES = 2400
SHARDS = 6


@pytest.fixture(scope="module")
def listed(golden, tmp_path_factory):
    """2,400 lines over 30 photographs: enough to be killed in the middle of."""
    names = [line.split()[0] for line in (golden / "files" / "list.txt").read_text().splitlines()]
    file = tmp_path_factory.mktemp("kill") / "list.txt"
    file.write_text("".join(f"{names[i % len(names)]} {i % 10}\n" for i in range(LINES)))
    return file


@pytest.fixture(scope="module")
def command(listed, golden):
    def build(out: Path) -> list[str]:
        options = ["--list", listed, "--root", f"{golden / 'files' / 'photos'}/", "--out", out, "--shuffle", "--json"]
        options += ["--resize-height", "64", "--resize-width", "64", "--shards", SHARDS, "--set", "cpus=2"]
        return [sys.executable, "-m", "pipelines", "convert", *map(str, options)]

    return build


@pytest.fixture(scope="module")
def undisturbed(command, tmp_path_factory):
    """The manifest of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    subprocess.run(command(out), check=True, capture_output=True)
    return (out / "manifest.json").read_text()


def visible(out: Path) -> list[str]:
    """What a reader would take for data."""
    return sorted(name for name in os.listdir(out) if not name.startswith(".")) if out.exists() else []


def lines_done(out: Path) -> int:
    done = sum(json.loads(file.read_text())["lines"] for file in (out / ".run" / "done").glob("part-*.json"))
    for file in (out / ".run" / "attempts").glob("*/progress"):
        with contextlib.suppress(OSError, ValueError):
            done += int(file.read_bytes() or b"0")
    return done


def wait_for(out: Path, lines: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while lines_done(out) < lines and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


def wait_for_a_shard(out: Path, process: subprocess.Popen) -> None:
    """Until the driver has put a first shard among the finished ones."""
    deadline = time.monotonic() + 120
    while not list((out / ".run" / "done").glob("part-*.json")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def workers(process: subprocess.Popen) -> list[psutil.Process]:
    """The processes that build shards."""
    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(process.pid).children(recursive=True)
        return [one for one in found if "MapWorker" in " ".join(_command_line(one))]
    return []


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def kill_workers(command, out: Path, *, seed: int, kills: int) -> tuple[int, int]:
    """Run the command while workers are killed at seeded moments; its exit code and how many were killed."""
    rng = random.Random(seed)
    process = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    killed = 0
    for moment in sorted(rng.uniform(0.05, 0.7) for _ in range(kills)):
        wait_for(out, int(moment * LINES), process)
        victims = workers(process)
        while not victims and process.poll() is None:  # those killed before have no successors yet
            time.sleep(0.02)
            victims = workers(process)
        if victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                rng.choice(victims).send_signal(signal.SIGKILL)
                killed += 1
    process.communicate(timeout=240)
    return process.returncode, killed


def test_killed_workers_change_nothing(command, undisturbed, tmp_path):
    code, killed = kill_workers(command, tmp_path / "out", seed=1, kills=3)
    assert code == 0
    assert killed == 3
    assert (tmp_path / "out" / "manifest.json").read_text() == undisturbed
    assert os.listdir(tmp_path / "out" / ".run") == ["log.txt"] or set(os.listdir(tmp_path / "out" / ".run")) == {
        "log.txt",
        "lock",
    }


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.soak)])
def test_a_killed_driver_goes_on_where_it_stopped(command, undisturbed, tmp_path, kind):
    out = tmp_path / "out"
    process = subprocess.Popen(command(out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_a_shard(out, process)
    process.send_signal(kind)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert visible(out) == []
    if kind == signal.SIGINT:
        assert "stopped by Ctrl-C; the same command goes on from here" in err
        assert "Traceback" not in err
    again = subprocess.run(command(out), check=True, capture_output=True, text=True)
    assert json.loads(again.stdout)["skipped_shards"] >= 1
    assert "finished already and skipped" in again.stderr
    assert (out / "manifest.json").read_text() == undisturbed
    assert open_dataset(out).count == LINES


def test_two_drivers_do_not_write_into_one_folder(command, tmp_path):
    out = tmp_path / "out"
    first = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(out, 1, first)
    first.send_signal(signal.SIGSTOP)  # so that it does not come to its end before the second looks
    try:
        second = subprocess.run(command(out), capture_output=True, text=True, timeout=240)
    finally:
        first.send_signal(signal.SIGCONT)
    assert second.returncode == 1
    assert f"another run is writing here (process {first.pid}" in second.stderr
    assert first.wait(timeout=240) == 0


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 MB: a third of what the records need."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_named_with_the_bytes_needed_and_leaves_no_half_shard(command, undisturbed, small_disk):
    out = small_disk / "out"
    full = subprocess.run(command(out), capture_output=True, text=True)
    assert full.returncode == 1
    error = full.stderr.strip().splitlines()[-1]
    assert f"{out}: no space left on the device; about" in error
    assert "bytes more are needed" in error
    assert visible(out) == []
    subprocess.run(["mount", "-o", "remount,size=200m", str(small_disk)], check=True)
    subprocess.run(command(out), check=True, capture_output=True)
    assert (out / "manifest.json").read_text() == undisturbed


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_soak_twenty_kills(command, undisturbed, tmp_path):
    for seed in range(100, 105):
        code, _ = kill_workers(command, tmp_path / "out", seed=seed, kills=5)
        assert code == 0
        assert (tmp_path / "out" / "manifest.json").read_text() == undisturbed
        shutil.rmtree(tmp_path / "out")
