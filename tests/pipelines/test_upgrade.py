"""`upgrade`: old files written anew as Caffe writes them, in the form that is asked for, and what it will not do."""

import json
import os

import pytest

from ops.proto import binary, text
from ops.proto.caffe_pb2 import NetParameter, SolverParameter
from pipelines.__main__ import main
from pipelines.upgrade import Upgrade


def upgrade(old, new, **options):
    return Upgrade(old=old, new=new, **options).run()


@pytest.mark.parametrize("form", ["v0", "v1"])
def test_the_text_is_caffes_own(golden, tmp_path, form):
    result = upgrade(golden / "legacy" / f"{form}.prototxt", tmp_path / "new.prototxt")
    assert (tmp_path / "new.prototxt").read_text() == (golden / "legacy" / f"{form}_upgraded.prototxt").read_text()
    assert (result["holds"], result["form"], result["current"]) == ("net", "text", False)
    assert result["upgraded"][-1] == "input 'data' is now an Input layer, 'input'"


@pytest.mark.parametrize("form", ["v0", "v1"])
def test_weights_are_kept_to_the_bit(golden, tmp_path, form):
    upgrade(golden / "legacy" / f"{form}.caffemodel", tmp_path / "new.caffemodel")
    old = binary.read(golden / "legacy" / f"{form}.caffemodel", NetParameter)
    new = binary.read(tmp_path / "new.caffemodel", NetParameter)
    blobs = [blob.SerializeToString() for item in old.layers for blob in (*item.layer.blobs, *item.blobs)]
    assert [blob.SerializeToString() for layer in new.layer for blob in layer.blobs] == blobs
    assert len(blobs) == 4
    for layer in new.layer:
        layer.ClearField("blobs")
    assert new == text.read(golden / "legacy" / f"{form}_upgraded.prototxt", NetParameter)


def test_the_name_says_the_form_unless_an_option_does(golden, tmp_path):
    old = {"text": golden / "legacy" / "v1.prototxt", "binary": golden / "legacy" / "v1.caffemodel"}
    forms = {("a.prototxt", "binary"): "text", ("a.txt", "binary"): "text", ("a.pbtxt", "text"): "text"}
    forms |= {("a.caffemodel", "text"): "binary", ("a.BINARYPROTO", "text"): "binary"}
    forms |= {("a", "text"): "text", ("a", "binary"): "binary"}
    for (name, source), form in forms.items():
        assert upgrade(old[source], tmp_path / name, overwrite=True)["form"] == form
        reader = text if form == "text" else binary
        assert [layer.name for layer in reader.read(tmp_path / name, NetParameter).layer][1] == "conv1"
    assert upgrade(old["text"], tmp_path / "b.prototxt", binary=True)["form"] == "binary"
    assert binary.read(tmp_path / "b.prototxt", NetParameter).layer
    assert upgrade(old["binary"], tmp_path / "b.caffemodel", text=True)["form"] == "text"
    assert len(text.read(tmp_path / "b.caffemodel", NetParameter).layer[1].blobs) == 2


def test_a_solver_is_recognized_by_its_fields(tmp_path, capsys):
    (tmp_path / "s.prototxt").write_text('net: "n.prototxt"  # mine\nsolver_type: ADAM\n')
    assert main(["upgrade", str(tmp_path / "s.prototxt"), str(tmp_path / "new.prototxt")]) == 0
    assert (tmp_path / "new.prototxt").read_text() == 'net: "n.prototxt"\ntype: "Adam"\n'
    assert "solver_type: ADAM is now type: 'Adam'" in capsys.readouterr().out
    assert text.read(tmp_path / "new.prototxt", SolverParameter).type == "Adam"


@pytest.mark.parametrize("written", ['name: "n" # current\n', 'net: "n"   # a solver\ntype: "Adam"\n'])
def test_a_current_file_is_copied_with_its_comments(tmp_path, capsys, written):
    (tmp_path / "old").write_text(written)
    assert main(["upgrade", str(tmp_path / "old"), str(tmp_path / "sub" / "new.prototxt")]) == 0
    assert (tmp_path / "sub" / "new.prototxt").read_text() == written
    assert "current already" in capsys.readouterr().out
    before = os.stat(tmp_path / "old")
    assert upgrade(tmp_path / "old", tmp_path / "old", overwrite=True)["current"]
    assert os.stat(tmp_path / "old") == before


def test_a_current_net_can_change_its_form(golden, tmp_path):
    source = golden / "legacy" / "v0_upgraded.prototxt"
    assert upgrade(source, tmp_path / "n.caffemodel")["current"]
    assert upgrade(tmp_path / "n.caffemodel", tmp_path / "n.prototxt")["current"]
    assert (tmp_path / "n.prototxt").read_text() == source.read_text()


def test_json_is_one_object(golden, tmp_path, capsys):
    old, new = golden / "legacy" / "v0.prototxt", tmp_path / "n.prototxt"
    assert main(["upgrade", str(old), str(new), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "old": str(old),
        "new": str(new),
        "holds": "net",
        "form": "text",
        "current": False,
        "upgraded": [
            "the padding layer 'pad1' is now pad: 1 of layer 'conv1'",
            "V0 to V1: 6 layers",
            "V1 to the current format: 6 layers",
            "input 'data' is now an Input layer, 'input'",
        ],
        "warnings": [],
    }


def test_names_in_brackets_are_printed_as_they_are(tmp_path, capsys):
    (tmp_path / "old").write_text('input: "[bold]" input_dim: [1, 2, 3, 4]')
    assert main(["upgrade", str(tmp_path / "old"), str(tmp_path / "[red]new")]) == 0
    told = capsys.readouterr().out
    assert "input '[bold]' is now an Input layer" in told
    assert "[red]new" in told


def test_warnings_are_told_on_stderr(tmp_path, capsys):
    (tmp_path / "old").write_text('layers { layer { name: "l" type: "relu" num_output: 3 } }')
    assert main(["upgrade", str(tmp_path / "old"), str(tmp_path / "new")]) == 0
    assert "warning: layer 'l': a V0 relu layer takes no num_output; left out" in capsys.readouterr().err


def test_what_text_cannot_say_is_told(tmp_path):
    fork = binary.parse(b"\xa2\x06\x06\x0a\x01l\xa8\x3e\x05", NetParameter)  # layer { name: "l" 1001: 5 }
    binary.write(tmp_path / "n.caffemodel", fork)
    assert len(upgrade(tmp_path / "n.caffemodel", tmp_path / "n.prototxt")["warnings"]) == 1
    assert upgrade(tmp_path / "n.caffemodel", tmp_path / "copy.caffemodel")["warnings"] == []
    assert (tmp_path / "copy.caffemodel").read_bytes() == (tmp_path / "n.caffemodel").read_bytes()


# -- what it will not do -----------------------------------------------------------------------------------------------


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """`refused("old.prototxt", "new.prototxt")`: the one line of the error, and nothing written."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=1):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert main(["upgrade", *map(str, arguments)]) == code
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == 1
        return said.err.removeprefix("cortado: error: ").strip()

    return run


def test_what_stands_there_is_not_replaced_unasked(golden, tmp_path, refused):
    old = golden / "legacy" / "v1.prototxt"
    (tmp_path / "new.prototxt").write_text("mine")
    asked = "choose another NEW, or give --overwrite"
    assert refused(old, "new.prototxt") == f"new.prototxt: stands there already; {asked}"
    assert upgrade(old, tmp_path / "new.prototxt", overwrite=True)["form"] == "text"
    (tmp_path / "v1.prototxt").write_bytes(old.read_bytes())
    (tmp_path / "link.prototxt").symlink_to("v1.prototxt")
    assert refused("v1.prototxt", "link.prototxt") == f"link.prototxt: is OLD itself; {asked}"
    upgrade(tmp_path / "v1.prototxt", tmp_path / "v1.prototxt", overwrite=True)
    assert (tmp_path / "v1.prototxt").read_text() == (golden / "legacy" / "v1_upgraded.prototxt").read_text()


def test_what_is_no_old_file(golden, tmp_path, refused):
    assert refused("none", "new") == "none: No such file or folder"
    assert refused(golden, "new").endswith("golden: Is a directory")
    assert refused(golden / "messages" / "mean.binaryproto", "new").endswith("it reads as a BlobProto")
    (tmp_path / "w.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    assert refused("w.h5", "new") == "w.h5: not a NetParameter: an HDF5 file"
    (tmp_path / "folder").mkdir()
    assert refused(golden / "legacy" / "v1.prototxt", "folder") == "folder: Is a directory; give the file to write"


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ('net: "n"\nsolver_tpe: ADAM', "old:2:1: SolverParameter has no field named 'solver_tpe'; did you mean"),
        ("layers { type: RELUU }", "old:1:16: "),
        ('layers { layer { name: "a" type: "cnov" } }', "old: layer 'a': unknown V0 layer type 'cnov'; did you mean"),
        ("layers { } layer { }", "old: mixes two formats"),
        ('solver_type: SGD type: "SGD"', "old: holds both solver_type: SGD and type: 'SGD'"),
    ],
)
def test_files_that_cannot_be_upgraded(tmp_path, refused, written, told):
    (tmp_path / "old").write_text(written)
    assert refused("old", "new").startswith(told)


def test_a_damaged_caffemodel(golden, tmp_path, refused):
    data = (golden / "legacy" / "v1.caffemodel").read_bytes()
    (tmp_path / "cut.caffemodel").write_bytes(data[:1000])
    assert "cut short" in refused("cut.caffemodel", "new.caffemodel")


def test_a_form_that_does_not_fit(golden, tmp_path, refused, monkeypatch):
    (tmp_path / "s.prototxt").write_text('net: "n"')
    assert refused("s.prototxt", "s.caffemodel").startswith("s.caffemodel: Caffe reads solvers as text only")
    monkeypatch.setattr("pipelines.upgrade.MOST_AS_TEXT", 1000)
    assert "too many for a text file" in refused(golden / "legacy" / "v1.caffemodel", "new.prototxt")


def test_usage(refused):
    assert refused("a", "b", "--text", "--binary", code=2).startswith("--text and --binary: expected one of them")
    assert refused("a", code=2).startswith("NEW missing")
