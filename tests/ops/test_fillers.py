"""Fillers against closed forms and distribution tests."""

import math
import time

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ops.fillers import FILLERS, check, fan, fill
from ops.proto.caffe_pb2 import FillerParameter

LIKELY = 0.001  # p-values below are a wrong distribution: the seeds are fixed


def filler(text):
    return text_format.Parse(text, FillerParameter())


def filled(text, shape, *, seed=1, dtype=torch.float32, channels_last=False):
    blob = torch.full(shape, math.nan, dtype=dtype)
    if channels_last:
        blob = blob.contiguous(memory_format=torch.channels_last)
    fill(blob, filler(text) if text is not None else None, torch.Generator().manual_seed(seed))
    return blob


def fits(values, distribution):
    return stats.kstest(np.asarray(values, np.float64).ravel(), distribution.cdf).pvalue > LIKELY


EACH = [
    "type: 'constant' value: 2.5",
    "type: 'uniform' min: -2 max: 3",
    "type: 'gaussian' mean: 1 std: 0.5",
    "type: 'gaussian' sparse: 3",
    "type: 'xavier'",
    "type: 'msra' variance_norm: FAN_OUT",
    "type: 'positive_unitball'",
    "type: 'bilinear'",
]


def test_each_filler_of_the_table_is_tested():
    assert {filler(text).type for text in EACH} == set(FILLERS)


@pytest.mark.parametrize("text", [None, ""])
def test_no_filler_is_zero(text):
    assert torch.equal(filled(text, (3, 4)), torch.zeros(3, 4))


def test_constant():
    assert torch.equal(filled("value: 2.5", (3, 4)), torch.full((3, 4), 2.5))


def test_constant_fills_one_number_without_axes():
    assert filled("value: 0.25", ()).item() == 0.25


def test_uniform():
    values = filled("type: 'uniform' min: -2 max: 3", (100, 200))
    assert fits(values, stats.uniform(-2, 5))
    assert not fits(values, stats.uniform(-2, 4.8))


def test_uniform_is_between_0_and_1_unless_told():
    assert fits(filled("type: 'uniform'", (100, 200)), stats.uniform(0, 1))


def test_uniform_of_one_value():
    assert (filled("type: 'uniform' min: 2 max: 2", (5, 5)) == 2).all()


def test_gaussian():
    values = filled("type: 'gaussian' mean: 1 std: 0.5", (100, 200))
    assert fits(values, stats.norm(1, 0.5))
    assert not fits(values, stats.norm(1, 0.55))


def test_gaussian_has_deviation_1_unless_told():
    assert fits(filled("type: 'gaussian'", (100, 200)), stats.norm(0, 1))


SHAPES = [(40, 30, 5, 5), (200, 150), (3000,), (30, 20, 3, 3, 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", ["FAN_IN", "FAN_OUT", "AVERAGE"])
def test_fans_are_counted_over_the_first_two_axes(shape, norm):
    count = math.prod(shape)
    fan_in, fan_out = count / shape[0], count / shape[1] if len(shape) > 1 else count
    wanted = {"FAN_IN": fan_in, "FAN_OUT": fan_out, "AVERAGE": (fan_in + fan_out) / 2}[norm]
    assert fan(filler(f"variance_norm: {norm}"), shape) == wanted


@pytest.mark.parametrize("norm", ["FAN_IN", "FAN_OUT", "AVERAGE"])
@pytest.mark.parametrize("shape", SHAPES)
def test_xavier_and_msra_divide_by_the_fan(shape, norm):
    n = fan(filler(f"variance_norm: {norm}"), shape)
    bound = math.sqrt(3 / n)
    assert fits(filled(f"type: 'xavier' variance_norm: {norm}", shape), stats.uniform(-bound, 2 * bound))
    assert fits(filled(f"type: 'msra' variance_norm: {norm}", shape), stats.norm(0, math.sqrt(2 / n)))


def test_xavier_ignores_std_and_average_is_torchs():
    ours = filled("type: 'xavier' std: 7 variance_norm: AVERAGE", (300, 200))
    theirs = torch.nn.init.xavier_uniform_(torch.empty(300, 200), generator=torch.Generator().manual_seed(2))
    assert stats.ks_2samp(ours.ravel(), theirs.ravel()).pvalue > LIKELY


def test_msra_is_torchs_kaiming():
    ours = filled("type: 'msra'", (40, 30, 5, 5))
    theirs = torch.nn.init.kaiming_normal_(torch.empty(40, 30, 5, 5), generator=torch.Generator().manual_seed(2))
    assert stats.ks_2samp(ours.ravel(), theirs.ravel()).pvalue > LIKELY


@pytest.mark.parametrize("sparse", [0, 3, 50, 100])
def test_sparse_keeps_its_share_of_the_weights(sparse):
    values = filled(f"type: 'gaussian' std: 2 sparse: {sparse}", (100, 300))
    kept = values[values != 0]
    assert stats.binomtest(len(kept), values.numel(), sparse / 100).pvalue > LIKELY
    assert not len(kept) or fits(kept, stats.norm(0, 2))


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 2, 2), (6,)])
def test_rows_of_the_positive_unitball_sum_to_one(shape):
    values = filled("type: 'positive_unitball'", shape)
    assert (values >= 0).all()
    torch.testing.assert_close(values.view(shape[0], -1).sum(1), torch.ones(shape[0]))


def test_positive_unitball_is_uniform_before_it_is_divided():
    row = filled("type: 'positive_unitball'", (1, 20_000))
    assert fits(row / row.max(), stats.uniform(0, 1))


ROWS = {
    1: [1],
    2: [0.5, 0.5],  # f = 1, c = 0.5: each 1 - 0.5
    3: [0.5, 1, 0.5],
    4: [0.25, 0.75, 0.75, 0.25],
    5: [1 / 3, 2 / 3, 1, 2 / 3, 1 / 3],
}


@pytest.mark.parametrize("width", ROWS)
def test_bilinear_kernels(width):
    values = filled("type: 'bilinear'", (3, 2, width, width))
    wanted = torch.outer(*[torch.tensor(ROWS[width])] * 2).float()
    torch.testing.assert_close(values, wanted.expand(3, 2, width, width))


def test_bilinear_rows_that_caffe_printed():
    torch.testing.assert_close(
        filled("type: 'bilinear'", (1, 1, 4, 4))[0, 0, 0].tolist(), [0.0625, 0.1875, 0.1875, 0.0625]
    )
    torch.testing.assert_close(filled("type: 'bilinear'", (1, 1, 3, 3))[0, 0, 0].tolist(), [0.25, 0.5, 0.25])


def test_bilinear_upsamples_a_plane_without_a_kink():
    kernel = filled("type: 'bilinear'", (1, 1, 4, 4))
    slope = torch.arange(6.0).expand(1, 1, 6, 6)
    upsampled = torch.nn.functional.conv_transpose2d(slope, kernel, stride=2, padding=1)
    wanted = torch.nn.functional.interpolate(slope, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsampled[..., 2:-2, 2:-2], wanted[..., 2:-2, 2:-2])


@pytest.mark.parametrize("text", EACH)
def test_values_do_not_depend_on_strides(text):
    assert torch.equal(filled(text, (8, 6, 3, 3)), filled(text, (8, 6, 3, 3), channels_last=True))


@pytest.mark.parametrize("text", EACH)
def test_channels_last_blobs_stay_channels_last(text):
    assert filled(text, (8, 6, 3, 3), channels_last=True).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("text", EACH)
def test_the_seed_decides(text):
    assert torch.equal(filled(text, (8, 6, 3, 3), seed=5), filled(text, (8, 6, 3, 3), seed=5))
    drawn = filler(text).type not in {"constant", "bilinear"}
    assert torch.equal(filled(text, (8, 6, 3, 3), seed=5), filled(text, (8, 6, 3, 3), seed=6)) is not drawn


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("text", EACH)
def test_other_number_types(text, dtype):
    values = filled(text, (8, 6, 3, 3), dtype=dtype)
    assert values.dtype == dtype
    assert torch.isfinite(values).all()
    if dtype != torch.float64:
        assert torch.equal(values, filled(text, (8, 6, 3, 3)).to(dtype))


def test_parameters_are_filled_without_a_gradient():
    parameter = torch.nn.Parameter(torch.zeros(4, 5))
    fill(parameter, filler("type: 'xavier'"), torch.Generator())
    assert parameter.grad_fn is None
    assert parameter.requires_grad
    assert parameter.abs().sum() > 0


def test_one_fill_after_another_draws_on():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.zeros(5, 5), torch.zeros(5, 5)
    fill(first, filler("type: 'xavier'"), generator)
    fill(second, filler("type: 'xavier'"), generator)
    assert not torch.equal(first, second)


REFUSED = {
    "type: 'gausian'": ((2, 3), "unknown filler type 'gausian'; did you mean 'gaussian'"),
    "type: 'gaussian' std: 0": ((2, 3), "std is 0; it must be above 0"),
    "type: 'gaussian' std: -1": ((2, 3), "std is -1"),
    "type: 'gaussian' std: nan": ((2, 3), "std is nan"),
    "type: 'gaussian' sparse: -2": ((2, 3), "sparse is -2"),
    "type: 'gaussian' sparse: 3": ((2, 3), "more than the 2 outputs"),
    "type: 'gaussian' sparse: 1": ((), "more than the 0 outputs"),
    "type: 'xavier' sparse: 1": ((2, 3), "only 'gaussian' can be sparse"),
    "sparse: 0": ((2, 3), "only 'gaussian' can be sparse"),
    "type: 'uniform' min: 2 max: 1": ((2, 3), "min is 2 and max 1"),
    "type: 'uniform' max: inf": ((2, 3), "max inf"),
    "type: 'uniform' min: -3e38 max: 3e38": ((2, 3), "min is -3e\\+38"),
    "type: 'xavier'": ((), "without axes"),
    "type: 'msra'": ((0, 3), "is empty"),
    "type: 'positive_unitball'": ((), "without axes"),
    "type: 'bilinear'": ((2, 2, 3, 4), "square kernels, this one has the shape \\(2, 2, 3, 4\\)"),
    "type: 'bilinear' value: 1": ((2, 3), "4 axes"),
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_caffe_refuses_is_refused_before_anything_is_drawn(text):
    shape, said = REFUSED[text]
    blob, generator = torch.ones(shape), torch.Generator()
    before = generator.get_state()
    with pytest.raises(ValueError, match=said):
        check(filler(text), shape)
    with pytest.raises(ValueError, match=said):
        fill(blob, filler(text), generator)
    assert torch.equal(blob, torch.ones(shape))
    assert torch.equal(generator.get_state(), before)


def test_no_filler_passes_the_check():
    check(None, (2, 3))


@settings(max_examples=60)
@given(st.sampled_from(EACH[:-1]), st.lists(st.integers(3, 6), min_size=1, max_size=5), st.booleans())
def test_every_element_of_any_shape_is_written(text, shape, transposed):
    blob = torch.full(shape, math.nan)
    blob = blob.transpose(0, -1) if transposed else blob
    fill(blob, filler(text), torch.Generator().manual_seed(3))
    assert torch.isfinite(blob).all()


def test_25_million_weights_take_no_longer_than_torchs_own_draw():
    blob, generator = torch.zeros(5000, 5000), torch.Generator()

    def seconds(work):
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    bare = min(seconds(lambda: blob.normal_(0, 1, generator=generator)) for _ in range(2))
    ours = min(seconds(lambda: fill(blob, filler("type: 'msra'"), generator)) for _ in range(2))
    assert ours < 2 * bare + 0.1
