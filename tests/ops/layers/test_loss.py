"""Losses: Caffe's numbers, torch's, and the formulas place by place."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.layers.registry import find
from ops.proto import binary
from ops.proto.caffe_pb2 import BlobProto
from tests.ops.layers import golden
from tests.ops.layers.alone import alone

FLT_MIN = float(np.finfo(np.float32).tiny)
MODES = ("FULL", "VALID", "BATCH_SIZE", "NONE")


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def classes(count: int, *shape: int, seed: int = 1) -> torch.Tensor:
    """Labels with a fraction, which counts for nothing."""
    return torch.randint(0, count, shape, generator=torch.Generator().manual_seed(seed)).double() + 0.75


def gradients(loss: torch.Tensor, *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(3 * loss, leaves)


@pytest.mark.parametrize(
    "name", golden.names("smloss", "sigce", "euclid", "hinge", "contrastive", "infogain", "multinomial")
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_caffe(name, dtype):
    assert max(golden.differences(name, dtype=dtype).values()) < 1e-5


# -- SoftmaxWithLoss -------------------------------------------------------------------------------------------------


def softmax_by_hand(x, labels, axis, ignore, mode):
    """Loss and gradient of weight 3, place by place."""
    rows = np.moveaxis(x.numpy(), axis, -1)
    p = np.exp(rows - rows.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    flat, grad, total, counted = p.reshape(-1, p.shape[-1]), np.zeros_like(p).reshape(-1, p.shape[-1]), 0.0, 0
    for place, label in enumerate(labels.reshape(-1).numpy().astype(int)):
        if label == ignore:
            continue
        total -= np.log(max(flat[place, label], FLT_MIN))
        grad[place] = flat[place]
        grad[place, label] -= 1
        counted += 1
    outer = math.prod(x.shape[:axis])
    norm = max(1, {"FULL": len(flat), "VALID": counted, "BATCH_SIZE": outer, "NONE": 1}[mode])
    return total / norm, 3 * np.moveaxis(grad.reshape(p.shape), -1, axis) / norm


@settings(max_examples=60)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple),
    axis=st.integers(-4, 3),
    ignore=st.none() | st.integers(-1, 3),
    mode=st.sampled_from(MODES),
    flat=st.booleans(),
)
def test_softmax_loss_is_its_formula_for_any_shape_axis_and_normalization(shape, axis, ignore, mode, flat):
    if not -len(shape) <= axis < len(shape) or (len(shape) == 1 and shape[0] != 1):
        return  # one axis has its classes there, and then a batch of that size cannot have one label
    place = axis % len(shape)
    left = shape[:place] + shape[place + 1 :]
    if not left or left[0] != shape[0]:
        left = (shape[0], math.prod(left) // shape[0]) if math.prod(left) % shape[0] == 0 else None
    if left is None:
        return
    if flat:
        left = (left[0], math.prod(left[1:]), 1)
    labels = classes(shape[place], *left)
    if ignore == -1:
        labels.reshape(-1)[0] = -1.5
    extra = "" if ignore is None else f"ignore_label: {ignore}"
    layer = alone(
        f"type: 'SoftmaxWithLoss' softmax_param {{ axis: {axis} }} loss_param {{ normalization: {mode} {extra} }}",
        shape,
        tuple(labels.shape),
    )
    x = numbers(*shape).requires_grad_()
    loss = layer(x, labels)
    value, grad = softmax_by_hand(x.detach(), labels, place, ignore, mode)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(value, rel=1e-9, abs=1e-12)
    np.testing.assert_allclose(gradients(loss, x)[0], grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_softmax_loss_is_torchs_cross_entropy_and_keeps_the_layout(dtype, layout):
    x = numbers(2, 21, 13, 9, dtype=dtype).to(memory_format=layout).requires_grad_()
    labels = classes(21, 2, 13, 9)
    layer = alone("type: 'SoftmaxWithLoss' loss_param { ignore_label: 4 }", (2, 21, 13, 9), (2, 13, 9))
    loss, expected = layer(x, labels), F.cross_entropy(x, labels.long(), ignore_index=4)
    torch.testing.assert_close(loss, expected)
    ours, theirs = gradients(loss, x)[0], gradients(expected, x)[0]
    torch.testing.assert_close(ours, theirs)
    assert ours.is_contiguous(memory_format=layout)


def test_softmax_loss_passes_gradcheck():
    layer = alone("type: 'SoftmaxWithLoss' loss_param { ignore_label: 1 }", (3, 4, 2), (3, 2))
    assert torch.autograd.gradcheck(lambda x: layer(x, classes(4, 3, 2)), numbers(3, 4, 2).requires_grad_())


@pytest.mark.parametrize("score", [1e4, math.inf])
def test_an_impossible_label_costs_87_and_keeps_its_gradient(score):
    layer = alone("type: 'SoftmaxWithLoss'", (1, 3), (1,))
    x = torch.tensor([[0.0, 0.0, -score]], requires_grad=True)
    loss = layer(x, torch.tensor([2.0]))
    assert loss.item() == pytest.approx(-math.log(FLT_MIN)) == pytest.approx(87.3365, abs=1e-4)
    assert gradients(loss, x)[0].tolist() == [[1.5, 1.5, -3.0]]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_comes_through_a_softmax_loss(bad):
    layer = alone("type: 'SoftmaxWithLoss'", (2, 3), (2,))
    assert layer(torch.tensor([[0.0, bad, 1.0], [1.0, 2.0, 3.0]]), torch.zeros(2)).isnan()


def test_a_softmax_loss_of_ignored_places_only_is_zero():
    layer = alone("type: 'SoftmaxWithLoss' loss_param { ignore_label: 255 }", (2, 3), (2,))
    x = numbers(2, 3).requires_grad_()
    loss = layer(x, torch.full((2,), 255.0))
    assert loss == 0
    assert gradients(loss, x)[0].tolist() == [[0, 0, 0], [0, 0, 0]]


def test_a_second_top_has_the_probabilities_and_no_gradient():
    layer = alone("type: 'SoftmaxWithLoss' top: 'loss' top: 'prob'", (2, 3, 4), (2, 4))
    x = numbers(2, 3, 4).requires_grad_()
    loss, prob = layer(x, classes(3, 2, 4))
    assert loss.requires_grad
    assert not prob.requires_grad
    torch.testing.assert_close(prob, torch.softmax(x.detach(), 1))


@pytest.mark.parametrize(
    ("written", "divisor"),
    [
        ("", 5),
        ("normalize: true", 5),
        ("normalize: false", 2),
        ("normalize: false normalization: FULL", 6),
        ("normalize: true normalization: NONE", 1),
    ],
)
def test_normalize_counts_only_where_normalization_is_not_written(written, divisor):
    layer = alone(f"type: 'SoftmaxWithLoss' loss_param {{ ignore_label: 9 {written} }}", (2, 4, 3), (2, 3))
    labels = torch.tensor([[0.0, 9, 1], [2, 3, 0]])
    x = numbers(2, 4, 3)
    total = F.cross_entropy(x, labels.long(), ignore_index=9, reduction="sum")
    torch.testing.assert_close(layer(x, labels), total / divisor)


@pytest.mark.parametrize("label", [3, -1, math.nan, 1e30])
def test_a_label_that_is_no_class_is_named(label):
    layer = alone("type: 'SoftmaxWithLoss'", (2, 3), (2,))
    with pytest.raises(ValueError, match=r"label -?\d+ is none of the 3 classes \(0 to 2\)"):
        layer(numbers(2, 3), torch.tensor([0.0, label]))


def test_losses_take_another_batch_and_size_than_they_were_built_for():
    layer = alone("type: 'SoftmaxWithLoss'", (2, 3, 4, 4), (2, 4, 4))
    x, labels = numbers(5, 3, 7, 2), classes(3, 5, 1, 7, 2)
    torch.testing.assert_close(layer(x, labels), F.cross_entropy(x, labels[:, 0].long()))
    with pytest.raises(ValueError, match="there must be 70 labels, not 35"):
        layer(x, labels[:, :, :, :1])


def test_half_precision_scores_give_a_float32_loss():
    x = numbers(4, 6, dtype=torch.float32).bfloat16().requires_grad_()
    labels = classes(6, 4)
    loss = alone("type: 'SoftmaxWithLoss'", (4, 6), (4,))(x, labels)
    torch.testing.assert_close(loss, F.cross_entropy(x.float(), labels.long()))
    assert gradients(loss, x)[0].dtype == torch.bfloat16


# -- InfogainLoss ----------------------------------------------------------------------------------------------------


def infogain_by_hand(x, labels, h, axis, ignore, mode):
    rows = np.moveaxis(x.numpy(), axis, -1)
    p = np.exp(rows - rows.max(-1, keepdims=True))
    p = p / p.sum(-1, keepdims=True)
    flat, grad, total, counted = p.reshape(-1, p.shape[-1]), np.zeros(p.shape).reshape(-1, p.shape[-1]), 0.0, 0
    for place, label in enumerate(labels.reshape(-1).numpy().astype(int)):
        if label == ignore:
            continue
        total -= (h[label] * np.log(np.maximum(flat[place], 1e-20))).sum()
        grad[place] = flat[place] * h[label].sum() - h[label]
        counted += 1
    norm = max(1, {"FULL": len(flat), "VALID": counted, "BATCH_SIZE": math.prod(x.shape[:axis]), "NONE": 1}[mode])
    return total / norm, 3 * np.moveaxis(grad.reshape(p.shape), -1, axis) / norm


@pytest.mark.parametrize("axis", [1, -1])
@pytest.mark.parametrize("ignore", [None, 2])
@pytest.mark.parametrize("mode", MODES)
def test_infogain_loss_is_its_formula(axis, ignore, mode):
    shape = (2, 4, 3) if axis == 1 else (2, 3, 4)
    labels, h = classes(4, 2, 3), numbers(1, 1, 4, 4, seed=5).abs()
    extra = "" if ignore is None else f"ignore_label: {ignore}"
    definition = "type: 'InfogainLoss' top: 'loss' top: 'prob'"
    definition += f"infogain_loss_param {{ axis: {axis} }} loss_param {{ normalization: {mode} {extra} }}"
    x = numbers(*shape)
    x.view(-1)[0] = 200  # others of that place fall under 1e-20
    x.requires_grad_()
    loss, prob = alone(definition, shape, (2, 3), (1, 1, 4, 4))(x, labels, h)
    value, grad = infogain_by_hand(x.detach(), labels, h.numpy()[0, 0], axis % 3, ignore, mode)
    assert loss.item() == pytest.approx(value)
    np.testing.assert_allclose(gradients(loss, x)[0], grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(prob, torch.softmax(x.detach(), axis))


def test_infogain_of_the_identity_is_the_softmax_loss():
    x, labels = numbers(5, 4).requires_grad_(), classes(4, 5)
    loss = alone("type: 'InfogainLoss'", (5, 4), (5,), (4, 4))(x, labels, torch.eye(4))
    expected = alone("type: 'SoftmaxWithLoss'", (5, 4), (5,))(x, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, x), gradients(expected, x))


def test_infogain_loss_passes_gradcheck():
    layer = alone("type: 'InfogainLoss'", (3, 4), (3,), (4, 4))
    h = numbers(4, 4, seed=3)
    assert torch.autograd.gradcheck(lambda x: layer(x, classes(4, 3), h), numbers(3, 4).requires_grad_())


@pytest.mark.parametrize("old", [False, True])
def test_infogain_reads_its_matrix_from_a_file(tmp_path, old):
    h = numbers(4, 4, seed=3, dtype=torch.float32)
    blob = BlobProto(num=1, channels=1, height=4, width=4) if old else BlobProto(shape={"dim": [4, 4]})
    (blob.data if old else blob.double_data).extend(h.reshape(-1).tolist())
    binary.write(tmp_path / "h.binaryproto", blob)
    x, labels = numbers(3, 4, dtype=torch.float32), classes(4, 3)
    source = f"infogain_loss_param {{ source: '{tmp_path}/h.binaryproto' }}"
    layer = alone(f"type: 'InfogainLoss' {source}", (3, 4), (3,))
    expected = alone("type: 'InfogainLoss'", (3, 4), (3,), (4, 4))(x, labels, h)
    torch.testing.assert_close(layer(x, labels), expected)
    torch.testing.assert_close(layer(x.double(), labels), expected.double())
    with pytest.raises(ValueError, match=r"matrix in .*h.binaryproto is .*4 x 4, bottom 0 is 3 x 5 .* expected 5 x 5"):
        alone(f"type: 'InfogainLoss' {source}", (3, 5), (3,))


def test_infogain_refuses_what_is_no_matrix(tmp_path):
    binary.write(tmp_path / "short", BlobProto(shape={"dim": [4, 4]}, data=[1.0] * 15))
    for source, words in [("short", "has 15 values for the shape 4 x 4"), ("none", "none: No such file")]:
        with pytest.raises(ValueError, match=words):
            alone(f"type: 'InfogainLoss' infogain_loss_param {{ source: '{tmp_path}/{source}' }}", (3, 4), (3,))
    with pytest.raises(ValueError, match="has no matrix: give a third bottom"):
        alone("type: 'InfogainLoss'", (3, 4), (3,))
    with pytest.raises(ValueError, match="bottom 2 is 4 x 3, bottom 0 is 3 x 4"):
        alone("type: 'InfogainLoss'", (3, 4), (3,), (4, 3))
    with pytest.raises(ValueError, match="write `normalization`"):
        alone("type: 'InfogainLoss' loss_param { normalize: true }", (3, 4), (3,), (4, 4))
    with pytest.raises(ValueError, match="label 4 is none of the 4 classes"):
        alone("type: 'InfogainLoss'", (1, 4), (1,), (4, 4))(numbers(1, 4), torch.tensor([4.0]), torch.eye(4))


# -- MultinomialLogisticLoss, HingeLoss, MultiMarginLoss -------------------------------------------------------------


def test_multinomial_logistic_loss_takes_probabilities_and_bounds_them():
    layer = alone("type: 'MultinomialLogisticLoss'", (2, 3), (2, 1, 1, 1))
    p = torch.tensor([[0.25, 0.5, 0.25], [1.0, 0.0, 0.0]], requires_grad=True)
    loss = layer(p, torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1))
    assert loss.item() == pytest.approx(-(math.log(0.5) + math.log(1e-20)) / 2)
    expected = torch.tensor([[0, -3 / 0.5 / 2, 0], [0, 0, -3 / 1e-20 / 2]])
    torch.testing.assert_close(gradients(loss, p)[0], expected)


def test_multinomial_logistic_loss_passes_gradcheck():
    layer = alone("type: 'MultinomialLogisticLoss'", (3, 4, 1, 1), (3,))
    p = torch.softmax(numbers(3, 4, 1, 1), 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: layer(p, classes(4, 3)), p)


@pytest.mark.parametrize("norm", ["L1", "L2"])
@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 2, 1)])
def test_hinge_loss_is_one_class_against_the_rest(norm, shape):
    layer = alone(f"type: 'HingeLoss' hinge_loss_param {{ norm: {norm} }}", shape, (4,))
    x, labels = numbers(*shape), classes(6, 4)
    signs = -np.ones((4, 6))
    signs[np.arange(4), labels.numpy().astype(int)] = 1
    margins = np.maximum(0, 1 - signs * x.reshape(4, 6).numpy())
    assert layer(x, labels).item() == pytest.approx((margins ** (1 if norm == "L1" else 2)).sum() / 4)
    assert torch.autograd.gradcheck(lambda x: layer(x, labels), x.requires_grad_())


def test_hinge_loss_has_no_gradient_at_its_corner():
    layer = alone("type: 'HingeLoss'", (1, 3), (1,))
    x = torch.tensor([[1.0, -1.0, 0.5]], requires_grad=True)
    assert gradients(layer(x, torch.zeros(1)), x)[0].tolist() == [[0, 0, 3]]


@pytest.mark.parametrize("margin", [1.0, 0.25])
def test_multi_margin_loss_is_torchs_times_the_number_of_classes(margin):
    layer = alone(f"type: 'MultiMarginLoss' multi_margin_loss_param {{ margin: {margin} }}", (7, 5), (7,))
    x, labels = numbers(7, 5).requires_grad_(), classes(5, 7)
    loss, expected = layer(x, labels), 5 * F.multi_margin_loss(x, labels.long(), margin=margin)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, x), gradients(expected, x))
    assert torch.autograd.gradcheck(lambda x: layer(x, labels), x)


@pytest.mark.parametrize("kind", ["MultinomialLogisticLoss", "HingeLoss", "MultiMarginLoss"])
def test_losses_of_items_refuse_wrong_labels(kind):
    with pytest.raises(ValueError, match="bottom 0 is 4 x 5, bottom 1 is 4 x 2: there must be one label an item, 4 in"):
        alone(f"type: '{kind}'", (4, 5), (4, 2))
    with pytest.raises(ValueError, match="bottom 0 is 4 x 5, bottom 1 is 3: their first axes must have the same size"):
        alone(f"type: '{kind}'", (4, 5), (3,))
    with pytest.raises(ValueError, match="label 5 is none of the 5 classes"):
        alone(f"type: '{kind}'", (4, 5), (4,))(numbers(4, 5), torch.tensor([0.0, 5, 0, 0]))


# -- SigmoidCrossEntropyLoss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ignore", [None, 0, 1, -1])
@pytest.mark.parametrize("mode", ["", *MODES])
def test_sigmoid_loss_is_its_formula(ignore, mode):
    extra = "" if ignore is None else f"ignore_label: {ignore}"
    extra += f" normalization: {mode}" if mode else ""
    layer = alone(f"type: 'SigmoidCrossEntropyLoss' loss_param {{ {extra} }}", (3, 2, 4), (3, 8))
    x = numbers(3, 2, 4).mul(30).requires_grad_()
    targets = torch.tensor([0, 0.7, 1, -1, 0.2, 1.5]).repeat(4).double().reshape(3, 8)
    z, t = x.detach().numpy(), targets.numpy().reshape(3, 2, 4)
    counted = np.ones(t.shape, bool) if ignore is None else np.trunc(t) != ignore
    terms = np.maximum(z, 0) - z * t + np.log1p(np.exp(-abs(z)))
    norm = {"FULL": 24, "VALID": counted.sum(), "NONE": 1}.get(mode, 3)
    loss = layer(x, targets)
    assert loss.item() == pytest.approx(terms[counted].sum() / norm)
    grad = np.where(counted, 1 / (1 + np.exp(-z)) - t, 0) / norm
    np.testing.assert_allclose(gradients(loss, x)[0], 3 * grad, rtol=1e-9, atol=1e-12)


def test_sigmoid_loss_of_old_normalize():
    x, t = numbers(3, 4), torch.full((3, 4), 0.5)
    total = F.binary_cross_entropy_with_logits(x, t.double(), reduction="sum")
    for written, divisor in [("true", 12), ("false", 3)]:
        layer = alone(f"type: 'SigmoidCrossEntropyLoss' loss_param {{ normalize: {written} }}", (3, 4), (3, 4))
        torch.testing.assert_close(layer(x, t), total / divisor)


def test_sigmoid_loss_passes_gradcheck_and_gives_nan_for_nan():
    layer = alone("type: 'SigmoidCrossEntropyLoss' loss_param { ignore_label: -1 }", (2, 3), (2, 3))
    targets = torch.tensor([[0.0, 1, -1], [0.5, 0.25, 1]]).double()
    assert torch.autograd.gradcheck(lambda x: layer(x, targets), numbers(2, 3).requires_grad_())
    x = numbers(2, 3)
    x[0, 2] = math.nan
    assert layer(x, targets).isfinite()
    x[0, 1] = math.nan
    assert layer(x, targets).isnan()


# -- EuclideanLoss, ContrastiveLoss ----------------------------------------------------------------------------------


def test_euclidean_loss_gives_gradients_to_both():
    a, b = numbers(4, 3, 2).requires_grad_(), numbers(4, 6, seed=2).requires_grad_()
    layer = alone("type: 'EuclideanLoss'", (4, 3, 2), (4, 6))
    loss = layer(a, b)
    difference = (a.detach() - b.detach().reshape(4, 3, 2)).numpy()
    assert loss.item() == pytest.approx((difference**2).sum() / 8)
    to_a, to_b = gradients(loss, a, b)
    np.testing.assert_allclose(to_a, 3 * difference / 4)
    np.testing.assert_allclose(to_b, -3 * difference.reshape(4, 6) / 4)
    assert torch.autograd.gradcheck(layer, (a, b))


@pytest.mark.parametrize("legacy", ["false", "true"])
@pytest.mark.parametrize("margin", [1, 2.5])
def test_contrastive_loss_is_caffes_pair_by_pair(legacy, margin):
    definition = f"contrastive_loss_param {{ margin: {margin} legacy_version: {legacy} }}"
    layer = alone(f"type: 'ContrastiveLoss' {definition}", (6, 3, 1, 1), (6, 3), (6, 1))
    a = numbers(6, 3, 1, 1).requires_grad_()
    b = (a.detach().reshape(6, 3) + 0.4 * numbers(6, 3, seed=2)).requires_grad_()
    with torch.no_grad():
        b[0] = a[0].reshape(3)  # no distance at all
        b[1] += 10  # further than the margin
    alike = torch.tensor([0.0, 0, 0.9, 1, -2, 0]).reshape(6, 1)
    total, grad = 0.0, np.zeros((6, 3))
    for i, similar in enumerate([False, False, False, True, True, False]):
        d = (a[i].reshape(3) - b[i]).detach().numpy()
        square = (d**2).sum()
        distance = math.sqrt(square)
        if similar:
            total, grad[i] = total + square, d / 6
        elif legacy == "true":
            total += max(margin - square, 0)
            grad[i] = -d / 6 if margin > square else 0
        else:
            total += max(margin - distance, 0) ** 2
            grad[i] = -(margin - distance) / (distance + 1e-4) * d / 6 if margin > distance else 0
    loss = layer(a, b, alike)
    assert loss.item() == pytest.approx(total / 12)
    to_a, to_b = gradients(loss, a, b)
    np.testing.assert_allclose(to_a.reshape(6, 3), 3 * grad, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(to_b, -3 * grad, rtol=1e-9, atol=1e-12)


def test_contrastive_gradient_is_near_the_true_one():
    layer = alone("type: 'ContrastiveLoss' contrastive_loss_param { margin: 4 }", (4, 3), (4, 3), (4,))
    pair = (numbers(4, 3).requires_grad_(), numbers(4, 3, seed=2).requires_grad_())
    alike = torch.tensor([0.0, 1, 0, 1])
    assert torch.autograd.gradcheck(lambda a, b: layer(a, b, alike), pair, rtol=1e-3, atol=1e-4)


# -- what does not fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "bottoms", "words"),
    [
        ("SoftmaxWithLoss", [(4, 5), (3,)], "bottom 0 is 4 x 5, bottom 1 is 3: their first axes must have the same"),
        ("SoftmaxWithLoss", [(4, 5, 2), (4,)], "with the classes on axis 1 there must be 8 labels, not 4"),
        ("SoftmaxWithLoss", [(4,), (4,)], "axis 1 is outside a bottom of 1 axes"),
        ("SoftmaxWithLoss", [(4, 5)], "has 1 bottom, expected 2"),
        ("SoftmaxWithLoss", [(4, 5), ()], "their first axes must have the same size"),
        ("InfogainLoss", [(4, 5), (4, 2), (5, 5)], "there must be 4 labels, not 8"),
        ("SigmoidCrossEntropyLoss", [(4, 5), (4, 6)], "bottom 1 is 4 x 6: they must hold equally many elements"),
        ("EuclideanLoss", [(4, 5), (5, 4)], "bottom 0 is 4 x 5, bottom 1 is 5 x 4: their first axes"),
        ("EuclideanLoss", [(4, 5), (4, 4)], "they must hold equally many elements"),
        ("ContrastiveLoss", [(4, 5), (4, 4), (4,)], "they must hold equally many elements"),
        ("ContrastiveLoss", [(4, 5), (4, 5), (4, 5)], "bottom 2 is 4 x 5: there must be one label an item, 4 in all"),
        ("ContrastiveLoss", [(4, 5), (4, 5), (3,)], "bottom 2 is 3: their first axes must have the same size"),
    ],
)
def test_bottoms_that_do_not_fit_are_refused(kind, bottoms, words):
    with pytest.raises(ValueError, match=words):
        alone(f"type: '{kind}'", *bottoms)


@pytest.mark.parametrize(
    ("kind", "barred"),
    [
        ("SoftmaxWithLoss", (1,)),
        ("InfogainLoss", (1, 2)),
        ("HingeLoss", (1,)),
        ("SigmoidCrossEntropyLoss", (1,)),
        ("ContrastiveLoss", (2,)),
        ("EuclideanLoss", ()),
    ],
)
def test_labels_never_get_gradients(kind, barred):
    assert find(kind).unlearnable == barred
