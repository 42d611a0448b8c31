"""What `cortado train` can be asked for beyond Caffe: debug lines, the best weights, an early end, softer targets."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from ops import net as nets
from ops import weights
from pipelines.__main__ import main

SOLVERS = Path(__file__).resolve().parents[1] / "golden/solvers"
CLASSES, BATCH, RECORDS = 5, 8, 48
NET = """
name: "tiny"
layer { name: "data" type: "HDF5Data" top: "data" top: "label" hdf5_data_param { source: "list.txt" batch_size: 8 } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
        convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "ip1" type: "InnerProduct" bottom: "conv1" top: "ip1"
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "ip1" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip1" bottom: "label" top: "loss" }
"""
SOLVER = 'net: "net.prototxt" lr_policy: "fixed" momentum: 0.9 random_seed: 3 solver_mode: CPU'


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder with the data and the net; small nets are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text(f"{SOLVERS / 'train.h5'}\n")
    (tmp_path / "net.prototxt").write_text(NET)
    yield tmp_path
    torch.set_num_threads(threads)


def write(more="", net=NET, *, lr=0.05, last=12, every=0):
    """The net and its solver, with a test of all records `every` so many iterations."""
    Path("net.prototxt").write_text(net)
    tested = f"test_iter: 6 test_interval: {every}" if every else ""
    Path("solver.prototxt").write_text(f"{SOLVER} base_lr: {lr} max_iter: {last} {tested} {more}")


def train(capsys, run, *options):
    """The result as JSON, and stderr."""
    arguments = ["--solver", "solver.prototxt", "--run", run, "--local", "--gpu", "none", "--json"]
    code = main(["train", *arguments, *map(str, options)])
    told = capsys.readouterr()
    assert code == 0, told.err
    return json.loads(told.out), told.err


def fails(capsys, *options, code=1):
    assert main(["train", "--solver", "solver.prototxt", "--run", "bad", "--local", "--gpu", "none", *options]) == code
    return capsys.readouterr().err.splitlines()[-1]


def column(run, name, table="metrics.csv", **where):
    with open(f"{run}/{table}") as file:
        rows = [row for row in csv.DictReader(file) if all(row[key] == str(value) for key, value in where.items())]
    return [float(row[name]) for row in rows]


def arrays(model):
    with weights.read(model) as saved:
        return {f"{one.name}/{i}": blob.values() for one in saved.layers for i, blob in one.blobs.items()}


def same(first, second):
    one, other = arrays(first), arrays(second)
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


# -- debug_info ------------------------------------------------------------------------------------------------------


def test_debug_lines_come_on_display_iterations_and_in_every_batch_of_a_test(capsys):
    write("display: 4 debug_info: true iter_size: 2", every=6)
    train(capsys, "watched")
    lines = [line.partition("] ")[2] for line in Path("watched/train.log").read_text().splitlines()]
    data = "    [Forward] Layer data, top blob data data: "
    passes, tests = 3 * 2, 3 * 6  # iterations 0, 4 and 8, of two passes; tests at 0, 6 and 12, of six batches
    assert sum(line.startswith(data) for line in lines) == passes + tests
    assert sum("[Backward] All net params" in line for line in lines) == passes
    assert sum("[Debug] Layer relu1, dead units" in line for line in lines) == passes + tests
    first = next(i for i, line in enumerate(lines) if line.startswith("Iteration 0 ("))
    assert "[Debug] Layer ip1, gradient norm" in lines[first - 1]


def test_debug_lines_change_no_number_of_the_training(capsys):
    write("display: 1", every=2)
    train(capsys, "plain")
    write("display: 1 debug_info: true", every=2)
    train(capsys, "watched")
    for name in ("loss", "lr", "images"):
        assert column("plain", name) == column("watched", name)
    assert column("plain", "value", "test.csv") == column("watched", "value", "test.csv")
    assert same("plain/solver_iter_12.caffemodel", "watched/solver_iter_12.caffemodel")


def test_debug_lines_and_compiled_nets_do_not_go_together(capsys):
    write("debug_info: true")
    assert fails(capsys, "--compile").endswith("debug_info looks at each layer by itself: leave --compile out")


# -- the best weights, an early end ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "output", "pick"), [("loss", "loss", np.argmin), ("accuracy", "accuracy", np.argmax)]
)
def test_the_best_weights_are_those_of_the_test_that_was_best(capsys, wanted, output, pick):
    write("snapshot: 2", lr=0.8, every=2)  # a rate at which the loss goes up and down
    result, said = train(capsys, "run", "--best", wanted)
    scores = column("run", "value", "test.csv", output=output)
    best = 2 * int(pick(scores))
    assert 0 < best < 12, "the case tells nothing"
    assert same("run/best.caffemodel", f"run/solver_iter_{best}.caffemodel")
    expected = {"weights": "best.caffemodel", "iteration": best, "net": 0, "output": output}
    for found in (
        result["best"],
        *(json.loads(Path(f"run/{name}.json").read_text())["best"] for name in ("run", "model")),
    ):
        assert found == {**expected, "value": pytest.approx(scores[best // 2], rel=1e-6)}
    running = (np.minimum if pick is np.argmin else np.maximum).accumulate(scores)
    assert said.count(", the best so far\n") == len(set(running.tolist()))
    assert not result["stopped"]


def test_without_the_switch_no_best_weights_are_kept(capsys):
    write(every=2)
    result, _ = train(capsys, "run")
    assert result["best"] is None
    assert not Path("run/best.caffemodel").exists()


def test_training_ends_when_a_score_has_not_got_better_for_long(capsys):
    write("display: 1", lr=0, every=2)
    result, _ = train(capsys, "run", "--patience", 3)
    assert (result["iterations"], result["stopped"]) == (6, True)  # tests at 0, 2, 4 and 6
    assert re.fullmatch(r"accuracy has not got better in 3 tests: 0\.\d+ at iteration 0", result["enough"])
    log = Path("run/train.log").read_text()
    assert f"] Stopping: {result['enough']}\n" in log
    assert "] Optimization stopped early.\n" in log
    assert Path("run/solver_iter_6.caffemodel").exists()
    assert same("run/best.caffemodel", "run/solver_iter_6.caffemodel")


def test_a_person_reads_why_it_stopped(capsys):
    write(lr=0, every=2)
    assert (
        main(["train", "--solver", "solver.prototxt", "--run", "r", "--local", "--gpu", "none", "--patience", "1"]) == 0
    )
    page = capsys.readouterr().out
    assert re.search(r"stopped +accuracy has not got better in 1 test: 0\.\d+ at iteration 0", page)
    assert re.search(r"best +accuracy 0\.\d+ at iteration 0, kept as best\.caffemodel", page)


def test_patience_that_lasts_to_the_end_is_no_early_end(capsys):
    write(lr=0, every=2)
    result, _ = train(capsys, "run", "--patience", 6)
    assert (result["iterations"], result["stopped"], result["enough"]) == (12, False, None)


@pytest.mark.parametrize("cut", [2, 5])
def test_a_resumed_training_is_as_patient_as_one_that_was_not_stopped(capsys, cut):
    watched = ("--patience", 2, "--best", "loss")
    write(lr=0.6, every=2)
    whole, _ = train(capsys, "whole", *watched)
    assert 4 < whole["iterations"] < 12, "the case tells nothing"
    write(lr=0.6, every=2, last=cut)
    train(capsys, "parts", *watched)
    write(lr=0.6, every=2)
    parts, _ = train(capsys, "parts", *watched, "--resume")
    for key in ("iterations", "stopped", "enough", "best"):
        assert parts[key] == whole[key]
    assert same("parts/best.caffemodel", "whole/best.caffemodel")
    again, _ = train(capsys, "parts", *watched, "--resume")
    assert (again["iterations"], again["enough"]) == (whole["iterations"], whole["enough"])


def test_best_weights_from_after_the_snapshot_that_a_run_goes_on_from_are_found_again(capsys):
    write("snapshot: 6", lr=0.8, every=2)
    whole, _ = train(capsys, "run", "--best", "loss")
    assert whole["best"]["iteration"] == 8, "the case tells nothing"
    shutil.copy("run/best.caffemodel", "expected.caffemodel")
    for file in Path("run").glob("solver_iter_12.*"):  # as if it had been killed before
        file.unlink()
    again, _ = train(capsys, "run", "--best", "loss", "--resume")
    assert again["from"] == 6
    assert again["best"] == whole["best"]
    assert same("run/best.caffemodel", "expected.caffemodel")


def test_hdf5_snapshots_have_hdf5_for_the_best(capsys):
    write("snapshot_format: HDF5", every=2)
    result, _ = train(capsys, "run", "--best", "loss")
    assert h5py.is_hdf5(f"run/{result['best']['weights']}")
    assert result["best"]["weights"] == "best.caffemodel.h5"


@pytest.mark.parametrize(
    ("options", "every", "told"),
    [
        (["--patience", "2"], 0, "--patience: there is no test net to watch a score of: give the solver test_iter"),
        (
            ["--best", "acuracy"],
            2,
            "--best acuracy: no test net has an output 'acuracy'; did you mean 'accuracy'?",
        ),
        (["--best", "loss:low"], 2, "--best loss:low: 'low' is no direction; write loss:max or loss:min"),
    ],
)
def test_scores_that_cannot_be_watched_are_told(capsys, options, every, told):
    write(every=every)
    assert told in fails(capsys, *options)


# -- softer targets --------------------------------------------------------------------------------------------------


def first_scores():
    """Scores and labels of the first batch, with the weights that training begins with."""
    with h5py.File(SOLVERS / "train.h5") as file:
        data, labels = file["data"][:], file["label"][:].ravel().astype(int)
    net = nets.load("net.prototxt", "TRAIN", seed=3)
    with torch.no_grad():
        scores = net(data=data[:BATCH], label=labels[:BATCH].astype(np.float32))["ip1"]
    return scores, torch.from_numpy(labels[:BATCH]), labels


def test_smoothed_labels_are_trained_with_and_not_tested_with(capsys):
    write(every=2)
    scores, labels, _ = first_scores()
    train(capsys, "plain")
    _, said = train(capsys, "smooth", "--label-smoothing", 0.2)
    expected = F.cross_entropy(scores, labels, label_smoothing=0.2).item()
    assert column("smooth", "loss")[0] == pytest.approx(expected, rel=1e-6)
    assert column("plain", "loss")[0] == pytest.approx(F.cross_entropy(scores, labels).item(), rel=1e-6)
    assert column("plain", "value", "test.csv", iteration=0) == column("smooth", "value", "test.csv", iteration=0)
    assert "batch 8, label smoothing 0.2" in said


def test_class_weights_from_a_file(capsys):
    Path("weights.txt").write_text("1\n2\n0.5\n4\n1\n")
    write()
    scores, labels, _ = first_scores()
    train(capsys, "run", "--class-weights", "weights.txt")
    expected = F.cross_entropy(scores, labels, torch.tensor([1, 2, 0.5, 4, 1])).item()
    assert column("run", "loss")[0] == pytest.approx(expected, rel=1e-6)


def test_balanced_class_weights_count_all_records(capsys):
    write()
    scores, labels, every = first_scores()
    _, said = train(capsys, "run", "--class-weights", "balanced")
    heavy = RECORDS / (CLASSES * np.bincount(every, minlength=CLASSES))
    expected = F.cross_entropy(scores, labels, torch.tensor(heavy, dtype=torch.float32)).item()
    assert column("run", "loss")[0] == pytest.approx(expected, rel=1e-6)
    assert f"class weights of loss: {heavy.min():.3g} to {heavy.max():.3g}" in said


@pytest.mark.parametrize(
    ("options", "told", "code"),
    [
        (["--label-smoothing", "1"], "--label-smoothing 1: expected a share from 0 to below 1", 2),
        (["--balance", "--class-weights", "balanced"], "even out the classes twice; give one of them", 2),
        (["--patience", "0"], "--patience 0: expected 1 test or more", 2),
        (["--class-weights", "weights.txt"], "--class-weights weights.txt: there is neither", 1),
    ],
)
def test_options_that_make_no_sense_are_told(capsys, options, told, code):
    write()
    assert told in fails(capsys, *options, code=code)


# -- what it begins with ---------------------------------------------------------------------------------------------


def test_fine_tuning_lists_what_was_copied_skipped_and_left_fresh(capsys):
    write()
    train(capsys, "first")
    write("iter_size: 3", NET.replace('"ip1"', '"ip1_new"'))
    _, said = train(capsys, "tuned", "--weights", "first/solver_iter_12.caffemodel")
    lines = said.splitlines()
    assert lines[:3] == [
        "copied from first/solver_iter_12.caffemodel: conv1 (1 layer)",
        "skipped, not in this net: ip1 (1 layer)",
        "left fresh, in no file: ip1_new (1 layer)",
    ]
    assert lines[3:5] == [
        "tiny: 801 weights to learn in 2 layers, fp32 (strict), on the CPU with 1 thread",
        "batch 8, iter_size 3",
    ]
    log = Path("tuned/train.log").read_text()
    assert "caffe.cpp:1] Finetuning from first/solver_iter_12.caffemodel\n" in log
    assert "net.cpp:1] Ignoring source layer ip1\n" in log


def test_a_resumed_run_says_where_it_goes_on(capsys):
    write(last=3)
    train(capsys, "run")
    write()
    _, said = train(capsys, "run", "--resume")
    assert said.splitlines()[0] == "going on from run/solver_iter_3.solverstate"


# -- several processes -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_watch_and_weigh_the_whole_batch(capsys):
    write("display: 6 debug_info: true iter_size: 2", every=2)
    options = ["--label-smoothing", "0.1", "--class-weights", "balanced", "--patience", "50", "--best", "loss"]
    train(capsys, "one", *options)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "pipelines.worker", "--solver", "solver.prototxt", "--folder", "two", *options]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(nets.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250, env=settings)
    assert done.returncode == 0, done.stderr[-3000:]
    assert column("two", "loss") == pytest.approx(column("one", "loss"), rel=1e-5)
    found, expected = (
        [
            line.partition("] ")[2]
            for line in Path(f"{run}/train.log").read_text().splitlines()
            if "ward]" in line or "[Debug]" in line
        ]
        for run in ("two", "one")
    )
    numbers = re.compile(r"-?\d+\.?\d*(?:e[+-]\d+)?(?=$|[,)])")
    assert [numbers.sub("", line) for line in found] == [numbers.sub("", line) for line in expected]
    for mine, theirs in zip(found, expected, strict=True):
        pair = [list(map(float, numbers.findall(line))) for line in (mine, theirs)]
        assert pair[0] == pytest.approx(pair[1], rel=1e-4, abs=1e-7), mine
    best = [json.loads(Path(f"{run}/run.json").read_text())["best"] for run in ("one", "two")]
    assert best[0]["iteration"] == best[1]["iteration"]
    assert best[0]["value"] == pytest.approx(best[1]["value"], rel=1e-5)
