"""LRN, BatchNorm, MVN, Normalize: Caffe's numbers, torch's, and plain formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.layers import golden
from tests.ops.layers.alone import alone, draw, gradients_hold, run


@pytest.mark.parametrize("name", golden.names("lrn", "bn", "mvn"))
def test_normalizations_compute_what_caffe_computes(name):
    assert max(golden.differences(name).values()) <= 1e-5


# -- LRN -------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.sampled_from([1, 3, 5, 7, 21]), st.sampled_from([0.75, 0.5, 1.0, 1.3]), st.booleans())
@settings(max_examples=40)
def test_across_channels_is_torch_s_with_its_gradient(channels, size, beta, last):
    text = f'type: "LRN" top: "y" lrn_param {{ local_size: {size} alpha: 0.5 beta: {beta} k: 2 }}'
    x = draw(2, channels, 3, 4)
    shaped = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    y, expected = run(alone(text, x.shape), shaped), F.local_response_norm(x, size, 0.5, beta, 2)
    assert torch.allclose(y, expected)
    grad = draw(*x.shape, seed=3, grad=False)
    (ours,), (theirs,) = torch.autograd.grad(y, x, grad), torch.autograd.grad(expected, x, grad)
    assert torch.allclose(ours, theirs)


def test_gradients_of_lrn_hold_twice_too():
    layer = alone('type: "LRN" top: "y" lrn_param { local_size: 3 alpha: 0.9 k: 1.5 }', (2, 4, 2, 3))
    x = draw(2, 4, 2, 3)
    assert gradients_hold(layer, x)
    assert torch.autograd.gradgradcheck(layer, (x,))


def test_within_a_channel_divides_by_the_whole_window_and_ignores_k():
    text = 'type: "LRN" top: "y" lrn_param { norm_region: WITHIN_CHANNEL local_size: 3 alpha: 0.7 beta: 0.6 k: 9 }'
    x = draw(2, 3, 5, 4)
    padded = F.pad(x * x, (1, 1, 1, 1))
    sums = sum(padded[:, :, i : i + 5, j : j + 4] for i in range(3) for j in range(3))
    assert torch.allclose(run(alone(text, x.shape), x), x * (1 + 0.7 * sums / 9) ** -0.6)
    assert gradients_hold(alone(text, x.shape), x)


# -- BatchNorm -------------------------------------------------------------------------------------------------------


def norm(shape, phase="TRAIN", param=""):
    layer = alone(f'type: "BatchNorm" top: "y" batch_norm_param {{ {param} }}', shape, phase=phase)
    for index, blob in enumerate(layer.blobs):
        layer.set_blob(index, torch.zeros_like(blob).detach())
    return layer


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (4, 3, 5, 2), (2, 3, 2, 2, 3)])
def test_training_normalizes_the_batch_and_fades_its_statistics_in(shape):
    layer = norm(shape, param="moving_average_fraction: 0.9 eps: 0.01")
    first, second = draw(*shape), draw(*shape, seed=2)
    axes = [0, *range(2, len(shape))]
    assert torch.allclose(run(layer, first), F.batch_norm(first, None, None, training=True, eps=0.01))
    layer(second)
    assert torch.allclose(layer.blobs[0], 0.9 * first.mean(axes) + second.mean(axes))
    assert torch.allclose(layer.blobs[1], 0.9 * first.var(axes) + second.var(axes))
    assert layer.blobs[2].item() == pytest.approx(1.9)


def test_testing_divides_the_sums_by_their_number():
    layer, x = norm((4, 3, 5, 2), "TEST"), draw(4, 3, 5, 2)
    for blob, values in zip(layer.blobs, ([2.0, 4.0, 6.0], [8.0, 2.0, 1.0], [2.0]), strict=True):
        blob.copy_(torch.tensor(values))
    mean, variance = torch.tensor([[[1.0]], [[2.0]], [[3.0]]]), torch.tensor([[[4.0]], [[1.0]], [[0.5]]])
    assert torch.allclose(run(layer, x), (x - mean) / (variance + 1e-5).sqrt())
    assert layer.blobs[2].item() == 2
    assert gradients_hold(norm((4, 3, 5, 2), "TEST"), x)


def test_an_untrained_net_divides_by_the_root_of_eps():
    x = draw(4, 3, 5, 2)
    assert torch.allclose(run(norm(x.shape, "TEST", "eps: 0.25"), x), x / 0.5)


@pytest.mark.parametrize(
    ("phase", "param", "remembers"),
    [("TEST", "use_global_stats: false", True), ("TRAIN", "use_global_stats: true", False)],
)
def test_use_global_stats_counts_more_than_the_phase(phase, param, remembers):
    layer = norm((4, 3), phase, param)
    layer(draw(4, 3))
    assert bool(layer.blobs[2].item()) == remembers


def test_one_value_a_channel_has_variance_0():
    layer = norm((1, 3, 1, 1))
    assert not layer(draw(1, 3, 1, 1)).any()
    assert layer.blobs[1].tolist() == [0, 0, 0]


def test_gradients_of_a_batch_go_through_its_mean_and_variance():
    assert gradients_hold(norm((4, 3, 2, 2)), draw(4, 3, 2, 2))


def test_a_bottom_without_channels_is_told():
    with pytest.raises(ValueError, match="a bottom of 4 has no channels"):
        norm((4,))


# -- MVN and Normalize -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("across", ["true", "false"])
@pytest.mark.parametrize("variance", ["true", "false"])
def test_mvn_takes_the_mean_off_and_divides_by_the_deviation(across, variance):
    text = f'type: "MVN" top: "y" mvn_param {{ across_channels: {across} normalize_variance: {variance} eps: 0.5 }}'
    x = draw(2, 3, 4, 5)
    axes = (1, 2, 3) if across == "true" else (2, 3)
    centred = x - x.mean(axes, keepdim=True)
    deviation = x.std(axes, correction=0, keepdim=True) + 0.5 if variance == "true" else 1
    assert torch.allclose(run(alone(text, x.shape), x), centred / deviation)
    assert gradients_hold(alone(text.replace("eps: 0.5", ""), x.shape), x)


def test_a_flat_plane_has_no_nan():
    layer = alone('type: "MVN" top: "y"', (1, 2, 3, 3))
    x = torch.ones(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    y = run(layer, x)
    y.sum().backward()
    assert not y.any()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("everywhere", ["true", "false"])
@pytest.mark.parametrize("shared", ["true", "false"])
def test_normalize_makes_vectors_of_one_length(everywhere, shared):
    text = f'type: "Normalize" top: "y" norm_param {{ across_spatial: {everywhere} channel_shared: {shared} }}'
    layer, x = alone(text, (2, 3, 4, 5)), draw(2, 3, 4, 5)
    axes = (1, 2, 3) if everywhere == "true" else (1,)
    scale = layer.blobs[0].reshape(-1, 1, 1) if shared == "false" else layer.blobs[0]
    assert torch.allclose(run(layer, x), scale * x / (x * x).sum(axes, keepdim=True).sqrt())
    assert gradients_hold(layer, x)


@pytest.mark.parametrize(
    ("text", "shape", "told"),
    [
        ('type: "LRN" lrn_param { local_size: 4 }', (1, 2, 3, 3), "local_size 4: expected an odd number"),
        ('type: "LRN"', (1, 2, 3), "1 x 2 x 3 has 3 axes, expected 4"),
        ('type: "MVN"', (1, 2, 3, 3, 3), "has 5 axes, at most 4 go"),
        ('type: "Normalize"', (3,), "a bottom of 3 has no channels"),
    ],
)
def test_what_cannot_be_normalized_is_told(text, shape, told):
    with pytest.raises(ValueError, match=told):
        alone(f'{text} top: "y"', shape)
