"""Norms of gradients out of logs, Caffe's and ours."""

import numpy as np
import pandas as pd

from ops.training import norms

CAFFE = """\
I0717 10:00:00.0 1 net.cpp:1]     [Backward] Layer ip, param blob 0 diff: 0.01
E0717 10:00:00.0 1 net.cpp:1]     [Backward] All net params (data, diff): L1 norm = (1, 2); L2 norm = (3, 0.5)
I0717 10:00:00.0 1 solver.cpp:1] Iteration 0, loss = 2.3
I0717 10:00:00.0 1 solver.cpp:1]     Train net output #0: loss = 2.3 (* 1 = 2.3 loss)
E0717 10:00:00.0 1 net.cpp:1]     [Backward] All net params (data, diff): L1 norm = (1, 2); L2 norm = (3, 1e-05)
I0717 10:00:00.0 1 net.cpp:1]     [Debug] Layer conv1/7x7, gradient norm: 0.25
I0717 10:00:00.0 1 solver.cpp:1] Iteration 20 (5 iter/s, 4s/20 iters), loss = 2.1
I0717 10:00:00.0 1 solver.cpp:1] Iteration 40 (5 iter/s, 4s/20 iters), loss = 2.0
"""


def test_a_norm_belongs_to_the_loss_that_follows(tmp_path):
    (tmp_path / "a.log").write_text(CAFFE)
    told = norms.read(tmp_path / "a.log")
    assert told["iteration"].tolist() == [0, 20]
    assert told["grad_norm"].tolist() == [0.5, 1e-5]
    assert told["grad_norm/conv1/7x7"].tolist()[1] == 0.25


def test_what_was_done_again_counts_once(tmp_path):
    (tmp_path / "a.log").write_text(CAFFE + CAFFE.replace("0.5)", "0.75)"))
    assert norms.read(tmp_path / "a.log")["grad_norm"].tolist() == [0.75, 1e-5]


def test_they_stand_beside_a_runs_rows(tmp_path):
    (tmp_path / "a.log").write_text(CAFFE)
    train = pd.DataFrame({"iteration": np.arange(30.0), "loss": 1.0})
    held = norms.beside(train, tmp_path / "a.log")
    assert held["grad_norm"].notna().sum() == 2
    assert held["grad_norm"][20] == 1e-5
    assert held["loss"].tolist() == train["loss"].tolist()


def test_without_debug_info_there_are_none(tmp_path):
    train = pd.DataFrame({"iteration": [0.0], "loss": [1.0]})
    assert norms.beside(train, tmp_path / "none.log") is train
    (tmp_path / "a.log").write_text("Iteration 0, loss = 2.3\n")
    assert norms.beside(train, tmp_path / "a.log") is train
