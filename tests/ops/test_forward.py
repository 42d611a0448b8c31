"""A forward in pieces: the same blobs, however little memory there is."""

from __future__ import annotations

import pytest
import torch

from ops import net as nets
from ops.forward import Pieces

NET = 'layer { name: "d" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 } } }'
NET += 'layer { name: "s" type: "Power" bottom: "x" top: "y" power_param { power: 2 } }'


class Small:
    """A forward that fits only so many items, and remembers what it was given."""

    def __init__(self, forward, most):
        self.forward, self.most, self.given = forward, most, []

    def __call__(self, blobs):
        count = len(blobs["x"])
        self.given.append(count)
        if count > self.most:
            raise MemoryError("layer 's' (Power): out of memory")
        return self.forward(blobs)


@pytest.fixture
def net(tmp_path):
    (tmp_path / "net.prototxt").write_text(NET)
    return nets.load(tmp_path / "net.prototxt")


@pytest.mark.parametrize("most", [16, 10, 3, 1])
def test_batches_are_halved_until_they_fit_and_stay_so(net, most):
    small = Small(net, most)
    pieces = Pieces(small)
    x = torch.arange(48.0).reshape(16, 3)
    for _ in range(2):
        torch.testing.assert_close(pieces({"x": x})["y"], x**2)
    assert pieces.most in (None if most >= 16 else pieces.most, 16 // 2, 16 // 4, 1)
    assert pieces.most is None or most // 2 < pieces.most <= most
    failed = [count for count in small.given if count > most]
    assert len(failed) == len(set(failed))


def test_one_item_that_does_not_fit_is_told(net):
    with pytest.raises(MemoryError, match="out of memory"):
        Pieces(Small(net, 0))({"x": torch.zeros(4, 3)})


def test_memory_of_a_gpu_that_runs_out_outside_the_net_is_halved_at_too(net):
    def forward(blobs):
        if len(blobs["x"]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")
        return net(blobs)

    pieces, x = Pieces(forward), torch.arange(30.0).reshape(10, 3)
    torch.testing.assert_close(pieces({"x": x})["y"], x**2)
    assert pieces.most == 2

    def full(blobs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")

    with pytest.raises(MemoryError, match=r"^CUDA out of memory\. Tried to allocate 2\.00 GiB\.$"):
        Pieces(full)({"x": x})


def test_a_gpu_without_memory_is_what_a_net_calls_a_memory_error(tmp_path):
    """torch.OutOfMemoryError comes out of a net as the MemoryError that pieces halve at."""
    (tmp_path / "net.prototxt").write_text(NET)
    net = nets.load(tmp_path / "net.prototxt")

    def full(*bottoms):
        raise torch.OutOfMemoryError("CUDA out of memory")

    net.steps[0].compute = full
    with pytest.raises(MemoryError, match="out of memory"):
        net(x=torch.zeros(2, 3))
