"""The demo: what it prints can be typed, what it makes is there, and a second run makes nothing anew."""

import re
import shlex
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import tyro
from sklearn.datasets import load_digits

from ops import net, weights, zoo
from ops.proto import text
from ops.proto.caffe_pb2 import NetParameter
from ops.training.nets import read_solver
from pipelines import evaluate
from pipelines.check import Check
from pipelines.convert import Convert
from pipelines.demo import OPERATIONS, Demo, command_line, folded
from pipelines.listing import List
from pipelines.show import Show
from pipelines.stages import demo_lenet, demo_serving
from pipelines.stages.demo_pictures import EDGE, filled, write_digits, write_photographs
from pipelines.train import Train
from tests.pipelines.browser import CHROMIUM

JOBS = [
    List(source="my pictures", out=Path("lists"), split="train=0.8,test=0.2"),
    Convert(image_list="a.txt", out=Path("b"), root="c/", shuffle=True, shards="4", scale=0.5),
    *(Convert(image_list="list.txt", out=Path(name), **options) for name, options in OPERATIONS.items()),
    Check(path=Path("train"), sample=3),
    Show(data="train", sheet=Path("train.png")),
    Demo().lenet_job("lenet"),
    Train(solver=Path("a b/solver.prototxt"), run_folder=Path("runs/a"), local=True, resume=True),
    evaluate.Test(run_folder=Path("runs/a"), iterations=1, confusion=Path("confusion.png")),
]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: type(job).__name__)
def test_the_printed_command_means_the_same_job(job):
    program, command, *words = shlex.split(command_line(job))
    assert (program, command) == ("cortado", type(job).__name__.lower())
    assert tyro.cli(type(job), args=words) == job


def test_a_long_command_is_folded_so_that_a_shell_reads_the_same():
    command = "cortado train --solver a/long/way/to/the/solver.prototxt --run 'runs of mine/one' --local --shuffle"
    lines = folded(command).splitlines()
    assert len(lines) == 2
    assert max(map(len, lines)) <= 80
    heard = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {folded(command)}"], capture_output=True, text=True, check=True
    )
    assert heard.stdout.splitlines() == shlex.split(command)
    assert folded("cortado --help") == "      cortado --help"


def test_digits_are_those_of_scikit_learn(tmp_path):
    write_digits(tmp_path)
    digits = load_digits()
    assert len(list(tmp_path.rglob("*.png"))) == len(digits.target) == 1797
    for number in range(0, 1797, 100):
        image = cv2.imread(str(tmp_path / str(digits.target[number]) / f"{number:04d}.png"), cv2.IMREAD_UNCHANGED)
        inner = slice(EDGE, -EDGE)
        assert image.sum() == image[inner, inner].sum(), "the edge is black"
        np.testing.assert_allclose(image[inner, inner] / 255 * 16, digits.images[number], atol=0.5 / 255 * 16)


def test_photographs_are_listed_and_readable(tmp_path):
    write_photographs(tmp_path)
    names = [line.split()[0] for line in (tmp_path / "list.txt").read_text().splitlines()]
    assert sorted(names) == sorted(file.name for file in tmp_path.iterdir() if file.name != "list.txt")
    assert all(cv2.imread(str(tmp_path / name)) is not None for name in names)


def test_a_folder_is_filled_once_and_never_half(tmp_path):
    def broken(folder: Path) -> None:
        (folder / "one").touch()
        raise OSError("the disk is full")

    folder = tmp_path / "digits"
    with pytest.raises(OSError, match="full"):
        filled(folder, broken)
    assert not folder.exists()
    assert filled(folder, lambda there: (there / "two").touch())
    assert not filled(folder, broken)
    assert [file.name for file in folder.iterdir()] == ["two"]


RECORDS = {"train": 1438, "test": 359}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The recipe, and what it names: a mean image and folders for the records."""
    (tmp_path / "lenet").mkdir()
    demo_lenet.write_recipe(tmp_path / "lenet", tmp_path / "lenet", tmp_path, RECORDS)
    return tmp_path / "lenet"


def test_the_net_is_the_zoos_lenet_with_the_demos_data(recipe):
    ours, zoos = (
        text.read(file, NetParameter) for file in (recipe / "train_val.prototxt", zoo.find("lenet", "train_val"))
    )
    assert list(ours.layer[2:]) == list(zoos.layer[2:])
    train, test = ours.layer[:2]
    assert [layer.data_param.source for layer in (train, test)] == [f"{recipe.parent}/{name}" for name in RECORDS]
    assert (train.data_param.batch_size, test.data_param.batch_size) == (64, 359)
    assert train.transform_param == test.transform_param
    assert test.transform_param.mean_file == f"{recipe.parent}/mean.binaryproto"


def test_the_solver_tests_every_held_out_digit_once(recipe):
    solver = read_solver(recipe / "solver.prototxt")
    assert (solver.net, solver.type) == (f"{recipe}/train_val.prototxt", "Adam")
    assert list(solver.test_iter) == [1]
    assert solver.max_iter % solver.test_interval == solver.max_iter % solver.snapshot == 0
    assert "about 45 times through the 1,438" in (recipe / "solver.prototxt").read_text()


def test_a_zoo_that_has_changed_is_noticed():
    with pytest.raises(AssertionError, match="no 'batch_size: 100' any more"):
        demo_lenet.adapted("batch_size: 128", {"batch_size: 100": "batch_size: 359"})


def test_a_run_is_finished_when_the_weights_of_its_own_last_iteration_are_there(recipe, tmp_path):
    solver, run = recipe / "solver.prototxt", tmp_path / "runs/lenet"
    assert demo_lenet.last_weights(solver, run) == run / "solver_iter_1000.caffemodel"
    run.mkdir(parents=True)
    (run / "solver.prototxt").write_text("max_iter: 1000")
    solver.write_text(solver.read_text().replace("max_iter: 1000", "max_iter: 50"))  # a person tries something
    assert demo_lenet.last_weights(solver, run) == run / "solver_iter_1000.caffemodel"


def test_a_training_that_ctrl_c_stopped_stops_the_demo_which_goes_on_with_it_next_time(recipe, tmp_path, monkeypatch):
    asked = []

    def stopped(self, title, job, told, *, makes):
        asked.append(job)
        (job.run_folder / "metrics.csv").write_text("iteration,loss\n0,2.5\n")
        return {"stopped": True}

    demo = Demo(out=tmp_path)
    (tmp_path / "runs/lenet").mkdir(parents=True)
    monkeypatch.setattr(Demo, "step", stopped)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            demo.train("Training", demo.lenet_job("lenet"))
    assert [job.resume for job in asked] == [False, True]


def test_the_log_tells_how_far_a_training_is(tmp_path):
    log = tmp_path / "train.log"
    assert demo_lenet.shown(log) == -1
    log.write_text("I1124 15:04:05.000006  4711 solver.cpp:1] Iteration 0, Testing net (#0)\n")
    assert demo_lenet.shown(log) == -1
    with log.open("a") as file:
        for number in (0, 50):
            file.write(f"I1124 15:04:05.1  4711 solver.cpp:1] Iteration {number} (9 iter/s, 1s/50 iters), loss = 2\n")
        file.write("I1124 15:04:05.2  4711 sgd_solver.cpp:1] Iteration 50, lr = 0.01\n")
    assert demo_lenet.shown(log) == 50


def test_weights_are_compared_blob_by_blob_and_iterations_by_their_numbers(tmp_path):
    rows = ["iteration,loss,lr,batch_digest", "0,2.5,0.1,aa", "1,2.25,0.1,bb", "2,2.125,0.1,cc"]
    files = []
    for name, changed in (("one", rows), ("same", rows), ("other", [*rows[:3], "2,2.25,0.1,cc"])):
        model = net.load(zoo.find("lenet"))
        for blob in model.parameters():
            blob.data.copy_(torch.linspace(-1, 2, blob.numel()).reshape(blob.shape))
        model.params["ip2"][0].data *= 1.25 if name == "other" else 1
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text("\n".join(changed) + "\n")
        files.append(tmp_path / name / "model.caffemodel")
        weights.write(model, files[-1])
    one, same, other = files
    assert demo_lenet.compare(one, same) == {"iterations": 3, "same_iterations": 3, "difference": 0.0}
    found = demo_lenet.compare(one, other)
    assert (found["iterations"], found["same_iterations"]) == (3, 2)
    assert found["difference"] == pytest.approx(0.25, rel=1e-5)


def test_mistakes_are_told_the_most_frequent_first():
    assert demo_lenet.mistakes([[7, 1, 0], [0, 9, 0], [3, 0, 6]], ["a", "b", "c"]) == ["c for a (3)", "a for b (1)"]
    assert demo_lenet.mistakes([[7, 0], [0, 9]], ["a", "b"]) == []


def test_a_training_that_fails_instead_of_stopping_is_an_error(tmp_path, capfd):
    words = ["train", "--solver", str(tmp_path / "none.prototxt"), "--run", str(tmp_path / "run"), "--local"]
    with pytest.raises(RuntimeError, match="ended with exit code 1"):
        demo_lenet.stop_midway(words, tmp_path / "run", 10)
    assert "no such solver" in capfd.readouterr().err


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_chain_runs_and_a_second_run_makes_nothing_anew(tmp_path, capfd, monkeypatch):
    for module, name in (
        (demo_lenet, "STOP_SECONDS"),
        (demo_serving, "ANSWER_SECONDS"),
        (demo_serving, "BROWSER_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 240)  # the machine may be slow
    demo = Demo(out=tmp_path / "out")
    result = demo.run()
    assert result["records"] == RECORDS
    pictures = ("digits_sheet", "operations_sheet", "confusion")
    assert all(cv2.imread(result[name]) is not None for name in pictures)
    assert result["accuracy"] >= 0.98
    assert result["served"]["images"] == RECORDS["test"]
    assert result["served"]["right"] == round(result["accuracy"] * RECORDS["test"])
    assert (cv2.imread(result["served"]["page"]) is not None) if result["served"]["page"] else CHROMIUM is None
    assert result["resumed"] == {"iterations": 1000, "same_iterations": 1000, "difference": 0.0}
    told = capfd.readouterr().err
    assert "problem" not in told
    stopped = int(re.search(r"stopped after ([\d,]+) iterations", told)[1].replace(",", ""))
    assert 500 < stopped < 1000
    assert f"going on from {tmp_path}/out/runs/lenet-stopped/solver_iter_{stopped}.solverstate" in told
    manifests = sorted((tmp_path / "out").rglob("manifest.json"))
    assert len(manifests) == 2 + len(OPERATIONS)
    written = {file: file.stat().st_mtime_ns for file in [*manifests, *(tmp_path / "out/runs").rglob("*.caffemodel")]}

    again = demo.run()
    assert {**again, "seconds": 0} == {**result, "seconds": 0}
    assert {file: file.stat().st_mtime_ns for file in written} == written
    assert "skipped" in capfd.readouterr().err

    filters = next(command for command in demo.next_steps(result).values() if "--filters" in command)
    shown = tyro.cli(Show, args=shlex.split(filters)[2:]).run()
    assert cv2.imread(shown["picture"]) is not None


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [1, 2, 3])  # 0 is the whole chain's
def test_lenet_learns_the_digits_however_they_are_split(seed, tmp_path):
    demo = Demo(out=tmp_path / "out", seed=seed)
    demo.write_pictures()
    learnt = demo.lenet(demo.digits()["records"])
    assert learnt["accuracy"] >= 0.98
