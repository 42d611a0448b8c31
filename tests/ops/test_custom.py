"""Layers from outside the project: loaded from files, folders and packages, and sent to other processes."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ops import custom, user_frames
from ops import net as nets
from ops.layers.registry import LAYERS
from ops.proto.caffe_pb2 import LayerParameter, NetParameter

PROJECT = Path(__file__).resolve().parents[2]
ADD = """
from ops.layers.registry import Layer, layer

@layer("{name}")
class Add(Layer):
    def forward(self, x):
        return x + {what}
"""


@pytest.fixture(autouse=True)
def catalogue(tmp_path):
    """Every test begins and ends with the project's own layers."""
    layers, path = dict(LAYERS), list(sys.path)
    yield
    LAYERS.clear()
    LAYERS.update(layers)
    custom.LOADED.clear()
    custom.INSTALLED.clear()
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
    sys.path[:] = path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def add(path: Path, name: str, what: object = 1) -> Path:
    return write(path, ADD.format(name=name, what=what))


def net_of(kind: str, extra: str = "") -> nets.Net:
    """A net of one layer `l` of a type."""
    from google.protobuf import text_format

    text = f"""name: "n" layer {{ name: "in" type: "Input" top: "x" input_param {{ shape {{ dim: 2 dim: 3 }} }} }}
    layer {{ name: "l" type: "{kind}" bottom: "x" top: "y" {extra} }}"""
    return nets.load(text_format.Parse(text, NetParameter()))


def result(kind: str) -> float:
    """What a layer makes of zeros."""
    return float(net_of(kind)(x=torch.zeros(2, 3))["y"][0, 0])


# -- files and folders -------------------------------------------------------------------------------------------------


def test_a_file_registers_its_layer(tmp_path):
    assert custom.load_code([add(tmp_path / "mine.py", "AddOne")]) == ["AddOne"]
    assert result("AddOne") == 1


def test_a_folder_loads_each_of_its_files_and_they_import_each_other(tmp_path):
    write(tmp_path / "b.py", "WHAT = 5\n")
    write(tmp_path / "a.py", "from b import WHAT\n" + ADD.format(name="AddB", what="WHAT"))
    write(tmp_path / "test_a.py", "raise SystemExit('a test is no layer')")
    write(tmp_path / "_private.py", "raise SystemExit('nor is this')")
    assert custom.load_code([tmp_path]) == ["AddB"]
    assert result("AddB") == 5


def test_a_folder_may_be_a_package(tmp_path):
    write(tmp_path / "ours/__init__.py", "")
    write(tmp_path / "ours/numbers.py", "WHAT = 7\n")
    write(tmp_path / "ours/layers.py", "from .numbers import WHAT\n" + ADD.format(name="AddPackaged", what="WHAT"))
    custom.load_code([tmp_path / "ours"])
    assert result("AddPackaged") == 7


def test_a_file_named_as_a_module_of_python_hides_nothing(tmp_path):
    custom.load_code([add(tmp_path / "queue.py", "AddQueue")])
    import queue

    assert hasattr(queue, "Queue")
    assert result("AddQueue") == 1


def test_loading_twice_is_loading_once(tmp_path):
    file = add(tmp_path / "mine.py", "AddOne")
    assert custom.load_code([file]) == custom.load_code([file]) == ["AddOne"]


def test_a_changed_file_replaces_what_it_was(tmp_path):
    file = add(tmp_path / "mine.py", "AddOne", 1)
    custom.load_code([file])
    add(tmp_path / "mine.py", "AddOne", 2)  # the same size, within the same second
    custom.load_code([file])
    assert result("AddOne") == 2


def test_a_changed_file_beside_a_layer_is_taken_up(tmp_path):
    helper = write(tmp_path / "_helper.py", "WHAT = 1\n")
    write(tmp_path / "a.py", "from _helper import WHAT\n" + ADD.format(name="AddHelp", what="WHAT"))
    custom.load_code([tmp_path])
    helper.write_text("WHAT = 1000\n")
    custom.load_code([tmp_path])
    assert result("AddHelp") == 1000


def test_one_that_registers_nothing_is_pointed_out(tmp_path, caplog):
    assert custom.load_code([write(tmp_path / "empty.py", "x = 1")]) == []
    assert "registers no layer type" in caplog.text


# -- bad input ---------------------------------------------------------------------------------------------------------


def error_of(*paths: Path) -> str:
    before = dict(LAYERS)
    with pytest.raises((ValueError, OSError)) as raised:
        custom.load_code(paths)
    assert before == LAYERS, "a file that fails leaves nothing behind"
    return str(raised.value)


def test_a_path_that_is_not_there(tmp_path):
    assert "No such file or folder" in error_of(tmp_path / "none.py")


def test_a_file_that_is_not_python(tmp_path):
    assert "expected a .py file" in error_of(write(tmp_path / "net.prototxt", ""))


def test_a_folder_without_layers(tmp_path):
    write(tmp_path / "sub/notes.txt", "")
    assert "without .py files" in error_of(tmp_path / "sub")


def test_a_file_that_raises_names_its_line(tmp_path):
    file = write(tmp_path / "mine.py", ADD.format(name="AddOne", what=1) + "\n\nx = undefined_name\n")
    assert error_of(file) == f"{file}: NameError: name 'undefined_name' is not defined (mine.py:10)"


def test_a_file_with_a_wrong_syntax_names_its_line(tmp_path):
    file = write(tmp_path / "mine.py", "x = 1\ndef f(:\n")
    assert re.fullmatch(rf"{re.escape(str(file))}: SyntaxError: .* \(mine\.py:2\)", error_of(file))


def test_a_missing_module_that_stands_beside_the_file(tmp_path):
    write(tmp_path / "helpers_of_mine.py", "x = 1")
    told = error_of(write(tmp_path / "mine.py", "import helpers_of_mine\n"))
    assert "No module named 'helpers_of_mine'" in told
    assert told.endswith("helpers_of_mine.py is beside it: give the folder in the place of the file")


def test_a_name_of_the_projects_is_taken(tmp_path):
    told = error_of(add(tmp_path / "mine.py", "ReLU"))
    assert told.endswith("layer type 'ReLU' is there already (ops.layers.activation); choose another name")
    assert LAYERS["ReLU"].__module__ == "ops.layers.activation"


def test_a_name_of_another_file_is_taken(tmp_path):
    first = add(tmp_path / "first.py", "AddOne")
    custom.load_code([first])
    assert f"'AddOne' is there already ({first})" in error_of(add(tmp_path / "second.py", "AddOne"))


def test_a_class_that_is_no_layer(tmp_path):
    text = "from ops.layers.registry import layer\n\n@layer('Odd')\nclass Odd:\n    pass\n"
    assert "Odd is no Layer; write class Odd(Layer)" in error_of(write(tmp_path / "mine.py", text))


def test_a_folder_that_is_too_large_to_travel(tmp_path, monkeypatch):
    monkeypatch.setattr(custom, "LARGEST", 100)
    add(tmp_path / "mine.py", "AddOne")
    assert "more than 100 bytes" in error_of(tmp_path)


# -- layers that raise -------------------------------------------------------------------------------------------------

BROKEN = """
import torch
from ops.layers.registry import Layer, layer

@layer("Broken")
class Broken(Layer):
    def __init__(self, spec, bottoms, phase):
        super().__init__(spec, bottoms, phase)
        {init}

    def forward(self, x):
        {forward}
"""


def broken(folder: Path, *, init: str = "pass", forward: str = "return x") -> Path:
    return write(folder / "broken.py", BROKEN.format(init=init, forward=forward))


def test_an_error_in_init_names_file_layer_and_line(tmp_path):
    custom.load_code([broken(tmp_path, init="self.x = {}['key']")])
    with pytest.raises(ValueError, match=r"n: layer 'l' \(Broken\): __init__: KeyError: 'key' \(broken.py:9\)"):
        net_of("Broken")


def test_an_error_in_forward_names_layer_and_line(tmp_path):
    custom.load_code([broken(tmp_path, forward="return x if x.is_meta else x.nothing")])
    with pytest.raises(
        ValueError, match=r"n: layer 'l' \(Broken\): forward: AttributeError: .*\(broken.py:12\)"
    ) as told:
        result("Broken")
    assert user_frames.cut(told.value).splitlines() == [
        "Traceback, your lines only:",
        f'  File "{tmp_path / "broken.py"}", line 12, in forward',
        "    return x if x.is_meta else x.nothing",
        *user_frames.cut(told.value).splitlines()[3:-1],  # markers under the line, of some Pythons
        "AttributeError: 'Tensor' object has no attribute 'nothing'",
    ]


def test_what_a_layer_says_itself_stays_as_it_is(tmp_path):
    custom.load_code([broken(tmp_path, init="raise ValueError('needs two of them')")])
    with pytest.raises(ValueError, match=r"^n: layer 'l' \(Broken\): needs two of them \(broken.py:9\)$"):
        net_of("Broken")


def test_our_own_complaint_about_bottoms_needs_no_line(tmp_path):
    file = tmp_path / "mine.py"
    write(
        file, ADD.format(name="AddTwo", what=1).replace("class Add(Layer):", "class Add(Layer):\n    bottoms = (2, 2)")
    )
    custom.load_code([file])
    with pytest.raises(ValueError, match=r"^n: layer 'l' \(AddTwo\): has 1 bottom, expected 2$"):
        net_of("AddTwo")


@pytest.mark.parametrize(
    ("forward", "told"),
    [
        ("return [x]", "forward gave list, expected a tensor, or a tuple of one for each top"),
        ("return x, x", "forward gave 2 tops, the layer has 1"),
        ("return None", "forward gave NoneType, expected a tensor"),
    ],
)
def test_tops_that_are_none_are_told(tmp_path, forward, told):
    custom.load_code([broken(tmp_path, forward=forward)])
    with pytest.raises(ValueError, match=told):
        net_of("Broken")


def test_an_error_in_a_backward_is_told_with_its_line(tmp_path):
    text = """
import torch
from ops.own_backward import OwnBackward
from ops.layers.registry import layer

@layer("BadBack")
class BadBack(OwnBackward):
    def compute(self, x):
        return 2 * x

    def bottom_gradient(self, grad, x):
        return grad * self.missing
"""
    custom.load_code([write(tmp_path / "bad.py", text)])
    y = net_of("BadBack")(x=torch.ones(2, 3, requires_grad=True))["y"]
    heard: list[str] = []
    with (
        pytest.raises(ValueError, match=r"AttributeError: .*'missing' \(bad.py:12\)"),
        user_frames.told("", heard.append),
    ):
        y.sum().backward()
    assert 'bad.py", line 12, in bottom_gradient' in heard[0]
    assert "ops/own_backward.py" not in heard[0]


def test_errors_that_are_not_the_users_pass_through():
    with pytest.raises(KeyError), user_frames.told(""):
        {}["key"]


def test_a_guarded_layer_can_be_compiled(tmp_path):
    """torch.compile goes through what tells the errors."""
    custom.load_code([add(tmp_path / "mine.py", "AddOne")])
    net = net_of("AddOne")
    compiled = torch.compile(net, backend="eager")
    assert torch.equal(compiled({"x": torch.zeros(2, 3)})["y"], torch.ones(2, 3))


# -- settings ----------------------------------------------------------------------------------------------------------


def said(text: str) -> LayerParameter:
    spec = LayerParameter()
    spec.python_param.param_str = text
    return spec


def test_settings_are_the_text_on_top_of_the_defaults():
    found = custom.settings(said("{'factor': 3, 'mode': 'b'}"), factor=1.0, mode="a", size=None, on=True)
    assert found == {"factor": 3.0, "mode": "b", "size": None, "on": True}
    assert isinstance(found["factor"], float)


def test_without_a_text_there_are_the_defaults():
    assert custom.settings(LayerParameter(), factor=1.0) == {"factor": 1.0}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{'facter': 3}", "no setting named 'facter'; did you mean 'factor'?"),
        ("{'factor': 'much'}", "factor is 'much', expected float as 1.0"),
        ("{'on': 1}", "on is 1, expected bool as True"),
        ("factor=3", "is no dict such as"),
    ],
)
def test_settings_that_are_wrong_are_told(text, told):
    with pytest.raises(ValueError, match=re.escape(told)):
        custom.settings(said(text), factor=1.0, on=True)


# -- installed packages ------------------------------------------------------------------------------------------------


def install(folder: Path, value: str, text: str) -> None:
    """A package as pip would leave it."""
    write(folder / "their_layers.py", text)
    write(folder / "theirs-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    write(folder / "theirs-1.0.dist-info/entry_points.txt", f"[cortado.layers]\nTheirs = {value}\n")


def test_entry_points_are_loaded(tmp_path, monkeypatch):
    install(tmp_path, "their_layers", ADD.format(name="AddTheirs", what=3))
    monkeypatch.syspath_prepend(tmp_path)
    custom.load_code()
    assert result("AddTheirs") == 3


def test_a_net_finds_the_layers_of_installed_packages_by_itself(tmp_path, monkeypatch):
    install(tmp_path, "their_layers", ADD.format(name="AddUnasked", what=4))
    monkeypatch.syspath_prepend(tmp_path)
    assert result("AddUnasked") == 4


def test_an_entry_point_may_be_a_class(tmp_path, monkeypatch):
    install(tmp_path, "their_layers:Add", ADD.format(name="x", what=3).replace('@layer("x")\n', ""))
    monkeypatch.syspath_prepend(tmp_path)
    custom.load_code()
    assert result("Theirs") == 3


def test_a_package_that_fails_is_named(tmp_path, monkeypatch):
    install(tmp_path, "their_layers", "import nothing_of_this_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        (ValueError, ImportError), match=r"Theirs = their_layers .*package theirs.*nothing_of_this_name"
    ):
        custom.load_code()


# -- other processes ---------------------------------------------------------------------------------------------------


def in_another_process(code: custom.Code, folder: Path) -> str:
    """What a fresh Python makes of packed code: the type's result for zeros, and where the file lay."""
    (folder / "code.pickle").write_bytes(pickle.dumps(code))
    script = """
import pickle, sys
code = pickle.load(open(sys.argv[1], "rb"))
from ops.layers.registry import LAYERS
names = code.load()
print(names, sys.modules[LAYERS[names[0]].__module__].__file__)
"""
    command = [sys.executable, "-c", script, str(folder / "code.pickle")]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_packed_code_is_loaded_from_its_place_where_it_is_there(tmp_path):
    file = add(tmp_path / "mine.py", "AddOne")
    assert in_another_process(custom.pack([file]), tmp_path) == f"['AddOne'] {file}"


def test_packed_code_travels_with_its_files(tmp_path):
    write(tmp_path / "layers/_b.py", "WHAT = 5\n")
    write(tmp_path / "layers/a.py", "from _b import WHAT\n" + ADD.format(name="AddB", what="WHAT"))
    code = custom.pack([tmp_path / "layers"])
    (tmp_path / "layers/a.py").unlink()
    told = in_another_process(code, tmp_path)
    assert told.startswith("['AddB'] ")
    assert str(tmp_path) not in told
    assert not Path(told.split(" ")[1]).exists(), "the copy goes when the process ends"


def test_packed_code_replaces_an_older_version_in_the_same_process(tmp_path):
    file = add(tmp_path / "mine.py", "AddOne", 1)
    old = custom.pack([file])
    add(tmp_path / "mine.py", "AddOne", 2)
    new = custom.pack([file])
    file.unlink()
    for code, expected in ((old, 1), (new, 2), (old, 1)):
        code.load()
        assert result("AddOne") == expected


def test_packing_what_is_not_there_is_told(tmp_path):
    with pytest.raises(FileNotFoundError):
        custom.pack([tmp_path / "none.py"])


# -- the page ----------------------------------------------------------------------------------------------------------

PAGE = (PROJECT / "docs/add-a-layer.md").read_text()


@pytest.fixture
def written(tmp_path):
    """The files of docs/add-a-layer.md in a folder, layers in a folder of their own; and its commands."""
    commands = []
    for kind, text in re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        name = re.match(r"# (\S+)\n", text)
        if kind == "console":
            commands += text.strip().splitlines()
        elif name:
            own = kind == "python" and "ops.custom import load_code" not in text and "import ray" not in text
            write(tmp_path / ("layers" if own else "") / name[1], text)
    return tmp_path, commands


def test_the_page_has_the_files_it_speaks_of(written):
    folder, commands = written
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*.*"))
    layers = [f"layers/{name}.py" for name in ("_smooth_sign_gpu", "gain", "shrink", "smooth_sign")]
    assert names == [*layers, "net.prototxt", "two_workers.py", "use.py"]
    assert len(commands) == 3


@pytest.mark.slow
def test_the_commands_of_the_page_run(written, run_cli):
    folder, commands = written
    for command in commands:
        done = run_cli(*command.split()[1:], cwd=folder)
        assert done.code == 0, f"{command}\n{done.stderr}"
        if "--gradients" in command:
            for name in ("Shrink", "Gain", "SmoothSign"):
                assert re.search(rf"{name} .* ok", done.stdout)


def test_the_script_of_the_page_runs(written):
    folder, _ = written
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "use.py"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 0.5 < float(done.stdout) < 5


@pytest.mark.ray
def test_the_layers_of_the_page_reach_two_ray_workers(written, ray_session, monkeypatch):
    folder, _ = written
    page: dict = {"__name__": "two_workers"}
    exec(compile((folder / "two_workers.py").read_text(), "two_workers.py", "exec"), page)
    found = page["losses"](folder / "net.prototxt", [folder / "layers"])
    assert len({pid for pid, _ in found} | {os.getpid()}) == 3, "two processes, neither of them this one"
    assert found[0][1] == found[1][1]
    assert "Shrink" not in LAYERS, "the driver needs no layer"


@pytest.mark.ray
def test_code_reaches_ray_workers_that_do_not_see_its_folder(tmp_path, ray_session):
    import ray

    code = custom.pack([add(tmp_path / "mine.py", "AddElsewhere", 4)])
    (tmp_path / "mine.py").unlink()

    @ray.remote
    class Worker:
        def __init__(self, code):
            self.names = code.load()

        def ask(self):
            from ops.layers.registry import LAYERS

            return os.getpid(), self.names, "AddElsewhere" in LAYERS

    workers = [Worker.remote(code) for _ in range(2)]
    found = ray.get([worker.ask.remote() for worker in workers])
    assert len({pid for pid, *_ in found}) == 2
    assert [rest for _, *rest in found] == [[["AddElsewhere"], True]] * 2
