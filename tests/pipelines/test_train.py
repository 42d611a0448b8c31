"""`cortado train` walks along Caffe's own trajectories, and leaves a folder that tells everything of the run."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from ops import net as nets
from ops.proto import text
from ops.proto.caffe_pb2 import NetParameter, SolverParameter
from pipelines.stages.clock import ADVICE, KINDS
from pipelines.train import Train
from tests.ops.solver import golden as runs
from tests.pipelines.trainings import (
    CONV,
    LAST,
    LOSS,
    RELU,
    SOLVERS,
    Case,
    arrays,
    assert_same,
    data_files,
    hdf5_layer,
    ip,
    net,
    numbers_of,
    rows,
    run,
    solver,
)

QUICK = ("sgd", "sgd_iter3", "adam")  # the others take a second each, too
EACH = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in runs.RUNS]
ACCURACY = 'layer { name: "acc" type: "Accuracy" bottom: "ip" bottom: "label" top: "acc" }'
TESTED = 'test_net: "test.prototxt" test_iter: 2 test_interval: 5'


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def golden_folder(tmp_path, monkeypatch):
    """The golden solvers, nets and data, without the snapshots, as the working folder."""
    folder = tmp_path / "solvers"
    shutil.copytree(SOLVERS, folder, ignore=shutil.ignore_patterns("snap_*", "traj_*"))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    data_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test.prototxt").write_text(net(hdf5_layer(), CONV, RELU, ip("conv"), ACCURACY, LOSS))
    return tmp_path


def trained(path: Path, **options) -> dict[str, object]:
    return Train(solver=path, local=True, gpu="none", **options).run()


def log_lines(run: Path) -> list[str]:
    return [line.partition("] ")[2] for line in (run / "train.log").read_text().splitlines()]


# -- Caffe's trajectories --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EACH)
def test_the_golden_trajectory_is_met(name, golden_folder):
    """Losses of all 24 iterations and the weights after 1, 10 and 24."""
    losses, after = runs.trajectory(name)
    spec = text.read(golden_folder / f"solver_{name}.prototxt", SolverParameter)
    spec.snapshot = 1
    text.write(golden_folder / "mine.prototxt", spec)
    kind = "reg" if "reg" in spec.net else "cls"
    trained(Path("mine.prototxt"), run_folder=Path("run"), weights=f"init_{kind}.caffemodel")
    found = rows(golden_folder / "run")
    assert [int(row[0]) for row in found] == list(range(24))
    assert np.array([float(row[2]) for row in found]) == pytest.approx(losses, rel=1e-5)
    for iteration, weights in after.items():
        file = golden_folder / f"snap_{name}_iter_{iteration}.caffemodel"
        for blob, value in arrays(file).items():
            assert runs.error(value, weights[blob]) < 1e-5, (iteration, blob)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_what_caffe_reads_holds_what_it_needs(name, golden_folder):
    """The definition with every blob, and history in net order, as in Caffe's own files."""
    trained(Path(f"solver_{name}.prototxt"), run_folder=Path("run"), weights="init_cls.caffemodel")
    mine = numbers_of(golden_folder, 24, f"snap_{name}")
    theirs = numbers_of(SOLVERS, 10, f"snap_{name}")
    assert {key: np.shape(value) for key, value in mine.items()} == {
        key: np.shape(value) for key, value in theirs.items()
    }
    definition = NetParameter.FromString((golden_folder / f"snap_{name}_iter_24.caffemodel").read_bytes())
    caffe = NetParameter.FromString((SOLVERS / f"snap_{name}_iter_10.caffemodel").read_bytes())
    assert [(layer.name, layer.type) for layer in definition.layer] == [
        (layer.name, layer.type) for layer in caffe.layer if layer.type != "Split"
    ]


# -- the run's folder ------------------------------------------------------------------------------------------------


def test_the_folder_holds_log_tables_nets_and_snapshots(folder):
    told = run(Case(solver=solver(f"{TESTED} display: 4 snapshot: 6")).write(folder), "runs/mine")
    held = folder / "runs" / "mine"
    snapshots = {f"solver_iter_{n}.{e}" for n in (6, 12, LAST) for e in ("caffemodel", "solverstate", "json")}
    files = {"train.log", "metrics.csv", "test.csv", "run.json", "model.json"}
    files |= {"solver.prototxt", "train.prototxt", "test.prototxt", "deploy.prototxt"}
    found = {file.name for file in held.iterdir() if not file.name.startswith("events.")}
    assert found == snapshots | files
    assert [Path(name).name for name in told["snapshots"]] == [
        f"solver_iter_{n}.{e}" for n in (6, 12, LAST) for e in ("solverstate", "caffemodel")
    ]
    assert told["iterations"] == LAST
    noted = json.loads((held / "run.json").read_text())
    assert noted["options"]["solver"] == str(folder / "solver.prototxt")
    assert noted["digests"] == json.loads((held / "solver_iter_6.json").read_text())["record"]["digests"]
    assert nets.load(held / "train.prototxt", "TRAIN", inputs={"data": (1, 2, 8, 8)}).name
    assert text.read(held / "deploy.prototxt", NetParameter).layer[0].type == "Input"
    assert text.read(held / "solver.prototxt", SolverParameter).base_lr == pytest.approx(0.05)


def test_a_run_of_its_own_name_lies_in_runs(folder):
    Case().write(folder, max_iter=1)
    assert trained(Path("solver.prototxt"))["run"] == "runs/solver"
    assert (folder / "runs" / "solver" / "solver_iter_1.caffemodel").exists()


def test_metrics_have_a_row_an_iteration_whatever_display_says(folder):
    case = Case(solver=solver("iter_size: 3 average_loss: 4 display: 5"))
    run(case.write(folder), "run")
    with (folder / "run" / "metrics.csv").open() as file:
        table = list(csv.DictReader(file))
    columns = ["iteration", "loss", "loss_last", "lr", "seconds", "images", "data_wait", "batch_digest"]
    assert list(table[0]) == columns
    assert [int(row["iteration"]) for row in table] == list(range(LAST))
    assert {row["images"] for row in table} == {"24"}
    seconds = [float(row["seconds"]) for row in table]
    assert seconds == sorted(seconds)
    assert all(0 <= float(row["data_wait"]) <= max(seconds) for row in table)
    assert all(re.fullmatch("[0-9a-f]{16}", row["batch_digest"]) for row in table)
    assert table[0]["batch_digest"] == table[2]["batch_digest"]  # 3 batches of 8 are half of the 48 records
    assert table[0]["batch_digest"] != table[1]["batch_digest"]
    assert len({row["batch_digest"] for row in table}) == 2
    shown = [
        float(line.rpartition("= ")[2]) for line in log_lines(folder / "run") if re.match(r"Iteration \d+ \(", line)
    ]
    losses = [float(row["loss"]) for row in table]  # before smoothing
    assert shown == pytest.approx([np.mean(losses[max(0, i - 3) : i + 1]) for i in (0, 5, 10)], rel=1e-5)
    last = [float(line.split()[6]) for line in log_lines(folder / "run") if "Train net output" in line]
    assert last == pytest.approx([float(table[i]["loss_last"]) for i in (0, 5, 10)], rel=1e-5)


def test_the_log_has_caffe_s_lines_in_caffe_s_order(folder):
    run(
        Case(solver=solver(f"{TESTED} display: 10 snapshot: 10 test_compute_loss: true")).write(folder, max_iter=10),
        "run",
    )
    number = r"[\d.e+-]+"
    patterns = [
        "Starting Optimization",
        "Solving tiny",
        "Learning Rate Policy: fixed",
        r"Iteration 0, Testing net \(#0\)",
        f"Test loss: {number}",
        f"    Test net output #0: acc = {number}",
        rf"    Test net output #1: loss = {number} \(\* 1 = {number} loss\)",
        rf"Iteration 0 \({number} iter/s, {number}s/1 iters\), loss = {number}",
        rf"    Train net output #0: loss = {number} \(\* 1 = {number} loss\)",
        "Iteration 0, lr = 0.05",
        r"Iteration 5, Testing net \(#0\)",
        f"Test loss: {number}",
        f"    Test net output #0: acc = {number}",
        rf"    Test net output #1: loss = {number} \(\* 1 = {number} loss\)",
        r"Snapshotting to binary proto file run/solver_iter_10\.caffemodel",
        r"Snapshotting solver state to binary proto file run/solver_iter_10\.solverstate",
        f"Iteration 10, loss = {number}",
        r"Iteration 10, Testing net \(#0\)",
        f"Test loss: {number}",
        f"    Test net output #0: acc = {number}",
        rf"    Test net output #1: loss = {number} \(\* 1 = {number} loss\)",
        "Optimization Done.",
        "Optimization Done.",
    ]
    lines = log_lines(folder / "run")
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), (line, pattern)
    first = (folder / "run" / "train.log").read_text().splitlines()[0]
    assert re.match(r"I\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ \w+\.cpp:\d+\] ", first)


def test_the_log_s_speed_is_the_iterations_since_the_line_before_by_their_seconds(folder):
    """The first line's too, also where a run goes on between two lines."""
    path = Case(solver=solver("display: 4")).write(folder, max_iter=10)
    run(path, "run", stop=6)
    run(path, "run", resume=True)
    found = [re.search(r"\((\S+) iter/s, (\S+)s/(\d+) iters\)", line) for line in log_lines(folder / "run")]
    told = [(float(one[1]), float(one[2]), int(one[3])) for one in found if one]
    assert [every for *_, every in told] == [1, 4, 3]
    for rate, seconds, every in told:
        assert rate * seconds == pytest.approx(every, rel=1e-4)


def test_a_run_that_goes_on_says_what_it_does_again(folder, capsys):
    path = Case(solver=solver("snapshot: 4")).write(folder)
    run(path, "run", stop=7)
    for file in (folder / "run").glob("solver_iter_7.*"):  # as if it had been killed there
        file.unlink()
    Train(solver=path, run_folder=Path("run"), local=True, gpu="none", resume=True).run()
    told = capsys.readouterr().err
    assert re.search(
        r"going on from run/solver_iter_4\.solverstate\niterations 4 to 6 are done again: [\d.]+ s of ", told
    )


def test_the_result_says_where_the_time_went_and_what_limits(folder, capsys):
    result = trained(Case(solver=solver(TESTED)).write(folder), run_folder=folder / "run")
    seconds = result["time"]
    assert list(seconds) == list(KINDS)
    assert all(value >= 0 for value in seconds.values())
    assert seconds["step"] > 0 < seconds["test"]
    assert seconds["lost"] == 0
    assert result["limited_by"].split(":")[0] in [advice.split(":")[0] for advice in ADVICE.values()]
    assert set(result["started"]) == {"imports", "set_up", "first_batch", "first_step"}
    assert re.search(r"^started in [\d.]+ s: imports [\d.]+ s, net and data ", capsys.readouterr().err, re.MULTILINE)


def test_clipped_gradients_are_told(folder):
    run(Case(solver=solver("clip_gradients: 0.1")).write(folder, max_iter=1), "run")
    (line,) = [line for line in log_lines(folder / "run") if "clipping" in line]
    found = re.fullmatch(
        r"Gradient clipping: scaling down gradients \(L2 norm ([\d.]+) > 0\.1\) by scale factor ([\d.e-]+)", line
    )
    assert float(found[2]) == pytest.approx(0.1 / float(found[1]), rel=1e-4)


def test_test_csv_has_a_row_an_output_of_each_test(folder):
    told = run(Case(solver=solver(TESTED)).write(folder), "run")
    table = rows(folder / "run", "test.csv")
    assert [row[:3] for row in table] == [(str(n), "0", name) for n in (0, 5, 10) for name in ("acc", "loss")]
    (last,) = told["tests"]
    assert last["iteration"] == 10
    assert float(table[-1][3]) == pytest.approx(last["loss"][0], rel=1e-8)
    again = run(Case(solver=solver(f"{TESTED} test_initialization: false")).write(folder), "again")
    assert [row[0] for row in rows(folder / "again", "test.csv")] == ["5", "5", "10", "10"]
    assert again["loss"] == told["loss"]  # tests change nothing


def test_snapshot_after_train_can_be_switched_off(folder):
    run(Case().write(folder, snapshot=5, snapshot_after_train=False), "run")
    assert sorted(file.name for file in (folder / "run").glob("*.caffemodel")) == [
        "solver_iter_10.caffemodel",
        "solver_iter_5.caffemodel",
    ]


def test_snapshots_lie_where_the_solver_says_and_are_linked_in_the_folder(folder):
    (folder / "elsewhere").mkdir()
    run(Case().write(folder, snapshot_prefix="elsewhere/snap", snapshot=5), "run", keep=2)
    linked = {file.name: file.resolve() for file in (folder / "run").iterdir() if file.is_symlink()}
    assert sorted(linked) == [f"snap_iter_{n}.{e}" for n in (10, LAST) for e in ("caffemodel", "solverstate")]
    assert all(file.parent == folder / "elsewhere" and file.exists() for file in linked.values())
    assert not list(folder.glob("elsewhere/.*"))  # no lock stays


def test_an_hdf5_snapshot_holds_the_same_numbers(folder):
    run(Case().write(folder), "binary")
    run(Case().write(folder, snapshot_format=SolverParameter.HDF5), "hdf5")
    assert_same(numbers_of(folder / "hdf5", LAST, ending=".h5"), numbers_of(folder / "binary", LAST))
    assert "Snapshotting to HDF5 file hdf5/solver_iter_13.caffemodel.h5" in log_lines(folder / "hdf5")


# -- what decides, and what does not ---------------------------------------------------------------------------------


def test_two_runs_of_one_solver_are_one(folder):
    case = Case(options={"feed": {"shuffle": True}})
    run(case.write(folder), "one", **case.options)
    run(case.write(folder), "other", **case.options)
    assert_same(numbers_of(folder / "other", LAST), numbers_of(folder / "one", LAST))
    assert rows(folder / "other") == rows(folder / "one")


def test_another_seed_gives_other_weights_and_another_order(folder):
    case = Case(options={"feed": {"shuffle": True}})
    run(case.write(folder), "one", **case.options)
    run(case.write(folder, random_seed=4), "other", **case.options)
    assert not {row[-1] for row in rows(folder / "one")} & {row[-1] for row in rows(folder / "other")}
    assert rows(folder / "one")[0][1] != rows(folder / "other")[0][1]


def test_the_command_line_s_switches_reach_the_feed(folder):
    Case().write(folder)
    trained(Path("solver.prototxt"), run_folder=Path("plain"))
    trained(Path("solver.prototxt"), run_folder=Path("shuffled"), shuffle=True)
    run(Path("solver.prototxt"), "same", feed={"shuffle": True})
    assert rows(folder / "shuffled") == rows(folder / "same")
    assert rows(folder / "shuffled") != rows(folder / "plain")


def test_weights_in_the_solver_are_where_training_begins_unless_the_command_line_has_others(folder):
    run(Case().write(folder), "first")
    begun = str(folder / "first" / f"solver_iter_{LAST}.caffemodel")
    trained(Case().write(folder, weights=[begun]), run_folder=Path("solver_s"))
    trained(Case().write(folder), run_folder=Path("typed"), weights=begun)
    trained(Case().write(folder, weights=["nowhere.caffemodel"]), run_folder=Path("both"), weights=begun)
    assert rows(folder / "solver_s") == rows(folder / "typed") == rows(folder / "both")
    assert float(rows(folder / "typed")[0][1]) < float(rows(folder / "first")[0][1])


def test_a_net_whose_layers_have_levels_and_stages_is_built_as_asked(folder):
    named = LOSS.replace('top: "loss"', 'top: "loss" loss_weight: 2 include { stage: "twice" }')
    once = LOSS.replace('top: "loss"', 'top: "loss" exclude { stage: "twice" }')
    Case(net(hdf5_layer(), CONV, RELU, ip("conv"), named, once)).write(folder, max_iter=1)
    trained(Path("solver.prototxt"), run_folder=Path("once"))
    trained(Path("solver.prototxt"), run_folder=Path("twice"), stage="twice")
    losses = [float(rows(folder / name)[0][1]) for name in ("once", "twice")]
    assert losses[1] == pytest.approx(2 * losses[0])


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_prints_a_result_and_ends_with_0(golden_folder, run_cli):
    options = ["--solver", "solver_sgd.prototxt", "--weights", "init_cls.caffemodel", "--run", "run", "--local"]
    done = run_cli("train", *options, "--json", cwd=golden_folder)
    assert done.code == 0
    told = json.loads(done.stdout)
    assert (told["iterations"], told["stopped"]) == (24, False)
    assert told["loss"] == pytest.approx(runs.trajectory("sgd")[0][-1], rel=1e-5)


def test_what_a_person_reads_of_a_run_that_was_stopped(folder):
    job = Train(solver=Case().write(folder), run_folder=folder / "run", local=True)
    told = run(folder / "solver.prototxt", "run", stop=3)
    console = Console(record=True, width=120, file=(folder / "out").open("w"))
    console.print(job.render(told))
    page = console.export_text()
    assert re.search(r"iterations +3 *\n", page)
    assert re.search(r"stopped +as asked; --resume goes on *\n", page)
    assert re.search(r"snapshot +run/solver_iter_3\.caffemodel *\n", page)
