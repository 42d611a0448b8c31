"""`data.where: cluster`: batches that Ray tasks read are those that the training worker would have read."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest

from ops.feed.feed import FeedOptions, open_feed
from ops.image import encode
from ops.parallel import Group
from ops.records.datum import encoded
from pipelines.stages.cluster_feed import Window, cuts_of, pieces_ahead
from tests.ops.feed.helpers import data_layer, layer, write_lmdb
from tests.ops.feed.test_handed import assert_same, stream
from tests.pipelines.ray_trainings import begin, cut_off, node_of_a_worker, once
from tests.pipelines.trainings import rows

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
ROOT = Path(__file__).resolve().parents[2]
TRANSFORM = "crop_size: 40 mirror: true mean_value: 104 mean_value: 117 mean_value: 123 scale: 0.017"
CLASSES = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty-one JPEG files of a photographic kind, with their list, and the same as records."""
    folder = tmp_path_factory.mktemp("cluster-feed")
    chance = np.random.default_rng(0)
    lines, records = [], {}
    for i in range(41):
        noise = chance.integers(0, 256, (56, 60, 3), dtype=np.uint8)
        picture = encode(cv2.GaussianBlur(noise, (9, 9), 0), "jpg")
        (folder / f"{i}.jpg").write_bytes(picture)
        lines.append(f"{i}.jpg {i % CLASSES}\n")
        records[b"%08d" % i] = encoded(picture, i % CLASSES)
    (folder / "list.txt").write_text("".join(lines))
    write_lmdb(folder / "db", records)
    return folder


def listed(folder, batch=10, more="", transform=TRANSFORM):
    return layer(
        f'name: "data" type: "ImageData" top: "data" top: "label" transform_param {{ {transform} }} image_data_param '
        f'{{ source: "{folder}/list.txt" root_folder: "{folder}/" batch_size: {batch} {more} }}'
    )


def spec_of(kind, folder, batch=10):
    return listed(folder, batch) if kind == "list" else data_layer(folder / "db", batch, TRANSFORM)


# -- the same batches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["list", "records"])
def test_tasks_make_the_same_batches_on_any_number_of_workers_from_any_position(ray_session, folder, kind):
    spec = spec_of(kind, folder)
    for options in (FeedOptions(), FeedOptions(shuffle=True, augment="rotate=5,brightness=0.1")):
        for part, position in (((0, 1), 0), ((0, 2), 0), ((1, 2), 30)):
            how: dict[str, Any] = {"options": options, "part": part, "position": position}
            elsewhere = partial(Window, world=part[1])
            assert_same(stream(spec, 9, elsewhere, **how), stream(spec, 9, **how))


def test_a_feed_goes_on_from_wherever_it_is_sent(ray_session, folder):
    spec = listed(folder, 4)
    with (
        open_feed(spec, "TRAIN", seed=1, elsewhere=partial(Window, world=1)) as far,
        open_feed(spec, "TRAIN", seed=1) as near,
    ):
        for position in (0, 17, 5, 400):
            for feed in (far, near):
                feed.seek(position)
            for _ in range(3):
                found, expected = next(far), next(near)
                assert found.start == expected.start
                assert np.array_equal(found.blobs["data"], expected.blobs["data"])


def test_large_batches_travel_in_pieces_of_bounded_size(folder):
    with open_feed(listed(folder, 200, transform="crop_size: 50"), "TRAIN", seed=1) as feed:
        cuts = cuts_of(feed.tops, (100, 200))
        assert cuts == [(100, 125), (125, 150), (150, 175), (175, 200)]
        few = pieces_ahead(feed.tops, cuts, {"CPU": 100, "object_store_memory": 80e6}, 2)
        assert few == int(80e6 / 8 / 2 / (25 * (3 * 50 * 50 + 4)))
        assert pieces_ahead(feed.tops, cuts, {"CPU": 100, "object_store_memory": 80e9}, 2) == 52


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_a_record_that_cannot_be_read_is_told_as_by_the_worker(ray_session, folder, tmp_path):
    for i in range(8):
        shutil.copy(folder / f"{i}.jpg", tmp_path)
    (tmp_path / "5.jpg").write_bytes(b"no picture")
    (tmp_path / "list.txt").write_text("".join(f"{i}.jpg 0\n" for i in range(8)))
    told = []
    for elsewhere in (None, partial(Window, world=1)):
        with open_feed(listed(tmp_path, 4), "TRAIN", seed=1, elsewhere=elsewhere) as feed:
            next(feed)
            with pytest.raises(ValueError, match=r"layer 'data': .*list\.txt:6: 5\.jpg: not an image") as caught:
                next(feed)
            told.append(str(caught.value))
    assert told[0] == told[1]


def test_a_node_that_does_not_see_the_records_is_named(ray_session, folder, tmp_path):
    shutil.copytree(folder / "db", tmp_path / "db")
    with open_feed(
        data_layer(tmp_path / "db", 4, TRANSFORM), "TRAIN", seed=1, elsewhere=partial(Window, world=1)
    ) as feed:
        shutil.rmtree(tmp_path / "db")
        with pytest.raises(
            ValueError, match=r"node [\d.]+ cannot read what the training worker can: .*every node sees"
        ):
            next(feed)


def test_a_cluster_without_a_free_cpu_is_told(ray_session, folder, monkeypatch):
    import ray

    monkeypatch.setattr("pipelines.stages.cluster_feed.PATIENCE", 1)

    @ray.remote(num_cpus=4)
    class Greedy:
        def ready(self):
            return True

    greedy = Greedy.remote()
    ray.get(greedy.ready.remote())
    feed = open_feed(listed(folder, 4), "TRAIN", seed=1, elsewhere=partial(Window, world=1))
    told = "no batch for 1 seconds: is a CPU free beside the training workers"
    try:
        with feed, pytest.raises(RuntimeError, match=told):
            next(feed)
    finally:
        ray.kill(greedy)


def tasks() -> list[psutil.Process]:
    """The processes that make a piece just now, of those that this one has begun."""
    found = []
    for one in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "ray::read data" in " ".join(one.cmdline()):
                found.append(one)
    return found


def test_a_killed_task_is_made_again(ray_session, folder):
    spec = listed(folder, 32, "new_height: 500 new_width: 500", "crop_size: 300 mirror: true")
    expected = stream(spec, 6)
    killed, done = [], threading.Event()

    def kill() -> None:
        while not done.is_set() and not killed:
            for one in tasks()[:1]:
                one.kill()
                killed.append(one.pid)
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        for _ in range(20):  # until one was met at work
            found = stream(spec, 6, partial(Window, world=1))
            if killed:
                break
    finally:
        done.set()
        killer.join()
    assert killed
    assert_same(found, expected)


READER = """
import sys
from functools import partial
import cluster, ops, pipelines
from cluster.config import Config
from cluster.connect import connected
from pipelines.stages.cluster_feed import Window
from tests.ops.feed.test_handed import stream
from tests.pipelines.test_cluster_feed import listed
with connected(Config(address=sys.argv[1]), packages=(ops, pipelines, cluster)):
    for batch in stream(listed(sys.argv[2], 8), 1, partial(Window, world=1)):
        print("digest", batch[1], flush=True)
    print("kill", flush=True)
    sys.stdin.readline()
    for batch in stream(listed(sys.argv[2], 8), 30, partial(Window, world=1)):
        print("digest", batch[1], flush=True)
"""


@pytest.mark.slow
def test_a_lost_node_changes_nothing(cluster_of, folder):
    expected = [batch[1] for batch in stream(listed(folder, 8), 30)]
    with cluster_of(2, cpus=2) as outside:
        command = [sys.executable, "-c", READER, outside.address, str(folder)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, cwd=ROOT, **pipes) as reader:
            assert reader.stdin
            assert reader.stdout
            found = []
            for line in reader.stdout:
                if line.startswith("kill"):
                    reader.stdin.write("\n")
                    reader.stdin.flush()
                    time.sleep(0.3)
                    outside.kill_node()
                elif line.startswith("digest"):
                    found.append(int(line.split()[1]))
    assert reader.returncode == 0
    assert found == [expected[0], *expected]


# -- a whole training --------------------------------------------------------------------------------------------------

NET = """name: "tiny"
DATA
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 5 stride: 3 weight_filler { type: "xavier" } } }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip"
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" include { phase: TEST } }
"""
SOLVER = """net: "net.prototxt" base_lr: 0.01 lr_policy: "fixed" momentum: 0.9 max_iter: 12 random_seed: 3
test_iter: 2 test_interval: 6 snapshot: 6"""


def str_of(spec: Any) -> str:
    return "layer { " + " ".join(str(spec).splitlines()) + " }"


def work(config: dict[str, Any]) -> None:
    """A training worker, as ray_training.work, with its place given."""
    import ray.train
    import torch

    from pipelines.stages.setup import Place, Training
    from pipelines.worker import train

    os.chdir(config["folder"])
    torch.set_num_threads(1)
    context = ray.train.get_context()
    group = Group(context.get_world_rank(), context.get_world_size())
    train(Training(**config["job"]), Place(group, signals=False, data_where=config["where"]))


def trained(folder: Path, run: str, where: str, workers: int) -> list[tuple[str, ...]]:
    """The rows of metrics.csv after a training in the workers of a TorchTrainer."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    job = {"solver": str(folder / "solver.prototxt"), "run": run, "feed": {"shuffle": True}}
    TorchTrainer(
        work,
        train_loop_config={"folder": str(folder), "job": job, "where": where},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name=f"{run}-{where}", storage_path=str(folder / "ray")),
    ).fit()
    return rows(folder / run)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_training_is_the_same_wherever_its_batches_are_read(ray_session, folder, tmp_path, workers):
    (tmp_path / "net.prototxt").write_text(NET.replace("DATA", str_of(listed(folder, 8))))
    (tmp_path / "solver.prototxt").write_text(SOLVER)
    here = trained(tmp_path, "here", "worker", workers)
    there = trained(tmp_path, "there", "cluster", workers)
    assert len(here) == 12
    assert there == here
    assert rows(tmp_path / "there", "test.csv") == rows(tmp_path / "here", "test.csv")


def test_a_training_goes_on_where_it_stood_when_the_place_of_reading_changes(ray_session, folder, tmp_path):
    from pipelines.stages.setup import Place, Training
    from pipelines.worker import train

    (tmp_path / "net.prototxt").write_text(NET.replace("DATA", str_of(listed(folder, 8))))
    (tmp_path / "solver.prototxt").write_text(SOLVER)
    job = {"solver": str(tmp_path / "solver.prototxt"), "feed": {"shuffle": True}}
    train(Training(run=str(tmp_path / "whole"), **job), Place(signals=False))
    state = str(tmp_path / "whole" / "solver_iter_6.solverstate")
    train(
        Training(run=str(tmp_path / "rest"), snapshot=state, **job),
        Place(signals=False, data_where="cluster", threads=1),
    )
    assert rows(tmp_path / "rest") == rows(tmp_path / "whole")[6:]


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_fewer_nodes_read_and_train_on_with_the_same_batches_and_the_same_curve(cluster_of, folder, tmp_path):
    """Two workers and a reader of a CPU each; then a worker's node is lost, and those that are left share two CPUs."""
    from pipelines.stages.setup import Place, Training
    from pipelines.worker import train

    iterations = 400
    (tmp_path / "net.prototxt").write_text(NET.replace("DATA", str_of(listed(folder, 8))))
    more = {"max_iter: 12": f"max_iter: {iterations}", "test_interval: 6": "test_interval: 100"}
    text = SOLVER.replace("snapshot: 6", "snapshot: 50")
    for old, new in more.items():
        text = text.replace(old, new)
    file = tmp_path / "solver.prototxt"
    file.write_text(text)
    train(Training(solver=str(file), run=str(tmp_path / "whole"), feed={"shuffle": True}), Place(signals=False))
    with cluster_of(3, cpus=1) as outside:
        options = ["--shuffle", "--set", "data.where=cluster", "--set", f"address={outside.address}"]
        process = begin(file, "run", *options, workers="{min: 1, max: 2}", cwd=tmp_path)
        once(
            tmp_path / "run",
            60,
            lambda: cut_off(node_of_a_worker(random.Random(5))),
            ended=lambda: process.poll() is not None,
        )
        out, told = process.communicate(timeout=300)
    assert process.returncode == 0, told
    assert "batch 8 = 2 workers x 4" in told
    assert re.search(r"a worker was lost at iteration [\d,]+: beginning again with [12]\n", told)
    assert json.loads(out)["iterations"] == iterations
    found, expected = rows(tmp_path / "run"), rows(tmp_path / "whole")
    assert [row[-1] for row in found] == [row[-1] for row in expected]
    losses, theirs = (np.array([float(row[1]) for row in one]) for one in (found, expected))
    np.testing.assert_allclose(losses, theirs, rtol=1e-3)
