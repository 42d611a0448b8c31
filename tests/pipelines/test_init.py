"""`cortado init`: the recipe's numbers beside the arithmetic by hand, and that it trains as it stands."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops import net as nets
from ops.proto import text
from ops.proto.caffe_pb2 import TEST, TRAIN, NetParameter, SolverParameter
from ops.records import binaryproto
from pipelines.__main__ import main
from pipelines.stages.recipe import schedule
from tests.pipelines.recipes import CLASSES, NET, photographs, write_lmdb, write_numbers, write_pictures
from tests.pipelines.trainings import arrays, rows, run


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pictures(folder):
    (folder / "net.prototxt").write_text(NET)
    return write_pictures(folder / "data")


def init(*arguments, code=0, capsys):
    assert main(["init", *map(str, arguments), "--json"]) == code
    told = capsys.readouterr()
    return json.loads(told.out) if code == 0 else told.err


def read(out):
    """(net, solver) of a recipe."""
    return text.read(f"{out}/train_val.prototxt", NetParameter), text.read(f"{out}/solver.prototxt", SolverParameter)


def layer(net, name, phase=None):
    return next(
        one
        for one in net.layer
        if one.name == name and (phase is None or any(rule.phase == phase for rule in one.include))
    )


# -- numbers -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 10**7), st.integers(1, 1024), st.integers(1, 10**6), st.integers(1, 1024))
def test_steps_are_18_epochs_the_whole_three_of_them_and_a_test_covers_its_part(records, batch, tested, test_batch):
    times = schedule(records, batch, tested, test_batch)
    assert abs(times.stepsize - 18 * records / batch) <= 0.5 or times.stepsize == 1
    assert times.max_iter == 3 * times.stepsize
    assert (times.test_iter - 1) * test_batch < tested <= times.test_iter * test_batch
    assert times.display <= times.test_interval


def test_imagenet_gives_what_caffes_examples_have():
    times = schedule(1_281_167, 256, 50_000, 50)
    assert times.test_iter == 1000
    assert times.stepsize == pytest.approx(100_000, rel=0.1)
    assert times.epoch == pytest.approx(5004.6, abs=0.1)


@pytest.mark.parametrize(
    ("net", "crop", "batch", "rate"),
    [("caffenet", 227, 256, 0.01), ("googlenet", 224, 32, 0.01), ("vgg16", 224, 256, 0.01)],
)
def test_a_net_of_the_zoo_for_twenty_classes_of_photographs(folder, capsys, net, crop, batch, rate):
    write_pictures(folder / "data", train=300, test=60, side=256)
    result = init("--data", "data", "--net", net, "--out", "runs/a", capsys=capsys)
    made, solver = read("runs/a")
    once = 300 / batch
    assert result["iterations_per_epoch"] == pytest.approx(once, abs=1e-3)
    assert (solver.stepsize, solver.max_iter) == (round(18 * once), 3 * round(18 * once))
    assert solver.test_iter[0] * layer(made, "data", TEST).data_param.batch_size == 100
    assert solver.base_lr == pytest.approx(rate)
    data = layer(made, "data", TRAIN)
    assert (data.data_param.source, data.data_param.batch_size) == ("data/train", batch)
    assert (data.transform_param.crop_size, data.transform_param.mean_file) == (crop, "data/mean.binaryproto")
    assert not data.transform_param.mean_value
    heads = [one.inner_product_param.num_output for one in made.layer if one.name in result["last_layers"]]
    assert set(heads) == {CLASSES}


def test_the_recipe_of_a_net_of_ones_own(pictures, capsys):
    result = init("--data", "data", "--net", "net.prototxt", "--out", "runs/a", capsys=capsys)
    made, solver = read("runs/a")
    assert (result["records"], result["test_records"], result["classes"]) == (192, 48, CLASSES)
    assert solver.net == "runs/a/train_val.prototxt"
    assert (solver.stepsize, solver.max_iter, list(solver.test_iter)) == (144, 432, [5])
    assert (solver.base_lr, solver.gamma) == (pytest.approx(0.01), pytest.approx(0.1))
    assert layer(made, "last").inner_product_param.num_output == CLASSES
    assert [one.lr_mult for one in layer(made, "last").param] == [1, 2]
    deploy = nets.load("runs/a/deploy.prototxt")
    assert deploy(data=np.zeros((2, 3, 32, 32), np.float32))["prob"].shape == (2, CLASSES)
    for name in ("train_val.prototxt", "solver.prototxt"):
        assert "  # " in (pictures.parent / "runs/a" / name).read_text()


def test_accuracies_that_few_classes_make_senseless_are_left_out(folder, capsys):
    (folder / "net.prototxt").write_text(NET)
    write_pictures(folder / "data", classes=4)
    result = init("--data", "data", "--net", "net.prototxt", "--out", "a", capsys=capsys)
    assert any("top5" in note for note in result["notes"])
    assert "top5" not in [one.name for one in read("a")[0].layer]


def test_the_same_command_again_changes_nothing_and_another_must_be_asked_for(pictures, capsys):
    words = ("--data", "data", "--net", "net.prototxt", "--out", "a")
    init(*words, capsys=capsys)
    init(*words, capsys=capsys)
    assert "is there already, and says something else: --overwrite" in init(*words, "--batch", 8, code=1, capsys=capsys)
    assert init(*words, "--batch", 8, "--overwrite", capsys=capsys)["batch"] == 8


def test_what_is_asked_for_goes_in(pictures, capsys):
    more = ("--batch", 12, "--test-batch", 6, "--crop", 20, "--rate", 0.5)
    init("--data", "data", "--net", "net.prototxt", "--out", "a", *more, capsys=capsys)
    made, solver = read("a")
    assert solver.base_lr == pytest.approx(0.5)
    assert (solver.stepsize, list(solver.test_iter)) == (18 * 192 // 12, [8])
    assert layer(made, "data", TRAIN).transform_param.crop_size == 20


def test_small_pictures_get_a_smaller_crop_where_the_net_can_be_built(folder, capsys):
    write_pictures(folder / "data", side=100, train=40, test=20)
    init("--data", "data", "--net", "caffenet", "--out", "a", capsys=capsys)
    assert layer(read("a")[0], "data", TRAIN).transform_param.crop_size == round(100 * 227 / 256)


def test_a_small_data_set_gets_small_batches(folder, capsys):
    write_pictures(folder / "data", train=40, test=20)
    assert init("--data", "data", "--net", "cifar10_quick", "--out", "a", capsys=capsys)["batch"] == 16


# -- training by it ------------------------------------------------------------------------------------------------


def test_the_recipe_trains_without_an_edit_and_its_weights_can_be_fine_tuned(folder, capsys):
    (folder / "net.prototxt").write_text(NET)
    write_pictures(folder / "data")
    init("--data", "data", "--net", "net.prototxt", "--out", "a", capsys=capsys)
    result = run(folder / "a/solver.prototxt", folder / "run")
    assert (result["iterations"], len(rows(folder / "run"))) == (432, 432)
    assert result["loss"] < 0.5 * math.log(CLASSES)

    write_pictures(folder / "more", classes=5)
    weights = "run/solver_iter_432.caffemodel"
    words = ("--data", "more", "--net", "net.prototxt", "--finetune", weights, "--out", "b")
    found = init(*words, capsys=capsys)
    assert (found["copied"], found["fresh"], found["unused"]) == (["conv"], ["last_more"], ["last"])
    made, solver = read("b")
    fresh = layer(made, "last_more")
    assert [(one.lr_mult, one.decay_mult) for one in fresh.param] == [(10, 1), (20, 0)]
    assert (list(fresh.top), fresh.inner_product_param.num_output) == (["last_more"], 5)
    assert list(layer(made, "loss").bottom) == ["last_more", "label"]
    assert (solver.base_lr, list(solver.weights)) == (pytest.approx(0.001), [weights])
    solver.max_iter = 0
    text.write("b/solver.prototxt", solver)
    run(folder / "b/solver.prototxt", folder / "run2")
    begun, source = arrays("run2/solver_iter_0.caffemodel"), arrays(weights)
    assert np.array_equal(begun["conv/0"], source["conv/0"])
    assert not begun["last_more/1"].any()


def test_labels_that_are_numbers_make_a_regression_that_learns(folder, capsys):
    (folder / "net.prototxt").write_text(NET)
    write_numbers(folder / "data")
    result = init("--data", "data", "--net", "net.prototxt", "--out", "a", capsys=capsys)
    made, _ = read("a")
    assert (result["numbers"], result["classes"]) == (3, 0)
    data = layer(made, "data", TRAIN)
    assert (data.type, data.hdf5_data_param.source) == ("HDF5Data", "data/train/list.txt")
    assert layer(made, "loss").type == "EuclideanLoss"
    assert layer(made, "last").inner_product_param.num_output == 3
    assert not [one for one in made.layer if one.type == "Accuracy"]
    trained = run(folder / "a/solver.prototxt", folder / "run")
    first = float(rows(folder / "run")[0][1])
    assert trained["loss"] < 0.5 * first


def test_one_number_a_label_is_a_regression_too(folder, capsys):
    (folder / "net.prototxt").write_text(NET)
    write_numbers(folder / "data", width=1)
    assert init("--data", "data", "--net", "net.prototxt", "--out", "a", capsys=capsys)["numbers"] == 1
    assert layer(read("a")[0], "last").inner_product_param.num_output == 1
    assert run(folder / "a/solver.prototxt", folder / "run", stop=5)["stopped"]


def test_paths_may_hold_quotes(folder, capsys):
    (folder / "net.prototxt").write_text(NET)
    write_pictures(folder / 'my "data"', train=40, test=20)
    init("--data", 'my "data"', "--net", "net.prototxt", "--out", 'an "a"', capsys=capsys)
    assert read('an "a"')[1].net == 'an "a"/train_val.prototxt'
    assert run(folder / 'an "a"/solver.prototxt', folder / "run", stop=2)["stopped"]


def test_an_autoencoder_makes_as_many_values_as_a_picture_has(folder, capsys):
    write_pictures(folder / "data", side=28)
    init("--data", "data", "--net", "mnist_autoencoder", "--out", "a", capsys=capsys)
    made, _ = read("a")
    assert layer(made, "decode1").inner_product_param.num_output == 3 * 28 * 28
    assert layer(made, "data", TRAIN).transform_param.mean_file == ""


@pytest.mark.ray
@pytest.mark.slow
def test_from_a_folder_of_photographs_to_a_recipe(ray_session, folder, capsys):
    """As a person would: twenty folders of pictures, prepare, init."""
    import cv2

    for number, picture in enumerate(photographs(64, 100)):
        place = folder / f"photos/kind{number % CLASSES:02d}"
        place.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place / f"{number}.jpg"), picture)
    assert main(["prepare", "photos", "--out", "data", "--size", "64"]) == 0
    capsys.readouterr()
    result = init("--data", "data", "--net", "cifar10_quick", "--out", "a", "--batch", 8, capsys=capsys)
    assert (result["records"], result["test_records"], result["classes"]) == (80, 20, CLASSES)
    assert result["stepsize"] == 180
    assert (result["mean"], result["base_lr"]) == ("data/mean.binaryproto", 0.001)
    assert "classes, kind00 to kind19" in (folder / "a/train_val.prototxt").read_text()


# -- bad input -----------------------------------------------------------------------------------------------------


def spoil_mean(folder):
    binaryproto.write(folder / "data/mean.binaryproto", np.zeros((3, 5, 5), np.float32))


def pairs(folder):
    (folder / "net.prototxt").write_text(NET.replace("SoftmaxWithLoss", "ContrastiveLoss"))


def eltwise(folder):
    (folder / "net.prototxt").write_text(
        NET.replace('bottom: "last" bottom: "label" top: "loss"', 'bottom: "sum" bottom: "label" top: "loss"').replace(
            'layer { name: "accuracy"',
            'layer { name: "sum" type: "Eltwise" bottom: "last" bottom: "last" top: "sum" }\nlayer { name: "accuracy"',
        )
    )


def euclid(folder):
    (folder / "net.prototxt").write_text(NET.replace("SoftmaxWithLoss", "EuclideanLoss"))


def bare_pictures(folder):
    (folder / "photos/cat").mkdir(parents=True)
    (folder / "photos/cat/1.JPG").touch()


def two_sizes(folder):
    write_lmdb(folder / "odd", [*photographs(40, 3), *photographs(30, 3)], [0, 1] * 3)


OWN = ("--net", "net.prototxt")


@pytest.mark.parametrize(
    ("spoil", "arguments", "code", "told"),
    [
        (None, ("--data", "dat", *OWN), 1, "dat: there is no such data set; did you mean 'data'?"),
        (None, ("--data", "data", "--net", "cafenet"), 1, "did you mean 'caffenet'?"),
        (None, ("--data", "data", "--net", "siamese"), 1, "siamese: trains with pairs of pictures"),
        (None, ("--data", "data", "--net", "lenet/deploy"), 1, "is a net to classify with; give the one that trains"),
        (None, ("--data", "data/test", "--test", "nix", *OWN), 1, "nix"),
        (None, ("--data", "data", *OWN, "--crop", 60), 1, "--crop 60: data/train holds pictures of 40x40"),
        (None, ("--data", "data", *OWN, "--batch", 0), 2, "--batch 0: expected 1 or more"),
        (None, ("--data", "data", *OWN, "--rate", 0), 2, "--rate 0: expected more than 0"),
        (None, ("--data", "data", *OWN, "--mean", "m"), 1, "m: there is no such mean file"),
        (None, ("--data", "data", *OWN, "--finetune", "w.caffemodel"), 1, "w.caffemodel"),
        (None, ("--data", "data", "--net", "caffenet", "--crop", 8), 1, "caffenet cannot be built for 8x8"),
        (spoil_mean, ("--data", "data", *OWN), 1, "a mean of 3x5x5, the records are 3x40x40: cortado mean data/train"),
        (pairs, ("--data", "data", *OWN), 1, "trains with pairs of pictures, and data/train holds single ones"),
        (eltwise, ("--data", "data", *OWN), 1, "cannot tell which layer makes 'sum'"),
        (euclid, ("--data", "data", *OWN), 1, "its EuclideanLoss 'loss' wants numbers, data/train has classes"),
        (bare_pictures, ("--data", "photos", *OWN), 1, "photos: pictures, not records of them: cortado prepare photos"),
        (None, ("--data", "data", "--net", "caffenet", "--crop", 20), 1, "; cortado prepare --size 256 makes larger"),
        (two_sizes, ("--data", "odd", *OWN), 1, "odd: records differ in size, 3x30x30 and 3x40x40"),
    ],
)
def test_bad_input_is_told_on_one_line(pictures, folder, capsys, spoil, arguments, code, told):
    if spoil is not None:
        spoil(folder)
    assert main(["init", *map(str, arguments), "--out", "a"]) == code
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (folder / "a").exists()


def test_weights_for_larger_pictures_are_refused_before_anything_is_written(pictures, folder, capsys):
    init("--data", "data", *OWN, "--out", "a", capsys=capsys)
    done = run(folder / "a/solver.prototxt", folder / "run", stop=1)
    weights = next(name for name in done["snapshots"] if name.endswith(".caffemodel"))
    write_pictures(folder / "small", side=24)
    words = ("--data", "small", *OWN, "--finetune", weights, "--out", "b")
    told = init(*words, code=1, capsys=capsys)
    assert "small/train: pictures of 24x24, and net.prototxt with trained weights sees 32x32" in told
    assert not (folder / "b").exists()


def test_labels_out_of_order_are_told(folder, capsys):
    (folder / "net.prototxt").write_text(NET)
    write_lmdb(folder / "sorted", photographs(40, 40), np.repeat(np.arange(4), 10))
    result = init("--data", "sorted", *OWN, "--out", "a", capsys=capsys)
    assert any("sorted by class" in note for note in result["notes"])
    assert any("no part to test with" in note for note in result["notes"])
    assert any("no mean image" in note for note in result["notes"])
    assert any("updates are few for a net from scratch" in note for note in result["notes"])
    assert not read("a")[1].test_iter


def test_a_folder_with_a_run_takes_no_other_recipe(pictures, folder, capsys):
    init("--data", "data", *OWN, "--out", "a", capsys=capsys)
    run(folder / "a/solver.prototxt", folder / "a", stop=3)
    told = init("--data", "data", *OWN, "--out", "a", code=1, capsys=capsys)
    assert told == "cortado: error: a: holds a run already: another --out NAME takes a recipe of its own\n"
