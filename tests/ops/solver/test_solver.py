"""The solver against real Caffe's trajectories, and against its rules worked out in numpy on a least-squares net."""

import math
import re

import numpy as np
import pytest
import torch

from ops import net as nets
from ops.proto import text
from ops.proto.caffe_pb2 import NetParameter, SolverParameter
from ops.solver import state
from ops.solver.solver import Solver
from tests.ops.solver.golden import FOLDER, RUNS, SNAPSHOTS, Run, error, trajectory
from tests.ops.solver.test_updates import FORMULAS

# -- Caffe's own runs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_losses_and_weights_are_caffes(name):
    losses, after = trajectory(name)
    run = Run(name)
    for iteration, loss in enumerate(losses, 1):
        assert run.step() == pytest.approx(loss, rel=1e-4), iteration
        for blob, expected in after.get(iteration, {}).items():
            assert error(run.weights()[blob], expected) < 1e-4, (iteration, blob)
    assert iteration == run.solver.iteration == 24


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_a_run_goes_on_from_caffes_own_snapshot(name):
    losses, after = trajectory(name)
    run = Run(name)
    state.restore(run.solver, FOLDER / f"snap_{name}_iter_10.solverstate")
    for blob, expected in after[10].items():
        assert np.array_equal(run.weights()[blob], expected)
    for loss in losses[10:]:
        assert run.step() == pytest.approx(loss, rel=1e-4)
    assert all(error(run.weights()[blob], expected) < 1e-4 for blob, expected in after[24].items())


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_our_history_at_a_snapshot_is_caffes(name):
    ours, caffes = Run(name), Run(name)
    for _ in range(10):
        ours.step()
    state.restore(caffes.solver, FOLDER / f"snap_{name}_iter_10.solverstate")
    assert (ours.solver.iteration, ours.solver.current_step) == (caffes.solver.iteration, caffes.solver.current_step)
    for found, expected in zip(ours.solver.history, caffes.solver.history, strict=True):
        assert error(found.numpy(), expected.numpy()) < 1e-4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", RUNS)
def test_losses_and_weights_are_caffes_on_a_gpu_and_no_update_waits_for_it(name):
    losses, after = trajectory(name)
    run = Run(name, device="cuda")
    plain = run.solver.update

    def update():
        torch.cuda.set_sync_debug_mode("error")
        try:
            return plain()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    run.solver.update = update
    for iteration, loss in enumerate(losses, 1):
        assert run.step() == pytest.approx(loss, rel=1e-4), iteration
        for blob, expected in after.get(iteration, {}).items():
            assert error(run.weights()[blob], expected) < 1e-4, (iteration, blob)


def test_the_trajectories_tell_one_solver_from_another():
    """The bound is not met by chance: another momentum, or torch's order of decay, misses it by far."""
    _, after = trajectory("sgd")
    for changes in ({"momentum": 0.89}, {"weight_decay": 0.0049}, {"type": "Nesterov"}, {"iter_size": 2}):
        run = Run("sgd", **changes)
        for _ in range(24):
            run.step()
        assert max(error(run.weights()[blob], expected) for blob, expected in after[24].items()) > 1e-3


# -- least squares, worked out by hand ---------------------------------------------------------------------------------

LINEAR = """
input: "x" input: "y" input_shape { dim: 4 dim: 3 } input_shape { dim: 4 dim: 2 }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip" inner_product_param { num_output: 2 } %s }
layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "y" top: "loss" }
"""
MULTS = "param { lr_mult: 1 decay_mult: 1 } param { lr_mult: 2 decay_mult: 0.5 }"


def build(words, seed=0):
    """A net in float64 with random weights."""
    net = nets.load(text.parse(words, NetParameter), "TRAIN").double()
    rng = torch.Generator().manual_seed(seed)
    for one in net.learnable:
        blob = net.layers[one.layer].blobs[one.index]
        blob.data.copy_(torch.randn(blob.shape, generator=rng, dtype=blob.dtype))
    return net


def solver_of(words, net):
    return Solver(text.parse(f"base_lr: 0.0625 lr_policy: 'fixed' {words}", SolverParameter), net)


def batches(count, seed=1):
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(4, 3)), rng.normal(size=(4, 2))) for _ in range(count)]


def by_hand(kind, weights, parts, spec, mults, clip=None, lasso=False):
    """Caffe's solver in numpy: gradients of the sum, clip, normalize, regularize, update."""
    histories = [(np.zeros_like(w), np.zeros_like(w)) for w in weights]
    numbers = {"delta": spec.delta, "rms_decay": spec.rms_decay, "momentum2": spec.momentum2}
    for step in range(len(parts) // spec.iter_size):
        gradients = [np.zeros_like(w) for w in weights]
        for x, y in parts[step * spec.iter_size : (step + 1) * spec.iter_size]:
            difference = (x @ weights[0].T + weights[1] - y) / len(x)
            gradients[0] += difference.T @ x
            gradients[1] += difference.sum(0)
        norm = math.sqrt(sum((g**2).sum() for g in gradients))
        scale = min(1, clip / norm) if clip is not None else 1
        for w, g, (h, u), (rate, decay) in zip(weights, gradients, histories, mults, strict=True):
            g = g * scale / spec.iter_size + spec.weight_decay * decay * (np.sign(w) if lasso else w)
            now = {**numbers, "time": step + 1}
            w -= FORMULAS[kind](w, g, h, u, spec.base_lr * rate, spec.momentum, now)
    return weights, histories


TYPES = {
    "SGD": "momentum: 0.75",
    "Nesterov": "momentum: 0.75",
    "AdaGrad": "delta: 1e-3",
    "RMSProp": "rms_decay: 0.875",
    "AdaDelta": "momentum: 0.875 delta: 1e-3",
    "Adam": "momentum: 0.875 momentum2: 0.9375 delta: 1e-3",
}
SETTINGS = [
    "",
    "weight_decay: 0.125",
    "weight_decay: 0.125 regularization_type: 'L1'",
    "weight_decay: 0.125 iter_size: 3",
    "weight_decay: 0.125 iter_size: 2 clip_gradients: 0.5",
    "clip_gradients: 0",
    "clip_gradients: 1000 weight_decay: 0.125",
]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("more", SETTINGS)
def test_least_squares(kind, more):
    net = build(LINEAR % MULTS)
    solver = solver_of(f"type: {kind!r} {TYPES[kind]} {more}", net)
    weights = [blob.detach().numpy().copy() for blob in net.params["ip"]]
    parts = batches(6)
    for at, (x, y) in enumerate(parts, 1):
        net.loss(net(x=x, y=y)).backward()
        if at % solver.spec.iter_size == 0:
            solver.update()
            solver.zero_grad()
    clip = solver.spec.clip_gradients if solver.spec.clip_gradients >= 0 else None
    lasso = solver.spec.regularization_type == "L1"
    expected, histories = by_hand(kind, weights, parts, solver.spec, [(1, 1), (2, 0.5)], clip, lasso)
    for blob, wanted in zip(net.params["ip"], expected, strict=True):
        np.testing.assert_allclose(blob.detach().numpy(), wanted, rtol=1e-6, atol=1e-9)
    for at, (h, u) in enumerate(histories):
        np.testing.assert_allclose(solver.history[at].numpy(), h, rtol=1e-6, atol=1e-9)
        if len(solver.history) == 4:
            np.testing.assert_allclose(solver.history[at + 2].numpy(), u, rtol=1e-6, atol=1e-9)


def test_least_squares_converge_to_the_solution():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 3)) @ np.diag([1, 1.5, 2])
    y = x @ np.array([[1.0, -2], [3, 0.5], [0, 1]]) + [0.25, -1]
    net = build(LINEAR % "")
    solver = solver_of("momentum: 0.9", net)
    for _ in range(2000):
        net.loss(net(x=x, y=y)).backward()
        solver.update()
        solver.zero_grad()
    design = np.column_stack([x, np.ones(4)])
    expected = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    np.testing.assert_allclose(net(x=x, y=y)["ip"].detach().numpy(), expected, atol=1e-5)


# -- one update --------------------------------------------------------------------------------------------------------


def gradients(net, value):
    for one in net.learnable:
        blob = net.layers[one.layer].blobs[one.index]
        blob.grad = torch.full_like(blob, value)


def test_the_velocity_holds_the_rate():
    net = build(LINEAR % "")
    solver = Solver(
        text.parse("base_lr: 0.5 lr_policy: 'step' gamma: 0.5 stepsize: 1 momentum: 0.5", SolverParameter), net
    )
    before = net.params["ip"][1].detach().clone()
    rates = []
    for _ in range(3):
        gradients(net, 1.0)
        rates.append(solver.update().rate)
    assert rates == [0.5, 0.25, 0.125]
    velocities = [0.5, 0.5 * 0.5 + 0.25, 0.5 * 0.5 + 0.125]
    torch.testing.assert_close(before - net.params["ip"][1].detach(), torch.full_like(before, sum(velocities)))


def test_clipping_goes_by_the_norm_of_the_sum():
    net = build(LINEAR % "")  # 6 + 2 numbers
    solver = solver_of("clip_gradients: 4 iter_size: 2", net)
    gradients(net, 2.0)
    before = net.params["ip"][1].detach().clone()
    step = solver.update()
    assert float(step.norm) == pytest.approx(2 * math.sqrt(8))
    assert float(step.clip_scale) == pytest.approx(4 / (2 * math.sqrt(8)))
    moved = before - net.params["ip"][1].detach()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.0625 * 2.0 * 4 / (2 * math.sqrt(8)) / 2))


def test_a_small_gradient_is_not_clipped_and_the_norm_is_told_when_asked_for():
    net = build(LINEAR % "")
    clipping, plain = solver_of("clip_gradients: 40", net), solver_of("", net)
    gradients(net, 2.0)
    step = clipping.update()
    assert float(step.clip_scale) == 1
    gradients(net, 2.0)
    assert plain.update().norm is None
    gradients(net, 2.0)
    step = plain.update(norm=True)
    assert step.clip_scale is None
    assert float(step.norm) == pytest.approx(2 * math.sqrt(8))


def test_the_norm_of_a_large_blob_is_exact():
    words = """input: "x" input_shape { dim: 1 dim: 2000 }
    layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 1000 } }"""
    net = nets.load(text.parse(words, NetParameter), "TRAIN")
    solver = solver_of("", net)
    for blob in net.params["ip"]:
        blob.grad = torch.randn(blob.shape, generator=torch.Generator().manual_seed(0))
    expected = math.sqrt(sum((blob.grad.double() ** 2).sum().item() for blob in net.params["ip"]))
    assert float(solver.update(norm=True).norm) == pytest.approx(expected, rel=1e-6)


def test_frozen_blobs_count_in_the_norm():
    net = build("force_backward: true" + LINEAR % "param { lr_mult: 0 }")
    before = net.params["ip"][0].detach().clone()
    gradients(net, 2.0)
    assert float(solver_of("", net).update(norm=True).norm) == pytest.approx(2 * math.sqrt(8))
    assert torch.equal(net.params["ip"][0], before)


def test_a_blob_without_gradient_decays_and_keeps_its_velocity():
    net = build(LINEAR % "")
    solver = solver_of("momentum: 0.5 weight_decay: 0.125", net)
    weight = net.params["ip"][0].detach().clone()
    for expected in (0.0625 * 0.125, 0.5 * 0.0625 * 0.125):
        before = net.params["ip"][0].detach().clone()
        solver.update()
        velocity = expected * weight + (0.0625 * 0.125 * before if expected < 0.0625 * 0.125 else 0)
        torch.testing.assert_close(net.params["ip"][0].detach(), before - velocity)
    assert net.params["ip"][0].grad is None


def test_no_gradient_and_no_decay_change_nothing():
    net = build(LINEAR % "")
    before = [blob.detach().clone() for blob in net.params["ip"]]
    for kind, words in TYPES.items():
        solver_of(f"type: {kind!r} {words}", net).update()
    assert all(torch.equal(*pair) for pair in zip(before, net.params["ip"], strict=True))


@pytest.mark.parametrize("kind", TYPES)
def test_frozen_blobs_stay_and_their_history_is_caffes(kind):
    """lr_mult 0: no rate, but AdaGrad and its like remember the decay; the velocity of SGD holds the rate, so zero."""
    net = build(LINEAR % "param { lr_mult: 0 }")
    solver = solver_of(f"type: {kind!r} {TYPES[kind]} weight_decay: 0.125", net)
    weight = net.params["ip"][0].detach().clone()
    for x, y in batches(3):
        net.loss(net(x=x, y=y)).backward()
        solver.update()
        solver.zero_grad()
    assert torch.equal(net.params["ip"][0], weight)
    h, u = np.zeros(weight.shape), np.zeros(weight.shape)
    numbers = {"delta": solver.spec.delta, "rms_decay": solver.spec.rms_decay, "momentum2": solver.spec.momentum2}
    for step in range(3):
        now = {**numbers, "time": step + 1}
        FORMULAS[kind](weight.numpy(), 0.125 * weight.numpy(), h, u, 0.0, solver.spec.momentum, now)
    np.testing.assert_allclose(solver.history[0].numpy(), h, rtol=1e-6, atol=1e-12)
    assert (kind in ("SGD", "Nesterov")) == (not h.any())
    if len(solver.history) == 4:
        np.testing.assert_allclose(solver.history[2].numpy(), u, rtol=1e-6, atol=1e-12)


def test_a_velocity_that_a_state_brings_moves_a_frozen_blob_as_in_caffe():
    net = build(LINEAR % "param { lr_mult: 0 }")
    solver = solver_of("momentum: 0.5", net)
    solver.history[0].fill_(2.0)
    solver.stand(iteration=7)
    before = net.params["ip"][0].detach().clone()
    solver.update()
    torch.testing.assert_close(net.params["ip"][0].detach(), before - 1.0)
    assert solver.iteration == 8


NORMED = """
input: "x" input_shape { dim: 4 dim: 3 dim: 5 dim: 5 }
layer { name: "conv" type: "Convolution" bottom: "x" top: "conv" convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "norm" type: "BatchNorm" bottom: "conv" top: "norm" }
layer { name: "scale" type: "Scale" bottom: "norm" top: "norm" scale_param { bias_term: true } }
layer { name: "ip" type: "InnerProduct" bottom: "norm" top: "ip" inner_product_param { num_output: 1 } }
layer { name: "loss" type: "Reduction" bottom: "ip" top: "loss" loss_weight: 1 }
"""


@pytest.mark.parametrize("kind", TYPES)
def test_statistics_have_a_history_and_no_update_touches_them(kind):
    net = nets.load(text.parse(NORMED, NetParameter), "TRAIN")
    solver = solver_of(f"type: {kind!r} {TYPES[kind]} weight_decay: 0.125", net)
    shapes = [(4, 3, 3, 3), (4,), (4,), (4,), (1,), (4,), (4,), (1, 36), (1,)]
    assert [tuple(one.shape) for one in solver.history] == shapes * (len(solver.history) // 9)
    net.loss(net(x=torch.randn(4, 3, 5, 5))).backward()
    statistics = [blob.clone() for blob in net.params["norm"]]
    assert statistics[2] == 1
    solver.update()
    assert all(torch.equal(*pair) for pair in zip(statistics, net.params["norm"], strict=True))
    assert not any(history.any() for at in (2, 3, 4) for history in solver.history[at::9])


def test_blobs_may_lie_as_they_like():
    """Channels last on a CPU: the same numbers as in Caffe's order, and the history lies as the blob."""
    strided, plain = (nets.load(text.parse(NORMED, NetParameter), "TRAIN") for _ in range(2))
    with torch.no_grad():
        plain.params["conv"][0].data = plain.params["conv"][0].data.contiguous()
    assert strided.params["conv"][0].stride() != plain.params["conv"][0].stride()
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(3))
    solvers = [solver_of("momentum: 0.5 weight_decay: 0.125", net) for net in (strided, plain)]
    for _ in range(3):
        for solver in solvers:
            solver.net.loss(solver.net(x=x)).backward()
            solver.update()
            solver.zero_grad()
    for one, other in zip(*(solver.blobs + solver.history for solver in solvers), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert solvers[0].history[0].stride() == strided.params["conv"][0].stride()


def test_a_gradient_that_lies_otherwise_than_its_blob_is_understood():
    net = nets.load(text.parse(NORMED, NetParameter), "TRAIN")
    blob = net.params["conv"][0]
    gradient = torch.randn(blob.shape)
    blob.grad = gradient.to(memory_format=torch.preserve_format).contiguous()
    assert blob.grad.stride() != blob.stride()
    before = blob.detach().clone()
    solver_of("", net).update()
    torch.testing.assert_close(blob.detach(), before - 0.0625 * gradient)


SHARED = """
input: "x" input: "y" input_shape { dim: 4 dim: 3 } input_shape { dim: 4 dim: 3 }
layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" inner_product_param { num_output: 3 }
  param { name: "w" lr_mult: 0.5 } param { name: "b" } }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" inner_product_param { num_output: 3 }
  param { name: "w" } param { name: "b" decay_mult: 0 } }
layer { name: "loss" type: "EuclideanLoss" bottom: "b" bottom: "y" top: "loss" }
"""


def test_shared_blobs_add_their_gradients_and_are_updated_once():
    net = build(SHARED)
    solver = solver_of("momentum: 0.5 weight_decay: 0.125", net)
    assert [tuple(one.shape) for one in solver.history] == [(3, 3), (3,)]
    (x, _), (other, _) = batches(2)
    y = other
    w, b = (blob.detach().clone().requires_grad_() for blob in net.params["a"])
    (((x_ := torch.tensor(x)) @ w.T + b) @ w.T + b - torch.tensor(y)).square().sum().div(2 * len(x_)).backward()
    net.loss(net(x=x, y=y)).backward()
    solver.update()
    torch.testing.assert_close(net.params["b"][0], w.detach() - 0.0625 * 0.5 * (w.grad + 0.125 * w.detach()))
    torch.testing.assert_close(net.params["b"][1], b.detach() - 0.0625 * b.grad)
    assert net.params["a"][0] is net.params["b"][0]


def test_zero_grad_keeps_the_memory():
    net = build(LINEAR % "")
    solver = solver_of("", net)
    solver.zero_grad()  # there are none yet
    gradients(net, 1.0)
    places = [blob.grad.data_ptr() for blob in net.params["ip"]]
    solver.zero_grad()
    assert [blob.grad.data_ptr() for blob in net.params["ip"]] == places
    assert not any(blob.grad.any() for blob in net.params["ip"])


def test_a_net_that_learns_nothing_is_only_counted():
    net = nets.load(text.parse('input: "x" input_shape { dim: 1 }', NetParameter), "TRAIN")
    solver = solver_of("clip_gradients: 1", net)
    assert float(solver.update(norm=True).norm) == 0
    assert (solver.iteration, solver.history) == (1, [])


# -- the rate ----------------------------------------------------------------------------------------------------------


def test_asking_twice_in_an_iteration_lets_the_rate_fall_once():
    net = build(LINEAR % "")
    words = "lr_policy: 'multistep' base_lr: 1 gamma: 0.5 stepvalue: 1 stepvalue: 1 stepvalue: 1"
    solver = Solver(text.parse(words, SolverParameter), net)
    rates = []
    for _ in range(5):
        assert solver.rate() == solver.rate()
        rates.append(solver.update().rate)
    assert rates == [1, 0.5, 0.25, 0.125, 0.125]
    assert solver.current_step == 3


def test_plateau_goes_by_the_losses_it_is_told():
    net = build(LINEAR % "")
    words = "lr_policy: 'plateau' base_lr: 1 gamma: 0.5 plateau_winsize: 3 plateau_winsize: 2"
    solver = Solver(text.parse(words, SolverParameter), net)
    rates = []
    for loss in (9.0, 8.0, 8.5, float("nan"), 8.25, 7.0, 7.0, 7.0, 7.0, 7.0, 7.0):
        solver.observe(loss)
        rates.append(solver.update().rate)
    # least losses at 0, 1 and 5; it falls at 4 (1 + 3) and at 7 (5 + 2), then no window is left
    assert rates == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]
    assert (solver.minimum_loss, solver.last_event) == (7.0, 7)


def test_other_policies_take_no_notice_of_losses():
    solver = solver_of("", build(LINEAR % ""))
    solver.observe(1.0)
    assert solver.minimum_loss == math.inf


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("type: 'sgd'", "unknown solver type 'sgd'; did you mean 'SGD'?"),
        ("iter_size: 0", "iter_size is 0; expected 1 or more passes for each update"),
        (
            "type: 'AdaGrad' momentum: 0.9",
            "momentum is 0.9; AdaGrad has none: leave it out, or take another type",
        ),
        ("type: 'RMSProp' momentum: 0.9", "momentum is 0.9; RMSProp has none: leave it out, or take another type"),
        ("type: 'RMSProp' rms_decay: 1", "rms_decay is 1; RMSProp wants 0 or more and less than 1"),
        ("type: 'RMSProp' rms_decay: -0.5", "rms_decay is -0.5; RMSProp wants 0 or more and less than 1"),
        ("type: 'Adam' momentum: 1", "momentum is 1; Adam wants 0 or more and less than 1"),
        ("type: 'AdaDelta' momentum: -1", "momentum is -1; AdaDelta wants 0 or more and less than 1"),
        ("type: 'Adam' momentum2: 1", "momentum2 is 1; Adam wants 0 or more and less than 1"),
        ("weight_decay: nan", "weight_decay is nan; expected a number"),
        (
            "weight_decay: 1 regularization_type: 'L3'",
            "unknown regularization_type 'L3'; known: L1, L2",
        ),
        ("lr_policy: 'stop'", "unknown lr_policy 'stop'; did you mean 'step'?"),
        ("type: 'SGD' solver_type: ADAM", "holds both solver_type: ADAM and type: 'SGD'; keep `type` alone"),
    ],
)
def test_a_solver_that_cannot_be_is_refused_in_one_line(words, said):
    spec = text.parse("base_lr: 1 lr_policy: 'fixed'", SolverParameter)
    spec.MergeFrom(text.parse(words, SolverParameter))
    with pytest.raises(ValueError, match=re.escape(f"solver.prototxt: {said}") + "$"):
        Solver(spec, build(LINEAR % ""), name="solver.prototxt")


def test_what_caffe_does_not_look_at_is_not_refused():
    net = build(LINEAR % "")
    solver_of("regularization_type: 'none'", net)  # without weight_decay
    assert solver_of("solver_type: NESTEROV", net).spec.type == "Nesterov"  # the old form
