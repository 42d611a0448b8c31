"""`train --explain`: which place is expected to read a training's batches faster, by hand for several clusters."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cluster.config import Config, Data, Train
from cluster.connect import Connection, Machine
from pipelines.stages.feed_choice import Reading, Sides, explain, known, verdict
from pipelines.stages.setup import Training
from tests.ops.feed.helpers import database, pictures
from tests.pipelines.trainings import Case, ip, net

LOSS = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }'
JPEG = Reading("'data' (ImageData)", 256, 500.0, 150e3, 100)
RAW = Reading("'data' (Data)", 256, 50e3, 150e3, 100)


@pytest.mark.parametrize(
    ("sides", "reading", "word"),
    [
        (Sides(4000, 16000, 0, gpu=True), JPEG, "cluster"),
        (Sides(4000, 2000, 0, gpu=True), JPEG, "worker"),
        (Sides(4000, 16000, 3000, gpu=True), JPEG, "worker"),  # which is all that the net needs
        (Sides(4000, 16000, 9000, gpu=True), JPEG, "cluster"),
        (Sides(400e3, 900e3, 9e6, gpu=True), RAW, "worker"),
        (Sides(2000, 2000, 0, gpu=False), JPEG, "cluster"),
        (Sides(2000, 500, 600, gpu=False), JPEG, "cluster"),  # 1 / (1/600 + 1/2000) = 462 < 500
        (Sides(2000, 400, 600, gpu=False), JPEG, "worker"),
        (Sides(2000, 1000, 0, gpu=False), JPEG, "cluster where the net computes fewer than 2,000 images/s, else"),
        (
            Sides(2000, 3000, 0, gpu=False, kept=0.8),
            JPEG,
            "cluster where the net computes more than 500 images/s, else",
        ),
        (
            Sides(2000, 1500, 0, gpu=False, kept=0.8),
            JPEG,
            "cluster where the net computes more than 500 and fewer than",
        ),
        (Sides(2000, 900, 0, gpu=False, kept=0.5), JPEG, "worker: the CPUs that would read elsewhere are those"),
        (Sides(2000, 3000, 600, gpu=False, kept=0.5), JPEG, "worker: 462 images/s against 300"),
    ],
)
def test_the_faster_place_follows_from_the_rates(sides, reading, word):
    assert verdict(sides, reading).startswith(word)


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = []
    for i in range(8):
        cv2.imwrite(f"{i}.jpg", np.random.default_rng(i).integers(0, 256, (300, 300, 3), dtype=np.uint8))
        lines.append(f"{i}.jpg {i % 5}\n")
    (tmp_path / "list.txt").write_text("".join(lines))
    return write(tmp_path, 'type: "ImageData" image_data_param { source: "list.txt" batch_size: 4 }')


def write(folder, layer):
    layer = f'layer {{ name: "data" top: "data" top: "label" {layer} }}'
    return Training(solver=str(Case(net(layer, ip("data"), LOSS)).write(folder)), run=str(folder / "run"))


def there(*cpus: int) -> Connection:
    return Connection("local", True, 0.0, tuple(Machine(count, 0, 8 * 10**9) for count in cpus))


def test_a_list_of_jpegs_is_measured_and_both_places_are_told(job, monkeypatch):
    monkeypatch.setattr("pipelines.stages.feed_choice.SECONDS", 0.1)
    told = explain(job, Config(data=Data(where="cluster")), there(8, 64))
    assert told["layer"] == "'data' (ImageData), batches of 4"
    assert "s a record on one core, " in told["reading"]
    assert told["reading"].endswith("270 kB each once it is cut")
    assert told["worker"].startswith("1 x 64 CPUs: up to ")
    assert told["cluster"].startswith("8 CPUs beside the workers: up to ")
    assert "1.1 MB a batch" in told["cluster"]
    assert told["net"] == "not known before it has trained"
    assert told["faster"].startswith("cluster where the net computes fewer than ")
    assert told["chosen"] == "data.where: cluster"


def test_without_a_free_cpu_there_is_no_choice(job, monkeypatch):
    monkeypatch.setattr("pipelines.stages.feed_choice.SECONDS", 0.1)
    told = explain(job, Config(train=Train(workers=2)), there(2))
    assert told["cluster"] == "no CPU is left beside the workers"
    assert told["faster"] == "worker: no CPU is free for reading elsewhere"


def test_raw_records_stay_where_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipelines.stages.feed_choice.CARRIED", 1e7)  # no machine reads as slowly as that carries
    database(tmp_path / "db", pictures(8, 256, 256))
    told = explain(write(tmp_path, 'type: "Data" data_param { source: "db" batch_size: 4 }'), Config(), there(4, 4))
    assert told["faster"].startswith("worker: a record is read in ")


def test_a_missing_source_is_told_with_its_layer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = write(tmp_path, 'type: "Data" data_param { source: "away" batch_size: 4 }')
    with pytest.raises(ValueError, match=r"^net\.prototxt: layer 'data': there is no 'away': looked for "):
        explain(job, Config(), there(4))


def test_a_net_that_reads_nothing_is_told(tmp_path):
    job = write(tmp_path, 'type: "DummyData" dummy_data_param { shape { dim: 4 dim: 3 } shape { dim: 4 } }')
    assert explain(job, Config(), there(4))["faster"] == "worker: no layer of the net reads records"


def test_what_the_net_takes_is_known_from_the_runs_table(tmp_path):
    assert known(tmp_path) == 0
    header = "iteration,loss,loss_last,lr,seconds,images,data_wait,batch_digest\n"
    row = "{},1,1,0.1,{},100,{},00\n"
    (tmp_path / "metrics.csv").write_text(
        header + row.format(0, 5.0, 4.0) + row.format(1, 6.0, 0.5) + row.format(2, 8.0, 1.5)
    )
    assert known(tmp_path) == pytest.approx(200 / (3.0 - 2.0))
