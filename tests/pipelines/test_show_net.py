"""`cortado show` on nets: the table, the drawing, filters and responses of a net trained on digits."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from ops import weights as saved
from ops import zoo
from ops.net import Net, load
from ops.records import binaryproto
from pipelines.__main__ import main
from pipelines.show import Show

GOLDEN = Path(__file__).parents[1] / "golden"
LEGACY = GOLDEN / "legacy"
PHOTO = GOLDEN / "files" / "photos" / (GOLDEN / "files" / "list.txt").read_text().split()[0]


def show(data: object, **options) -> dict:
    return Show(data=str(data), **options).run()


def told(data: object, **options) -> str:
    """The one line of a mistake."""
    with pytest.raises((ValueError, OSError)) as caught:
        show(data, **options)
    from pipelines.job import one_line

    return one_line(caught.value)


def as_of(result: dict, **expected) -> bool:
    return {name: result[name] for name in expected} == expected


# -- what is a net ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["caffenet", "CaffeNet", zoo.find("caffenet"), "caffenet/deploy"])
def test_a_net_is_named_by_the_zoo_or_by_a_path(name):
    result = show(name)
    assert as_of(result, name="CaffeNet", phase="TEST", batch=10, parameters=60_965_224)
    assert as_of(result, multiply_adds=7_244_068_160, multiply_adds_an_item=724_406_816)
    assert as_of(result, inputs={"data": [10, 3, 227, 227]}, outputs={"prob": [10, 1000]})
    assert len(result["layers"]) == 24


def test_a_definition_is_known_by_its_words_whatever_its_name(tmp_path):
    shutil.copy(zoo.find("lenet"), tmp_path / "net.txt")
    assert show(tmp_path / "net.txt")["parameters"] == 431_080


@pytest.mark.parametrize("name", ["v0.prototxt", "v1.prototxt", "v1.caffemodel"])
def test_old_formats_are_shown_as_they_are_today(name):
    result = show(LEGACY / name)
    assert [layer["type"] for layer in result["layers"]][:3] == ["Input", "Convolution", "ReLU"]
    assert result["name"] == f"legacy_{name[:2]}"


def test_layers_of_ones_own_are_shown(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from ops.layers.registry import Layer, layer\n\n\n@layer('ShownHere')\nclass ShownHere(Layer):\n"
        "    def forward(self, x):\n        return x[:, :1]\n"
    )
    (tmp_path / "net.prototxt").write_text(
        'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }\n'
        'layer { name: "odd" type: "ShownHere" bottom: "x" top: "o" }'
    )
    assert told(tmp_path / "net.prototxt").startswith(f"{tmp_path}/net.prototxt: layer 'odd' (ShownHere): unknown")
    shown = show(tmp_path / "net.prototxt", code=(tmp_path / "mine.py",))
    assert shown["layers"][-1]["type"] == "ShownHere"
    assert "--code says nothing of it" in told(GOLDEN / "files" / "list.txt", code=(tmp_path / "mine.py",))


def test_data_sets_are_shown_as_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(GOLDEN / "files" / "raw_lmdb", tmp_path / "lenet")  # though a net of the zoo has that name
    assert show("lenet", images=0)["kind"] == "LMDB"


def test_a_slip_in_a_name_of_the_zoo_gets_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert told("cafenet") == "there is no file 'cafenet', and no such net in the zoo; did you mean 'caffenet'?"
    assert "caffenet: unknown file of the zoo 'train_vla'; known: README.md, deploy.prototxt" in told(
        "caffenet/train_vla"
    )
    assert told("other.prototxt") == "other.prototxt: No such file"


def test_a_solver_names_the_net_to_show():
    path = zoo.find("lenet", "solver.prototxt")
    assert told(path) == f"{path}: a solver; show its net: train_val.prototxt"


def test_weights_alone_are_no_net(tmp_path):
    shutil.copy(GOLDEN / "weights" / "feat.caffemodel.h5", tmp_path / "feat.caffemodel")
    assert "HDF5 weights, which say nothing of the net; give its prototxt" in told(tmp_path / "feat.caffemodel")


# -- shapes, phases, batches -----------------------------------------------------------------------------------------


def test_a_missing_data_source_asks_for_the_shape_with_the_crop_of_the_net():
    words = told("caffenet/train_val", phase="TRAIN")
    assert "layer 'data' (Data): there is no 'data/train'" in words
    assert words.endswith("--input 3x227x227 gives the shape without opening anything")


@pytest.mark.parametrize(("given", "shape"), [
    ("3x227x227", [256, 3, 227, 227]), ("3,227,227", [256, 3, 227, 227]), ("data=2x3x227x227", [2, 3, 227, 227]),
    ("5x3x227x227", [5, 3, 227, 227]),
])  # fmt: skip
def test_an_input_shape_stands_for_the_data_source(given, shape):
    result = show("caffenet/train_val", phase="TRAIN", input=(given,))
    assert result["inputs"] == {"data": shape, "label": shape[:1]}


def test_an_input_without_a_layer_gets_its_shape(tmp_path):
    (tmp_path / "net.prototxt").write_text('layer { name: "relu" type: "ReLU" bottom: "x" top: "y" }')
    assert told(tmp_path / "net.prototxt").endswith("where it is an input, give --input x=1x3x224x224")
    assert show(tmp_path / "net.prototxt", input=("x=2x5",))["outputs"] == {"y": [2, 5]}
    assert show(tmp_path / "net.prototxt", input=("3x5x5",))["outputs"] == {"y": [1, 3, 5, 5]}


def test_a_second_source_is_asked_for_by_its_name(tmp_path):
    source = 'layer { name: "%s" type: "Data" top: "%s" data_param { source: "none" batch_size: 7 } }\n'
    (tmp_path / "net.prototxt").write_text(source % ("a", "a") + source % ("b", "b"))
    words = told(tmp_path / "net.prototxt", input=("3x8x8",))
    assert words.endswith("--input b=7x3x224x224 gives the shape without opening anything")
    assert show(tmp_path / "net.prototxt", input=("3x8x8", "b=7x1x2x2"))["inputs"] == {
        "a": [7, 3, 8, 8],
        "b": [7, 1, 2, 2],
    }


def test_phases_and_stages_choose_the_layers():
    train, test = (show("lenet/train_val", phase=phase, input=("1x28x28",)) for phase in ("TRAIN", "TEST"))
    assert (train["batch"], test["batch"]) == (64, 100)
    assert sorted(test["outputs"]) == ["accuracy", "loss"]
    assert sorted(train["outputs"]) == ["loss"]
    autoencoder = show("mnist_autoencoder/train_val", stage="test-on-test", input=("1x28x28",))
    assert autoencoder["inputs"] == {"data": [100, 1, 28, 28]}


def test_a_batch_changes_memory_and_sums_but_not_what_an_item_costs():
    one, ten = show("lenet", batch=1), show("lenet", batch=10)
    assert (one["batch"], ten["batch"], ten["inputs"]) == (1, 10, {"data": [10, 1, 28, 28]})
    assert ten["blob_bytes"] == 10 * one["blob_bytes"]
    assert ten["multiply_adds"] == 10 * one["multiply_adds"] == 10 * ten["multiply_adds_an_item"]
    assert show("lenet", input=("1x28x28",), batch=10) == ten


def test_a_batch_needs_an_input(tmp_path):
    (tmp_path / "n.prototxt").write_text(
        'layer { name: "p" type: "Parameter" top: "p" parameter_param { shape { dim: 2 } } }'
    )
    assert told(tmp_path / "n.prototxt", batch=3).endswith("--batch 3: the net has no input with a batch")
    assert told(tmp_path / "n.prototxt", input=("3x4x4",)).endswith("has no input whose shape could be given")


def test_an_unknown_input_gets_the_nearest_name():
    assert "has no input 'dat'; did you mean 'data'?" in told("lenet", input=("dat=1x1x28x28",))


def test_a_net_of_200_layers_is_shown_in_under_2_seconds():
    took = []
    for _ in range(3):
        began = time.thread_time()  # what others do meanwhile is not its fault
        result = show("resnet50")
        took.append(time.thread_time() - began)
    assert len(result["layers"]) == 229
    assert min(took) < 2


# -- the page --------------------------------------------------------------------------------------------------------


def test_a_person_reads_layers_and_sums_and_a_machine_one_object(capsys):
    assert main(["show", "siamese/train_val", "--input", "2x28x28"]) == 0
    page = capsys.readouterr().out
    for words in (
        "conv1", "k5", "100 x 20 x 24 x 24", "28.8 M", "as conv1", "(in place)", "sim",
        "431,102", "batch 100", "(convolutions, inner products, recurrent layers; without biases)", "MB of blobs",
    ):  # fmt: skip
        assert words in page
    assert main(["show", "siamese/train_val", "--input", "2x28x28", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == 431_102


@pytest.mark.parametrize(("columns", "gone"), [(160, None), (110, "bottoms → tops"), (80, "memory")])
def test_a_narrow_terminal_leaves_columns_out_and_says_so(capsys, monkeypatch, columns, gone):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["show", "googlenet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert ("no room for" in "\n".join(lines)) == (gone is not None)
    assert gone is None or gone not in lines[0]
    assert any(line.startswith("inception_3a/relu_3x3_reduce") for line in lines)


def test_statistics_and_frozen_parameters_are_told(capsys):
    assert main(["show", "resnet50"]) == 0
    page = capsys.readouterr().out
    assert "25,557,096; besides (53,173) statistics" in page
    assert "(129)" in page


# -- the drawing -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("dot") is None, reason="needs Graphviz: apt install graphviz")
@pytest.mark.parametrize("ending", ["svg", "png"])
def test_a_drawing_is_written_beside_the_table(tmp_path, ending, capsys):
    file = tmp_path / f"net.{ending}"
    assert main(["show", "googlenet", "--draw", str(file)]) == 0
    assert str(file) in capsys.readouterr().out
    assert file.read_bytes()[:5] in (b"<?xml", b"\x89PNG\r")


def test_without_graphviz_the_dot_is_written_and_the_command_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["show", "lenet", "--draw", "lenet.svg"]) == 1
    page = " ".join(capsys.readouterr().out.split())
    assert "drawing lenet.dot (Graphviz's program `dot` is not installed: wrote lenet.dot in the place of" in page
    assert "apt install graphviz" in page
    assert (tmp_path / "lenet.dot").read_text().startswith("digraph")
    assert main(["show", "lenet", "--draw", "lenet.svg", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["drawing"] == "lenet.dot"
    assert main(["show", "lenet", "--draw", "lenet.dot"]) == 0


# -- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "complaint"), [
    ({"batch": 0}, "--batch 0: expected 1 or more"),
    ({"tiles": 0}, "--tiles 0: expected 1 or more"),
    ({"draw": Path("a.gif")}, "--draw a.gif: expected a name that ends in .svg, .png, .dot"),
    ({"out": Path("a.svg")}, "--out a.svg: expected a name that ends in .png"),
    ({"filters": "a", "responses": "b"}, "--filters and --responses: expected one of them"),
    ({"responses": "b"}, "--responses needs --image FILE"),
    ({"filters": "a", "draw": Path("a.svg")}, "--draw goes with the table"),
    ({"sheet": Path("x.png")}, "lenet is a net: --sheet says nothing of it"),
    ({"weights": "w"}, "lenet is shown as a table: --weights says nothing of it"),
    ({"filters": "conv1", "weights": "w", "mean": "1"}, "lenet is shown by its filters: --mean says nothing of it"),
    ({"input": ("3x",)}, "--input 3x: expected channels x height x width as 3x227x227, or NAME=10x3x227x227"),
])  # fmt: skip
def test_options_that_cannot_be_are_refused(options, complaint):
    assert complaint in told("lenet", **options)


def test_options_of_nets_say_nothing_of_a_data_set():
    assert told(GOLDEN / "files/raw_lmdb", draw=Path("a.svg")).endswith("is a data set: --draw says nothing of it")


# -- filters and responses of a trained net --------------------------------------------------------------------------


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """scikit-learn's digits as LeNet takes them: (1797, 1, 28, 28) of 0..1, and labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = [cv2.resize(image.astype(np.float32) / 16, (28, 28)) for image in data.images]
    return torch.from_numpy(np.stack(images)[:, np.newaxis]), torch.from_numpy(data.target)


def trained(images: torch.Tensor, labels: torch.Tensor) -> Net:
    """LeNet after eight epochs of plain SGD; the decay of its first layer takes away what the digits do not ask for."""
    net = load(zoo.find("lenet", "train_val"), "TRAIN", inputs={"data": (64, 1, 28, 28)}, blobs=["ip2"], seed=1)
    first, *others = net.params.values()
    rest = [blob for blobs in others for blob in blobs]
    groups = [{"params": first, "weight_decay": 0.04}, {"params": rest, "weight_decay": 5e-4}]
    solver = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(8):
        for batch in torch.randperm(len(images), generator=generator).split(64):
            solver.zero_grad()
            F.cross_entropy(net(data=images[batch], label=labels[batch])["ip2"], labels[batch]).backward()
            solver.step()
    return net


@pytest.fixture(scope="module")
def lenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder: digits.caffemodel of LeNet trained on 1,500 digits, digits.h5, and six.png, which it has not seen."""
    folder = tmp_path_factory.mktemp("lenet")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small batches; several threads wait for each other
    images, labels = digits()
    net = trained(images[:1500], labels[:1500])
    with torch.no_grad():
        right = net(data=images[1500:], label=labels[1500:])["ip2"].argmax(1) == labels[1500:]
    torch.set_num_threads(threads)
    assert right.float().mean() > 0.9
    saved.write(net, folder / "digits.caffemodel")
    saved.write(net, folder / "digits.h5")
    six = next(place for place in range(1500, len(labels)) if labels[place] == 6)
    cv2.imwrite(str(folder / "six.png"), (images[six, 0] * 255).round().numpy().astype(np.uint8))
    return folder


def smoothness(filters: torch.Tensor) -> float:
    """The correlation of neighbouring weights in (outputs, 1, height, width): about 0 for noise, near 1 for strokes."""
    flat = filters - filters.mean((2, 3), keepdim=True)
    pairs = torch.stack([flat[..., :-1].flatten(), flat[..., 1:].flatten()])
    return float(torch.corrcoef(pairs)[0, 1])


def test_the_filters_of_a_trained_first_layer_look_like_filters(lenet, tmp_path):
    out = tmp_path / "filters.png"
    result = show("lenet", filters="conv1", weights=str(lenet / "digits.caffemodel"), out=out)
    assert as_of(result, layer="conv1", type="Convolution", shape=[20, 1, 5, 5], filters_shown=20, picture=str(out))
    net = load(zoo.find("lenet"), weights=lenet / "digits.caffemodel")
    before = load(zoo.find("lenet", "train_val"), "TRAIN", inputs={"data": (1, 1, 28, 28)}, seed=1)
    learned, noise = (smoothness(one.params["conv1"][0].detach()) for one in (net, before))
    assert abs(noise) < 0.15
    assert learned > 0.6
    tile = cv2.imread(str(out))[77 + 3 + 9 : 77 + 3 + 95 : 19]  # the first row of tiles, a line a weight
    weights = net.params["conv1"][0].detach().numpy()[0, 0]
    expected = np.rint((weights - weights.min()) / (weights.max() - weights.min()) * 255)
    left = int(np.argmax((tile[0] != 255).any(axis=1) & (tile[0] == (214, 178, 120)).all(axis=1))) + 3
    np.testing.assert_allclose(tile[:, left + 9 : left + 95 : 19, 0], expected, atol=1)


def test_filters_come_from_hdf5_and_from_a_caffemodel_that_is_shown(lenet, tmp_path):
    out = tmp_path / "a.png"
    binary = show("lenet", filters="conv2", weights=str(lenet / "digits.caffemodel"), out=out)
    first = out.read_bytes()
    hdf5 = show("lenet", filters="conv2", weights=str(lenet / "digits.h5"), out=out)
    assert out.read_bytes() == first
    itself = show(lenet / "digits.caffemodel", phase="TRAIN", filters="conv2", out=out)
    assert out.read_bytes() == first
    assert binary["least"] == hdf5["least"] == itself["least"]
    assert (binary["filters_shown"], binary["channels_shown"]) == (16, 16)


def test_filters_need_no_shape_and_no_data_source(lenet, tmp_path):
    result = show("lenet/train_val", filters="conv1", weights=str(lenet / "digits.h5"), out=tmp_path / "a.png")
    assert result["filters_shown"] == 20


def test_a_shared_filter_is_found_at_its_owner(tmp_path):
    net = load(zoo.find("siamese", "train_val"), "TRAIN", inputs={"pair_data": (2, 2, 28, 28)})
    saved.write(net, tmp_path / "s.h5")  # which holds a shared blob once
    result = show("siamese/train_val", filters="conv1_p", weights=str(tmp_path / "s.h5"), out=tmp_path / "a.png")
    assert result["greatest"] == pytest.approx(float(net.params["conv1"][0].detach().max()))


def test_responses_are_the_maps_that_the_net_makes_of_the_image(lenet, tmp_path):
    out = tmp_path / "new" / "maps.png"
    options = {"weights": str(lenet / "digits.caffemodel"), "image": lenet / "six.png", "scale": 1 / 256, "out": out}
    result = show("lenet", responses="conv1", **options)
    image = torch.from_numpy(cv2.imread(str(lenet / "six.png"), 0).astype(np.float32))[None, None] / 256
    net = load(zoo.find("lenet"), weights=lenet / "digits.caffemodel")
    expected = F.conv2d(image, *net.params["conv1"]).detach()
    assert as_of(result, blob="conv1", shape=[20, 24, 24], input={"data": [1, 1, 28, 28]}, maps_shown=20, silent=0)
    assert result["least"] == pytest.approx(float(expected.min()), rel=1e-4)
    assert result["greatest"] == pytest.approx(float(expected.max()), rel=1e-4)
    assert cv2.imread(str(out)) is not None
    prob = show("lenet", responses="prob", **options)
    assert (prob["shape"], prob["greatest"] > 0.9) == ([10], True)


def test_a_layer_in_place_counts_in_the_blob_and_layers_may_be_named_too(lenet, tmp_path):
    options = {"weights": str(lenet / "digits.h5"), "image": lenet / "six.png", "out": tmp_path / "a.png"}
    results = [show("lenet", responses=name, **options) for name in ("ip1", "relu1")]
    assert results[0] == results[1]
    assert results[0]["least"] == 0
    assert 0 < results[0]["silent"] < 500


def test_a_net_for_training_answers_to_an_image_too(lenet, tmp_path):
    options = {"weights": str(lenet / "digits.h5"), "image": lenet / "six.png", "scale": 1 / 256}
    deploy = show("lenet", responses="ip2", out=tmp_path / "a.png", **options)
    train = show("lenet/train_val", responses="ip2", input=("1x28x28",), out=tmp_path / "b.png", **options)
    assert train["greatest"] == pytest.approx(deploy["greatest"], rel=1e-5)


def test_a_mean_is_values_a_binaryproto_or_an_npy(lenet, tmp_path):
    values = np.full((1, 30, 32), 0.5, np.float32)
    binaryproto.write(tmp_path / "mean.binaryproto", values)
    np.save(tmp_path / "mean.npy", values)
    options = {"weights": str(lenet / "digits.h5"), "image": lenet / "six.png", "out": tmp_path / "a.png"}
    results = [
        show("lenet", responses="conv1", mean=str(mean), **options)
        for mean in ("0.5", tmp_path / "mean.binaryproto", tmp_path / "mean.npy")
    ]
    assert results[0] == results[1] == results[2] != show("lenet", responses="conv1", **options)


def test_a_colour_photo_goes_into_a_net_of_three_channels(tmp_path):
    net = load(zoo.find("cifar10_quick", "train_val"), "TRAIN", inputs={"data": (1, 3, 32, 32)}, blobs=["ip2"])
    saved.write(net, tmp_path / "w.caffemodel")
    options = {"weights": str(tmp_path / "w.caffemodel"), "out": tmp_path / "a.png"}
    result = show("cifar10_quick", responses="conv1", image=PHOTO, mean="104,117,123", **options)
    assert (result["shape"], result["input"]) == ([32, 32, 32], {"data": [1, 3, 32, 32]})
    assert show("cifar10_quick", filters="conv1", **options)["channels_shown"] == 3


def test_the_page_of_a_picture_says_where_it_is(lenet, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = str(lenet / "digits.h5")
    assert main(["show", "lenet", "--filters", "conv2", "--weights", weights]) == 0
    assert "conv2-filters.png: 16 of 50 filters, 16 of 20 channels" in capsys.readouterr().out
    image = str(lenet / "six.png")
    assert main(["show", "lenet", "--responses", "ip1", "--weights", weights, "--image", image, "--tiles", "9"]) == 0
    page = capsys.readouterr().out
    assert "ip1-responses.png: 500 numbers; " in page
    assert (tmp_path / "ip1-responses.png").exists()


def test_what_is_wrong_with_filters_is_one_line(lenet, tmp_path):
    weights = str(lenet / "digits.caffemodel")
    assert told("lenet", filters="conv1").endswith("deploy.prototxt is a definition without weights")
    assert told("lenet", filters="conv11", weights=weights).endswith("has no layer 'conv11'; did you mean 'conv1'?")
    assert told("lenet", filters="ip1", weights=weights).endswith(
        "layer 'ip1' (InnerProduct) has no filters; the convolutions have: 'conv1', 'conv2'"
    )
    assert told("mnist_autoencoder", filters="encode1", weights=weights).endswith("the net has no convolution")
    words = told("caffenet", filters="conv3", weights=weights)
    assert words == f"{weights}: no weights for layer 'conv3'; did you mean 'conv2'?"
    assert told("lenet", filters="conv1", weights="none.caffemodel") == "none.caffemodel: No such file or directory"
    (tmp_path / "w.caffemodel").write_bytes(b"no weights at all")
    assert told("lenet", filters="conv1", weights=str(tmp_path / "w.caffemodel")).startswith(str(tmp_path))


def test_what_is_wrong_with_responses_is_one_line(lenet, tmp_path):
    options = {"weights": str(lenet / "digits.caffemodel"), "image": lenet / "six.png", "out": tmp_path / "a.png"}
    assert "has no layer or blob 'conv3'; did you mean 'conv" in told("lenet", responses="conv3", **options)
    assert told("lenet", responses="conv1", **{**options, "image": tmp_path / "no.png"}).endswith(
        "no.png: No such file or directory"
    )
    (tmp_path / "text.png").write_text("no picture")
    assert "text.png: not an image" in told("lenet", responses="conv1", **{**options, "image": tmp_path / "text.png"})
    assert told("lenet", responses="conv1", mean="1,2", **options).endswith(
        "2 values for an input of 1 channels; expected 1"
    )
    assert told("lenet", responses="conv1", mean="mean.bin", **options).startswith("mean.bin: No such file")
    binaryproto.write(tmp_path / "small.binaryproto", np.zeros((1, 20, 20), np.float32))
    assert "a mean of 1 x 20 x 20 does not cover the net's input of 1 x 28 x 28" in told(
        "lenet", responses="conv1", mean=str(tmp_path / "small.binaryproto"), **options
    )
    (tmp_path / "mean.npy").write_bytes(b"rubbish")
    assert "mean.npy: no array of numpy" in told("lenet", responses="conv1", mean=str(tmp_path / "mean.npy"), **options)
    data = {"input": ("1x28x28",), **options}
    assert "blob 'loss' is computed from inputs 'data', 'label'" in told("lenet/train_val", responses="loss", **data)
    assert "input 'label' does not take an image: it is 100" in told("lenet/train_val", responses="label", **data)


def test_weights_that_lack_a_layer_on_the_way_are_told(lenet, tmp_path):
    net = load(zoo.find("lenet"), blobs=["conv1"])
    saved.write(net, tmp_path / "first.h5")
    words = told("lenet", responses="pool2", weights=str(tmp_path / "first.h5"), image=lenet / "six.png")
    assert words.endswith("first.h5: no weights for 'conv2', which 'pool2' is computed with")
