"""Kill a training at any moment, run the same command again: the same weights come out. Signals are answered."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipelines.trainings import (
    CONV,
    LOSS,
    RELU,
    Case,
    assert_same,
    data_files,
    environment,
    hdf5_layer,
    ip,
    net,
    numbers_of,
    rows,
    run,
)

pytestmark = pytest.mark.slow

LAST = 3000  # iterations
EVERY = 100  # iterations between snapshots
WIDE = """layer { name: "wide" type: "InnerProduct" bottom: "conv" top: "wide"
  inner_product_param { num_output: 1500 weight_filler { type: "xavier" } } }
layer { name: "drop" type: "Dropout" bottom: "wide" top: "wide" }"""
# Snapshots of 2 MB, so that a good part of the time one is being written.
CASE = Case(
    net(hdf5_layer(7, "shuffle: true"), CONV, RELU, WIDE, ip("wide"), LOSS),
    'base_lr: 0.01 lr_policy: "step" gamma: 0.5 stepsize: 700 momentum: 0.9 random_seed: 3',
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("killed")
    data_files(made)
    return made


@pytest.fixture(scope="module")
def undisturbed(folder):
    """The weights and the table of a run that nothing happened to."""
    before = Path.cwd()
    os.chdir(folder)
    run(CASE.write(folder, max_iter=LAST, snapshot=EVERY), "undisturbed")
    os.chdir(before)
    return numbers_of(folder / "undisturbed", LAST), rows(folder / "undisturbed")


def begin(folder: Path, name: str, *options: str, **changes: object) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    CASE.write(folder, **{"max_iter": LAST, "snapshot": EVERY, **changes})
    command = [sys.executable, "-m", "pipelines", "train", "--solver", "solver.prototxt", "--run", name, "--local"]
    command += ["--gpu", "none", "--json", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=folder, env=environment(), text=True, **pipes)


def reached(folder: Path, name: str) -> int:
    """The iteration of the newest snapshot."""
    found = [int(file.stem.rpartition("_")[2]) for file in (folder / name).glob("solver_iter_*.json")]
    return max(found, default=0)


def wait_for(folder: Path, name: str, iteration: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while reached(folder, name) < iteration and process.poll() is None:
        assert time.monotonic() < deadline, f"the run has come to {reached(folder, name)} only"
        time.sleep(0.005)


def being_written(folder: Path) -> bool:
    return any(file.startswith(".tmp-") for file in os.listdir(folder))


def kill_while_writing(folder: Path, name: str, process: subprocess.Popen[str], delay: float) -> None:
    """SIGKILL `delay` seconds after the temporary files of a snapshot appear, or sooner where it is written by then:
    the process is stopped first, so that what is found half written stays so."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if not being_written(folder / name):
            continue
        time.sleep(delay)
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        if being_written(folder / name):
            process.kill()
            process.communicate()
            return
        process.send_signal(signal.SIGCONT)
        delay = 0.0
    raise AssertionError("no snapshot was written")


def killed(folder: Path, name: str, *, seed: int, kills: int) -> None:
    """Kill the command at seeded moments, every other time while a snapshot is written, each time begun again."""
    rng = random.Random(seed)
    for number in range(kills):
        process = begin(folder, name, "--resume")
        wait_for(folder, name, reached(folder, name) + EVERY * rng.randint(1, 4), process)
        assert process.poll() is None, process.communicate()
        if number % 2:
            time.sleep(rng.uniform(0, 0.3))
            process.kill()
            process.communicate()
        else:
            kill_while_writing(folder, name, process, rng.uniform(0, 0.003) if number else 0.0)


def finish(folder: Path, name: str) -> dict[str, object]:
    process = begin(folder, name, "--resume")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out)


def assert_undisturbed(folder: Path, name: str, undisturbed) -> None:
    weights, table = undisturbed
    assert_same(numbers_of(folder / name, LAST), weights)
    assert rows(folder / name) == table
    left = [file for file in os.listdir(folder / name) if file.startswith(".tmp-") or file == ".lock"]
    assert left == []


def test_a_killed_training_goes_on_and_ends_with_the_same_weights(folder, undisturbed):
    killed(folder, "killed", seed=1, kills=3)
    told = finish(folder, "killed")
    assert told["from"] >= EVERY
    assert_undisturbed(folder, "killed", undisturbed)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_soak_twenty_kills(folder, undisturbed):
    for seed in range(100, 104):
        name = f"soak-{seed}"
        killed(folder, name, seed=seed, kills=6)
        finish(folder, name)
        assert_undisturbed(folder, name, undisturbed)


def odd(folder: Path) -> list[int]:
    """Iterations of snapshots that no solver asked for."""
    found = (int(file.stem.rpartition("_")[2]) for file in folder.glob("solver_iter_*.json"))
    return [iteration for iteration in found if iteration % EVERY]


def test_ctrl_c_stops_with_a_snapshot_and_sighup_takes_one_on_the_way(folder, undisturbed):
    process = begin(folder, "signals")
    wait_for(folder, "signals", EVERY, process)
    while not odd(folder / "signals") and process.poll() is None:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    time.sleep(0.002)
    process.send_signal(signal.SIGINT)  # a shell and a launcher may both pass it on
    out, err = process.communicate(timeout=120)
    told = json.loads(out)
    assert (process.returncode, told["stopped"]) == (0, True)
    assert "stopping after this iteration, with a snapshot" in err
    assert "Traceback" not in err
    made = sorted(int(file.stem.rpartition("_")[2]) for file in (folder / "signals").glob("solver_iter_*.json"))
    assert made[-1] == told["iterations"] < LAST
    assert any(one % EVERY for one in made[:-1])  # SIGHUP's
    assert len(rows(folder / "signals")) == told["iterations"]
    log = (folder / "signals" / "train.log").read_text()
    assert "Optimization stopped early." in log
    assert finish(folder, "signals")["from"] == told["iterations"]
    assert_undisturbed(folder, "signals", undisturbed)


@pytest.mark.parametrize("effect", ["snapshot", "none"])
def test_what_ctrl_c_does_can_be_chosen(folder, effect):
    process = begin(folder, f"sigint-{effect}", "--sigint-effect", effect, max_iter=1500)
    wait_for(folder, f"sigint-{effect}", EVERY, process)
    for _ in range(3):  # one of them may meet a snapshot of the solver's
        process.send_signal(signal.SIGINT)
        time.sleep(0.03)
    out, _ = process.communicate(timeout=120)
    told = json.loads(out)
    assert (process.returncode, told["stopped"], told["iterations"]) == (0, False, 1500)
    assert bool(odd(folder / f"sigint-{effect}")) == (effect == "snapshot")


def test_two_trainings_do_not_write_into_one_folder(folder):
    first = begin(folder, "twice", max_iter=1_000_000)
    wait_for(folder, "twice", EVERY, first)
    second = begin(folder, "twice", "--resume", max_iter=1_000_000)
    _, err = second.communicate(timeout=120)
    assert second.returncode == 1
    assert f"twice: another run is writing here (process {first.pid} on" in err.splitlines()[-1]
    assert first.poll() is None
    first.send_signal(signal.SIGINT)
    assert first.wait(timeout=120) == 0
