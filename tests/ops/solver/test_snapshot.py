"""Snapshots: what is on the disk, in which order it got there, what is left after a kill, and the pause they cost."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ops import net as nets
from ops import weights
from ops.proto import binary, text
from ops.proto.caffe_pb2 import NetParameter, SolverParameter, SolverState
from ops.solver import snapshot, state
from ops.solver.snapshot import Snapshotter, find_snapshots, latest, prefix_of, save
from ops.solver.solver import Solver
from tests.ops.solver.golden import FOLDER, Run, error

ROOT = Path(__file__).parents[3]
WIDE = """
name: "wide" input: "x" input_shape { dim: 1 dim: 1000 }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: %d } }
"""
each_format = pytest.mark.parametrize("form", ["BINARYPROTO", "HDF5"])


def wide(outputs=20):
    """A solver whose net has 1,001 numbers an output."""
    spec = text.parse("base_lr: 0.1 lr_policy: 'fixed' momentum: 0.9", SolverParameter)
    return Solver(spec, nets.load(text.parse(WIDE % outputs, NetParameter), "TRAIN"))


def stand(solver, iteration):
    """As after `iteration` updates that leave every number at it."""
    for blob in [*solver.blobs, *solver.history]:
        blob.detach().fill_(iteration)
    solver.stand(iteration)


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def said(call, *arguments, **options):
    with pytest.raises((ValueError, OSError)) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- the files ---------------------------------------------------------------------------------------------------------


@each_format
def test_a_snapshot_is_the_net_and_the_solver_at_that_moment(tmp_path, form):
    run, straight = Run("adam"), Run("adam")
    with Snapshotter(run.solver, tmp_path / "net", format=form) as snapshots:
        for _ in range(4):
            run.step()
        path = snapshots.take({"position": 32})
        for _ in range(3):  # goes on while it is written
            run.step()
    ending = ".h5" if form == "HDF5" else ""
    assert names(tmp_path) == [
        f"net_iter_4.caffemodel{ending}",
        "net_iter_4.json",
        f"net_iter_4.solverstate{ending}",
    ]
    assert path == latest(tmp_path / "net") == tmp_path / f"net_iter_4.solverstate{ending}"
    again = Run("adam")
    restored, found = snapshot.resume(again.solver, path)
    assert restored.learned_net == found.model == tmp_path / f"net_iter_4.caffemodel{ending}"
    assert (found.iteration, found.record) == (4, {"position": 32})
    for _ in range(7):
        straight.step()
    for _ in range(3):
        again.step()
    for blob, expected in straight.weights().items():
        assert np.array_equal(again.weights()[blob], expected)
        assert np.array_equal(run.weights()[blob], expected)


def test_caffe_reads_it_its_own_files_to_the_byte(tmp_path, monkeypatch):
    """From Caffe's snapshot, ours of the same moment: all that Caffe wrote, under the names that it gave."""
    monkeypatch.chdir(tmp_path)
    for name in ("sgd_step", "adam"):
        run = Run(name)
        state.restore(run.solver, FOLDER / f"snap_{name}_iter_10.solverstate")
        with Snapshotter(run.solver, f"snap_{name}") as snapshots:
            snapshots.take()
        caffes, ours = FOLDER / f"snap_{name}_iter_10.solverstate", tmp_path / f"snap_{name}_iter_10.solverstate"
        assert ours.read_bytes() == caffes.read_bytes()
        models = [path.with_suffix(".caffemodel") for path in (ours, caffes)]
        ours, caffes = (binary.read(path, NetParameter) for path in models)
        blobs = [[layer.blobs for layer in net.layer if layer.blobs] for net in (ours, caffes)]
        assert [[blob.data for blob in held] for held in blobs[0]] == [[b.data for b in held] for held in blobs[1]]


def test_what_is_written_is_what_the_net_itself_would_write(tmp_path):
    run = Run("sgd")
    with Snapshotter(run.solver, tmp_path / "a") as snapshots:
        snapshots.take()
    save(run.solver, tmp_path / "b", {})
    weights.write(run.net, tmp_path / "c.caffemodel")
    models = [tmp_path / name for name in ("a_iter_0.caffemodel", "b_iter_0.caffemodel", "c.caffemodel")]
    assert len({model.read_bytes() for model in models}) == 1


def test_the_json_tells_sizes_and_checksums(tmp_path):
    import xxhash

    path = save(wide(), tmp_path / "net", {"feed": [1, 2], "key": "0x1f"})
    told = json.loads((tmp_path / "net_iter_0.json").read_text())
    assert told["iteration"] == 0
    assert told["record"] == {"feed": [1, 2], "key": "0x1f"}
    assert set(told["files"]) == {"net_iter_0.caffemodel", "net_iter_0.solverstate"}
    for name, sums in told["files"].items():
        data = (path.parent / name).read_bytes()
        assert sums == {"bytes": len(data), "xxh3": xxhash.xxh3_64(data).hexdigest()}


SHARED = """
input: "x" input_shape { dim: 2 dim: 3 }
layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" inner_product_param { num_output: 3 } param { name: "w" } }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" inner_product_param { num_output: 3 } param { name: "w" } }
"""


@each_format
def test_shared_blobs_are_written_for_each_layer(tmp_path, form):
    solver, again = (
        Solver(
            text.parse("base_lr: 0.1 lr_policy: 'fixed'", SolverParameter),
            nets.load(text.parse(SHARED, NetParameter), "TRAIN", seed=seed),
        )
        for seed in (1, 2)
    )
    with torch.no_grad():
        solver.net.params["a"][0].normal_()
    with Snapshotter(solver, tmp_path / "net", format=form) as snapshots:
        path = snapshots.take()
    snapshot.resume(again, path)
    assert torch.equal(again.net.params["b"][0], solver.net.params["a"][0])
    with weights.read(tmp_path / f"net_iter_0.caffemodel{'.h5' if form == 'HDF5' else ''}") as file:
        held = {layer.name: set(layer.blobs) for layer in file.layers if layer.blobs}
    assert held == {"a": {0, 1}, "b": {1} if form == "HDF5" else {0, 1}}


RULES = {  # Caffe's diffs: solver, rate times lr_mult, gradient with decay, histories before, number of the update
    "sgd": lambda s, r, g, h, u, t: s.momentum * h + r * g,
    "nesterov": lambda s, r, g, h, u, t: (1 + s.momentum) * (s.momentum * h + r * g) - s.momentum * h,
    "adagrad": lambda s, r, g, h, u, t: r * g / (np.sqrt(h + g * g) + s.delta),
    "rmsprop": lambda s, r, g, h, u, t: r * g / (np.sqrt(s.rms_decay * h + (1 - s.rms_decay) * g * g) + s.delta),
    "adadelta": lambda s, r, g, h, u, t: (
        r * g * np.sqrt((u + s.delta) / (s.momentum * h + (1 - s.momentum) * g * g + s.delta))
    ),
    "adam": lambda s, r, g, h, u, t: (
        r
        * math.sqrt(1 - s.momentum2**t)
        / (1 - s.momentum**t)
        * (s.momentum * h + (1 - s.momentum) * g)
        / (np.sqrt(s.momentum2 * u + (1 - s.momentum2) * g * g) + s.delta)
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_the_diffs_of_a_snapshot_are_what_the_update_took_from_the_weights(name, tmp_path):
    run = Run(name, snapshot_diff=True)
    for _ in range(3):
        run.step()
    run.net.loss(run.net(run.batch(3))).backward()
    solver = run.solver
    gradients, before = [blob.grad.numpy().copy() for blob in solver.blobs], [b.detach().clone() for b in solver.blobs]
    history = [one.numpy().copy() for one in solver.history]
    solver.update()
    solver.zero_grad(set_to_none=True)
    with Snapshotter(solver, tmp_path / "net", diff=True) as snapshots:
        snapshots.take()
    layers = binary.read(tmp_path / "net_iter_4.caffemodel", NetParameter).layer
    written = [np.array(blob.diff) for layer in layers for blob in layer.blobs]
    assert len(written) == len(gradients)
    second = history[len(gradients) :] or history
    for at, one in enumerate(run.net.learnable):
        spec = solver.spec
        g = gradients[at] + spec.weight_decay * one.decay_mult * before[at].numpy()
        expected = RULES[name](spec, spec.base_lr * one.lr_mult, g, history[at], second[at], 4)
        assert error(written[at], expected.ravel()) < 1e-5
        left = before[at].ravel() - torch.from_numpy(written[at].astype(np.float32))
        assert torch.equal(solver.blobs[at].detach().ravel(), left) or name == "sgd"  # which is one fused pass


def test_keeping_the_diffs_moves_a_training_by_rounding_only(tmp_path):
    for name in RULES:
        kept, plain = Run(name, snapshot_diff=True), Run(name)
        for _ in range(10):
            kept.step()
            plain.step()
        for blob, expected in plain.weights().items():
            assert error(kept.weights()[blob], expected) < 1e-6


@each_format
def test_before_the_first_update_the_diffs_are_zeros(tmp_path, form):
    run = Run("sgd", snapshot_diff=True)
    state.restore(run.solver, FOLDER / "snap_sgd_iter_10.solverstate")
    save(run.solver, tmp_path / "net", format=form, diff=True)
    if form == "HDF5":
        import h5py

        with h5py.File(tmp_path / "net_iter_10.caffemodel.h5") as file:
            assert (file["diff/ip1/0"][:] == 0).all()
            assert (file["data/ip1/0"][:] != 0).any()
    else:
        blobs = [
            blob for one in binary.read(tmp_path / "net_iter_10.caffemodel", NetParameter).layer for blob in one.blobs
        ]
        assert {value for blob in blobs for value in blob.diff} == {0.0}


def test_the_buffers_are_reused(tmp_path):
    solver = wide()
    with Snapshotter(solver, tmp_path / "net") as snapshots:
        places = set()
        for iteration in (1, 2, 3):
            stand(solver, iteration)
            snapshots.take()
            places.add(tuple(one.data_ptr() for one in [*snapshots.blobs, *snapshots.history]))
    assert len(places) == 1
    for found in find_snapshots(tmp_path / "net"):
        message = binary.read(found.state, SolverState)
        assert set(message.history[0].data) == {float(found.iteration)}


# -- what there is -----------------------------------------------------------------------------------------------------


def test_the_newest_whole_snapshot_is_found(tmp_path):
    solver = wide()
    assert latest(tmp_path / "net") is None
    assert latest(tmp_path / "nowhere" / "net") is None
    for iteration in (9, 100, 20):
        stand(solver, iteration)
        save(solver, tmp_path / "net")
        save(solver, tmp_path / "network")  # another prefix
    assert [one.iteration for one in find_snapshots(tmp_path / "net")] == [9, 20, 100]
    assert latest(tmp_path / "net") == tmp_path / "net_iter_100.solverstate"


def spoil_byte(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("ending", ["caffemodel", "solverstate"])
@pytest.mark.parametrize("spoil", [Path.unlink, spoil_byte, lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_a_damaged_snapshot_is_passed_over(tmp_path, ending, spoil):
    solver = wide()
    for iteration in (1, 2):
        stand(solver, iteration)
        save(solver, tmp_path / "net")
    spoil(tmp_path / f"net_iter_2.{ending}")
    assert latest(tmp_path / "net") == tmp_path / "net_iter_1.solverstate"


def test_going_on_from_a_damaged_snapshot_is_refused(tmp_path):
    solver = wide()
    path = save(solver, tmp_path / "net")
    spoil_byte(tmp_path / "net_iter_0.caffemodel")
    assert said(snapshot.resume, solver, path) == (
        f"{tmp_path}/net_iter_0.caffemodel: not the bytes that its snapshot was written with; resume from another, or "
        "delete net_iter_0.json to use it as it is"
    )
    (tmp_path / "net_iter_0.json").unlink()
    snapshot.resume(solver, path)


def test_a_snapshot_of_caffes_has_no_record(tmp_path):
    for name in ("snap_sgd_iter_10.caffemodel", "snap_sgd_iter_10.solverstate"):
        shutil.copyfile(FOLDER / name, tmp_path / name)
    assert latest(tmp_path / "snap_sgd") == tmp_path / "snap_sgd_iter_10.solverstate"
    run = Run("sgd")
    restored, found = snapshot.resume(run.solver, tmp_path / "snap_sgd_iter_10.solverstate")
    assert (restored.iteration, found.record) == (10, None)
    half = (tmp_path / "snap_sgd_iter_10.solverstate").read_bytes()[:-30]
    (tmp_path / "snap_sgd_iter_10.solverstate").write_bytes(half)  # Caffe writes in place
    assert latest(tmp_path / "snap_sgd") is None


def test_a_moved_run_goes_on_from_its_own_weights(tmp_path):
    """The state names the old folder, where another run may since have written the same iteration."""
    solver = wide()
    (tmp_path / "a").mkdir()
    stand(solver, 5)
    save(solver, tmp_path / "a" / "net", {"run": 1})
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    stand(solver, 7)
    solver.stand(5)
    save(solver, tmp_path / "a" / "net", {"run": 2})
    _, found = snapshot.resume(solver, tmp_path / "b" / "net_iter_5.solverstate")
    assert found.record == {"run": 1}
    assert solver.blobs[0].max() == 5


def test_a_state_alone_is_restored_too(tmp_path):
    run = Run("sgd")
    shutil.copy(FOLDER / "snap_sgd_iter_10.solverstate", tmp_path / "mine")
    shutil.copy(FOLDER / "snap_sgd_iter_10.caffemodel", tmp_path)
    restored, found = snapshot.resume(run.solver, tmp_path / "mine")
    assert (restored.iteration, found) == (10, None)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", "models/lenet_solver"),
        ("snapshot_prefix: 'out/lenet'", "out/lenet"),
        ("snapshot_prefix: 'out'", "out/lenet_solver"),
        ("snapshot_prefix: 'out/'", "out/lenet_solver"),
    ],
)
def test_the_prefix_is_caffes(tmp_path, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    assert prefix_of(text.parse(words, SolverParameter), "models/lenet_solver.prototxt") == expected


# -- keeping a few -----------------------------------------------------------------------------------------------------


def kept(folder):
    return sorted({int(re.search(r"_iter_(\d+)", file.name)[1]) for file in folder.iterdir()})


def test_older_snapshots_go_once_the_newer_is_complete(tmp_path):
    solver = wide()
    with Snapshotter(solver, tmp_path / "net", keep=2) as snapshots:
        for iteration in (1, 2, 10):
            stand(solver, iteration)
            snapshots.take()
            snapshots.wait()
            assert kept(tmp_path) == {1: [1], 2: [1, 2], 10: [2, 10]}[iteration]
    assert len(names(tmp_path)) == 6


def test_what_is_not_ours_or_newer_stays(tmp_path):
    solver = wide()
    for name in ("net_iter_3.caffemodel", "net_iter_4.caffemodel", "net_iter_4.solverstate", "net_iter_5.json"):
        (tmp_path / name).write_text("{}")  # weights alone, Caffe's, somebody's JSON
    for prefix, iteration in (("net", 99), ("other", 1), ("net", 1), ("net", 2)):
        stand(solver, iteration)
        save(solver, tmp_path / prefix)
    with Snapshotter(solver, tmp_path / "net", keep=1) as snapshots:
        stand(solver, 7)
        snapshots.take()
    assert [one.iteration for one in find_snapshots(tmp_path / "net") if one.record is not None] == [7, 99]
    assert kept(tmp_path) == [1, 3, 4, 5, 7, 99]  # 1 is the other prefix's


def test_keeping_none_is_refused(tmp_path):
    assert said(Snapshotter, wide(), tmp_path / "net", keep=0) == "keep is 0; at least 1 snapshot must stay"


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there_is_told_at_once(tmp_path):
    told = said(Snapshotter, wide(), tmp_path / "runs" / "net")
    assert told == f"[Errno 2] no such folder, and snapshots are to be written there: '{tmp_path}/runs'"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_told_at_once(tmp_path):
    tmp_path.chmod(0o500)
    assert "snapshots cannot be written there" in said(Snapshotter, wide(), tmp_path / "net")


def test_what_no_file_can_hold_is_told_at_once(tmp_path):
    solver = wide()
    solver.history[0] = torch.zeros(1).expand(600_000_000)
    told = said(Snapshotter, solver, tmp_path / "net")
    assert told == (
        f"{tmp_path}/net: a snapshot of 2,400,000,080 bytes, more than the 2,147,483,647 that a binary file may have; "
        "write snapshot_format: HDF5"
    )
    twice = text.parse(SHARED.replace('"b" type', '"a" type').replace('param { name: "w" }', ""), NetParameter)
    spec = text.parse("base_lr: 0.1 lr_policy: 'fixed'", SolverParameter)
    solver = Solver(spec, nets.load(twice, "TRAIN"))
    assert "layer 'a' is there 2 times" in said(Snapshotter, solver, tmp_path / "net", format="HDF5")
    with Snapshotter(solver, tmp_path / "net") as snapshots:
        snapshots.take()


def test_a_record_that_is_no_json_is_told_at_once(tmp_path):
    with Snapshotter(wide(), tmp_path / "net") as snapshots, pytest.raises(TypeError, match="not JSON serializable"):
        snapshots.take({"when": object()})


FULL = """
import resource
from pathlib import Path
from tests.ops.solver.test_snapshot import *
folder = Path({folder!r})
solver = wide(2000)
with Snapshotter(solver, folder / "net", format={form!r}) as snapshots:
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
    snapshots.take()
    try:
        snapshots.take()
    except OSError as error:
        print(error)
print(sorted(file.name for file in folder.iterdir()))
"""


@each_format
def test_a_full_disk_is_told_by_the_next_call(tmp_path, form):
    """8 MB of weights, and files may have 3 MB: the error of the first snapshot ends the second."""
    code = FULL.format(folder=str(tmp_path), form=form, limit=3_000_000)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    error, left = done.stdout.splitlines()
    model = tmp_path / f"net_iter_0.caffemodel{'.h5' if form == 'HDF5' else ''}"
    assert re.fullmatch(rf"\[Errno 27\] File too large; 8,00\d,\d+ bytes were to be written: '{model}'", error)
    assert left == "[]"


def test_the_end_of_the_training_waits_for_the_files_and_tells_their_errors(tmp_path):
    snapshots = Snapshotter(wide(), tmp_path / "net")
    snapshots.wait()
    tmp_path.rename(tmp_path.with_name("gone"))
    with pytest.raises(OSError, match="No such file"), snapshots:
        snapshots.take()


def test_an_error_of_the_training_is_not_hidden_by_one_of_the_disk(tmp_path):
    snapshots = Snapshotter(wide(), tmp_path / "net")
    snapshots.wait()
    tmp_path.rename(tmp_path.with_name("gone"))
    snapshots.take()
    with pytest.raises(KeyError), snapshots:
        raise KeyError


# -- order and kills ---------------------------------------------------------------------------------------------------


def test_the_json_is_renamed_last_and_nothing_before_all_is_written(tmp_path, monkeypatch):
    renamed = []
    plain = Path.replace

    def watched(path, target):
        if ".tmp-" not in Path(target).name:
            there = [name for name in os.listdir(tmp_path) if name.startswith(".tmp-")]
            renamed.append((Path(target).name, len(there)))
        return plain(path, target)

    monkeypatch.setattr(Path, "replace", watched)
    save(wide(), tmp_path / "net")
    assert renamed == [("net_iter_0.caffemodel", 3), ("net_iter_0.solverstate", 2), ("net_iter_0.json", 1)]


def save_and_stop(solver, prefix, monkeypatch, done):
    """A snapshot that is stopped after 0, 1 or 2 of its renames, and the files as a kill leaves them."""
    plain, count = Path.replace, 0

    def stopped(path, target):
        nonlocal count
        if ".tmp-" not in Path(target).name:
            count += 1
            if count > done:
                raise KeyboardInterrupt
        return plain(path, target)

    monkeypatch.setattr(Path, "replace", stopped)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt):
        save(solver, prefix)
    monkeypatch.undo()


@pytest.mark.parametrize("done", [0, 1, 2])
def test_between_the_renames_the_snapshot_before_counts(tmp_path, monkeypatch, done):
    solver = wide()
    stand(solver, 1)
    save(solver, tmp_path / "net")
    stand(solver, 2)
    save_and_stop(solver, tmp_path / "net", monkeypatch, done)
    assert len(names(tmp_path)) == 6
    assert latest(tmp_path / "net") == tmp_path / "net_iter_1.solverstate"
    with Snapshotter(solver, tmp_path / "net"):
        pass
    assert kept(tmp_path) == [1]
    assert len(names(tmp_path)) == 3


@pytest.mark.parametrize("done", [1, 2])
def test_a_snapshot_that_was_half_written_over_is_none(tmp_path, monkeypatch, done):
    """The files of an earlier run under the same name, their JSON among them, and the new weights."""
    solver = wide()
    for iteration in (1, 2):
        stand(solver, iteration)
        save(solver, tmp_path / "net")
    stand(solver, 3)
    solver.stand(2)
    save_and_stop(solver, tmp_path / "net", monkeypatch, done)
    assert latest(tmp_path / "net") == tmp_path / "net_iter_1.solverstate"


WRITER = """
import sys
from pathlib import Path
from tests.ops.solver.test_snapshot import *
prefix, solver = Path({folder!r}) / "net", wide(4000)
found = latest(prefix)
if found:
    snapshot.resume(solver, found)
    assert all((one == solver.iteration).all() for one in [*solver.blobs, *solver.history])
with Snapshotter(solver, prefix, format={form!r}, keep=2) as snapshots:
    snapshots.wait()
    for iteration in range(solver.iteration + 1, 10_000):
        stand(solver, iteration)
        snapshots.take({{"position": 8 * iteration}})
        snapshots.wait()
        print(iteration, flush=True)
"""


def kill_a_writer(folder, form, delay):
    """Let a process write snapshots, kill it some time after its first; the last one that it called complete."""
    command = [sys.executable, "-c", WRITER.format(folder=str(folder), form=form)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        first = process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        lines = [first, *process.stdout.read().splitlines()]
    whole = [int(line) for line in lines if line.strip()]
    assert whole, "the writer ended before its first snapshot"
    return whole[-1]


def check_after_a_kill(folder, complete):
    """The newest snapshot is the last complete one or the one after, whole, with its record."""
    path = latest(folder / "net")
    found = next(one for one in find_snapshots(folder / "net") if one.state == path)
    assert found.iteration in (complete, complete + 1)
    assert found.record == {"position": 8 * found.iteration}
    solver = wide(4000)
    snapshot.resume(solver, path)
    assert solver.iteration == found.iteration
    assert all(bool((one == found.iteration).all()) for one in [*solver.blobs, *solver.history])
    return found.iteration


@pytest.mark.parametrize("form", ["BINARYPROTO", "HDF5"])
def test_kill_9_while_snapshots_are_written_leaves_the_one_before(tmp_path, form):
    chance, before = random.Random(form), 0
    for _ in range(2):
        complete = kill_a_writer(tmp_path, form, chance.uniform(0.0, 0.25))
        assert complete > before
        before = check_after_a_kill(tmp_path, complete)
    with Snapshotter(wide(4000), tmp_path / "net", keep=2):
        pass
    assert not [name for name in names(tmp_path) if name.startswith(".tmp-")]


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("form", ["BINARYPROTO", "HDF5"])
def test_many_kills(tmp_path, form):
    chance, before = random.Random(7), 0
    for _ in range(40):
        before = check_after_a_kill(tmp_path, kill_a_writer(tmp_path, form, chance.uniform(0.0, 0.3)))
    assert before > 40


# -- while training goes on --------------------------------------------------------------------------------------------


@each_format
def test_other_threads_run_on_while_a_snapshot_is_written(tmp_path, form):
    """160 MB; protobuf's own packing, or one HDF5 write of it, would hold the interpreter for a second or more."""
    solver = wide(20_000)
    with Snapshotter(solver, tmp_path / "net", format=form) as snapshots:
        snapshots.wait()
        snapshots.take()
        gaps, began = [0.0], time.perf_counter()
        last = began
        while not snapshots.pending.done():
            time.sleep(0.001)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now
    assert max(gaps) < min(1.5, max(0.5, (last - began) / 4))  # the quarter: of a machine where all takes long


def test_the_thread_ends_with_the_snapshotter(tmp_path):
    with Snapshotter(wide(), tmp_path / "net") as snapshots:
        snapshots.take()
        assert any(thread.name.startswith("snapshot") for thread in threading.enumerate())
    assert not any(thread.name.startswith("snapshot") for thread in threading.enumerate())
