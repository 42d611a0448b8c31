"""Two and three processes that share a batch compute what one computes from all of it: values, losses, gradients."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from google.protobuf import text_format

from ops import net as nets
from ops.parallel import Group, share
from ops.proto.caffe_pb2 import NetParameter
from ops.spread import spread

BATCH, CLASSES = 7, 5
HEAD = f"""
layer {{ name: "data" type: "Input" top: "data" top: "label"
        input_param {{ shape {{ dim: {BATCH} dim: 3 dim: 6 dim: 6 }} shape {{ dim: {BATCH} }} }} }}
layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param {{
        num_output: 4 kernel_size: 3 weight_filler {{ type: "xavier" }} bias_filler {{ type: "uniform" }} }} }}
"""
FC = f"""
layer {{ name: "fc" type: "InnerProduct" bottom: "conv" top: "fc"
        inner_product_param {{ num_output: {CLASSES} weight_filler {{ type: "xavier" }} }} }}
"""
LABELLED = 'layer { name: "loss" type: "%s" bottom: "fc" bottom: "label" top: "loss" %s }'
SOFTMAX = LABELLED % ("SoftmaxWithLoss", "")
CASES = {
    "softmax": HEAD + FC + SOFTMAX,
    "ignored labels": HEAD + FC + LABELLED % ("SoftmaxWithLoss", "loss_param { ignore_label: 1 }"),
    "normalized by none": HEAD + FC + LABELLED % ("SoftmaxWithLoss", "loss_param { normalization: NONE }"),
    "normalized by batch": HEAD + FC + LABELLED % ("SoftmaxWithLoss", "loss_param { normalization: BATCH_SIZE }"),
    "hinge": HEAD + FC + LABELLED % ("HingeLoss", "hinge_loss_param { norm: L2 }"),
    "margin": HEAD + FC + LABELLED % ("MultiMarginLoss", ""),
    "sigmoid": HEAD + FC + 'layer { name: "l" type: "SigmoidCrossEntropyLoss" bottom: "fc" bottom: "fc" top: "l" }',
    "euclid": HEAD
    + FC
    + 'layer { name: "p" type: "Power" bottom: "fc" top: "p" power_param { power: 2 } }'
    + 'layer { name: "l" type: "EuclideanLoss" bottom: "fc" bottom: "p" top: "l" }',
    "batch norm": HEAD
    + 'layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }'
    + 'layer { name: "s" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true } }'
    + 'layer { name: "r" type: "ReLU" bottom: "conv" top: "conv" }'
    + FC
    + SOFTMAX,
    "batch norm alone": HEAD + FC + 'layer { name: "bn" type: "BatchNorm" bottom: "fc" top: "fc" }' + SOFTMAX,
    "dropout": HEAD + 'layer { name: "d" type: "Dropout" bottom: "conv" top: "conv" }' + FC + SOFTMAX,
    "stochastic pooling": HEAD
    + 'layer { name: "r" type: "ReLU" bottom: "conv" top: "conv" }'
    + 'layer { name: "p" type: "Pooling" bottom: "conv" top: "p" pooling_param { pool: STOCHASTIC kernel_size: 2 } }'
    + FC.replace('bottom: "conv"', 'bottom: "p"')
    + SOFTMAX,
    "accuracy": HEAD
    + FC
    + SOFTMAX
    + 'layer { name: "a" type: "Accuracy" bottom: "fc" bottom: "label" top: "a" top: "each" '
    + "accuracy_param { top_k: 2 ignore_label: 0 } }",
    "a weighted blob": HEAD + FC.replace('top: "fc"', 'top: "fc" loss_weight: 0.3'),
    "means": HEAD
    + FC
    + 'layer { name: "m" type: "Reduction" bottom: "fc" top: "m" loss_weight: 2 '
    + "reduction_param { operation: MEAN } }"
    + 'layer { name: "n" type: "Reduction" bottom: "conv" top: "n" loss_weight: 1 '
    + "reduction_param { operation: MEAN axis: 1 coeff: 3 } }",
    "shared weights": HEAD
    + 'layer { name: "a" type: "Convolution" bottom: "conv" top: "a" param { name: "w" } param { name: "b" } '
    + 'convolution_param { num_output: 4 kernel_size: 1 weight_filler { type: "xavier" } } }'
    + 'layer { name: "b" type: "Convolution" bottom: "a" top: "b" param { name: "w" } param { name: "b" } '
    + "convolution_param { num_output: 4 kernel_size: 1 } }"
    + FC.replace('bottom: "conv"', 'bottom: "b"')
    + SOFTMAX,
    "a recurrent layer": f"""
        layer {{ name: "in" type: "Input" top: "x" top: "label"
                input_param {{ shape {{ dim: {BATCH} dim: 4 dim: 3 }} shape {{ dim: {BATCH} }} }} }}
        layer {{ name: "t" type: "Permute" bottom: "x" top: "t" permute_param {{ order: 1 order: 0 }} }}
        layer {{ name: "one" type: "Reduction" bottom: "t" top: "r" reduction_param {{ axis: 2 }} }}
        layer {{ name: "c" type: "Power" bottom: "r" top: "c" power_param {{ scale: 0 shift: 1 }} }}
        layer {{ name: "h" type: "LSTM" bottom: "t" bottom: "c" top: "h" recurrent_param {{ num_output: 6
                weight_filler {{ type: "xavier" }} }} }}
        layer {{ name: "s" type: "Slice" bottom: "h" top: "a" top: "b" slice_param {{ axis: 0 slice_point: 3 }} }}
        layer {{ name: "p" type: "Permute" bottom: "b" top: "p" permute_param {{ order: 1 order: 0 }} }}
        layer {{ name: "fc" type: "InnerProduct" bottom: "p" top: "fc"
                inner_product_param {{ num_output: {CLASSES} weight_filler {{ type: "xavier" }} }} }}
        """
    + SOFTMAX,
}


def draw(text):
    """Inputs of a case: numbers, and labels."""
    generator = torch.Generator().manual_seed(2)
    shapes = parse(text).inputs
    numbers = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**numbers, "label": torch.randint(0, CLASSES, (BATCH,), generator=generator).float()}


def parse(text):
    return nets.load(text_format.Parse(text, NetParameter()), "TRAIN", seed=4)


@pytest.fixture(scope="module", params=[2, 3])
def divided(request, tmp_path_factory):
    """What so many processes made of each case."""
    folder = tmp_path_factory.mktemp("spread")
    torch.save([(text, draw(text)) for text in CASES.values()], folder / "case.pt")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={request.param}"]
    command += ["-m", "tests.ops.spread_worker", str(folder / "case.pt"), str(folder / "out.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(CASES, torch.load(folder / "out.pt"), strict=True))


@pytest.mark.slow
def test_parts_of_a_batch_make_what_the_whole_makes(divided):
    for case, text in CASES.items():
        whole = parse(text)
        blobs = whole(draw(text))
        loss = whole.loss(blobs)
        loss.backward()
        theirs, their_loss, grads, learned = divided[case]
        assert torch.allclose(their_loss, loss, rtol=1e-5), case
        for name, blob in blobs.items():
            assert torch.allclose(theirs[name], blob, rtol=1e-4, atol=1e-5), f"{case}: {name}"
        for blob, grad, value in zip((b for layer in whole.layers for b in layer.blobs), grads, learned, strict=True):
            expected = torch.zeros_like(blob) if blob.grad is None else blob.grad
            assert torch.allclose(grad, expected, rtol=1e-4, atol=1e-5), case
            assert torch.allclose(value, blob.detach(), rtol=1e-5, atol=1e-6), case


def test_parts_cover_the_batch_and_differ_by_one_at_most():
    for batch in range(1, 30):
        for world in range(1, batch + 1):
            parts = [share(batch, rank, world) for rank in range(world)]
            assert [start for start, _ in parts[1:]] == [stop for _, stop in parts[:-1]]
            assert (parts[0][0], parts[-1][1]) == (0, batch)
            sizes = [stop - start for start, stop in parts]
            assert max(sizes) - min(sizes) <= 1


INPUT = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 6 dim: 4 dim: 3 } } }'


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        (
            'type: "LSTM" bottom: "x" bottom: "c" top: "y" recurrent_param { num_output: 2 }',
            "takes time on axis 0 of 6",
        ),
        ('type: "Reshape" bottom: "x" top: "y" reshape_param { shape { dim: 2 dim: -1 dim: 3 } }', "moves the batch"),
        (
            'type: "Softmax" bottom: "x" top: "y" softmax_param { axis: 0 }',
            "works along axis 0 of 6 x 4 x 3, the batch",
        ),
        (
            'type: "Scale" bottom: "x" top: "y" scale_param { axis: 0 num_axes: -1 }',
            "weights for each place of the batch",
        ),
        ('type: "InnerProduct" bottom: "x" top: "y" inner_product_param { axis: 0 num_output: 2 }', "weights for each"),
        ('type: "Filter" bottom: "x" bottom: "c" top: "y"', "chooses among the rows of the batch"),
        ('type: "Slice" bottom: "x" top: "y" top: "z" slice_param { axis: 0 }', "works along axis 0"),
        ('type: "Concat" bottom: "x" bottom: "x" top: "y" concat_param { axis: 0 }', "works along axis 0"),
        ('type: "BatchNorm" bottom: "t" top: "y"', "for channels"),
        (
            'type: "Reduction" bottom: "x" top: "y" } layer { name: "square" type: "Power" bottom: "y" top: "z" '
            "power_param { power: 2 }",
            "makes one number of the batch, 'y', of which layer 'square' (Power) makes something else",
        ),
    ],
)
def test_a_net_that_cannot_be_divided_is_refused_by_name(layer, told):
    more = 'layer { name: "inc" type: "Input" top: "c" input_param { shape { dim: 6 dim: %d } } }'
    more %= 4 if "LSTM" in layer else 1
    more += 'layer { name: "p" type: "Permute" bottom: "x" top: "t" permute_param { order: 1 order: 0 } }'
    text = f'name: "n" {INPUT} {more} layer {{ name: "l" {layer} }}'
    with pytest.raises(ValueError, match="this net cannot be divided among 2 workers; use one") as error:
        spread(parse(text), Group(0, 2))
    assert told in str(error.value)
    assert "layer 'l'" in str(error.value)


def test_a_batch_smaller_than_the_workers_is_refused():
    with pytest.raises(ValueError, match="a batch of 6 in 'x' for 7 workers"):
        spread(parse(INPUT), Group(0, 7))
