"""Softmax, Accuracy, HDF5Output, Silence: Caffe's numbers, torch's, and Caffe's counting loop."""

from __future__ import annotations

import math

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.layers.registry import find
from tests.ops.layers import golden
from tests.ops.layers.alone import alone, draw, gradients_hold, run


@pytest.mark.parametrize("name", golden.names("softmax", "acc"))
def test_agrees_with_caffe(name):
    assert max(golden.differences(name).values()) < 1e-5


# -- Softmax ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_softmax_is_torchs_along_any_axis(axis, layout):
    layer = alone(f"type: 'Softmax' softmax_param {{ axis: {axis} }}", (2, 3, 4, 5))
    x = draw(2, 3, 4, 5, grad=False).contiguous(memory_format=layout).requires_grad_()
    y = run(layer, x)
    torch.testing.assert_close(y, torch.softmax(x, axis))
    assert gradients_hold(layer, x)


def test_softmax_leaves_channels_last_as_it_is():
    x = draw(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert run(alone("type: 'Softmax'", (2, 3, 4, 5)), x).is_contiguous(memory_format=torch.channels_last)


def test_softmax_stands_large_numbers():
    layer = alone("type: 'Softmax'", (1, 3))
    assert layer(torch.tensor([[1e4, 1e4, -1e4]])).tolist() == [[0.5, 0.5, 0]]
    assert layer(torch.tensor([[math.nan, 0, 0]])).isnan().all()


# -- Accuracy --------------------------------------------------------------------------------------------------------


def counted(x, labels, axis, top_k, ignore):
    """Caffe's count: place by place, the classes that score as high as the true one, itself among them."""
    rows = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])
    seen, right = np.zeros(x.shape[axis]), np.zeros(x.shape[axis])
    for row, label in zip(rows, labels.reshape(-1).astype(int), strict=True):
        if label != ignore:
            seen[label] += 1
            right[label] += sum(score >= row[label] for score in row) - 1 < top_k
    return right.sum() / max(1, seen.sum()), right / np.maximum(1, seen)


@settings(max_examples=80)
@given(
    sides=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)),
    axis=st.sampled_from([1, 2, 3, -1, -2, -3]),
    top_k=st.integers(1, 3),
    ignore=st.none() | st.integers(0, 4),
    seed=st.integers(0, 1000),
)
def test_accuracy_counts_as_caffe_with_ties_against(sides, axis, top_k, ignore, seed):
    if top_k > sides[axis]:
        return
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 3, sides).astype(np.float32)  # so few values that ties are everywhere
    places = list(sides)
    del places[axis]
    labels = rng.integers(0, sides[axis], places).astype(np.float32)
    extra = "" if ignore is None else f"ignore_label: {ignore}"
    definition = f"accuracy_param {{ top_k: {top_k} axis: {axis} {extra} }}"
    layer = alone(f"type: 'Accuracy' top: 'a' top: 'b' {definition}", sides, tuple(places))
    total, each = run(layer, torch.from_numpy(x), torch.from_numpy(labels))
    expected, expected_each = counted(x, labels, axis, top_k, ignore)
    assert total.item() == pytest.approx(expected)
    np.testing.assert_allclose(each, expected_each, rtol=1e-6)


def test_a_net_that_scores_all_alike_is_never_right():
    layer = alone("type: 'Accuracy'", (4, 3), (4,))
    assert run(layer, torch.zeros(4, 3), torch.tensor([0.0, 1, 2, 0])) == 0


def test_accuracy_is_the_usual_one_without_ties_and_takes_any_batch():
    layer = alone("type: 'Accuracy' accuracy_param { top_k: 3 }", (4, 10), (4,))
    x, labels = draw(50, 10), torch.arange(50) % 10
    expected = (x.topk(3).indices == labels[:, None]).any(1).double().mean()
    value = layer(x, labels.double())
    assert value == expected
    assert not value.requires_grad


def test_accuracy_is_zero_where_nothing_counts():
    layer = alone("type: 'Accuracy' top: 'a' top: 'b' accuracy_param { ignore_label: 255 }", (2, 3), (2, 1))
    total, each = layer(draw(2, 3), torch.full((2, 1), 255.0))
    assert total == 0
    assert each.tolist() == [0, 0, 0]


def test_accuracy_counts_in_float32_where_scores_are_short():
    layer = alone("type: 'Accuracy'", (1000, 2), (1000,))
    x = torch.tensor([[0.0, 1.0]]).repeat(1000, 1).bfloat16()
    labels = torch.ones(1000)
    labels[0] = 0
    assert layer(x, labels).item() == pytest.approx(0.999)


@pytest.mark.parametrize(
    ("definition", "bottoms", "words"),
    [
        ("top_k: 6", [(4, 5), (4,)], "top_k is 6, but bottom 0 is 4 x 5 with 5 classes on axis 1"),
        ("axis: 2", [(4, 5), (4,)], "axis 2 is outside a bottom of 2 axes"),
        ("", [(4, 5, 2), (4, 5)], "with the classes on axis 1 there must be 8 labels, not 20"),
        ("", [(4, 5), (5,)], "their first axes must have the same size"),
    ],
)
def test_accuracy_refuses_what_does_not_fit(definition, bottoms, words):
    with pytest.raises(ValueError, match=words):
        alone(f"type: 'Accuracy' accuracy_param {{ {definition} }}", *bottoms)


def test_accuracy_names_a_label_that_is_no_class():
    with pytest.raises(ValueError, match=r"label 5 is none of the 5 classes \(0 to 4\)"):
        alone("type: 'Accuracy'", (2, 5), (2,))(draw(2, 5), torch.tensor([0.0, 5]))


# -- Silence, HDF5Output ---------------------------------------------------------------------------------------------


def test_silence_has_no_tops():
    layer = alone("type: 'Silence'", (2, 3), (4,))
    assert layer.told == []
    assert layer(draw(2, 3), draw(4)) == ()


def output(file, *bottoms):
    return alone(f"type: 'HDF5Output' hdf5_output_param {{ file_name: '{file}' }}", *bottoms)


def test_hdf5_output_holds_the_rows_of_all_forwards(tmp_path):
    file = tmp_path / "out.h5"
    data, label = draw(5, 3, 2, 2, grad=True).float(), torch.arange(5.0).reshape(5, 1)
    layer = output(file, (2, 3, 2, 2), (2, 1))
    assert layer.told == []
    assert not file.exists(), "building a net must not write"
    for part in (slice(0, 2), slice(2, 4), slice(4, 5)):
        assert layer(data[part], label[part]) == ()
    with h5py.File(file) as read:
        assert set(read) == {"data", "label"}
        assert read["data"].dtype == np.float32
        np.testing.assert_array_equal(read["data"], data.detach())
        np.testing.assert_array_equal(read["label"], label)


def test_hdf5_output_of_a_new_net_starts_anew(tmp_path):
    for value in (1.0, 2.0):
        output(tmp_path / "out.h5", (2, 3), (2,))(torch.full((2, 3), value), torch.zeros(2))
    with h5py.File(tmp_path / "out.h5") as read:
        np.testing.assert_array_equal(read["data"], np.full((2, 3), 2.0))


def test_hdf5_output_refuses_what_it_cannot_write(tmp_path):
    with pytest.raises(ValueError, match="file_name is not given"):
        alone("type: 'HDF5Output'", (2, 3), (2,))
    with pytest.raises(ValueError, match="their first axes must have the same size"):
        output(tmp_path / "out.h5", (2, 3), (3,))
    with pytest.raises(ValueError, match=r"none/out.h5: cannot be written: "):
        output(tmp_path / "none/out.h5", (2, 3), (2,))(draw(2, 3), torch.zeros(2))
    layer = output(tmp_path / "out.h5", (2, 3), (2,))
    layer(draw(2, 3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"out.h5: rows of 4 after rows of 3 in 'data'"):
        layer(draw(2, 4), torch.zeros(2))


def test_ends_of_a_net_never_get_gradients():
    assert find("Accuracy").unlearnable == find("HDF5Output").unlearnable == (0, 1)
