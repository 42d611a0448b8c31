"""What a training writes where: nobody's files are lost, every iteration is told, and odd nets and solvers work."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from pipelines import worker
from pipelines.stages.setup import Place, Training
from pipelines.worker import train
from tests.pipelines.test_train_errors import told
from tests.pipelines.trainings import CONV, LAST, LOSS, RELU, Case, data_files, hdf5_layer, ip, net, rows, run, solver

REST = (CONV, RELU, ip("conv"), LOSS)
ACCURACY = 'layer { name: "acc" type: "Accuracy" bottom: "ip" bottom: "label" top: "acc" include { phase: TEST } }'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    data_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- the folder --------------------------------------------------------------------------------------------------------


def test_a_run_writes_over_no_net_of_the_user_s(folder):
    path = Case(solver=solver("test_iter: 2 test_interval: 5")).write(folder)
    for name in ("train.prototxt", "test.prototxt", "deploy.prototxt"):
        mine = net(hdf5_layer(), *REST, ACCURACY)
        (folder / name).write_text(mine)
        with pytest.raises(FileExistsError, match="no run wrote it, and this run would write its own") as error:
            run(path, ".")
        assert error.value.filename.endswith(name)
        assert (folder / name).read_text() == mine
        assert not (folder / "run.json").exists()
        (folder / name).unlink()
    written = path.read_text()
    run(path, ".")
    assert path.read_text() == written
    run(Case(solver=solver("test_iter: 2 test_interval: 5")).write(folder, max_iter=LAST + 2), ".", resume=True)
    assert len(rows(folder)) == LAST + 2


def test_the_net_to_use_of_a_recipe_follows_the_net_that_was_changed(folder):
    path = Case().write(folder)
    heading = "# tiny to use: pictures in,\n# as the data layer of net.prototxt makes them\n"
    (folder / "deploy.prototxt").write_text(f"{heading}{net(CONV)}")
    run(path, ".")
    assert 'name: "ip"' in (folder / "deploy.prototxt").read_text()


def test_a_prefix_that_ends_in_a_slash_is_a_folder(folder):
    run(Case().write(folder, snapshot_prefix="snaps/", snapshot=5), "run")
    assert (folder / "snaps" / f"solver_iter_{LAST}.caffemodel").exists()
    path = Case().write(folder, snapshot_prefix="snaps/", snapshot=5, max_iter=LAST + 3)
    assert run(path, "run", resume=True)["from"] == LAST


def test_a_snapshot_that_a_run_begins_and_ends_with_is_left_as_it_is(folder):
    path = Case().write(folder, snapshot_prefix="snap", snapshot=LAST)
    run(path, "first")
    before = [(file, file.stat().st_mtime_ns) for file in folder.glob("snap_iter_*")]
    run(path, "second", snapshot=f"snap_iter_{LAST}.solverstate")
    assert [(file, file.stat().st_mtime_ns) for file in folder.glob("snap_iter_*")] == before


# -- every iteration ---------------------------------------------------------------------------------------------------


def test_iterations_before_a_bad_one_have_their_rows(folder):
    """As a user has it: losses are looked at now and then."""
    assert worker.SETTLE_SECONDS > 0
    data = np.zeros((40, 2, 8, 8), np.float32)
    data[33, 0, 0, 0] = np.nan
    with h5py.File(folder / "odd.h5", "w") as file:
        file["data"], file["label"] = data, np.zeros(40, np.float32)
    (folder / "odd.txt").write_text(f"{folder}/odd.h5\n")
    path = Case(net(hdf5_layer(source="odd.txt"), *REST)).write(folder)
    with pytest.raises(ValueError, match="iteration 4: the loss is nan"):
        train(Training(solver=str(path), run="run"), Place(signals=False))
    assert [row[0] for row in rows(folder / "run")] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_record_of_a_bad_part_is_named(folder, size):
    data = np.zeros((24, 2, 8, 8), np.float32)
    data[9, 1, 3, 3] = np.nan
    with h5py.File(folder / "odd.h5", "w") as file:
        file["data"], file["label"] = data, np.zeros(24, np.float32)
    (folder / "odd.txt").write_text(f"{folder}/odd.h5\n")
    line = told(Case(net(hdf5_layer(4, source="odd.txt"), *REST), solver(f"iter_size: {size}")))
    assert f"iteration {2 // size}: the loss is nan: input 'data' holds values that are not finite" in line
    assert "odd.h5: row 9; check the data" in line


def test_plateau_hears_an_iteration_s_loss_before_its_rate_is_chosen(folder):
    """Least losses are events: the rate falls where a whole window passes without one, as the losses on record say."""
    path = Case(solver=solver("gamma: 0.5 plateau_winsize: 2 plateau_winsize: 2", policy="plateau")).write(folder)
    run(path, "run")
    found = [(float(row[1]), float(row[3])) for row in rows(folder / "run")]
    least, event, falls, rates = np.inf, 0, 0, []
    for at, (loss, _) in enumerate(found):
        if np.float32(loss) < least:
            least, event = np.float32(loss), at
        if falls < 2 and at >= event + 2:
            falls, event = falls + 1, at
        rates.append(0.05 * 0.5**falls)
    assert falls
    assert [rate for _, rate in found] == pytest.approx(rates, rel=1e-6)


# -- odd nets and options ----------------------------------------------------------------------------------------------


def test_two_data_layers_of_one_name(folder):
    rng = np.random.default_rng(0)
    with h5py.File(folder / "other.h5", "w") as file:
        file["other"] = rng.normal(size=(20, 2, 8, 8)).astype(np.float32)
    (folder / "other.txt").write_text(f"{folder}/other.h5\n")
    other = hdf5_layer(8, "shuffle: true", "other.txt", tops="other")
    joined = 'layer { name: "sum" type: "Eltwise" bottom: "data" bottom: "other" top: "both" }'
    layers = (hdf5_layer(), other, joined, CONV.replace('bottom: "data"', 'bottom: "both"'), *REST[1:])
    path = Case(net(*layers)).write(folder, snapshot=5)
    whole = run(path, "whole")
    run(path, "cut", stop=5)
    assert run(path, "cut", resume=True)["loss"] == whole["loss"]
    assert rows(folder / "cut") == rows(folder / "whole")


def test_the_shuffle_of_a_training_s_own_options(folder):
    """As torchrun hands it over."""
    path = Case().write(folder)
    run(path, "plain")
    run(path, "shuffled", shuffle=True)
    run(path, "feed", feed={"shuffle": True})
    assert rows(folder / "shuffled") == rows(folder / "feed") != rows(folder / "plain")


def test_average_loss_is_a_number_of_iterations(folder):
    assert told(Case(solver=solver("average_loss: 0"))).endswith("average_loss is 0; expected 1 or more iterations")
