"""Small trainings through the command that must really learn: handwritten digits, and what can be asked about them."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score

from ops import net as nets
from ops.records import datum, lmdb
from pipelines.__main__ import main

TRAINED = 1400  # of the 1,797 digits; the rest is held out


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder; nets as small as these are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits():
    """(N, 1, 8, 8) in 0..1 and (N,), shuffled once."""
    held = load_digits()
    order = np.random.default_rng(0).permutation(len(held.target))
    return (held.images[order, None] / 16).astype(np.float32), held.target[order]


def write_rows(name, **arrays):
    """NAME.h5 and NAME.txt, the list that an HDF5Data layer names."""
    with h5py.File(f"{name}.h5", "w") as file:
        for key, array in arrays.items():
            file[key] = np.asarray(array, np.float32)
    Path(f"{name}.txt").write_text(f"{name}.h5\n")


def split(**arrays):
    """train.* and test.*"""
    write_rows("train", **{key: array[:TRAINED] for key, array in arrays.items()})
    write_rows("test", **{key: array[TRAINED:] for key, array in arrays.items()})


def source(*tops, batch=50, test=397):
    """The data layers over train.* and test.*; a test of one batch sees every held-out digit once."""
    listed = " ".join(f'top: "{top}"' for top in tops)
    layer = 'layer { name: "data" type: "HDF5Data" %s include { phase: %s } '
    layer += 'hdf5_data_param { source: "%s" batch_size: %d %s } }'
    return layer % (listed, "TRAIN", "train.txt", batch, "shuffle: true") + layer % (
        listed,
        "TEST",
        "test.txt",
        test,
        "",
    )


def ip(name, bottom, outputs, *, share="", rates=(1, 2)):
    """An InnerProduct; `share` names its weights."""
    names = [f'name: "{share}_{kind}" ' if share else "" for kind in "wb"]
    params = " ".join(f"param {{ {each}lr_mult: {rate} }}" for each, rate in zip(names, rates, strict=True))
    filler = 'weight_filler { type: "xavier" }'
    param = f"inner_product_param {{ num_output: {outputs} {filler} }}"
    return f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}" {params} {param} }}\n'


def layer(kind, *bottoms, top, more=""):
    listed = " ".join(f'bottom: "{bottom}"' for bottom in bottoms)
    return f'layer {{ name: "{kind}_{top}" type: "{kind}" {listed} top: "{top}" {more} }}\n'


def relu(blob):
    return layer("ReLU", blob, top=blob)


SOLVER = """
net: "net.prototxt" type: "Adam" base_lr: 0.003 lr_policy: "fixed" momentum: 0.9 random_seed: 1 solver_mode: CPU
"""


def train(capsys, net, more, *options, run="run", solver=SOLVER):
    """The result of `cortado train`."""
    Path("net.prototxt").write_text(f'name: "digits"\n{net}')
    Path("solver.prototxt").write_text(f"{solver} {more}")
    command = ["train", "--solver", "solver.prototxt", "--run", run, "--local", "--gpu", "none", "--json", *options]
    code = main(command)
    told = capsys.readouterr()
    assert code == 0, told.err
    return json.loads(told.out)


def score(capsys, *options):
    """The result of `cortado test`; by default of the run, over all held-out digits."""
    options = options or ("--run", "run", "--iterations", "1")
    code = main(["test", "--gpu", "none", "--json", *options])
    told = capsys.readouterr()
    assert code == 0, told.err
    return json.loads(told.out)


TESTED = "test_iter: 1 test_interval: 50"


def test_a_regression_to_vectors_beats_least_squares(digits, capsys):
    """How far the ink spreads down and across, and how slanted it is: nothing that is linear in the pixels."""
    images, _ = digits
    ink, down, across = images[:, 0].sum((1, 2)), np.arange(8)[:, None] + np.zeros(8), np.zeros((8, 1)) + np.arange(8)
    mean = lambda place: (images[:, 0] * place).sum((1, 2)) / ink  # noqa: E731
    moments = [mean(p * q) - mean(p) * mean(q) for p, q in ((down, down), (across, across), (down, across))]
    wanted = np.stack(moments, 1).astype(np.float32)
    wanted = (wanted - wanted[:TRAINED].mean(0)) / wanted[:TRAINED].std(0)
    split(data=images, label=wanted)
    net = source("data", "label") + ip("ip1", "data", 64) + relu("ip1") + ip("spread", "ip1", 3)
    train(capsys, net + layer("EuclideanLoss", "spread", "label", top="loss"), f"{TESTED} max_iter: 300")
    found = score(capsys)["outputs"]["loss"][0]
    flat = images.reshape(len(images), -1)
    linear = LinearRegression().fit(flat[:TRAINED], wanted[:TRAINED]).predict(flat[TRAINED:])
    assert found < 0.6 * np.square(linear - wanted[TRAINED:]).sum(1).mean() / 2
    used = nets.load("run/deploy.prototxt", weights="run/solver_iter_300.caffemodel")
    assert used.outputs == ["spread"]
    told = used(data=images[TRAINED:])["spread"].detach().numpy()
    assert np.square(told - wanted[TRAINED:]).sum(1).mean() / 2 == pytest.approx(found, rel=1e-4)


def test_a_siamese_net_learns_which_digits_are_alike(digits, capsys):
    images, labels = digits
    numbers = np.random.default_rng(4)
    pairs = {}
    for name, first, last, count in (("train", 0, TRAINED, 4000), ("test", TRAINED, len(labels), 397)):
        one, other = numbers.integers(first, last, (2, 8 * count))
        alike = labels[one] == labels[other]
        chosen = np.concatenate([np.flatnonzero(alike)[: count // 2], np.flatnonzero(~alike)[: count - count // 2]])
        chosen = numbers.permutation(chosen)
        pairs[name] = np.concatenate([images[one[chosen]], images[other[chosen]]], 1), alike[chosen]
        write_rows(name, pair=pairs[name][0], sim=pairs[name][1])
    net = source("pair", "sim")
    net += 'layer { name: "cut" type: "Slice" bottom: "pair" top: "a" top: "b" slice_param { slice_dim: 1 } }'
    for side in "ab":
        net += (
            ip(f"ip_{side}", side, 64, share="ip")
            + relu(f"ip_{side}")
            + ip(f"feat_{side}", f"ip_{side}", 8, share="feat")
        )
    net += layer("ContrastiveLoss", "feat_a", "feat_b", "sim", top="loss", more="contrastive_loss_param { margin: 1 }")
    result = train(capsys, net, f"{TESTED} max_iter: 400")
    assert result["tests"][0]["loss"][0] < 0.05  # 0.2 to begin with
    trained = nets.load("run/test.prototxt", weights="run/solver_iter_400.caffemodel")
    assert trained.params["ip_a"][0] is trained.params["ip_b"][0]
    blobs = trained(pair=pairs["test"][0], sim=pairs["test"][1])
    distance = (blobs["feat_a"] - blobs["feat_b"]).norm(dim=1).detach().numpy()
    assert roc_auc_score(pairs["test"][1], -distance) > 0.95


def test_an_autoencoder_with_two_losses_keeps_more_than_principal_components(digits, capsys):
    images, _ = digits
    split(data=images)
    net = source("data") + layer("Flatten", "data", top="flat")
    net += ip("encode1", "flat", 96) + relu("encode1") + ip("code", "encode1", 6)
    net += ip("decode1", "code", 96) + relu("decode1") + ip("decode", "decode1", 64)
    net += layer("SigmoidCrossEntropyLoss", "decode", "flat", top="cross_entropy", more="loss_weight: 1")
    net += layer("Sigmoid", "decode", top="picture")
    net += layer("EuclideanLoss", "picture", "flat", top="l2", more="loss_weight: 0.5")
    train(capsys, net, f"{TESTED} max_iter: 600")
    found = score(capsys)
    cross_entropy, l2 = found["outputs"]["cross_entropy"][0], found["outputs"]["l2"][0]
    assert found["loss"] == pytest.approx(cross_entropy + 0.5 * l2, rel=1e-5)
    flat = images.reshape(len(images), -1)
    pca = PCA(6, random_state=0).fit(flat[:TRAINED])
    assert l2 < np.square(pca.inverse_transform(pca.transform(flat[TRAINED:])) - flat[TRAINED:]).sum(1).mean() / 2
    used = nets.load("run/deploy.prototxt", weights="run/solver_iter_600.caffemodel")
    assert used.outputs == ["picture"]
    told = used(data=images[TRAINED:])["picture"].detach().numpy()
    assert np.square(told - flat[TRAINED:]).sum(1).mean() / 2 == pytest.approx(l2, rel=1e-4)


def test_several_labels_a_digit_are_learned_at_once(digits, capsys):
    """Even? Five or more? With a closed loop? A prime?"""
    images, labels = digits
    asked = np.stack([labels % 2 == 0, labels >= 5, np.isin(labels, [0, 6, 8, 9]), np.isin(labels, [2, 3, 5, 7])], 1)
    split(data=images, label=asked)
    net = source("data", "label") + ip("ip1", "data", 64) + relu("ip1") + ip("answers", "ip1", 4)
    train(capsys, net + layer("SigmoidCrossEntropyLoss", "answers", "label", top="loss"), f"{TESTED} max_iter: 300")
    used = nets.load("run/deploy.prototxt", weights="run/solver_iter_300.caffemodel")
    told = used(data=images[TRAINED:])[used.outputs[0]].detach().numpy()
    assert ((told > 0) & (told < 1)).all()
    right = ((told > 0.5) == asked[TRAINED:]).mean(0)
    assert (right > 0.9).all()
    assert right.mean() > 0.94


def convolutional(last, classes, rates=(1, 2)):
    """A small net of which only the last layer knows what for."""
    params = "param { lr_mult: 1 } param { lr_mult: 2 }"
    filler = 'convolution_param { num_output: 16 kernel_size: 3 weight_filler { type: "xavier" } }'
    net = layer("Convolution", "data", top="conv", more=f"{params} {filler}") + relu("conv")
    net += layer("Pooling", "conv", top="pool", more="pooling_param { kernel_size: 2 stride: 2 }")
    net += ip("ip1", "pool", 64) + relu("ip1") + ip(last, "ip1", classes, rates=rates)
    net += layer("Accuracy", last, "label", top="accuracy", more="include { phase: TEST }")
    return net + layer("SoftmaxWithLoss", last, "label", top="loss")


def test_fine_tuning_gets_further_than_training_from_scratch(digits, capsys):
    """Ten digits are learned from 1,400; then five groups of two from 40, the last layer anew and ten times as fast."""
    images, labels = digits
    split(data=images, label=labels)
    train(capsys, source("data", "label") + convolutional("ip2", 10), "max_iter: 300", run="first")
    groups = labels % 5
    few = np.concatenate([np.flatnonzero(labels[:TRAINED] == digit)[:4] for digit in range(10)])
    write_rows("train", data=images[few], label=groups[few])
    write_rows("test", data=images[TRAINED:], label=groups[TRAINED:])
    net = source("data", "label", batch=20) + convolutional("ip2_groups", 5, rates=(10, 20))
    solver = SOLVER.replace('type: "Adam" base_lr: 0.003', 'type: "SGD" base_lr: 0.001')
    begun = ("--weights", "first/solver_iter_300.caffemodel")
    tuned = train(capsys, net, f"{TESTED} max_iter: 50", *begun, run="tuned", solver=solver)
    scratch = train(capsys, net, f"{TESTED} max_iter: 50", run="scratch", solver=solver)
    accuracy = [one["tests"][0]["accuracy"][0] for one in (tuned, scratch)]
    assert accuracy[0] >= accuracy[1]
    assert accuracy[0] > 0.85


def test_stages_choose_the_data_of_several_test_nets(digits, capsys):
    images, labels = digits
    for name, part in (("seen", slice(0, TRAINED)), ("held", slice(TRAINED, None))):
        with lmdb.Writer(Path(name)) as writer:
            for i, (image, label) in enumerate(zip(images[part], labels[part], strict=True)):
                pixels = np.round(image.transpose(1, 2, 0) * 255).astype(np.uint8)
                writer.put(f"{i:08d}".encode(), datum.raw(pixels, int(label)).tobytes())
    param = 'transform_param { scale: 0.00390625 } data_param { source: "%s" batch_size: %d backend: LMDB }'
    rules = {"phase: TRAIN": ("seen", 50), 'phase: TEST stage: "on-seen"': ("seen", 100)}
    rules['phase: TEST stage: "on-held"'] = ("held", 397)
    net = "\n".join(
        f'layer {{ name: "data" type: "Data" top: "data" top: "label" include {{ {rule} }} {param % given} }}'
        for rule, given in rules.items()
    )
    net += (
        ip("ip1", "data", 64)
        + relu("ip1")
        + ip("ip2", "ip1", 10)
        + layer("SoftmaxWithLoss", "ip2", "label", top="loss")
    )
    net += layer("Accuracy", "ip2", "label", top="accuracy", more="include { phase: TEST }")
    more = 'test_iter: 14 test_iter: 1 test_interval: 100 max_iter: 300 test_state { stage: "on-seen" } '
    result = train(capsys, net, more + 'test_state { stage: "on-held" }', "--shuffle")
    seen, held = (one["accuracy"][0] for one in sorted(result["tests"], key=lambda one: one["net"]))
    assert seen > 0.95
    assert 0.92 < held != seen
    given = ("--model", "net.prototxt", "--weights", "run/solver_iter_300.caffemodel")
    by_hand = [
        score(capsys, *given, "--stage", stage, "--iterations", count)["accuracy"]
        for stage, count in (("on-seen", "14"), ("on-held", "1"))
    ]
    assert by_hand == [pytest.approx(seen), pytest.approx(held)]
