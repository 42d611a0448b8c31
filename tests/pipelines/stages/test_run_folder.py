"""Tables that are cut back, locks that let go, and digests that see what decides numbers and nothing else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

import pytest
from google.protobuf import text_format

from ops.proto.caffe_pb2 import NetParameter, SolverParameter
from pipelines.stages.held import held
from pipelines.stages.run_folder import Table, link, net_digest, refuse_another, solver_digest
from pipelines.stages.standing import apart


def lines(path):
    return path.read_text().splitlines()


def test_a_table_is_cut_back_to_where_a_run_goes_on(tmp_path):
    path = tmp_path / "t.csv"
    with Table(path, ("iteration", "loss"), before=None) as table:
        for i in range(5):
            table.add(i, i / 3)
    with Table(path, ("iteration", "loss"), before=3) as table:
        assert table.last == ["2", "0.666666667"]
        table.add(3, 7.0)
    assert lines(path) == ["iteration,loss", "0,0", "1,0.333333333", "2,0.666666667", "3,7"]
    with Table(path, ("iteration", "loss"), before=None):
        pass
    assert lines(path) == ["iteration,loss"]


@pytest.mark.parametrize("torn", ["2,", "2", "", "\0\0\0", "2,0.5,1", "x,0.5"])
def test_rows_that_were_half_written_are_dropped(tmp_path, torn):
    path = tmp_path / "t.csv"
    path.write_text(f"iteration,loss,more\n0,0.5,a\n1,0.25,b\n{torn}")
    with Table(path, ("iteration", "loss", "more"), before=9):
        pass
    kept = ["iteration,loss,more", "0,0.5,a", "1,0.25,b"]
    assert lines(path) == kept + ([torn] if torn == "2,0.5,1" else [])


def test_a_folder_that_holds_rows_is_another_run_s(tmp_path):
    refuse_another(tmp_path / "nowhere")
    with Table(tmp_path / "metrics.csv", ("iteration",), before=None) as table:
        refuse_another(tmp_path)  # nothing was done yet
        table.add(0)
    with pytest.raises(FileExistsError, match="holds a run already"):
        refuse_another(tmp_path)


def test_links_follow_what_there_is(tmp_path):
    (tmp_path / "run").mkdir()
    file = tmp_path / "model"
    file.write_text("1")
    link(tmp_path / "run", [file])
    assert (tmp_path / "run" / "model").read_text() == "1"
    assert not os.path.isabs(os.readlink(tmp_path / "run" / "model"))
    file.unlink()
    link(tmp_path / "run", [file])
    assert not (tmp_path / "run" / "model").is_symlink()


# -- locks -----------------------------------------------------------------------------------------------------------


def hold_for_ever(lock, begun):
    with held(lock):
        begun.set()
        time.sleep(600)


def test_a_killed_process_lets_go_of_its_lock(tmp_path):
    lock = tmp_path / "run" / ".lock"
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    process = context.Process(target=hold_for_ever, args=(lock, begun), daemon=True)
    process.start()
    assert begun.wait(120)
    with pytest.raises(ValueError, match=rf"another run is writing here \(process {process.pid} on "), held(lock):
        pass
    os.kill(process.pid, signal.SIGKILL)
    with held(lock, patience=120):
        assert f"process {os.getpid()}" in lock.read_text()
    assert not lock.exists()


def test_a_lock_goes_with_the_folder_that_it_was_made_in_unless_something_is_there(tmp_path):
    with held(tmp_path / "a" / ".lock"):
        pass
    assert not (tmp_path / "a").exists()
    with held(tmp_path / "b" / ".lock"):
        (tmp_path / "b" / "file").touch()
    assert (tmp_path / "b").exists()


def test_of_many_at_once_one_is_inside(tmp_path):
    inside, most = [], []

    def enter():
        for _ in range(20):
            with held(tmp_path / ".lock", patience=60):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 120
    assert max(most) == 1


# -- digests ---------------------------------------------------------------------------------------------------------


def solver(more=""):
    return text_format.Parse(f'net: "a" base_lr: 0.1 lr_policy: "fixed" {more}', SolverParameter())


@pytest.mark.parametrize(
    "free", ["max_iter: 7", "average_loss: 3", 'snapshot_prefix: "x"', "momentum: 0", "iter_size: 1"]
)
def test_a_solver_s_digest_leaves_out_what_decides_no_number(free):
    assert solver_digest(solver(free)) == solver_digest(solver())


@pytest.mark.parametrize("deciding", ["momentum: 0.9", "iter_size: 2", "random_seed: 0", 'type: "Adam"'])
def test_a_solver_s_digest_has_what_decides_numbers(deciding):
    assert solver_digest(solver(deciding)) != solver_digest(solver())


def test_the_smoothed_loss_decides_where_the_rate_goes_by_it():
    plateau = [
        text_format.Parse(f'base_lr: 1 lr_policy: "plateau" average_loss: {n}', SolverParameter()) for n in (2, 3)
    ]
    assert solver_digest(plateau[0]) != solver_digest(plateau[1])


NET = """layer {{ name: "data" type: "Data" top: "data" data_param {{ source: "{source}" batch_size: {batch} }}
  transform_param {{ mean_file: "{mean}" }} }}"""


def net(source="a", batch=4, mean="x/m.binaryproto"):
    return text_format.Parse(NET.format(source=source, batch=batch, mean=mean), NetParameter())


def test_a_net_s_digest_leaves_out_where_data_lie():
    assert net_digest(net("b", mean="y/m.binaryproto")) == net_digest(net())
    assert net_digest(net(batch=5)) != net_digest(net())
    assert net_digest(net(mean="x/other.binaryproto")) != net_digest(net())


def test_the_first_difference_is_told():
    assert apart(net(), net(batch=5)) == "layer 'data': batch_size: 4 then, batch_size: 5 now"
    assert apart(net(), NetParameter()) == "a layer 'data' then only"
    assert apart(solver(), solver("momentum: 0.9")) == "nothing then, momentum: 0.9 now"
