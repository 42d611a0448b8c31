from __future__ import annotations

import copy
import sys
import textwrap
import types

import numpy as np
import pytest
import torch
from torch import nn

from ops import net as nets
from ops.layers import python
from ops.layers.python import Blob
from tests.ops.layers.alone import alone, draw, gradients_hold, run


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module `name` of the user's into a folder on the path."""
    monkeypatch.syspath_prepend(tmp_path)
    written = []

    def write(text, name="own_layers"):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        sys.modules.pop(name, None)
        written.append(name)

    yield write
    for name in written:
        sys.modules.pop(name, None)


def spec(layer, *, bottoms=1, tops=1, module="own_layers", param_str=""):
    names = "".join(f' bottom: "b{i}"' for i in range(bottoms)) + "".join(f' top: "t{i}"' for i in range(tops))
    param = f"module: '{module}' layer: '{layer}' param_str: \"{param_str}\""
    return f'name: "l" type: "Python" {names} python_param {{ {param} }}'


LINEAR = """
    import caffe
    import numpy as np

    class Linear(caffe.Layer):
        "y = x w + b"

        def setup(self, bottom, top):
            assert len(bottom) == len(top) == 1
            self.blobs.add_blob(bottom[0].channels, int(self.param_str))
            self.blobs.add_blob(int(self.param_str))
            self.blobs[0].data[...] = 3

        def reshape(self, bottom, top):
            top[0].reshape(bottom[0].num, int(self.param_str))

        def forward(self, bottom, top):
            top[0].data[...] = bottom[0].data @ self.blobs[0].data + self.blobs[1].data

        def backward(self, top, propagate_down, bottom):
            self.blobs[0].diff[...] += bottom[0].data.T @ top[0].diff
            self.blobs[1].diff[...] += top[0].diff.sum(0)
            if propagate_down[0]:
                bottom[0].diff[...] = top[0].diff @ self.blobs[0].data.T

    class Loss(caffe.Layer):
        "half the squared distance, as the sample of pycaffe keeps it between forward and backward"

        def setup(self, bottom, top):
            if len(bottom) != 2:
                raise Exception("Need two inputs to compute distance.")

        def reshape(self, bottom, top):
            if bottom[0].count != bottom[1].count:
                raise Exception("Inputs must have the same dimension.")
            self.diff = np.zeros_like(bottom[0].data, dtype=bottom[0].data.dtype)
            top[0].reshape(1)

        def forward(self, bottom, top):
            self.diff[...] = bottom[0].data - bottom[1].data
            top[0].data[...] = np.sum(self.diff ** 2) / bottom[0].num / 2.

        def backward(self, top, propagate_down, bottom):
            for i, sign in ((0, 1), (1, -1)):
                if propagate_down[i]:
                    bottom[i].diff[...] = sign * self.diff / bottom[i].num
"""


# -- classes of Caffe's kind ------------------------------------------------------------------------------------------


def test_a_class_of_caffes_kind_computes_and_learns(module):
    module(LINEAR)
    one, x = alone(spec("Linear", param_str="2"), (4, 3)), draw(4, 3)
    torch.testing.assert_close(run(one, x), x @ one.blobs[0] + one.blobs[1])
    assert gradients_hold(one, x)


def test_setup_gives_blobs_their_first_values(module):
    module(LINEAR)
    one = type(alone(spec("Linear", param_str="2"), (4, 3)))
    module(LINEAR)
    with torch.device("meta"):
        layer = alone(spec("Linear", param_str="2"), (4, 3))
    assert isinstance(layer, one)
    net = nets.load(prototxt(spec("Linear", param_str="2"), (4, 3)))
    assert net.params["l"][0].tolist() == [[3, 3]] * 3
    assert net.params["l"][1].tolist() == [0, 0]


def prototxt(layer, *shapes, loss=""):
    from google.protobuf import text_format

    from ops.proto.caffe_pb2 import NetParameter

    inputs = "".join(
        f'layer {{ name: "b{i}" type: "Input" top: "b{i}" input_param {{ shape {{ {dims(shape)} }} }} }}'
        for i, shape in enumerate(shapes)
    )
    return text_format.Parse(f"{inputs} layer {{ {layer} {loss} }}", NetParameter())


def dims(shape):
    return " ".join(f"dim: {size}" for size in shape)


def test_gradients_of_a_loss_reach_both_bottoms_through_a_net(module):
    module(LINEAR)
    net = nets.load(prototxt(spec("Loss", bottoms=2), (4, 3), (4, 3), loss="loss_weight: 1"), "TRAIN")
    a, b = (draw(4, 3, seed=seed).float().detach().requires_grad_() for seed in (1, 2))
    net.loss(net(b0=a, b1=b)).backward()
    torch.testing.assert_close(a.grad, ((a - b) / 4).detach())
    torch.testing.assert_close(b.grad, ((b - a) / 4).detach())


def test_only_bottoms_that_want_a_gradient_are_asked_for(module):
    module(LINEAR)
    a, b = draw(4, 3), draw(4, 3, grad=False)
    alone(spec("Loss", bottoms=2), (4, 3), (4, 3))(a, b).sum().backward()
    assert a.grad is not None
    assert b.grad is None


def test_a_backward_after_another_forward_has_its_own_values(module):
    module(LINEAR)
    one = alone(spec("Loss", bottoms=2), (4, 3), (4, 3))
    a, b, c = (draw(4, 3, seed=seed) for seed in (1, 2, 3))
    first = one(a, b)
    one(c, b)
    first.sum().backward()
    torch.testing.assert_close(a.grad, ((a - b) / 4).detach())


def test_reshape_runs_before_every_forward(module):
    module(LINEAR)
    one = alone(spec("Linear", param_str="2"), (4, 3))
    assert one(draw(7, 3)).shape == (7, 2)


def test_gradients_of_several_backwards_add_up_also_where_the_user_assigns(module):
    module(LINEAR.replace("diff[...] += ", "diff[...] = "))
    one, x = alone(spec("Linear", param_str="2"), (4, 3)), draw(4, 3)
    for _ in range(2):
        one(x).sum().backward()
    torch.testing.assert_close(one.blobs[1].grad, torch.full((2,), 8.0, dtype=torch.float64))


SEVERAL = """
    import caffe

    class Both(caffe.Layer):
        def setup(self, bottom, top):
            self.seen = (self.param_str, self.phase == caffe.TEST, len(bottom), len(top))

        def reshape(self, bottom, top):
            for b, t in zip(bottom, top):
                t.reshape(*b.shape)

        def forward(self, bottom, top):
            for b, t in zip(bottom, top):
                t.data[...] = 2 * b.data

        def backward(self, top, propagate_down, bottom):
            for b, t in zip(bottom, top):
                b.diff[...] = 2 * t.diff

    class Doubled(Both):
        def forward(self, bottom, top):
            bottom[0].data[...] *= 2

        def backward(self, top, propagate_down, bottom):
            bottom[0].diff[...] *= 2

    class Source(caffe.Layer):
        def setup(self, bottom, top):
            self.n = 0

        def reshape(self, bottom, top):
            top[0].reshape(2, 3)

        def forward(self, bottom, top):
            self.n += 1
            top[0].data[...] = self.n

        def backward(self, top, propagate_down, bottom):
            pass

    class Sink(Source):
        def reshape(self, bottom, top):
            pass

        def forward(self, bottom, top):
            self.n = bottom[0].data.sum()
"""


def test_any_number_of_bottoms_and_tops_goes(module):
    module(SEVERAL)
    two = alone(spec("Both", bottoms=2, tops=2, param_str="p"), (2, 3), (4,), phase="TEST")
    assert two.user.layer.seen == ("p", True, 2, 2)
    assert gradients_hold(two, draw(2, 3), draw(4))
    source = alone(spec("Source", bottoms=0), phase="TRAIN")
    assert [run(source).mean().item() for _ in range(2)] == [1, 2]
    sink = alone(spec("Sink", tops=0), (2, 3))
    assert run(sink, torch.ones(2, 3, requires_grad=True)) == ()
    assert sink.user.layer.n == 6


def test_tops_are_new_memory_at_each_forward(module):
    module(SEVERAL)
    source = alone(spec("Source", bottoms=0))
    first = source()
    source()
    assert first.mean() == 1


def test_a_top_of_its_bottoms_name_is_a_copy_that_may_be_written(module):
    module(SEVERAL)
    text = spec("Doubled").replace('"t0"', '"b0"')
    x = draw(2, 3)
    before = x.detach().clone()
    one = alone(text, (2, 3))
    assert torch.equal(one(x), 2 * x)
    assert torch.equal(x, before)
    assert gradients_hold(one, x)


def test_a_bottom_cannot_be_written(module):
    module(SEVERAL)
    x = draw(2, 3, grad=False)
    before = x.clone()
    with pytest.raises(
        ValueError, match=r"forward of own_layers.Doubled: ValueError: .*read-only \(own_layers.py:22\)"
    ):
        alone(spec("Doubled"), (2, 3))(x)
    assert torch.equal(x, before)


def test_half_precision_is_float32_for_the_user(module):
    module(LINEAR)
    one, x = alone(spec("Linear", param_str="2"), (4, 3), dtype=torch.bfloat16), draw(4, 3).bfloat16()
    y = one(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, x @ one.blobs[0] + one.blobs[1], rtol=0.02, atol=0.02)
    y.sum().backward()
    assert one.blobs[0].grad.dtype == torch.bfloat16


def test_images_in_channels_last_arrive_in_caffes_order(module):
    module(SEVERAL)
    x = draw(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert torch.equal(run(alone(spec("Both"), (2, 3, 4, 5)), x), 2 * x)


def test_a_copied_layer_has_weights_of_its_own(module):
    module(LINEAR)
    one = alone(spec("Linear", param_str="2"), (4, 3))
    other, x = copy.deepcopy(one), draw(4, 3)
    with torch.no_grad():
        one.blobs[0].zero_()
        one.blobs[1].zero_()
    assert not one(x).any()
    assert other(x).all()


def test_classes_of_an_installed_caffe_are_made_without_its_net(module):
    """Its Layer has properties that only a C++ net can fill, and no constructor without one."""
    real = types.ModuleType("caffe")
    fixed = {name: property(lambda self: 1 / 0) for name in ("blobs", "param_str", "phase")}
    refuse = type("Layer", (), {**fixed, "__init__": staticmethod(len)})
    real.Layer, real.TRAIN, real.TEST = refuse, 0, 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "caffe", real)
        module(LINEAR)
        one = alone(spec("Linear", param_str="2"), (4, 3))
    assert refuse in type(one.user.layer).__mro__
    assert gradients_hold(one, draw(4, 3))


def test_the_stand_in_for_caffe_leaves_nothing_behind(module):
    module(LINEAR)
    alone(spec("Linear", param_str="2"), (4, 3))(draw(4, 3))
    assert "caffe" not in sys.modules


def test_a_blob_is_pycaffes():
    blob = Blob((2, 3, 4))
    assert (blob.num, blob.channels, blob.height, blob.width, blob.count) == (2, 3, 4, 1, 24)
    assert blob.data.shape == blob.diff.shape == (2, 3, 4)
    blob.data[...] = np.arange(24).reshape(2, 3, 4)
    blob.reshape(4, 6)
    assert blob.data[1].tolist() == [6, 7, 8, 9, 10, 11]
    blob.reshape((1, 2, 3, 4, 5))
    assert not blob.data.any()
    with pytest.raises(ValueError, match="no num, channels"):
        _ = blob.num
    blob.reshape()
    assert blob.data.shape == ()
    with pytest.raises(ValueError, match="sizes are 0 or more"):
        blob.reshape(-1, 2)


# -- torch modules ----------------------------------------------------------------------------------------------------

TORCH = """
    import torch
    from torch import nn

    class Small(nn.Module):
        def __init__(self, size=2, bias=True):
            super().__init__()
            self.fc = nn.Linear(3, size, bias=bias)
            self.norm = nn.BatchNorm1d(size)

        def forward(self, x):
            return self.norm(self.fc(x))

    class Told(nn.Module):
        def __init__(self, param_str):
            super().__init__()
            self.told = param_str

        def shapes(self, bottoms):
            return [bottoms[0], (1,)]

        def forward(self, x):
            return x * 2, torch.zeros(1)

    class Values(nn.Module):
        def forward(self, x, y):
            return x[: 2 + int(x.sum().item())], [y] if self.training is None else y

    class Odd(nn.Module):
        def forward(self, x):
            return "no tensor"

    class Two(nn.Module):
        def forward(self, x):
            return x, x

    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.LazyLinear(3)
"""


def test_a_torch_module_is_a_layer_with_its_parameters_as_blobs(module):
    module(TORCH)
    one = alone(spec("Small", param_str="{'size': 5}"), (4, 3), phase="TRAIN")
    assert [tuple(blob.shape) for blob in one.blobs] == [(5, 3), (5,), (5,), (5,)]
    one.double()
    x = draw(4, 3)
    hidden = x @ one.blobs[0].t() + one.blobs[1]
    expected = nn.functional.batch_norm(hidden, None, None, one.blobs[2], one.blobs[3], training=True)
    torch.testing.assert_close(run(one, x), expected)


def test_gradients_of_a_torch_module_hold(module):
    module(TORCH)
    one = alone(spec("Small"), (4, 3))
    one.double()
    assert gradients_hold(one, draw(4, 3))


def test_a_torch_module_keeps_its_own_first_values_in_a_net(module):
    module(TORCH)
    net = nets.load(prototxt(spec("Small"), (4, 3)))
    assert net.params["l"][2].tolist() == [1, 1]
    weight = net.params["l"][0]
    net(b0=torch.ones(4, 3))["t0"].sum().backward()
    assert weight.grad is not None
    assert net.layers[1].user.module.fc.weight is weight


def test_building_leaves_the_statistics_of_a_torch_module_alone(module):
    module(TORCH)
    one = alone(spec("Small"), (4, 3), phase="TRAIN", dtype=torch.float32)
    assert one.state()["norm.num_batches_tracked"] == 0
    one(torch.ones(4, 3))
    assert one.state()["norm.num_batches_tracked"] == 1


def test_a_torch_module_follows_the_phase_and_not_the_mode_of_the_net(module):
    module(TORCH)
    test, train = (alone(spec("Small"), (4, 3), phase=phase) for phase in ("TEST", "TRAIN"))
    assert not test.train().user.module.training
    assert train.eval().user.module.training


def test_the_buffers_of_a_torch_module_are_its_state(module):
    module(TORCH)
    one, other = (alone(spec("Small"), (4, 3), phase="TRAIN", dtype=torch.float32) for _ in range(2))
    one(torch.randn(4, 3))
    other.load_state(one.state())
    assert torch.equal(other.state()["norm.running_mean"], one.state()["norm.running_mean"])
    with pytest.raises(ValueError, match=r"a state of x; expected norm\.num_batches"):
        one.load_state({"x": torch.zeros(1)})


def test_a_module_that_takes_param_str_gets_it_and_tells_its_shapes(module):
    module(TORCH)
    one = alone(spec("Told", tops=2, param_str="as it is"), (4, 3))
    assert one.user.module.told == "as it is"
    assert one.told == [(4, 3), (1,)]


def test_shapes_of_a_module_that_looks_at_values_are_those_for_zeros(module):
    module(TORCH)
    assert alone(spec("Values", bottoms=2, tops=2), (4, 3), (1,)).told == [(2, 3), (1,)]


# -- what goes wrong --------------------------------------------------------------------------------------------------

BROKEN = """
    import caffe
    from math import inf

    class NoSetup(caffe.Layer):
        pass

    class BadSetup(caffe.Layer):
        def setup(self, bottom, top):
            self.helper()

        def helper(self):
            raise KeyError("two\\nlines")

    class NoBackward(caffe.Layer):
        def setup(self, bottom, top):
            pass

        reshape = setup

        def forward(self, bottom, top):
            pass

    class Negative(NoBackward):
        def reshape(self, bottom, top):
            top[0].reshape(-1)
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (spec("Linear", module=""), "python_param needs module"),
        (spec("", module="m"), "python_param needs module"),
        (spec("X", module="no such.module"), "'no such.module' is no module name"),
        (spec("X", module="nowhere_to_be_found"), "^no Python module 'nowhere_to_be_found'; .* must be on PYTHONPATH$"),
        (spec("Linera"), "module own_layers has no class 'Linera'; did you mean 'Linear'"),
        (spec("np"), "module own_layers has no class 'np'"),
        (spec("Loss"), r"^setup of own_layers.Loss: Exception: Need two inputs .* \(own_layers.py:31\)$"),
        (
            spec("Linear", param_str="x"),
            r"^setup of own_layers.Linear: ValueError: invalid literal .*\(own_layers.py:1",
        ),
    ],
)
def test_what_is_wrong_with_the_module_or_the_class_is_told_in_one_line(module, text, message):
    module(LINEAR)
    with pytest.raises(ValueError, match=message) as caught:
        alone(text, (4, 3))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("NoSetup", "^setup of own_layers.NoSetup: AttributeError: 'NoSetup' object has no attribute 'setup'$"),
        ("BadSetup", r"^setup of own_layers.BadSetup: KeyError: 'two\\nlines' \(own_layers.py:13\)$"),
        ("Negative", r"^reshape of own_layers.Negative: ValueError: a blob of shape -1; .* \(own_layers.py:26\)$"),
    ],
)
def test_an_error_of_the_users_code_names_its_line(module, layer, message):
    module(BROKEN)
    with pytest.raises(ValueError, match=message):
        alone(spec(layer), (4, 3))


def test_the_cause_holds_the_users_own_traceback(module):
    module(BROKEN)
    with pytest.raises(ValueError, match="BadSetup") as caught:
        alone(spec("BadSetup"), (4, 3))
    cause, names = caught.value.__cause__, []
    trace = cause.__traceback__
    while trace:
        names.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert isinstance(cause, KeyError)
    assert names == ["setup", "helper"]


def test_a_module_that_cannot_be_imported_says_where(module):
    module("import nowhere_to_be_found")
    with pytest.raises(
        ValueError, match=r"importing own_layers: ModuleNotFoundError: .*'nowhere.* \(own_layers.py:1\)$"
    ):
        alone(spec("X"), (4, 3))
    module("x = 1 +")
    with pytest.raises(
        ValueError, match=r"importing own_layers: SyntaxError: invalid syntax \(own_layers.py, line 1\)$"
    ):
        alone(spec("X"), (4, 3))


def test_a_gradient_through_a_class_without_backward_is_refused(module):
    module(BROKEN)
    top = alone(spec("NoBackward"), (4, 3))(draw(4, 3))
    with pytest.raises(ValueError, match=r"backward of own_layers\.NoBackward: AttributeError"):
        top.sum().backward()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (spec("Odd"), "own_layers.Odd gave str, expected a tensor"),
        (spec("Two"), "own_layers.Two gave 2 tops, the layer has 1"),
        (spec("Lazy"), "fc.weight of a lazy module has no shape yet"),
        (spec("Small", param_str="5"), r"param_str '5' is no dict such as .*, and own_layers.Small takes no param_str"),
        (spec("Small", param_str="{'siez': 5}"), "making own_layers.Small: TypeError: .*siez"),
        (spec("Small", param_str="[" * 3000), "is no dict such as"),
    ],
)
def test_what_is_wrong_with_a_torch_module_is_told(module, text, message):
    module(TORCH)
    with pytest.raises(ValueError, match=message):
        alone(text, (4, 3))


def test_a_torch_module_that_does_not_fit_its_bottoms_is_told(module):
    module(TORCH)
    with pytest.raises(
        ValueError, match=r"forward of own_layers.Small: RuntimeError: .*shapes .* \(own_layers.py:12\)$"
    ):
        alone(spec("Small"), (4, 7))


@pytest.mark.parametrize("layer", ["Both", "Values"])
def test_huge_bottoms_are_refused_before_memory_is_taken(module, layer):
    module(SEVERAL + TORCH)
    with pytest.raises(ValueError, match=r"bottoms of 400,000,000 elements; .* up to 2 \*\* 28"):
        alone(spec(layer), (20_000, 20_000))


def test_running_out_of_memory_stays_what_it_is(module):
    with pytest.raises(MemoryError), python.told("forward of x"):
        raise MemoryError
