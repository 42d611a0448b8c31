"""Drawings of nets: what is a box, what is an arrow, and that Graphviz reads and draws the text."""

from __future__ import annotations

import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import cv2
import pydot
import pytest
from google.protobuf import text_format

from ops import draw, zoo
from ops import net as nets
from ops.net_table import rows
from ops.proto.caffe_pb2 import NetParameter

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # pydot's parser, which only these tests use
GRAPHVIZ = pytest.mark.skipif(shutil.which("dot") is None, reason="needs Graphviz: apt install graphviz")
HEAD = 'name: "n" layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 } } }\n'
NASTY = [
    'a "quoted" name',
    "less < more > & so",
    "back\\slash",
    "two\nlines\x01",
    "<b>html</b>",
    "n0 -> n1;",
    "Größe 日本",
    "{x|y}",
]


def net(text: str, **options) -> nets.Net:
    return nets.load(text_format.Parse(text, NetParameter()), device="meta", **options)


def from_zoo(name: str, **options) -> nets.Net:
    return nets.load(zoo.resolve(name), device="meta", **options)


def drawn(built: nets.Net) -> tuple[list[list[str]], list[tuple[str, str, str]]]:
    """The layers in each box, and (from, to, blob) by the names of boxes."""
    boxes, arrows = draw.boxes(built, rows(built))
    names = [box.name for box in boxes]
    return (
        [[row.name for row in box.listed] for box in boxes],
        [(names[arrow.start], names[arrow.stop], arrow.blob) for arrow in arrows],
    )


def plain(html: str) -> str:
    """The words in Graphviz's HTML."""
    return re.sub(r"<[^>]*>", "", html.replace("</TR>", "\n")).strip("<> \n")


# -- boxes and arrows ------------------------------------------------------------------------------------------------


def test_layers_in_place_stand_in_the_box_that_they_follow():
    boxes, arrows = drawn(from_zoo("caffenet"))
    assert ["conv1", "relu1"] in boxes
    assert ["fc6", "relu6", "drop6"] in boxes
    assert sum(map(len, boxes)) == 24
    assert arrows[:2] == [("data", "conv1", "data"), ("conv1", "pool1", "conv1")]


def test_every_arrow_of_googlenet_is_a_bottom_that_is_not_in_place():
    built = from_zoo("googlenet")
    boxes, arrows = drawn(built)
    listed = rows(built)
    assert len(arrows) == sum(len(row.bottoms) for row in listed if not row.inplace)
    assert len(boxes) == sum(not row.inplace for row in listed)
    assert {start for start, stop, _ in arrows if stop == "inception_3a/output"} == {
        "inception_3a/1x1", "inception_3a/3x3", "inception_3a/5x5", "inception_3a/pool_proj",
    }  # fmt: skip


def test_a_layer_in_place_after_somebody_took_the_blob_has_its_own_box():
    built = net(
        HEAD
        + """layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 4 } }
             layer { name: "before" type: "Power" bottom: "ip" top: "before" }
             layer { name: "relu" type: "ReLU" bottom: "ip" top: "ip" }
             layer { name: "after" type: "Power" bottom: "ip" top: "after" }"""
    )
    boxes, arrows = drawn(built)
    assert boxes == [["data"], ["ip"], ["before"], ["relu"], ["after"]]
    assert arrows[1:] == [("ip", "before", "ip"), ("ip", "relu", "ip"), ("relu", "after", "ip")]


def test_an_input_without_a_layer_is_a_box():
    built = net('layer { name: "sum" type: "Eltwise" bottom: "x" bottom: "x" top: "y" }', inputs={"x": (2, 5)})
    boxes, arrows = drawn(built)
    assert boxes == [[], ["sum"]]
    assert arrows == [("x", "sum", "x")]


# -- the text --------------------------------------------------------------------------------------------------------


def labels_of(text: str) -> tuple[dict[str, str], list[str]]:
    """Words in boxes by their id, and on arrows, as pydot's parser reads the text."""
    (graph,) = pydot.graph_from_dot_data(text)
    boxes = {node.get_name(): plain(node.get_label()) for node in graph.get_nodes() if node.get_label()}
    return boxes, [edge.get_label().strip('" ') for edge in graph.get_edges()]


def test_boxes_tell_type_kernel_stride_and_pad_and_arrows_the_shapes():
    boxes, arrows = labels_of(draw.graph(from_zoo("caffenet")).to_string())
    told = list(boxes.values())
    assert told[1].split("\n") == ["conv1", "Convolution, kernel 11, stride 4", "+ ReLU"]
    assert told[4].split("\n") == ["conv2", "Convolution, kernel 5, pad 2, group 2", "+ ReLU"]
    assert "pool1\nPooling MAX, kernel 3, stride 2" in told
    assert "fc6\nInnerProduct\n+ ReLU\n+ Dropout, ratio 0.5" in told
    assert arrows[:2] == ["3 × 227 × 227", "96 × 55 × 55"]
    assert arrows[-1] == "1000"


def test_families_differ_in_colour_and_the_heading_explains_them():
    text = draw.graph(from_zoo("caffenet")).to_string()
    (graph,) = pydot.graph_from_dot_data(text)
    fills = {
        plain(node.get_label()).split("\n")[0]: node.get("fillcolor") for node in graph.get_nodes() if node.get_label()
    }
    assert fills["conv1"] == fills["conv5"] != fills["pool1"] != fills["norm1"] != fills["fc6"]
    heading = plain(graph.get("label"))
    assert "TEST, batch 10 · 60,965,224 parameters · 724,406,816 multiply-adds an item" in heading
    for family in ("input", "convolution", "pooling", "normalization", "inner product, scale", "output"):
        assert family in heading


def test_labels_are_told_by_their_name_and_sequences_with_all_axes():
    _, arrows = labels_of(draw.graph(from_zoo("lenet/train_val", inputs={"data": (64, 1, 28, 28)})).to_string())
    assert arrows[0] == "1 × 28 × 28"
    assert "label" in arrows
    golden = Path(__file__).parents[1] / "golden/prototxt/lstm_static.prototxt"
    _, arrows = labels_of(draw.graph(nets.load(golden, device="meta")).to_string())
    assert arrows == ["4 × 3 × 5", "4 × 3", "3 × 7"]


def test_a_long_list_of_settings_is_cut():
    built = net(
        HEAD.replace("dim: 3", "dim: 3 dim: 8 dim: 8")
        + """layer { name: "c" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 6 group: 3
             kernel_size: 3 stride: 2 pad: 2 dilation: 2 bias_term: false } }"""
    )
    boxes, _ = labels_of(draw.graph(built).to_string())
    assert "Convolution, kernel 3, stride 2, pad 2, dilation 2, group 3" in boxes["n1"]


# -- files -----------------------------------------------------------------------------------------------------------


def words_of(svg: Path) -> list[str]:
    return [node.text for node in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text") if node.text]


@GRAPHVIZ
def test_the_svg_of_googlenet_has_every_box_and_the_shapes(tmp_path):
    built = from_zoo("googlenet")
    assert draw.write(built, tmp_path / "g.svg") == tmp_path / "g.svg"
    words = words_of(tmp_path / "g.svg")
    missing = [row.name for row in rows(built) if not row.inplace and row.name not in words]
    assert not missing
    assert words.count("+ ReLU") == 57
    assert "256 × 28 × 28" in [word.strip() for word in words]


@GRAPHVIZ
def test_a_png_is_a_picture_in_folders_that_are_made(tmp_path):
    file = draw.write(from_zoo("lenet"), tmp_path / "new" / "lenet.png")
    height, width, _ = cv2.imread(str(file)).shape
    assert height > width > 200


@GRAPHVIZ
@pytest.mark.parametrize("name", NASTY)
def test_any_name_can_be_drawn(tmp_path, name):
    built = nets.load(zoo.find("lenet"), device="meta").spec
    built.layer[1].name = built.layer[1].top[0] = name
    built.layer[2].bottom[0] = name
    draw.write(nets.load(built, device="meta"), tmp_path / "x.svg")
    words = words_of(tmp_path / "x.svg")
    assert re.sub(r"[\n\x01]", " ", name) in [word.replace("\xa0", " ") for word in words]


def test_without_graphviz_the_text_is_written_in_its_place(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert draw.write(from_zoo("lenet"), tmp_path / "lenet.svg") == tmp_path / "lenet.dot"
    boxes, arrows = labels_of((tmp_path / "lenet.dot").read_text())
    assert (len(boxes), len(arrows)) == (8, 7)
    assert not (tmp_path / "lenet.svg").exists()


def test_a_dot_that_fails_is_told_in_one_line(tmp_path, monkeypatch):
    program = tmp_path / "dot"
    program.write_text("#!/bin/sh\necho 'no such\nformat' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(ValueError, match=r"dot cannot draw the net: no such format$"):
        draw.write(from_zoo("lenet"), tmp_path / "lenet.svg")


def test_other_formats_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"x\.gif: expected a name that ends in \.svg, \.png, \.dot"):
        draw.write(from_zoo("lenet"), tmp_path / "x.gif")
