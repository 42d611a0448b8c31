"""Training through Ray Train: one curve on any number of workers, and through the loss of any of them."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.stages import ray_training
from pipelines.stages.clock import ADVICE, KINDS, limit
from pipelines.stages.held import held
from pipelines.train import Train
from tests.pipelines.ray_trainings import begin, blobs, digests, distance, golden_files, once, rows, solver, train

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The golden solvers' nets and data, as the working folder."""
    golden_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", ["sgd_clip", "adam", "sgd_iter3"])
def test_golden_trajectories_are_met_on_any_number_of_workers(ray_session, folder, name, workers):
    train(solver(folder, name, "snapshot: 10"), "run", workers, weights="init_cls.caffemodel")
    expected = dict(np.load(f"traj_{name}.npz"))
    losses = [float(row["loss_last"]) for row in rows("run")]
    assert np.allclose(losses, expected["loss"], rtol=1e-4)
    for iteration in (10, 24):
        found = blobs(f"mine_{name}_iter_{iteration}.caffemodel")
        theirs = {key: expected[f"iter{iteration}/{key}"] for key in found}
        assert distance(found, theirs) < 1e-4


def test_one_two_and_three_workers_see_the_same_batches_and_make_one_curve(ray_session, folder, capsys):
    file = solver(folder, "sgd")
    for workers in (1, 2, 3):
        train(file, f"run{workers}", workers, weights="init_cls.caffemodel", shuffle=True)
        shutil.move("mine_sgd_iter_24.caffemodel", f"{workers}.caffemodel")
    assert digests("run1") == digests("run2") == digests("run3")
    assert len(set(digests("run1"))) == 24
    assert distance(blobs("2.caffemodel"), blobs("1.caffemodel")) < 1e-5
    assert distance(blobs("3.caffemodel"), blobs("1.caffemodel")) < 1e-5
    told = capsys.readouterr().err
    assert "batch 8 = 3 workers x 2 or 3\n" in told
    assert "(Caffe's -gpu 0,1,2 would take 8 on each, 24 in all" in told
    assert told.count("batch 8 = 3") == told.count("3 workers") == 1


def test_a_run_goes_on_with_another_number_of_workers(ray_session, folder):
    file = solver(folder, "nesterov", "snapshot: 9")
    train(file, "whole", 1, weights="init_cls.caffemodel")
    shutil.move("mine_nesterov_iter_24.caffemodel", "whole.caffemodel")
    for old in Path().glob("mine_nesterov_iter_*"):
        old.unlink()
    short = solver(folder, "nesterov", "snapshot: 9", **{"max_iter: 24": "max_iter: 9"})
    train(short, "parts", 2, weights="init_cls.caffemodel")
    result = train(solver(folder, "nesterov", "snapshot: 9"), "parts", 1, weights="init_cls.caffemodel", resume=True)
    assert result["from"] == 9
    assert digests("parts") == digests("whole")
    assert distance(blobs("mine_nesterov_iter_24.caffemodel"), blobs("whole.caffemodel")) < 1e-5


# -- the way of a run ------------------------------------------------------------------------------------------------


def test_ctrl_c_stops_with_a_snapshot(folder):
    file = solver(folder, "sgd", **{"max_iter: 24": "max_iter: 100000"})
    process = begin(file, "run", "--set", "cpus=2", workers=1)
    once("run", 1, lambda: process.send_signal(signal.SIGINT), ended=lambda: process.poll() is not None)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    result = json.loads(out)
    assert result["stopped"]
    assert 0 < result["iterations"] < 100000
    assert Path(f"mine_sgd_iter_{result['iterations']}.solverstate").exists()


ACCURACY = """
layer { name: "accuracy" type: "Accuracy" bottom: "ip1" bottom: "label" top: "accuracy" include { phase: TEST } }
"""
TESTED = "test_iter: 6 test_interval: 2 snapshot: 5"


@pytest.fixture
def tested(folder):
    """A solver that tests on all records; it overshoots, so that scores go up and down."""
    with (folder / "net_cls.prototxt").open("a") as file:
        file.write(ACCURACY)
    return solver(folder, "sgd", TESTED, **{"base_lr: 0.05": "base_lr: 0.4", "max_iter: 24": "max_iter: 40"})


def here(file, run, *, keep_snapshots=False, **options):
    """In this process, as one worker of one CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return Train(solver=file, run_folder=Path(run), local=True, gpu="none", **options).run()
    finally:
        torch.set_num_threads(threads)
        for old in () if keep_snapshots else Path().glob("mine_*_iter_*"):
            old.unlink()


ENDS = [pytest.param({"best": "loss"}, marks=pytest.mark.soak), {"patience": 2, "best": "loss"}]


@pytest.mark.parametrize("options", ENDS)
def test_the_best_weights_and_an_early_end_are_those_of_a_run_without_ray(ray_session, tested, options, capsys):
    alone = here(tested, "here", weights="init_cls.caffemodel", **options)
    assert ("patience" in options) == alone["stopped"] == (alone["iterations"] < 40), "the case tells nothing"
    for workers in (1, 2):
        began = time.monotonic()
        result = train(tested, f"run{workers}", workers, weights="init_cls.caffemodel", **options)
        whole = time.monotonic() - began
        for key in ("iterations", "stopped"):
            assert result[key] == alone[key]
        assert result["best"]["iteration"] == alone["best"]["iteration"]
        assert result["best"]["value"] == pytest.approx(alone["best"]["value"], rel=1e-5)
        kept, expected = (Path(run) / "best.caffemodel" for run in (f"run{workers}", "here"))
        if workers == 1:
            assert kept.read_bytes() == expected.read_bytes()
        assert distance(blobs(kept), blobs(expected)) < 1e-5
        for old in Path().glob("mine_*_iter_*"):
            old.unlink()
    the_end_says_where_the_time_went_and_what_limits(result, Train(solver=tested).render(result), whole)
    assert capsys.readouterr().err.count("started in ") == 3


def the_end_says_where_the_time_went_and_what_limits(result, page, whole):
    seconds = result["time"]
    assert min(seconds["start"], seconds["step"], seconds["test"]) > 0
    assert seconds["lost"] == 0
    assert set(seconds) == set(KINDS)
    assert min(seconds.values()) >= 0
    assert whole / 2 < sum(seconds.values()) < whole + 0.5
    assert result["limited_by"] == limit(seconds)
    [kind] = [kind for kind in KINDS if result["limited_by"].startswith(ADVICE[kind].partition("{")[0])]
    of = sum(seconds.values()) - (kind != "start") * seconds["start"]
    assert f" {100 * seconds[kind] / of:.0f} % of the time" in result["limited_by"]
    assert list(result["started"]) == ["imports", "ray_init", "fit", "set_up", "first_batch", "first_step"]
    shown = " ".join(str(cell) for column in page.columns for cell in column.cells)
    assert "start-up " in shown
    assert result["limited_by"] in shown


# -- what cannot be --------------------------------------------------------------------------------------------------


def test_more_than_there_is_is_told_at_once(ray_session, folder):
    with pytest.raises(ValueError, match=r"99 workers of 1 CPU cannot run at once: the cluster .* lower train.workers"):
        train(solver(folder, "sgd"), "run", 99)
    with pytest.raises(ValueError, match="has no GPU; --gpu none trains on CPUs"):
        train(solver(folder, "sgd"), "run", gpu="all")


def test_a_batch_smaller_than_the_workers_is_told(ray_session, folder):
    (folder / "net_cls.prototxt").write_text(
        (folder / "net_cls.prototxt").read_text().replace("batch_size: 8", "batch_size: 2")
    )
    with pytest.raises(ValueError, match="a batch of 2 for 3 workers"):
        train(solver(folder, "sgd"), "run", 3)


def test_what_a_worker_finds_wrong_is_told_in_one_line_and_not_tried_again(ray_session, folder):
    (folder / "train_list.txt").write_text("nowhere.h5\n")
    with pytest.raises(ValueError, match=r"nowhere\.h5") as error:
        train(solver(folder, "sgd"), "run", 2)
    assert "\n" not in str(error.value)


def test_a_name_that_is_used_is_refused(ray_session, folder):
    here(solver(folder, "sgd"), "run")
    with pytest.raises(FileExistsError, match="holds a run already"):
        train(solver(folder, "sgd"), "run")


def test_another_net_is_not_resumed(ray_session, folder):
    here(solver(folder, "sgd"), "run", keep_snapshots=True)
    net = folder / "net_cls.prototxt"
    net.write_text(net.read_text().replace("kernel_size: 3", "kernel_size: 5"))
    before = Path("run/metrics.csv").read_bytes()
    with pytest.raises(ValueError, match=r"was made with another net .*kernel_size: 3 then, kernel_size: 5 now"):
        train(solver(folder, "sgd"), "run", resume=True)
    assert Path("run/metrics.csv").read_bytes() == before


def test_a_folder_where_somebody_trains_is_refused(folder, monkeypatch):
    monkeypatch.setattr(ray_training, "LEAVE_SECONDS", 0.1)
    with (
        held(Path("run/.lock")),
        pytest.raises(ValueError, match=r"run: another run is writing here \(process \d+ on"),
    ):
        train(solver(folder, "sgd"), "run")
    assert not Path("run").exists()


def test_cpus_that_others_use_are_not_waited_for_without_end(ray_session, folder, monkeypatch):
    import ray

    class Busy:
        def ready(self):
            return True

    monkeypatch.setattr(ray_training, "ROOM_SECONDS", 0.5)
    other = ray.remote(num_cpus=3)(Busy).remote()
    assert ray.get(other.ready.remote())
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != 1 and time.monotonic() < deadline:  # Ray counts now and then
        time.sleep(0.1)
    try:
        told = (
            r"2 workers of 1 CPU cannot run now: 1 of 4 CPUs are free, .*; wait for it to end, or lower train.workers"
        )
        with pytest.raises(ValueError, match=told):
            train(solver(folder, "sgd"), "run", 2)
        assert not Path("run/.run").exists()
    finally:
        ray.kill(other)


def test_caffe_s_rule_gives_each_worker_a_batch_of_its_own(ray_session, folder, capsys):
    train(solver(folder, "sgd", **{"max_iter: 24": "max_iter: 1"}), "run", 2, set=("train.batch=per_worker",))
    assert "batch 16 = 2 workers x 8 (train.batch: per_worker, as Caffe's -gpu 0,1)\n" in capsys.readouterr().err
    assert rows("run")[0]["images"] == "16"
