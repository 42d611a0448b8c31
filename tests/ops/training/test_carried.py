"""What recurrent layers carry on survives being text, bit for bit, and is divided anew among other workers."""

from __future__ import annotations

import json

import pytest
import torch
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from ops import net as nets
from ops.parallel import Group, Part
from ops.proto.caffe_pb2 import NetParameter
from ops.training.carried import TYPES, carried, carry_on, pack, unpack

NET = """name: "n"
layer { name: "in" type: "Input" top: "x" top: "cont"
  input_param { shape { dim: 3 dim: 4 dim: 2 } shape { dim: 3 dim: 4 } } }
layer { name: "lstm" type: "LSTM" bottom: "x" bottom: "cont" top: "y"
  recurrent_param { num_output: 5 weight_filler { type: "uniform" min: -0.5 max: 0.5 } } }"""


def recurrent():
    return nets.load(text_format.Parse(NET, NetParameter()), "TRAIN", seed=2)


def inputs(seed, streams=4):
    numbers = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(3, streams, 2, generator=numbers), "cont": torch.ones(3, streams)}


@given(st.sampled_from(TYPES), st.lists(st.integers(0, 4), max_size=3), st.integers(0, 1000))
def test_a_tensor_becomes_text_and_a_tensor_again(kind, shape, seed):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 100
    value = values.to(getattr(torch, kind))
    again = unpack(json.loads(json.dumps(pack(value))))
    assert again.dtype == value.dtype
    assert again.shape == value.shape
    assert torch.equal(again, value)


def test_nan_infinity_and_numbers_of_16_bits_keep_their_bits():
    odd = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])
    assert unpack(pack(odd)).view(torch.int32).tolist() == odd.view(torch.int32).tolist()
    half = torch.tensor([1.1, -3e-5, 300]).bfloat16()
    assert torch.equal(unpack(pack(half)).bfloat16(), half)


@pytest.mark.parametrize(
    ("change", "told"), [({"type": "object"}, "type 'object'"), ({"shape": [3]}, "8 bytes for a tensor of")]
)
def test_what_is_no_tensor_is_refused(change, told):
    with pytest.raises(ValueError, match=told):
        unpack({**pack(torch.zeros(2)), **change})


def test_a_net_goes_on_from_what_another_carried():
    first, second = recurrent(), recurrent()
    first(inputs(1))
    told = json.loads(json.dumps(carried(first, Group())))
    assert sorted(told) == ["1/c", "1/h"]
    carry_on(second, Group(), told)
    assert torch.equal(first(inputs(2))["y"], second(inputs(2))["y"])
    assert not torch.equal(second(inputs(2))["y"], recurrent()(inputs(2))["y"])  # there is something to carry


def test_each_worker_takes_its_streams():
    whole, parts = recurrent(), [recurrent() for _ in range(3)]
    whole(inputs(1))
    told = carried(whole, Group())
    expected, streams = whole(inputs(2))["y"], [(0, 1), (1, 2), (2, 4)]
    for rank, (part, (start, stop)) in enumerate(zip(parts, streams, strict=True)):
        group = Group(rank, 3)
        part.layers[1].part = Part(group, ((3, 4, 2), (3, 4)), (1, 1))
        carry_on(part, group, told)
        own = {name: value[:, start:stop] for name, value in inputs(2).items()}
        assert torch.allclose(part(own)["y"], expected[:, start:stop], atol=1e-6)


def test_nothing_is_carried_before_the_first_forward():
    assert carried(recurrent(), Group()) == {}


def test_a_state_of_another_net_is_refused():
    net = recurrent()
    with pytest.raises(ValueError, match="n: a state of layer 7, of 2 layers"):
        carry_on(net, Group(), {"7/h": pack(torch.zeros(4, 5))})
    with pytest.raises(ValueError, match="a state of h; expected h, c"):
        carry_on(net, Group(), {"1/h": pack(torch.zeros(4, 5))})
