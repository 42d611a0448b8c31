"""Recurrent layers: LSTM, RNN, GRU over whole sequences, LSTMUnit for one step.

Sequences are T steps of N streams: x is (T, N, ...), cont (T, N) is 0 where a stream begins anew, 1 where it goes on.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ops.layers.registry import Layer, Phase, Shape, layer, text
from ops.proto.caffe_pb2 import FillerParameter, LayerParameter

Steps = tuple[Tensor, ...]
SHORTEST = 4  # steps of a piece, on average, from which torch's LSTM (oneDNN) is faster than a loop: 2 to 5 times


class Recurrent(Layer):
    """What LSTM, RNN and GRU share: (T, N, ...) x, (T, N) cont[, (N, ...) static] -> (T, N, M) y.

    The last values of a forward are the first of the next one, without a gradient between them, as Caffe's; a change
    of N begins with zeros. With `expose_hidden` nothing is kept: the first values, (1, N, M) each, are the last bottoms
    and the last values are the last tops. Inputs of all steps are projected at once.
    """

    unlearnable = (1,)
    kept: ClassVar[tuple[str, ...]] = ("h",)  # what goes from step to step, each (N, M)
    gates: ClassVar[int] = 1

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        p = spec.recurrent_param
        if p.num_output < 1:
            raise ValueError("recurrent_param has num_output 0, expected 1 or more")
        self.size = p.num_output
        self.exposed = len(self.kept) if p.expose_hidden else 0
        self.static = len(bottoms) == 3 + self.exposed
        self.last: Steps | None = None
        self._check(bottoms)
        self.weight_filler = p.weight_filler if p.HasField("weight_filler") else None
        self.bias_filler = p.bias_filler if p.HasField("bias_filler") else None
        rows = self.gates * self.size
        self._add((rows, math.prod(bottoms[0][2:])))
        self._add((rows,))
        if self.static:
            self._add((rows, math.prod(bottoms[2][1:])))
        self.hidden = len(self.fillers)  # the place of the blob that multiplies the hidden values
        self._add((rows, self.size))

    def _add(self, shape: Shape) -> None:
        filler: FillerParameter | None = self.weight_filler if len(shape) > 1 else self.bias_filler
        self.add_blob(shape, filler)

    def _check(self, bottoms: list[Shape]) -> None:
        """ValueError where the number of blobs or their shapes do not fit together."""
        words = f"with{'' if self.exposed else 'out'} expose_hidden"
        if len(bottoms) not in (2 + self.exposed, 3 + self.exposed):
            raise ValueError(f"has {len(bottoms)} bottoms, expected {2 + self.exposed} or {3 + self.exposed} {words}")
        if len(self.spec.top) != 1 + self.exposed:
            raise ValueError(f"has {len(self.spec.top)} tops, expected {1 + self.exposed} {words}")
        x, cont, *others = bottoms
        if len(x) < 3:
            raise ValueError(f"bottom 0 has shape {text(x)}, expected steps x streams x values (3 axes or more)")
        if cont != x[:2]:
            raise ValueError(
                f"bottom 1 (cont) has shape {text(cont)}, expected {text(x[:2])} as in bottom 0, {text(x)}"
            )
        if self.static:
            static = others.pop(0)
            if len(static) < 2 or static[0] != x[1]:
                words = f"expected {x[1]} x values as bottom 0 has shape {text(x)}"
                raise ValueError(f"bottom 2 (static) has shape {text(static)}, {words}")
        for name, shape in zip(self.kept, others, strict=False):
            if shape != (1, x[1], self.size):
                raise ValueError(f"the first {name} has shape {text(shape)}, expected {text((1, x[1], self.size))}")

    def shapes(self, bottoms: list[Shape]) -> list[Shape]:
        steps, streams = bottoms[0][:2]
        return [(steps, streams, self.size), *[(1, streams, self.size)] * self.exposed]

    def forward(self, x: Tensor, cont: Tensor, *others: Tensor) -> Tensor | tuple[Tensor, ...]:
        x, cont = x.flatten(2), cont.to(x.dtype).unsqueeze(2)
        first = tuple(one[0] for one in others[self.static :]) if self.exposed else self._first(x)
        top, last = self.compute(x, cont, others[0].flatten(1) if self.static else None, first)
        if self.exposed:
            return (top, *[one.unsqueeze(0) for one in last])
        self.last = tuple(one.detach() for one in last)
        return top

    def compute(self, x: Tensor, cont: Tensor, static: Tensor | None, first: Steps) -> tuple[Tensor, Steps]:
        """(T, N, I) x, (T, N, 1) cont, (N, S) static, the first values (N, M) -> the top, the last values."""
        projected = F.linear(x, self.blob(0), self.blob(1))
        if static is not None:
            projected = projected + F.linear(static, self.blob(2))
        hidden, last = self.run(projected, cont.unbind(0), *first)
        return torch.stack(hidden), last

    @abstractmethod
    def run(self, projected: Tensor, goes_on: Steps, *first: Tensor) -> tuple[list[Tensor], Steps]:
        """(T, N, gates M) projected inputs, T conts (N, 1), the first values -> h of each step, the last values."""

    def _first(self, x: Tensor) -> Steps:
        shape = (x.shape[1], self.size)
        if self.last is None or self.last[0].shape != shape:
            return tuple(x.new_zeros(shape) for _ in self.kept)
        return tuple(one.to(x.device, x.dtype) for one in self.last)

    def state(self) -> dict[str, Tensor]:
        """The last values by name, (N, M) each; nothing before the first forward and with `expose_hidden`."""
        return dict(zip(self.kept, self.last, strict=True)) if self.last else {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        if not state:
            self.last = None
            return
        if sorted(state) != sorted(self.kept):
            raise ValueError(f"a state of {', '.join(sorted(state))}; expected {', '.join(self.kept)}")
        for name, value in state.items():
            if value.ndim != 2 or value.shape != (len(value), self.size):
                raise ValueError(f"{name} has shape {text(tuple(value.shape))}, expected streams x {self.size}")
        self.last = tuple(state[name].detach().clone() for name in self.kept)


@layer("RNN")
class RNN(Recurrent):
    """h_t = tanh(W_xh x_t + b_h [+ W_s static] + W_hh (cont_t h_{t-1})), y_t = tanh(W_ho h_t + b_o).

    Blobs, as Caffe's: W_xh (M, I), b_h (M), [W_s (M, S)], W_hh (M, M), W_ho (M, M), b_o (M). The top is y.
    """

    bottoms, tops = (2, 4), (1, 2)

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        self._add((self.size, self.size))
        self._add((self.size,))

    def run(self, projected: Tensor, goes_on: Steps, *first: Tensor) -> tuple[list[Tensor], Steps]:
        (h,) = first
        weight, hidden = self.blob(self.hidden).t(), []
        for x, cont in zip(projected.unbind(0), goes_on, strict=True):
            h = torch.addmm(x, cont * h, weight).tanh()
            hidden.append(h)
        return hidden, (h,)

    def compute(self, x: Tensor, cont: Tensor, static: Tensor | None, first: Steps) -> tuple[Tensor, Steps]:
        y, last = super().compute(x, cont, static, first)
        return F.linear(y, self.blob(self.hidden + 1), self.blob(self.hidden + 2)).tanh(), last


@layer("LSTM")
class LSTM(Recurrent):
    """i, f, o = sigmoid and g = tanh of W_x x_t + b [+ W_s static] + W_h (cont_t h_{t-1}), in this order of rows;
    c_t = f (cont_t c_{t-1}) + i g, h_t = o tanh(c_t); the top is h. No peepholes, one bias.

    Blobs, as Caffe's: W_x (4M, I), b (4M), [W_s (4M, S)], W_h (4M, M).
    """

    bottoms, tops = (2, 5), (1, 3)
    kept = ("h", "c")
    gates = 4

    def run(self, projected: Tensor, goes_on: Steps, *first: Tensor) -> tuple[list[Tensor], Steps]:
        h, c = first
        weight, hidden = self.blob(self.hidden).t(), []
        for x, cont in zip(projected.unbind(0), goes_on, strict=True):
            c, h = lstm_step(torch.addmm(x, cont * h, weight), cont * c)
            hidden.append(h)
        return hidden, (h, c)

    def compute(self, x: Tensor, cont: Tensor, static: Tensor | None, first: Steps) -> tuple[Tensor, Steps]:
        """Step by step; on CPU torch's LSTM takes the pieces between two beginnings, where they are not too short."""
        pieces = pieces_of(cont) if x.device.type == "cpu" and static is None else None
        if pieces is None:
            return super().compute(x, cont, static, first)
        weights = [swapped(self.blob(index), self.size) for index in (0, self.hidden, 1)]
        weights.append(torch.zeros_like(weights[-1]))
        tops, train = [], torch.is_grad_enabled()
        for start, stop in pairwise(pieces):
            gated = [(cont[start] * one).unsqueeze(0) for one in first]
            y, h, c = torch.lstm(x[start:stop], gated, weights, True, 1, 0.0, train, False, False)
            first = (h[0], c[0])
            tops.append(y)
        return torch.cat(tops) if len(tops) > 1 else tops[0], first


def pieces_of(cont: Tensor) -> list[int] | None:
    """The steps 0 = a < b < ... < T between which all streams go on; None where they are many, or not to be known."""
    if torch.compiler.is_compiling():
        return None
    anew = (cont != 1).flatten(1).any(1).nonzero().flatten().tolist()
    pieces = sorted({0, *anew, len(cont)})
    return pieces if SHORTEST * (len(pieces) - 2) < len(cont) else None


def swapped(blob: Tensor, size: int) -> Tensor:
    """The rows i, f, o, g of a blob as i, f, g, o, which is torch's order."""
    return torch.cat((blob[: 2 * size], blob[3 * size :], blob[2 * size : 3 * size]))


def lstm_step(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 4M) gates in the order i, f, o, g and the cells (..., M) that go on -> the next c and h."""
    size = c.shape[-1]
    ifo, g = gates.split_with_sizes((3 * size, size), -1)
    i, f, o = ifo.sigmoid().chunk(3, -1)
    c = torch.addcmul(f * c, i, g.tanh())
    return c, o * c.tanh()


@layer("GRU")
class GRU(Recurrent):
    """r, z = sigmoid of W_x x_t + b [+ W_s static] + W_h (cont_t h_{t-1}) + b_h, n = tanh(x part + r (h part)), where
    the x part has b and the static input and the h part has b_h; h_t = (1 - z) n + z (cont_t h_{t-1}). The top is h.

    Blobs, rows in the order r, z, n: W_x (3M, I), b (3M), [W_s (3M, S)], W_h (3M, M), b_h (3M): torch.nn.GRU's
    weight_ih, bias_ih, weight_hh and bias_hh. Caffe never had this layer.
    """

    bottoms, tops = (2, 4), (1, 2)
    gates = 3
    fresh = True

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        self._add((3 * self.size,))

    def run(self, projected: Tensor, goes_on: Steps, *first: Tensor) -> tuple[list[Tensor], Steps]:
        (h,) = first
        weight, bias, hidden = self.blob(self.hidden).t(), self.blob(self.hidden + 1), []
        parts = (2 * self.size, self.size)
        both, news = projected.split_with_sizes(parts, 2)
        for x_rz, x_n, cont in zip(both.unbind(0), news.unbind(0), goes_on, strict=True):
            h = cont * h
            h_rz, h_n = torch.addmm(bias, h, weight).split_with_sizes(parts, 1)
            r, z = (x_rz + h_rz).sigmoid().chunk(2, 1)
            h = torch.lerp(torch.addcmul(x_n, r, h_n).tanh(), h, z)
            hidden.append(h)
        return hidden, (h,)


@layer("LSTMUnit")
class LSTMUnit(Layer):
    """One step of LSTM: cells (1, N, M), gates (1, N, 4M) in the order i, f, o, g before their nonlinearities,
    cont (1, N) -> c = cont sigmoid(f) cells + sigmoid(i) tanh(g), h = sigmoid(o) tanh(c), both (1, N, M).
    """

    bottoms, tops = (3, 3), (2, 2)
    unlearnable = (2,)
    fresh = True

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        cells, gates, cont = bottoms
        if len(cells) != 3 or cells[0] != 1:
            raise ValueError(f"bottom 0 (cells) has shape {text(cells)}, expected 1 x streams x values")
        if gates != (1, cells[1], 4 * cells[2]):
            expected = text((1, cells[1], 4 * cells[2]))
            raise ValueError(
                f"bottom 1 (gates) has shape {text(gates)}, expected {expected} as bottom 0 has shape {text(cells)}"
            )
        if cont != (1, cells[1]):
            raise ValueError(f"bottom 2 (cont) has shape {text(cont)}, expected {text((1, cells[1]))}")

    def forward(self, cells: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
        return lstm_step(gates, cont.to(cells.dtype).unsqueeze(2) * cells)
