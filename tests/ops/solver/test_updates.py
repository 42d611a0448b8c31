"""Each rule against its formula in numpy's float64, and against torch's optimizers where the two say the same."""

import numpy as np
import pytest
import torch

from ops.solver import updates
from ops.solver.updates import RULES, Part, apply, flat, flat_like

SHAPES = [(3, 4), (1,), (300,), (2, 3, 5, 5)]
NUMBERS = {"rate": 0.02, "decay": 0.3, "momentum": 0.9, "momentum2": 0.98, "rms_decay": 0.95, "delta": 1e-3}


def sgd(w, g, h, u, rate, m, n):
    h[:] = m * h + rate * g
    return h


def nesterov(w, g, h, u, rate, m, n):
    before = h.copy()
    h[:] = m * h + rate * g
    return (1 + m) * h - m * before


def adagrad(w, g, h, u, rate, m, n):
    h[:] = h + g**2
    return rate * g / (np.sqrt(h) + n["delta"])


def rmsprop(w, g, h, u, rate, m, n):
    h[:] = n["rms_decay"] * h + (1 - n["rms_decay"]) * g**2
    return rate * g / (np.sqrt(h) + n["delta"])


def adadelta(w, g, h, u, rate, m, n):
    h[:] = m * h + (1 - m) * g**2
    x = g * np.sqrt((u + n["delta"]) / (h + n["delta"]))
    u[:] = m * u + (1 - m) * x**2
    return rate * x


def adam(w, g, h, u, rate, m, n):
    m2, t = n["momentum2"], n["time"]
    h[:] = m * h + (1 - m) * g
    u[:] = m2 * u + (1 - m2) * g**2
    return rate * np.sqrt(1 - m2**t) / (1 - m**t) * h / (np.sqrt(u) + n["delta"])


FORMULAS = {
    "SGD": sgd,
    "Nesterov": nesterov,
    "AdaGrad": adagrad,
    "RMSProp": rmsprop,
    "AdaDelta": adadelta,
    "Adam": adam,
}


def blobs(seed, positive=False):
    rng = np.random.default_rng(seed)
    made = [rng.normal(size=np.prod(shape)) for shape in SHAPES]
    return [np.abs(one) * 0.1 if positive else one for one in made]


def tensors(arrays, dtype=torch.float64):
    return [torch.tensor(array, dtype=dtype) for array in arrays]


def follow(kind, steps, *, scale=1.0, lasso=False, numbers=NUMBERS, dtype=torch.float64):
    """The largest difference between `steps` updates by the rule and by the formula; rates and gradients change."""
    w, h, u = blobs(0), blobs(1, positive=True), blobs(2, positive=True)
    ours = [tensors(w, dtype), tensors(h, dtype), tensors(u, dtype)]
    for step in range(steps):
        g, now = blobs(10 + step), {**numbers, "time": step + 1, "rate": numbers["rate"] / (step + 1)}
        two = RULES[kind].histories == 2
        part = Part(ours[0], tensors(g, dtype), ours[1], ours[2] if two else [], **now)
        apply(RULES[kind], part, scale=scale, lasso=lasso)
        for i in range(len(w)):
            gradient = scale * g[i] + numbers["decay"] * (np.sign(w[i]) if lasso else w[i])
            w[i] -= FORMULAS[kind](w[i], gradient, h[i], u[i], now["rate"], numbers["momentum"], now)
    pairs = [*zip(ours[0], w, strict=True), *zip(ours[1], h, strict=True)]
    pairs += [*zip(ours[2], u, strict=True)] if RULES[kind].histories == 2 else []
    return max(np.abs(found.numpy() - wanted).max() for found, wanted in pairs)


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("more", [{}, {"scale": 0.25}, {"lasso": True}, {"scale": 2.0, "lasso": True}], ids=str)
def test_rules(kind, more):
    assert follow(kind, 5, **more) < 1e-12


@pytest.mark.parametrize("kind", RULES)
def test_rules_in_float32(kind):
    assert follow(kind, 5, dtype=torch.float32) < 1e-5


@pytest.mark.parametrize("kind", ["SGD", "Nesterov", "Adam"])
def test_without_momentum(kind):
    assert follow(kind, 3, numbers={**NUMBERS, "momentum": 0.0}) < 1e-12


@pytest.mark.parametrize("kind", RULES)
def test_without_decay(kind):
    assert follow(kind, 3, numbers={**NUMBERS, "decay": 0.0}) < 1e-12
    assert follow(kind, 3, numbers={**NUMBERS, "decay": 0.0}, lasso=True) < 1e-12


@pytest.mark.parametrize("rate", [1e-3, 2e-9, 1e-12, 0.0])
def test_a_small_rate_is_exact(rate):
    """As at the foot of the sigmoid policy, or the end of poly."""
    g, (w, h) = torch.randn(1000), torch.zeros(2, 1000)
    apply(RULES["SGD"], Part([w], [g.clone()], [h], [], **{**NUMBERS, "rate": rate}, time=1))
    assert (h.double() - rate * g.double()).norm() <= 1e-6 * rate * g.norm()
    assert torch.equal(w, -h)


@pytest.mark.parametrize("size", [1, 7, 64, 150, 1000])
def test_a_rule_may_work_piece_by_piece(monkeypatch, size):
    monkeypatch.setattr(updates, "PIECE", size)
    assert follow("AdaDelta", 3, scale=0.5) < 1e-12


def test_pieces_hold_small_blobs_together_and_cut_large_ones(monkeypatch):
    monkeypatch.setattr(updates, "PIECE", 100)
    columns = [[torch.zeros(size) for size in (40, 30, 250, 10)] for _ in range(3)]
    part = Part(*columns, [], **NUMBERS, time=1)
    assert [[len(w) for w in piece.w] for piece in updates.pieces(part)] == [[40, 30, 100], [100], [50, 10]]


@pytest.mark.parametrize(
    ("kind", "peer"),
    [
        ("SGD", lambda w: torch.optim.SGD(w, lr=0.02, momentum=0.9, weight_decay=0.3)),
        ("Nesterov", lambda w: torch.optim.SGD(w, lr=0.02, momentum=0.9, weight_decay=0.3, nesterov=True)),
        ("AdaGrad", lambda w: torch.optim.Adagrad(w, lr=0.02, weight_decay=0.3, eps=1e-3)),
        ("RMSProp", lambda w: torch.optim.RMSprop(w, lr=0.02, alpha=0.95, weight_decay=0.3, eps=1e-3)),
        ("AdaDelta", lambda w: torch.optim.Adadelta(w, lr=0.02, rho=0.9, weight_decay=0.3, eps=1e-3)),
        ("Adam", lambda w: torch.optim.Adam(w, lr=0.02, betas=(0.9, 0.98), weight_decay=0.3, eps=1e-30)),
    ],
)
def test_at_one_rate_the_rules_are_torchs(kind, peer):
    weights = [torch.nn.Parameter(w) for w in tensors(blobs(0))]
    optimizer, rule = peer(weights), RULES[kind]
    ours = tensors(blobs(0))
    h, u = ([torch.zeros_like(w) for w in ours] for _ in range(2))
    numbers = {**NUMBERS, "delta": 0.0} if kind == "Adam" else NUMBERS
    for step in range(6):
        gradients = tensors(blobs(10 + step))
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.clone()
        optimizer.step()
        apply(rule, Part(ours, gradients, h, u if rule.histories == 2 else [], **numbers, time=step + 1))
    for found, wanted in zip(ours, weights, strict=True):
        torch.testing.assert_close(found, wanted.detach(), rtol=1e-10, atol=1e-12)


# -- blobs as flat tensors -------------------------------------------------------------------------------------------

LAYOUTS = {
    "contiguous": torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5),
    "channels last": torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "transposed": torch.arange(12.0).reshape(3, 4).t(),
    "one channel": torch.arange(20.0).reshape(4, 1, 5, 1).to(memory_format=torch.channels_last),
    "one by one": torch.arange(12.0).reshape(4, 3, 1, 1).to(memory_format=torch.channels_last),
    "a number": torch.tensor(3.0),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_flat_tensor_is_the_blobs_own_memory(name):
    blob = LAYOUTS[name].clone()
    view = flat(blob)
    assert view.shape == (blob.numel(),)
    assert view.data_ptr() == blob.data_ptr()
    view.add_(1)
    assert torch.equal(blob, LAYOUTS[name] + 1)


@pytest.mark.parametrize("name", ["contiguous", "channels last"])
def test_a_gradient_that_lies_otherwise_is_put_in_the_blobs_order(name):
    blob = LAYOUTS[name]
    for other in (blob.contiguous(), blob.to(memory_format=torch.channels_last)):
        assert torch.equal(flat_like(other, blob), flat(blob))
    assert flat_like(blob, blob).data_ptr() == blob.data_ptr()
    assert flat_like(torch.ones(()).expand(blob.shape), blob).tolist() == [1.0] * blob.numel()
