"""Which errors of a worker are another worker's loss, after which all begin again, and which end the run; who reads."""

from __future__ import annotations

import subprocess
import sys

import pytest
import ray
import torch.distributed as dist

from pipelines.stages.ray_training import READ_THEMSELVES, Messages, lost_another, who_reads

PAIR = """
import os, sys, time
from datetime import timedelta
import torch
import torch.distributed as dist
from ops import net as nets
from ops.layers.registry import Layer, layer
from pipelines.stages.ray_training import lost_another

@layer("Total")
class Total(Layer):
    keeps_shape = True
    def forward(self, x):
        if x.device.type != "meta":
            dist.all_reduce(x)
        return x

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2,
                        timeout=timedelta(seconds=120))
net = nets.load(f"{folder}/net.prototxt")
net(x=torch.ones(1, 3))
if rank == 1:
    until = time.monotonic() + 120
    while not os.path.exists(f"{folder}/summed") and time.monotonic() < until:
        time.sleep(0.01)
    os._exit(9)
open(f"{folder}/summed", "w").close()
try:
    for _ in range(1000):
        net(x=torch.ones(1, 3))
except ValueError as error:
    print(lost_another(error), "layer 't' (Total)" in str(error))
os._exit(0)
"""
NET = """layer { name: "d" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 } } }
layer { name: "t" type: "Total" bottom: "x" top: "y" }"""


def test_a_worker_that_is_gone_is_known_behind_the_layer_that_waited_for_it(tmp_path):
    """Two processes of gloo, of which one dies while a layer of the other sums over both."""
    (tmp_path / "net.prototxt").write_text(NET)
    command = [sys.executable, "-c", PAIR]
    gone = subprocess.Popen([*command, "1", str(tmp_path)])
    done = subprocess.run([*command, "0", str(tmp_path)], capture_output=True, text=True, timeout=280)
    assert gone.wait(timeout=60) == 9
    assert done.stdout.strip() == "True True", done.stderr


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (dist.DistNetworkError("connection reset"), True),
        (dist.DistBackendError("NCCL error: remote process exited"), True),
        (RuntimeError("shape '[2, 3]' is invalid for input of size 5"), False),
        (FileNotFoundError(2, "No such file", "/gloo/x"), False),
        (None, False),
    ],
)
def test_other_errors_are_the_runs_own(error, lost):
    told = ValueError("net: layer 'a': what it met")
    told.__cause__ = error
    assert lost_another(told) == lost


@pytest.mark.parametrize(
    ("there", "reads"),
    [({"CPU": 5.0}, "cluster"), ({"CPU": 4.0}, "worker"), ({"CPU": 2.0}, "worker"), ({"GPU": 1.0}, "worker")],
)
def test_workers_read_themselves_where_they_have_taken_every_cpu(monkeypatch, there, reads):
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    assert who_reads("cluster", 4) == reads
    assert who_reads("worker", 4) == "worker"


def test_a_run_says_once_that_its_workers_read_themselves(tmp_path):
    driver = Messages(tmp_path)
    driver.begin()
    for _ in range(3):  # each time that workers begin
        worker = Messages(tmp_path)
        worker.report({"event": "begin", "world": 2, "pid": 1})
        worker.sign_once(READ_THEMSELVES)
    told = list(driver.news())
    assert [one["event"] for one in told] == ["begin", "sign", "begin", "begin"]
    assert told[1]["lines"] == [READ_THEMSELVES]
