from __future__ import annotations

import itertools
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ops.layers import recurrent
from ops.layers.recurrent import pieces_of
from tests.ops.layers import golden
from tests.ops.layers.alone import alone, draw, gradients_hold, run

EXAMPLES = settings(max_examples=25)
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}
KEPT = {"RNN": "h", "LSTM": "hc", "GRU": "h"}


@pytest.mark.parametrize("name", golden.names("lstm", "rnn"))
def test_recurrent_layers_compute_what_caffe_computes(name):
    assert max(golden.differences(name).values()) <= 1e-5


def layer(kind, *shapes, size=3, static=False, exposed=False, **options):
    """A recurrent layer for x, cont and further bottoms; by default those of `static` (S = 2) and of `exposed`."""
    steps, streams = shapes[0][:2]
    shapes = [shapes[0], (steps, streams), *shapes[1:]]
    shapes += [(streams, 2)] * static + [(1, streams, size)] * (len(KEPT[kind]) * exposed)
    bottoms = "".join(f' bottom: "b{i}"' for i in range(len(shapes)))
    tops = "".join(f' top: "t{i}"' for i in range(1 + len(KEPT[kind]) * exposed))
    param = f"recurrent_param {{ num_output: {size} expose_hidden: {'true' if exposed else 'false'} }}"
    return alone(f'name: "l" type: "{kind}" {bottoms} {tops} {param}', *shapes, **options)


def going_on(steps, streams):
    """cont of sequences that all begin at the first step."""
    cont = torch.ones(steps, streams, dtype=torch.float64)
    cont[0] = 0
    return cont


def turned(blob):
    """Rows i, f, o, g as i, f, g, o."""
    i, f, o, g = blob.chunk(4)
    return torch.cat((i, f, g, o))


def torchs(kind, one):
    """torch's module with the layer's weights: x -> (T, N, M)."""
    weights = [blob.detach() for blob in one.blobs]
    module = {"RNN": nn.RNN, "LSTM": nn.LSTM, "GRU": nn.GRU}[kind](weights[0].shape[1], one.size).double()
    if kind == "LSTM":
        weights = [turned(weight) for weight in weights]
    with torch.no_grad():
        module.weight_ih_l0.copy_(weights[0])
        module.bias_ih_l0.copy_(weights[1])
        module.weight_hh_l0.copy_(weights[2])
        module.bias_hh_l0.copy_(weights[3] if kind == "GRU" else torch.zeros_like(weights[1]))
    if kind == "RNN":
        return lambda x: (module(x)[0] @ weights[3].t() + weights[4]).tanh()
    return lambda x: module(x)[0]


@pytest.mark.parametrize("kind", GATES)
@given(steps=st.integers(1, 9), streams=st.integers(1, 4), values=st.integers(1, 4), size=st.integers(1, 4))
@EXAMPLES
def test_without_new_beginnings_a_layer_is_torchs(kind, steps, streams, values, size):
    one = layer(kind, (steps, streams, values), size=size)
    x = draw(steps, streams, values)
    torch.testing.assert_close(run(one, x, going_on(steps, streams)), torchs(kind, one)(x))


@pytest.mark.parametrize("kind", GATES)
@given(cont=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=8))
@EXAMPLES
def test_where_cont_is_zero_a_stream_begins_anew(kind, cont):
    cont = torch.tensor(cont, dtype=torch.float64)
    cont[0] = 0
    x = draw(len(cont), 3, 2)
    one = layer(kind, (len(cont), 3, 2))
    expected = torch.empty(len(cont), 3, 3, dtype=torch.float64)
    for stream in range(3):
        begins = [*(cont[:, stream] == 0).nonzero().flatten().tolist(), len(cont)]
        for start, stop in itertools.pairwise(begins):
            piece = x[start:stop, stream : stream + 1]
            expected[start:stop, stream : stream + 1] = torchs(kind, one)(piece)
    torch.testing.assert_close(run(one, x, cont), expected)


def test_inputs_of_several_axes_are_flattened():
    one, x = layer("LSTM", (4, 2, 3, 2)), draw(4, 2, 3, 2)
    flat = layer("LSTM", (4, 2, 6))
    assert torch.equal(run(one, x, going_on(4, 2)), run(flat, x.flatten(2), going_on(4, 2)))


@pytest.mark.parametrize("kind", GATES)
def test_a_static_input_is_an_input_that_is_the_same_at_every_step(kind):
    one, plain = layer(kind, (5, 2, 4), static=True), layer(kind, (5, 2, 6))
    for place, blob in enumerate([torch.cat((one.blobs[0], one.blobs[2]), 1), one.blobs[1], *one.blobs[3:]]):
        plain.set_blob(place, blob.detach())
    x, static = draw(5, 2, 4), draw(2, 2, seed=2)
    wide = torch.cat((x, static.expand(5, 2, 2)), 2)
    torch.testing.assert_close(run(one, x, going_on(5, 2), static), run(plain, wide, going_on(5, 2)))


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("exposed", [False, True])
def test_gradients_hold(kind, static, exposed):
    one = layer(kind, (3, 2, 2), static=static, exposed=exposed, size=2)
    cont = going_on(3, 2)
    cont[2, 1] = 0
    if exposed:
        cont[0, 0] = 1
    others = [draw(2, 2, seed=2)] * static + [draw(1, 2, 2, seed=3 + i) for i in range(len(KEPT[kind]) * exposed)]
    assert gradients_hold(one, draw(3, 2, 2), cont, *others)


# -- torch's LSTM for pieces, and step by step ------------------------------------------------------------------------


@given(begins=st.sets(st.integers(1, 11), max_size=4), exposed=st.booleans())
@EXAMPLES
def test_in_pieces_or_step_by_step_is_the_same(begins, exposed):
    one = layer("LSTM", (12, 2, 3), exposed=exposed)
    cont = going_on(12, 2)
    cont[sorted(begins), 1] = 0
    bottoms = [draw(12, 2, 3), cont, *[draw(1, 2, 3, seed=i) for i in (2, 3) if exposed]]
    found = []
    for shortest in (0, 100):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recurrent, "SHORTEST", shortest)
            tops = run(one, *bottoms)
        top = sum(one.sin().sum() for one in tops) if exposed else tops.sin().sum()
        found.append(torch.autograd.grad(top, [bottoms[0], *bottoms[2:], *one.blobs]))
    for piece, step in zip(*found, strict=True):
        torch.testing.assert_close(piece, step)


@pytest.mark.parametrize(
    ("begins", "pieces"), [([], [0, 8]), ([0], [0, 8]), ([5], [0, 5, 8]), ([2, 5], None), ([*range(8)], None)]
)
def test_pieces_reach_from_beginning_to_beginning_unless_they_are_short(begins, pieces):
    cont = torch.ones(8, 3, 1)
    cont[begins, 1] = 0
    assert pieces_of(cont) == pieces


def test_in_float32_the_pieces_are_as_exact_as_caffe_asks():
    x, cont = draw(40, 8, 32), going_on(40, 8)
    exact = layer("LSTM", (40, 8, 32), size=24)
    for blob in exact.blobs:
        blob.data *= 0.2
    single = layer("LSTM", (40, 8, 32), size=24, dtype=torch.float32)
    for blob, other in zip(single.blobs, exact.blobs, strict=True):
        blob.data.copy_(other)
    y, cast = run(exact, x, cont), x.detach().float().requires_grad_()
    z = run(single, cast, cont.float())
    y.sin().sum().backward()
    z.sin().sum().backward()
    pairs = [(z, y), (cast.grad, x.grad), *((a.grad, b.grad) for a, b in zip(single.blobs, exact.blobs, strict=True))]
    assert max(golden.distance(ours.detach().numpy(), theirs.detach().numpy()) for ours, theirs in pairs) < 3e-6


# -- what goes on from forward to forward -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", GATES)
def test_a_forward_goes_on_where_the_last_one_ended(kind):
    one, again, x, cont = layer(kind, (6, 2, 3)), layer(kind, (6, 2, 3)), draw(6, 2, 3), going_on(6, 2)
    halves = [again(x[:4], cont[:4]), again(x[4:], cont[4:])]
    torch.testing.assert_close(torch.cat(halves), run(one, x, cont))


def test_no_gradient_goes_back_into_an_earlier_forward():
    one, x = layer("LSTM", (2, 1, 3)), draw(4, 1, 3)
    cont = torch.ones(2, 1, dtype=torch.float64)
    one(x[:2], cont)
    one(x[2:], cont).sum().backward()
    assert not x.grad[:2].any()
    assert x.grad[2:].all()


def test_another_number_of_streams_begins_with_zeros():
    one, fresh = layer("GRU", (2, 2, 3)), layer("GRU", (2, 3, 3))
    one(draw(2, 2, 3), going_on(2, 2))
    x, cont = draw(2, 3, 3), torch.ones(2, 3, dtype=torch.float64)
    assert torch.equal(one(x, cont), fresh(x, cont))


@pytest.mark.parametrize("kind", GATES)
def test_a_state_is_taken_up_by_another_layer(kind):
    one, other, x = layer(kind, (2, 2, 3)), layer(kind, (2, 2, 3)), draw(2, 2, 3)
    cont = torch.ones(2, 2, dtype=torch.float64)
    assert one.state() == {}
    one(x, cont)
    other.load_state(one.state())
    assert "".join(sorted(one.state(), reverse=True)) == KEPT[kind]
    assert torch.equal(one(x, cont), other(x, cont))
    other.load_state({})
    assert other.state() == {}


def test_a_state_of_another_layer_is_refused():
    one = layer("LSTM", (2, 2, 3))
    with pytest.raises(ValueError, match="a state of h; expected h, c"):
        one.load_state({"h": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match="c has shape 2 x 4, expected streams x 3"):
        one.load_state({"h": torch.zeros(2, 3), "c": torch.zeros(2, 4)})


def test_exposed_values_are_the_callers_and_nothing_is_kept():
    one, plain, x = layer("LSTM", (5, 2, 3), exposed=True), layer("LSTM", (5, 2, 3)), draw(5, 2, 3)
    zeros = torch.zeros(1, 2, 3, dtype=torch.float64)
    cont = torch.ones(5, 2, dtype=torch.float64)
    y, h, c = run(one, x, cont, zeros, zeros)
    torch.testing.assert_close(y, plain(x, cont))
    torch.testing.assert_close((h[0], c[0]), (y[-1], plain.state()["c"]))
    assert one.state() == {}


# -- one step ---------------------------------------------------------------------------------------------------------

UNIT = 'name: "l" type: "LSTMUnit" bottom: "c" bottom: "g" bottom: "k" top: "d" top: "h"'


def test_an_lstm_unit_is_torchs_cell_behind_its_products():
    one, cell = alone(UNIT, (1, 4, 3), (1, 4, 12), (1, 4)), nn.LSTMCell(2, 3).double()
    x, h, c, cont = draw(4, 2), draw(4, 3, seed=2), draw(4, 3, seed=3), torch.tensor([[1.0, 0, 1, 1]]).double()
    gates = x @ cell.weight_ih.t() + h @ cell.weight_hh.t() + cell.bias_ih + cell.bias_hh
    next_h, next_c = cell(x, (h, c * cont.t()))
    i, f, g, o = gates.chunk(4, 1)
    found = run(one, c[None], torch.cat((i, f, o, g), 1)[None], cont)
    torch.testing.assert_close(found, (next_c[None], next_h[None]))


def test_gradients_of_an_lstm_unit_hold():
    one = alone(UNIT, (1, 3, 2), (1, 3, 8), (1, 3))
    assert gradients_hold(one, draw(1, 3, 2), draw(1, 3, 8), torch.tensor([[1.0, 0, 1]]).double())


# -- building ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "static", "shapes"),
    [
        ("LSTM", False, [(12, 5), (12,), (12, 3)]),
        ("LSTM", True, [(12, 5), (12,), (12, 2), (12, 3)]),
        ("RNN", True, [(3, 5), (3,), (3, 2), (3, 3), (3, 3), (3,)]),
        ("GRU", True, [(9, 5), (9,), (9, 2), (9, 3), (9,)]),
    ],
)
def test_blobs_stand_in_caffes_order(kind, static, shapes):
    assert [tuple(blob.shape) for blob in layer(kind, (4, 2, 5), static=static).blobs] == shapes


def test_weights_and_biases_have_their_fillers():
    text = "recurrent_param { num_output: 3 weight_filler { value: 2 } bias_filler { value: 5 } }"
    one = alone(f'name: "l" type: "RNN" bottom: "x" bottom: "c" top: "y" {text}', (4, 2, 5), (4, 2))
    assert [filler.value for filler in one.fillers] == [2, 5, 2, 2, 5]
    assert layer("RNN", (4, 2, 5)).fillers == [None] * 5


def test_a_million_steps_are_built_at_once():
    start = time.perf_counter()
    one = layer("LSTM", (1_000_000, 2, 3), exposed=True)
    assert one.told == [(1_000_000, 2, 3), (1, 2, 3), (1, 2, 3)]
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    ("text", "shapes", "message"),
    [
        ('top: "y"', [(4, 2, 5), (4, 2)], "num_output 0, expected 1 or more"),
        ('top: "y" recurrent_param { num_output: 3 }', [(4, 2), (4, 2)], "bottom 0 has shape 4 x 2, expected steps"),
        ('top: "y" recurrent_param { num_output: 3 }', [(4, 2, 5), (2, 4)], "cont.*shape 2 x 4, expected 4 x 2"),
        ('top: "y" recurrent_param { num_output: 3 }', [(4, 2, 5), (4, 2), (3, 7)], "static.*3 x 7, expected 2 x val"),
        (
            'top: "y" recurrent_param { num_output: 3 }',
            [(4, 2, 5), (4, 2), (2, 7), (2, 7)],
            "has 4 bottoms, expected 2",
        ),
        ('top: "y" top: "h" recurrent_param { num_output: 3 }', [(4, 2, 5), (4, 2)], "has 2 tops, expected 1 without"),
        (
            'top: "y" top: "h" top: "c" recurrent_param { num_output: 3 expose_hidden: true }',
            [(4, 2, 5), (4, 2), (1, 2, 3), (1, 2, 4)],
            "the first c has shape 1 x 2 x 4, expected 1 x 2 x 3",
        ),
    ],
)
def test_what_does_not_fit_is_told(text, shapes, message):
    with pytest.raises(ValueError, match=message):
        alone(f'name: "l" type: "LSTM" {text}', *shapes)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(2, 4, 3), (1, 4, 12), (1, 4)], r"bottom 0 \(cells\) has shape 2 x 4 x 3"),
        ([(1, 4, 3), (1, 4, 9), (1, 4)], r"bottom 1 \(gates\) has shape 1 x 4 x 9, expected 1 x 4 x 12"),
        ([(1, 4, 3), (1, 4, 12), (1, 3)], r"bottom 2 \(cont\) has shape 1 x 3, expected 1 x 4"),
    ],
)
def test_what_does_not_fit_an_lstm_unit_is_told(shapes, message):
    with pytest.raises(ValueError, match=message):
        alone(UNIT, *shapes)
