"""Solver states against the files that Caffe wrote, protobuf's own reading of ours, and h5py's."""

import os
import random
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from ops import net as nets
from ops import weights
from ops.proto import binary, text
from ops.proto.caffe_pb2 import NetParameter, SolverParameter, SolverState
from ops.solver import state
from ops.solver.solver import Solver
from tests.ops.solver.golden import FOLDER, SNAPSHOTS, Run

NAMES = ["s.solverstate", "s.solverstate.h5"]
each_format = pytest.mark.parametrize("name", NAMES)


def refusal(call, *arguments, **options):
    with pytest.raises((ValueError, OSError)) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def trained(name="adam", steps=3):
    run = Run(name)
    for _ in range(steps):
        run.step()
    return run


def saved(folder, name, run):
    """A state and its weights; the path of the state."""
    ending = ".caffemodel.h5" if name.endswith("h5") else ".caffemodel"
    weights.write(run.net, folder / f"s{ending}")
    state.write(folder / name, run.solver, learned_net=str(folder / f"s{ending}"))
    return folder / name


# -- Caffe's files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_what_caffe_wrote_is_read_as_protobuf_reads_it(name):
    path = FOLDER / f"snap_{name}_iter_10.solverstate"
    message = binary.read(path, SolverState)
    with state.read(path) as found:
        assert (found.iteration, found.current_step) == (message.iter, message.current_step)
        assert found.learned_net == message.learned_net == f"snap_{name}_iter_10.caffemodel"
        assert [blob.shape for blob in found.history] == [tuple(blob.shape.dim) for blob in message.history]
        for blob, expected in zip(found.history, message.history, strict=True):
            assert np.array_equal(blob.values().reshape(-1), np.array(expected.data, np.float32))


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_a_state_of_caffes_is_written_to_the_byte(name, tmp_path):
    path = FOLDER / f"snap_{name}_iter_10.solverstate"
    run = Run(name)
    restored = state.restore(run.solver, path)
    assert restored.learned_net == FOLDER / f"snap_{name}_iter_10.caffemodel"
    assert restored.report.copied == ("conv1", "ip1")
    state.write(tmp_path / "s.solverstate", run.solver, learned_net=restored.learned_net.name)
    assert (tmp_path / "s.solverstate").read_bytes() == path.read_bytes()


def test_hdf5_is_laid_out_as_caffe_lays_it_out(tmp_path):
    """H5LTmake_dataset_int and _string: one int32 in one axis, a string with its final zero; no other dataset."""
    run = trained("sgd_step", 9)
    path = saved(tmp_path, "s.solverstate.h5", run)
    with h5py.File(path) as file:
        assert set(file) == {"iter", "current_step", "learned_net", "history"}
        assert (file["iter"].shape, file["iter"].dtype, file["iter"][0]) == ((1,), np.int32, 9)
        assert (file["current_step"].shape, file["current_step"].dtype, file["current_step"][0]) == ((1,), np.int32, 1)
        kind, told = file["learned_net"].id.get_type(), str(tmp_path / "s.caffemodel.h5").encode()
        assert file["learned_net"].shape == ()
        assert (kind.get_size(), kind.get_strpad()) == (len(told) + 1, h5py.h5t.STR_NULLTERM)
        assert file["learned_net"][()] == told
        assert sorted(file["history"]) == ["0", "1", "2", "3"]
        for at, history in enumerate(run.solver.history):
            assert file["history"][str(at)].dtype == np.float32
            assert np.array_equal(file["history"][str(at)][:], history.numpy())


# -- there and back ----------------------------------------------------------------------------------------------------


@each_format
@pytest.mark.parametrize("kind", ["sgd", "adam", "adadelta", "sgd_multistep"])
def test_a_run_that_stops_and_goes_on_is_the_run_that_did_not(tmp_path, name, kind):
    straight = trained(kind, 9)
    path = saved(tmp_path, name, trained(kind, 4))
    again = Run(kind)
    assert state.restore(again.solver, path).iteration == 4
    for _ in range(5):
        again.step()
    for blob, expected in straight.weights().items():
        assert np.array_equal(again.weights()[blob], expected)
    for found, expected in zip(again.solver.history, straight.solver.history, strict=True):
        assert torch.equal(found, expected)


@each_format
def test_the_format_is_told_by_content(tmp_path, name):
    path = saved(tmp_path, name, trained())
    shutil.copy(path, tmp_path / "renamed.bin")
    with state.read(tmp_path / "renamed.bin") as found:
        assert len(found.history) == 8


@each_format
def test_what_plateau_remembers_goes_along(tmp_path, name):
    changes = {"lr_policy": "plateau", "gamma": 0.5, "plateau_winsize": [2, 2]}
    straight, stopped, again = (Run("sgd", **changes) for _ in range(3))
    losses = [4.0, 3.0, 3.5, 3.25, 0.1, 5.0, 6.0, 7.0]
    for loss in losses[:4]:
        stopped.solver.observe(loss)
        stopped.step()
    state.restore(again.solver, saved(tmp_path, name, stopped))
    for loss in losses[4:]:
        again.solver.observe(loss)
        again.step()
    for loss in losses:
        straight.solver.observe(loss)
        straight.step()
    assert (straight.solver.current_step, straight.solver.minimum_loss) == (2, float(np.float32(0.1)))
    for field in ("current_step", "minimum_loss", "last_event"):
        assert getattr(again.solver, field) == getattr(straight.solver, field)
    assert all(np.array_equal(again.weights()[blob], value) for blob, value in straight.weights().items())


@each_format
def test_plateau_before_its_first_loss_has_none_afterwards_either(tmp_path, name):
    changes = {"lr_policy": "plateau", "gamma": 0.5, "plateau_winsize": [1]}
    run, again = Run("sgd", **changes), Run("sgd", **changes)
    run.step()
    run.step()
    state.restore(again.solver, saved(tmp_path, name, run))
    assert again.solver.minimum_loss == run.solver.minimum_loss == float("inf")
    assert again.solver.last_event == run.solver.last_event == 1


@each_format
def test_float64_keeps_its_digits(tmp_path, name):
    words = """input: "x" input_shape { dim: 1 dim: 3 }
    layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 2 } }"""
    spec = text.parse("base_lr: 0.1 lr_policy: 'fixed' momentum: 0.9", SolverParameter)
    nets_ = [nets.load(text.parse(words, NetParameter), "TRAIN").double() for _ in range(2)]
    first, second = (Solver(spec, net) for net in nets_)
    for history in first.history:
        history.copy_(torch.randn(history.shape, dtype=torch.float64))
    weights.write(first.net, tmp_path / "s.caffemodel")
    state.write(tmp_path / name, first, learned_net="s.caffemodel")
    state.restore(second, tmp_path / name)
    assert all(torch.equal(*pair) for pair in zip(first.history, second.history, strict=True))


@each_format
def test_blobs_that_lie_otherwise_are_written_in_caffes_order(tmp_path, name):
    run = trained("sgd")
    history = run.solver.history[0]
    assert not history.is_contiguous()  # channels last
    with state.read(saved(tmp_path, name, run)) as found:
        assert np.array_equal(found.history[0].values(), history.numpy())


def test_old_four_number_shapes_fit(tmp_path):
    message = binary.read(FOLDER / "snap_sgd_iter_10.solverstate", SolverState)
    for blob in message.history:
        dims = [1] * (4 - len(blob.shape.dim)) + list(blob.shape.dim)
        blob.num, blob.channels, blob.height, blob.width = dims
        blob.ClearField("shape")
    shutil.copy(FOLDER / "snap_sgd_iter_10.caffemodel", tmp_path)
    (tmp_path / "old.solverstate").write_bytes(message.SerializeToString())
    old, new = Run("sgd"), Run("sgd")
    state.restore(old.solver, tmp_path / "old.solverstate")
    state.restore(new.solver, FOLDER / "snap_sgd_iter_10.solverstate")
    assert all(torch.equal(*pair) for pair in zip(old.solver.history, new.solver.history, strict=True))


# -- where the weights are ---------------------------------------------------------------------------------------------


def test_weights_are_looked_up_as_stored_then_beside_the_state(tmp_path, monkeypatch):
    run, again = trained(), Run("adam")
    (tmp_path / "here").mkdir()
    path = saved(tmp_path / "here", "s.solverstate", run)
    (tmp_path / "here").rename(tmp_path / "there")
    path = tmp_path / "there" / path.name
    assert state.restore(again.solver, path).learned_net == tmp_path / "there" / "s.caffemodel"
    monkeypatch.chdir(tmp_path / "there")
    state.write(tmp_path / "s.solverstate", run.solver, learned_net="s.caffemodel")
    assert state.restore(again.solver, tmp_path / "s.solverstate").learned_net == Path("s.caffemodel")


def test_a_miss_names_both_places(tmp_path):
    run = trained()
    state.write(tmp_path / "s.solverstate", run.solver, learned_net="elsewhere/s.caffemodel")
    before = run.solver.history[0].clone()
    said = refusal(state.restore, run.solver, tmp_path / "s.solverstate")
    assert said == (
        f"{tmp_path}/s.solverstate: its weights, s.caffemodel, are not there; looked for elsewhere/s.caffemodel and "
        f"{tmp_path}/s.caffemodel; put them beside the state"
    )
    assert torch.equal(run.solver.history[0], before)


def test_a_state_that_names_no_weights_leaves_the_nets(tmp_path):
    message = binary.read(FOLDER / "snap_sgd_iter_10.solverstate", SolverState)
    message.ClearField("learned_net")
    (tmp_path / "s.solverstate").write_bytes(message.SerializeToString())
    run = Run("sgd")
    before = run.weights()["ip1/0"].copy()
    restored = state.restore(run.solver, tmp_path / "s.solverstate")
    assert (restored.iteration, restored.learned_net, restored.report) == (10, None, None)
    assert np.array_equal(run.weights()["ip1/0"], before)


# -- what is refused ---------------------------------------------------------------------------------------------------


@each_format
def test_a_state_of_another_type_of_solver(tmp_path, name):
    path = saved(tmp_path, name, trained("sgd"))
    run = Run("adam")
    before = run.weights()["ip1/0"].copy()
    assert refusal(state.restore, run.solver, path) == (
        f"{path}: holds 4 history blobs; Adam on this net, of 4 blobs, wants 8; its solver was of another type "
        "(AdaDelta and Adam have two for each blob, the others one)"
    )
    assert np.array_equal(run.weights()["ip1/0"], before)


@each_format
def test_a_state_of_another_net(tmp_path, name):
    path = saved(tmp_path, name, trained("reg_sgd"))
    run = Run("sgd")
    assert refusal(state.restore, run.solver, path) == (
        f"{path}: history 2 (layer 'ip1' blob 0) is 3 x 36, the net wants 5 x 36: another net's"
    )
    assert run.solver.iteration == 0


def test_weights_of_another_net_change_nothing(tmp_path):
    shutil.copy(FOLDER / "snap_sgd_iter_10.solverstate", tmp_path)
    shutil.copy(FOLDER / "init_reg.caffemodel", tmp_path / "snap_sgd_iter_10.caffemodel")
    run = Run("sgd")
    said = refusal(state.restore, run.solver, tmp_path / "snap_sgd_iter_10.solverstate")
    assert "layer 'ip1' blob 0 is 5 x 36, the file has 3 x 36" in said
    assert not any(history.any() for history in run.solver.history)


def hdf5(path, **groups):
    with h5py.File(path, "w") as file:
        for name, value in groups.items():
            file[name.replace("__", "/")] = value


def test_what_is_no_state_is_told_apart(tmp_path):
    other = tmp_path / "other"
    other.write_text("net: 'lenet.prototxt'")
    assert refusal(state.read, other) == f"{other}: a text file, not a solver state"
    model = FOLDER / "init_cls.caffemodel"
    assert refusal(state.read, model) == (
        f"{model}: weights (a .caffemodel), not a solver state; give the .solverstate that was written with it"
    )
    other.write_bytes(b"")
    assert refusal(state.read, other) == f"{other}: no .solverstate: it is empty"
    other.write_bytes(bytes(range(256)))
    assert refusal(state.read, other).startswith(f"{other}: no .solverstate: ")
    hdf5(other, data__ip__0=np.zeros(3))
    assert refusal(state.read, other).startswith(f"{other}: weights, not a solver state; give the .solverstate.h5")
    hdf5(other, images=np.zeros(3))
    assert refusal(state.read, other).endswith("not a solver state; it holds 'images'")
    hdf5(other, iter=[3], history__0=np.zeros(3), history__2=np.zeros(3))
    assert "'history' holds '0', '2', not datasets 0, 1, ..." in refusal(state.read, other)
    hdf5(other, iter=np.zeros(0, int), history__0=np.zeros(3))
    assert refusal(state.read, other) == f"{other}: damaged: 'iter' is not one number or string"
    hdf5(other, iter=[-3], history__0=np.zeros(3))
    assert refusal(state.read, other) == f"{other}: damaged: its iter is -3"
    assert "No such file" in refusal(state.read, tmp_path / "nowhere")
    assert "not a file" in refusal(state.read, tmp_path)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_cut_state_is_refused_or_holds_fewer_blobs(tmp_path, name):
    whole = (FOLDER / f"snap_{name}_iter_10.solverstate").read_bytes()
    shutil.copy(FOLDER / f"snap_{name}_iter_10.caffemodel", tmp_path)
    run, cut = Run(name), tmp_path / "cut.solverstate"
    for length in range(0, len(whole) - 3, 17):
        cut.write_bytes(whole[:length])
        assert str(cut) in refusal(state.restore, run.solver, cut)


@pytest.mark.parametrize("name", NAMES)
def test_mutated_states_are_read_or_refused_in_one_line(tmp_path, name):
    path = saved(tmp_path, name, trained("sgd"))
    whole, rng, run = path.read_bytes(), random.Random(5), Run("sgd")
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 1, 4))):
            damaged[rng.randrange(min(len(damaged), 4096))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            state.restore(run.solver, path)
            told = ""
        except (ValueError, OSError) as error:
            told = str(error)
        assert "\n" not in told
        assert len(told) < 1000


@each_format
def test_a_disk_without_room_is_told_in_one_line(tmp_path, name, monkeypatch):
    run = trained()
    path = saved(tmp_path, name, run)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "_array", full)
    with pytest.raises(OSError, match=r"No space left on device; .* bytes were to be written") as caught:
        state.write(path, run.solver, learned_net="x")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before
    assert not [file for file in os.listdir(tmp_path) if file.startswith(".tmp")]


def test_a_state_over_2_gib_is_refused_before_it_is_begun(tmp_path):
    run = Run("sgd")
    run.solver.history[0] = torch.zeros(1).expand(600_000_000)
    said = refusal(state.write, tmp_path / "s.solverstate", run.solver, learned_net="x")
    assert "more than the 2,147,483,647 that a .solverstate may have; write HDF5 (.h5)" in said
    assert list(tmp_path.iterdir()) == []


def test_paths_of_any_bytes_survive(tmp_path):
    run = Run("sgd")
    odd = os.fsdecode(b"caf\xe9_\xff.caffemodel")
    for name in NAMES:
        state.write(tmp_path / name, run.solver, learned_net=odd)
        with state.read(tmp_path / name) as found:
            assert found.learned_net == odd
