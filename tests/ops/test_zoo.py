"""The zoo: every file is read, builds, and has the sizes, names, rates and settings that were published."""

import math
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from ops import zoo
from ops.net import Net, load
from ops.proto import text
from ops.proto.caffe_pb2 import LayerParameter, NetParameter, SolverParameter

# net: (parameters of train_val, of deploy), the input of one image, the deploy net's output and its size
NETS = {
    "alexnet": ((60_965_224, 60_965_224), (3, 227, 227), "prob", 1000),
    "caffenet": ((60_965_224, 60_965_224), (3, 227, 227), "prob", 1000),
    "cifar10_full": ((89_578, 89_578), (3, 32, 32), "prob", 10),
    "cifar10_quick": ((145_578, 145_578), (3, 32, 32), "prob", 10),
    "flickr_style": ((56_950_164, 56_950_164), (3, 227, 227), "prob", 20),
    "googlenet": ((13_378_280, 6_998_552), (3, 224, 224), "prob", 1000),
    "lenet": ((431_080, 431_080), (1, 28, 28), "prob", 10),
    "mnist_autoencoder": ((2_837_314, 2_837_314), (1, 28, 28), "decode1neuron", 784),
    "resnet50": ((25_557_096, 25_557_096), (3, 224, 224), "prob", 1000),
    "siamese": ((431_102, 431_102), (1, 28, 28), "feat", 2),
    "vgg16": ((138_357_544, 138_357_544), (3, 224, 224), "prob", 1000),
}
FILES = sorted(zoo.HERE.glob("*/*.prototxt"))
SOLVERS = [path for path in FILES if path.name.startswith("solver")]
NET_FILES = [path for path in FILES if path not in SOLVERS]


def title(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def feeds(name: str, batch: int = 2) -> dict[str, tuple[int, ...]]:
    """Shapes of what the data layers of a train_val give."""
    if name == "siamese":
        return {"pair_data": (batch, 2, 28, 28), "sim": (batch,)}
    shape = NETS[name][1]
    return {"data": (batch, *shape)} | ({} if name == "mnist_autoencoder" else {"label": (batch,)})


@cache
def built(name: str, phase: str = "TRAIN") -> Net:
    """A net for training or testing, without memory for its numbers."""
    return load(zoo.find(name, "train_val"), phase, inputs=feeds(name), device="meta")


@cache
def deployed(name: str) -> Net:
    return load(zoo.find(name), device="meta")


def learned(net: Net) -> int:
    """Numbers that a solver may change, shared ones once."""
    blobs = [blob for layer in net.layers for blob in layer.blobs]
    return sum({id(blob): blob.numel() for blob in blobs if isinstance(blob, nn.Parameter)}.values())


def layers(name: str, file: str = "train_val") -> dict[str, LayerParameter]:
    return {layer.name: layer for layer in text.read(zoo.find(name, file), NetParameter).layer}


def solver(name: str, file: str = "solver") -> SolverParameter:
    return text.read(zoo.find(name, file), SolverParameter)


def batch(name: str, phase: int) -> tuple[int, str]:
    """Batch size and source of the data layer of a phase."""
    spec = text.read(zoo.find(name, "train_val"), NetParameter)
    data = next(one for one in spec.layer if not one.bottom and one.include[0].phase == phase)
    source = data.image_data_param if data.type == "ImageData" else data.data_param
    return source.batch_size, source.source


# -- files -----------------------------------------------------------------------------------------------------------


def test_the_zoo_is_what_the_readme_files_describe():
    assert zoo.names() == sorted(NETS)
    for name in zoo.names():
        files = {path.name for path in (zoo.HERE / name).iterdir()}
        assert files >= {"README.md", "train_val.prototxt", "deploy.prototxt", "solver.prototxt"}, name
        assert f"{NETS[name][0][0]:,}" in zoo.find(name, "README.md").read_text(), name


@pytest.mark.parametrize("path", FILES, ids=title)
def test_a_file_is_laid_out_to_be_read(path):
    lines = path.read_text(encoding="ascii").split("\n")
    assert lines[0].startswith("# "), "a file begins with what it is"
    assert lines[-1] == ""
    assert all(len(line) <= 120 and line == line.rstrip() and "\t" not in line for line in lines)
    assert not any(line.startswith("layers") for line in lines), "today's format has layer {}"


@pytest.mark.parametrize("path", NET_FILES, ids=title)
def test_the_sizes_in_the_comments_are_those_of_the_net(path):
    """`# 256 x 6 x 6 = 9,216 -> 4,096`: each is the shape, the channels or the count of a blob of its section."""
    name = path.parent.name
    shapes = (deployed(name) if path.stem == "deploy" else built(name)).shapes
    sections = re.findall(r"\n\n((?:#[^\n]*\n)+)(.*?)(?=\n\n|\Z)", path.read_text(), re.DOTALL)
    arrows = 0
    for comment, body in sections:
        chain = re.search(r"(?:^|: |, )([\dx ,=+]+ -> [\dx ,=+>-]*\d)", comment[2:], re.MULTILINE)
        if chain is None:
            continue
        arrows += 1
        blobs = {shapes[blob][1:] for blob in re.findall(r'(?:bottom|top): "(.*?)"', body) if blob in shapes}
        known = {" x ".join(f"{size:,}" for size in shape) for shape in blobs}
        known |= {f"{shape[0]:,}" for shape in blobs if shape} | {f"{math.prod(shape):,}" for shape in blobs}
        sizes = re.findall(r"\d[\d,]*(?: x \d[\d,]*)*", chain[1])
        assert {size.rstrip(",") for size in sizes} <= known, comment
    assert arrows >= 1


@pytest.mark.parametrize("path", NET_FILES, ids=title)
def test_the_names_of_layers_are_different(path):
    """Data layers share one between phases; weights are copied, and HDF5 snapshots kept, by name."""
    names = [layer.name for layer in text.read(path, NetParameter).layer if layer.bottom]
    assert len(names) == len(set(names))


# -- nets ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_parameters_are_as_many_as_published(name):
    train, deploy = NETS[name][0]
    assert learned(built(name, "TRAIN")) == learned(built(name, "TEST")) == train
    assert learned(deployed(name)) == deploy


def test_resnet_keeps_statistics_besides():
    for net in (built("resnet50"), deployed("resnet50")):
        kept = [blob.numel() for one in net.layers for blob in one.blobs if not isinstance(blob, nn.Parameter)]
        assert sum(kept) == 2 * 26_560 + 53
        assert kept.count(1) == 53


@pytest.mark.parametrize("name", NETS)
def test_a_deploy_net_gives_its_result_for_any_batch(name):
    _, image, output, size = NETS[name]
    net = deployed(name)
    assert list(net.inputs) == ["data"]
    assert net.inputs["data"][1:] == image
    assert net.outputs == [output]
    assert net.shapes[output] == (net.inputs["data"][0], size)
    other = load(zoo.find(name), inputs={"data": (3, *image)}, device="meta")
    assert other.shapes[output] == (3, size)


@pytest.mark.parametrize("name", NETS)
def test_a_deploy_net_takes_the_weights_of_its_training(name):
    trained, net = built(name).params, deployed(name).params
    aux = {layer for layer in trained if layer.startswith(("loss1/", "loss2/")) or layer.endswith("_p")}
    assert {layer: [blob.shape for blob in blobs] for layer, blobs in net.items()} == {
        layer: [blob.shape for blob in blobs] for layer, blobs in trained.items() if layer not in aux
    }


@pytest.mark.parametrize("name", NETS)
def test_training_minimizes_a_loss_and_testing_shows_more(name):
    train, test = built(name, "TRAIN"), built(name, "TEST")
    assert set(train.loss_weights) <= set(train.outputs)
    assert train.loss_weights == test.loss_weights
    more = set(test.outputs) - set(train.outputs)
    if name == "googlenet":
        assert train.loss_weights == pytest.approx({"loss1/loss1": 0.3, "loss2/loss1": 0.3, "loss3/loss3": 1})
        assert more == {f"loss{head}/top-{best}" for head in (1, 2, 3) for best in (1, 5)}
    elif name in ("mnist_autoencoder", "siamese"):
        assert not more
    else:
        assert more == {"accuracy"}


@pytest.mark.parametrize(
    ("name", "logits"),
    [("cifar10_full", "ip1"), ("cifar10_quick", "ip2"), ("googlenet", "loss3/classifier"), ("lenet", "ip2")],
)
def test_a_deploy_net_says_what_its_training_net_found(name, logits):
    image = torch.randn(1, *NETS[name][1], generator=torch.Generator().manual_seed(1))
    trained = load(zoo.find(name, "train_val"), "TEST", inputs=feeds(name), blobs=[logits], seed=2)
    net = load(zoo.find(name))
    with torch.no_grad():
        for layer, blobs in net.params.items():
            for blob, value in zip(blobs, trained.params[layer], strict=True):
                blob.copy_(value)
        wanted = torch.softmax(trained(data=image, label=torch.zeros(1))[logits], 1)
        found = net(data=image)["prob"]
    assert wanted.std() > 0
    torch.testing.assert_close(found, wanted)


def test_an_untrained_lenet_guesses():
    digits = torch.rand(100, 1, 28, 28, generator=torch.Generator().manual_seed(2))
    net = load(zoo.find("lenet", "train_val"), "TRAIN", inputs=feeds("lenet"), seed=3)
    assert net.loss(net(data=digits, label=torch.arange(100) % 10)).item() == pytest.approx(math.log(10), rel=0.1)


# -- names, as the published weights have them -----------------------------------------------------------------------


def test_caffenet_and_alexnet_have_the_published_names():
    learning = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
    assert list(deployed("caffenet").params) == list(deployed("alexnet").params) == learning


def test_googlenet_has_the_published_names():
    names = set(layers("googlenet"))
    windows = ["1x1", "3x3_reduce", "3x3", "5x5_reduce", "5x5", "pool_proj"]
    for inception in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        assert names >= {f"inception_{inception}/{part}" for part in (*windows, "pool", "output")}
        assert names >= {f"inception_{inception}/relu_{part}" for part in windows}
    assert names >= {"conv1/7x7_s2", "pool1/3x3_s2", "pool1/norm1", "conv2/3x3_reduce", "conv2/3x3", "conv2/norm2"}
    assert names >= {"pool2/3x3_s2", "pool3/3x3_s2", "pool4/3x3_s2", "pool5/7x7_s1", "loss3/classifier"}
    for head in ("loss1", "loss2"):
        assert names >= {f"{head}/{part}" for part in ("ave_pool", "conv", "relu_conv", "fc", "relu_fc", "classifier")}


def test_vgg16_has_the_published_names():
    convolutions = [f"conv{stage}_{i}" for stage, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)]
    assert list(deployed("vgg16").params) == [*convolutions, "fc6", "fc7", "fc8"]


def test_resnet50_has_the_published_names():
    wanted = ["conv1", "bn_conv1", "scale_conv1"]
    for stage, blocks in {2: "abc", 3: "abcd", 4: "abcdef", 5: "abc"}.items():
        for block in blocks:
            for branch in (["1"] if block == "a" else []) + ["2a", "2b", "2c"]:
                wanted += [f"{kind}{stage}{block}_branch{branch}" for kind in ("res", "bn", "scale")]
    assert list(deployed("resnet50").params) == [*wanted, "fc1000"]
    assert {"res2a", "res2a_relu", "res5c_branch2b_relu", "pool5", "prob"} <= set(layers("resnet50", "deploy"))


def test_flickr_style_is_caffenet_with_another_head():
    ours, theirs = built("flickr_style").params, built("caffenet").params
    assert [*ours][:-1] == [*theirs][:-1]
    assert all(a.shape == b.shape for name in [*ours][:-1] for a, b in zip(ours[name], theirs[name], strict=True))
    assert [tuple(blob.shape) for blob in ours["fc8_flickr"]] == [(20, 4096), (20,)]


# -- how they learn --------------------------------------------------------------------------------------------------

RATES = [  # net, layer, (lr_mult, decay_mult) of weights and biases
    ("alexnet", "conv1", (1, 1), (2, 0)),
    ("caffenet", "fc8", (1, 1), (2, 0)),
    ("cifar10_full", "conv1", (1, 1), (2, 1)),
    ("cifar10_full", "conv3", (1, 1), (1, 1)),
    ("cifar10_full", "ip1", (1, 250), (2, 0)),
    ("cifar10_quick", "conv3", (1, 1), (2, 1)),
    ("flickr_style", "fc7", (1, 1), (2, 0)),
    ("flickr_style", "fc8_flickr", (10, 1), (20, 0)),
    ("googlenet", "inception_4c/5x5", (1, 1), (2, 0)),
    ("lenet", "ip2", (1, 1), (2, 1)),
    ("mnist_autoencoder", "encode4", (1, 1), (1, 0)),
    ("siamese", "feat", (1, 1), (2, 1)),
    ("vgg16", "conv3_3", (1, 1), (2, 0)),
]


@pytest.mark.parametrize(("name", "layer", "weights", "biases"), RATES)
def test_rates_are_the_published_ones(name, layer, weights, biases):
    net = built(name)
    at = next(i for i, one in enumerate(net.layers) if one.spec.name == layer)
    assert [(one.lr_mult, one.decay_mult) for one in net.learnable if one.layer == at] == [weights, biases]


def test_statistics_of_resnet_do_not_learn():
    net = built("resnet50")
    for one in net.learnable:
        assert (one.lr_mult == 0) == net.layers[one.layer].is_statistic(one.index)


def test_the_towers_of_the_siamese_net_are_one():
    params = built("siamese").params
    for name in ("conv1", "conv2", "ip1", "ip2", "feat"):
        assert all(a is b for a, b in zip(params[name], params[f"{name}_p"], strict=True))


@pytest.mark.parametrize(("name", "bias"), [("caffenet", 1), ("alexnet", 0.1), ("flickr_style", 1)])
def test_five_layers_of_alexnet_start_with_a_bias(name, bias):
    specs = layers(name)
    for layer in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"):
        spec = specs[layer]
        filler = (spec.convolution_param if spec.type == "Convolution" else spec.inner_product_param).bias_filler
        assert filler.value == pytest.approx(0 if layer in ("conv1", "conv3") else bias), layer


def test_alexnet_normalizes_before_pooling_and_caffenet_after():
    assert layers("alexnet")["pool1"].bottom == ["norm1"]
    assert layers("caffenet")["norm1"].bottom == ["pool1"]


def test_sparse_weights_leave_about_fifteen_for_each_input():
    net = load(zoo.find("mnist_autoencoder", "train_val"), "TRAIN", inputs=feeds("mnist_autoencoder"), seed=1)
    weights = net.params["encode1"][0]
    assert (weights != 0).sum(0).float().mean().item() == pytest.approx(15, rel=0.05)


BATCHES = {
    "alexnet": (256, 50),
    "caffenet": (256, 50),
    "cifar10_full": (100, 100),
    "cifar10_quick": (100, 100),
    "flickr_style": (50, 50),
    "googlenet": (32, 50),
    "lenet": (64, 100),
    "mnist_autoencoder": (100, 100),
    "resnet50": (256, 50),
    "siamese": (64, 100),
    "vgg16": (256, 50),
}


@pytest.mark.parametrize("name", NETS)
def test_batches_are_the_published_ones(name):
    (train, train_source), (test, _) = batch(name, 0), batch(name, 1)
    assert (train, test) == BATCHES[name]
    assert train_source.startswith("data/train")


@pytest.mark.parametrize("name", ["alexnet", "caffenet", "flickr_style", "googlenet", "resnet50", "vgg16"])
def test_only_training_mirrors(name):
    spec = text.read(zoo.find(name, "train_val"), NetParameter)
    transforms = [one.transform_param for one in spec.layer if not one.bottom]
    assert [one.mirror for one in transforms] == [True, False]
    assert {one.crop_size for one in transforms} == {NETS[name][1][1]}
    assert all(bool(one.mean_file) != bool(one.mean_value) for one in transforms)


# -- solvers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SOLVERS, ids=title)
def test_a_solver_has_all_that_a_run_needs(path):
    spec = text.read(path, SolverParameter)
    assert spec.net == "train_val.prototxt"
    assert (path.parent / spec.net).is_file()
    assert spec.snapshot_prefix.startswith(path.parent.name)
    assert spec.lr_policy in ("fixed", "step", "multistep", "inv", "poly")
    assert spec.type in ("SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam")
    assert spec.test_interval > 0
    assert len(spec.test_iter) == max(1, len(spec.test_state))
    if spec.type in ("AdaGrad", "RMSProp"):
        assert spec.momentum == 0


@pytest.mark.parametrize("path", SOLVERS, ids=title)
def test_a_test_sees_the_whole_test_set(path):
    whole = {"flickr_style": 5_000, "siamese": 10_000}  # not whole: as published
    spec, name = text.read(path, SolverParameter), path.parent.name
    size = whole.get(name, 50_000 if NETS[name][1][1] > 200 else 10_000)
    assert spec.test_iter[-1] * batch(name, 1)[0] == size


def test_the_autoencoder_is_tested_on_both_sets():
    for file in ("solver", "solver_nesterov", "solver_adagrad", "solver_adadelta"):
        spec = solver("mnist_autoencoder", file)
        assert [(state.stage[0], count) for state, count in zip(spec.test_state, spec.test_iter, strict=True)] == [
            ("test-on-train", 500),
            ("test-on-test", 100),
        ]
    for stage, source in (("test-on-train", "data/train"), ("test-on-test", "data/test")):
        net = load(
            zoo.find("mnist_autoencoder", "train_val"), stages=[stage], inputs=feeds("mnist_autoencoder"), device="meta"
        )
        assert [one.spec.data_param.source for one in net.layers if one.spec.type == "Data"] == [source]


SETTINGS = [  # net, solver, type, rate, policy, iterations, decay
    ("alexnet", "solver", "SGD", 0.01, "step", 450_000, 5e-4),
    ("caffenet", "solver", "SGD", 0.01, "step", 450_000, 5e-4),
    ("cifar10_full", "solver", "SGD", 1e-3, "fixed", 60_000, 4e-3),
    ("cifar10_full", "solver_lr1", "SGD", 1e-4, "fixed", 65_000, 4e-3),
    ("cifar10_full", "solver_lr2", "SGD", 1e-5, "fixed", 70_000, 4e-3),
    ("cifar10_quick", "solver", "SGD", 1e-3, "fixed", 4_000, 4e-3),
    ("cifar10_quick", "solver_lr1", "SGD", 1e-4, "fixed", 5_000, 4e-3),
    ("flickr_style", "solver", "SGD", 1e-3, "step", 100_000, 5e-4),
    ("googlenet", "solver", "SGD", 0.01, "step", 10_000_000, 2e-4),
    ("googlenet", "solver_quick", "SGD", 0.01, "poly", 2_400_000, 2e-4),
    ("lenet", "solver", "SGD", 0.01, "inv", 10_000, 5e-4),
    ("lenet", "solver_multistep", "SGD", 0.01, "multistep", 10_000, 5e-4),
    ("lenet", "solver_adam", "Adam", 1e-3, "fixed", 10_000, 0),
    ("lenet", "solver_rmsprop", "RMSProp", 0.01, "inv", 10_000, 5e-4),
    ("lenet", "solver_adadelta", "AdaDelta", 1, "fixed", 10_000, 5e-4),
    ("mnist_autoencoder", "solver", "SGD", 0.01, "step", 65_000, 5e-4),
    ("mnist_autoencoder", "solver_nesterov", "Nesterov", 0.01, "step", 65_000, 5e-4),
    ("mnist_autoencoder", "solver_adagrad", "AdaGrad", 0.01, "fixed", 65_000, 5e-4),
    ("mnist_autoencoder", "solver_adadelta", "AdaDelta", 1, "fixed", 65_000, 5e-4),
    ("resnet50", "solver", "SGD", 0.1, "step", 600_000, 1e-4),
    ("siamese", "solver", "SGD", 0.01, "inv", 50_000, 0),
    ("vgg16", "solver", "SGD", 0.01, "step", 370_000, 5e-4),
]


@pytest.mark.parametrize(("name", "file", "kind", "rate", "policy", "iterations", "decay"), SETTINGS)
def test_solver_settings_are_the_published_ones(name, file, kind, rate, policy, iterations, decay):
    spec = solver(name, file)
    found = (spec.type, spec.base_lr, spec.lr_policy, spec.max_iter, spec.weight_decay)
    assert found == (kind, pytest.approx(rate), policy, iterations, pytest.approx(decay))


def test_every_solver_is_in_the_table_of_settings():
    assert sorted(f"{name}/{file}" for name, file, *_ in SETTINGS) == [title(path) for path in SOLVERS]


# -- by name ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("caffenet", "caffenet/deploy.prototxt"),
        ("CaffeNet", "caffenet/deploy.prototxt"),
        ("VGG-16", "vgg16/deploy.prototxt"),
        ("cifar10-quick", "cifar10_quick/deploy.prototxt"),
        ("caffenet/train_val", "caffenet/train_val.prototxt"),
        ("LeNet/solver_adam.prototxt", "lenet/solver_adam.prototxt"),
        (Path("lenet/solver"), "lenet/solver.prototxt"),
    ],
)
def test_a_net_is_found_by_its_name(asked, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert zoo.resolve(asked) == zoo.HERE / found


def test_a_bare_name_stands_for_the_file_that_is_asked_for():
    assert zoo.resolve("lenet", "train_val.prototxt") == zoo.HERE / "lenet/train_val.prototxt"


def test_a_path_that_exists_is_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for own in ("lenet", "mine.prototxt"):
        Path(own).write_text("name: 'mine'")
        assert zoo.resolve(own) == Path(own)
    assert zoo.resolve(tmp_path / "mine.prototxt") == tmp_path / "mine.prototxt"


def test_a_folder_of_the_same_name_is_not_taken_for_either(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("lenet").mkdir()
    with pytest.raises(ValueError, match=r"write lenet/deploy\.prototxt, or lenet/deploy for the zoo's"):
        zoo.resolve("lenet")
    assert zoo.resolve("lenet/deploy") == zoo.HERE / "lenet/deploy.prototxt"
    Path("lenet/deploy.prototxt").touch()
    assert zoo.resolve("lenet/deploy.prototxt") == Path("lenet/deploy.prototxt")


@pytest.mark.parametrize("asked", ["cafenet", "cafenet/train_val"])
def test_what_is_neither_a_file_nor_a_net_names_the_nearest(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"no file '{asked}', and no such net in the zoo; did you mean 'caffe"):
        zoo.resolve(asked)


def test_a_path_that_is_not_there_is_told_without_the_list_of_nets(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file '.*/x/y\.prototxt', and no such net in the zoo$"):
        zoo.resolve(tmp_path / "x/y.prototxt")


def test_an_unknown_net_or_file_names_the_nearest():
    with pytest.raises(ValueError, match="unknown net of the zoo 'googlnet'; did you mean 'googlenet'"):
        zoo.find("googlnet")
    with pytest.raises(ValueError, match="lenet: unknown file of the zoo 'solver_adm'; did you mean 'solver_adam"):
        zoo.find("lenet", "solver_adm")
    with pytest.raises(ValueError, match="unknown file"):
        zoo.find("lenet", "../caffenet/deploy.prototxt")


# -- published weights -----------------------------------------------------------------------------------------------


def test_weights_are_known_by_their_bytes(tmp_path, monkeypatch):
    known = zoo.Known("lenet", "three letters", "a9993e364706816aba3e25717850c26c9cd0d89d")  # FIPS 180's example
    monkeypatch.setattr(zoo, "PUBLISHED", (*zoo.PUBLISHED, known))
    (tmp_path / "abc.caffemodel").write_bytes(b"abc")
    (tmp_path / "abd.caffemodel").write_bytes(b"abd")
    assert zoo.identify(tmp_path / "abc.caffemodel") == known
    assert zoo.identify(str(tmp_path / "abd.caffemodel")) is None


def test_weights_that_are_not_there_are_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        zoo.identify(tmp_path / "none.caffemodel")


def test_published_weights_stand_in_the_readme_of_their_net():
    assert len({known.sha1 for known in zoo.PUBLISHED}) == len(zoo.PUBLISHED)
    for known in zoo.PUBLISHED:
        assert re.fullmatch("[0-9a-f]{40}", known.sha1), known
        if known.net is not None:
            assert known.sha1 in zoo.find(known.net, "README.md").read_text(), known
    digests = {
        sha1 for name in NETS for sha1 in re.findall(r"\b[0-9a-f]{40}\b", zoo.find(name, "README.md").read_text())
    }
    assert digests == {known.sha1 for known in zoo.PUBLISHED if known.net is not None}
