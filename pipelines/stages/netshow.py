"""What `cortado show` says of a net: which one is meant, the facts of its table, its drawing."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ops import draw, net_table, zoo
from ops.layers.registry import LAYERS, Phase, Shape
from ops.net import Net, load, read
from ops.phases import select, state_of
from ops.proto import files
from ops.proto import text as prototxt
from ops.proto.caffe_pb2 import LayerParameter, NetParameter, SolverParameter

NAMED = (".prototxt", ".pbtxt", ".caffemodel")
LOOKS_LIKE_A_NET = re.compile(rb'^\s*(layers?|input_shape)\s*\{|^\s*input\s*:\s*"', re.MULTILINE)
PATTERN = re.compile(r"[*?\[{]")
SHAPE = re.compile(r"\d+([x,]\d+)*")
ADVICE = re.compile(r"inputs=\{'(.*)': \(N, C, H, W\)\} gives the shape without opening anything")
# messages of data layers that say their batch
BATCHED = ("data_param", "image_data_param", "window_data_param", "hdf5_data_param", "memory_data_param")


# -- which net -------------------------------------------------------------------------------------------------------


def net_file(what: str) -> Path | None:
    """The file of the net that is meant by a path or by a name of the zoo; None where it is no net.

    FileNotFoundError or ValueError, with the nearest name, for a word that is neither a file here nor in the zoo.
    """
    path = Path(what)
    if path.is_dir() or PATTERN.search(what):
        return None
    if path.exists():
        return path if holds_net(path) else None
    if (len(path.parts) == 1 and not path.suffix) or (path.parts and in_zoo(path.parts[0])):
        return zoo.resolve(what)
    if path.suffix.lower() in NAMED:
        raise FileNotFoundError(errno.ENOENT, "No such file", what)
    return None


def in_zoo(name: str) -> bool:
    try:
        return zoo.find(name).exists()
    except ValueError:
        return False


def holds_net(path: Path) -> bool:
    """Whether a file is a net's definition or a .caffemodel: by its name, else by a text's own words."""
    if path.suffix.lower() in NAMED:
        return True
    with path.open("rb") as file:
        head = file.read(files.HEAD)
    return files.kind(head) == "text" and LOOKS_LIKE_A_NET.search(head) is not None


class Asked:
    """A net as the command line asks for it: its file, phase, stages and level, and the shapes of its inputs."""

    def __init__(self, file: Path, phase: Phase, *, stages: Sequence[str] = (), level: int = 0):
        self.file, self.phase, self.stages, self.level = file, phase, tuple(stages), level
        self.source: Path | NetParameter = file
        whole = self.read()
        self.title = whole.name
        self.saved = any(layer.blobs for layer in whole.layer)  # it has weights of its own
        if files.sniff(file) != "text":
            for layer in whole.layer:
                del layer.blobs[:]
            whole.name = str(file)  # what errors call it
            self.source = whole
        self.whole, self.spec = whole, select(whole, state_of(whole, phase, level=level, stages=self.stages))
        self.inputs: dict[str, Shape] = {}

    def read(self) -> NetParameter:
        if files.sniff(self.file) == "hdf5":
            raise ValueError(f"{self.file}: HDF5 weights, which say nothing of the net; give its prototxt")
        try:
            return read(self.file)[1]
        except ValueError:
            if net := net_of_solver(self.file):
                raise ValueError(f"{self.file}: a solver; show its net: {net}") from None
            raise

    def load(self, inputs: Mapping[str, Sequence[int]] | None = None, **options: Any) -> Net:
        """The net, with `inputs` in the place of the shapes that were given; errors speak of --input."""
        given = self.inputs if inputs is None else inputs
        state = {"stages": self.stages, "level": self.level}
        try:
            return load(self.source, self.phase, inputs=given, **state, **options)
        except ValueError as error:
            raise ValueError(self.advised(str(error))) from error

    def advised(self, told: str) -> str:
        """What a person at the command line can do, in the place of what a caller in Python can."""
        found = ADVICE.search(told)
        if found:
            first = found[1] == self.first_input()
            words = f"{'' if first else found[1] + '='}{self.example(found[1], whole=not first)}"
            return ADVICE.sub(f"--input {words} gives the shape without opening anything", told)
        if "which no earlier layer makes" in told and not any(is_source(layer) for layer in self.spec.layer):
            blob = self.first_input()
            if any(blob in layer.top for layer in self.whole.layer):
                return f"{told}; one of another phase does: give --phase {'TEST' if self.phase == 'TRAIN' else 'TRAIN'}"
            return f"{told}; where it is an input, give --input {blob}=1x3x224x224"
        return told

    def example(self, blob: str, *, whole: bool) -> str:
        """A shape for an input, with the crop that its layer makes."""
        layer = next(layer for layer in self.spec.layer if blob in layer.top)
        side = layer.transform_param.crop_size or 224
        return f"{self.batch_of(blob)}x3x{side}x{side}" if whole else f"3x{side}x{side}"

    def first_input(self) -> str:
        """The first top of the first data layer; without one, the first bottom that no layer makes."""
        made = set[str]()
        for layer in self.spec.layer:
            if is_source(layer) and layer.top:
                return layer.top[0]
            loose = [blob for blob in layer.bottom if blob not in made]
            if loose:
                return loose[0]
            made.update(layer.top)
        raise ValueError(f"{self.file}: has no input whose shape could be given")

    def batch_of(self, blob: str) -> int:
        """The batch that the layer of an input says; 1 where it says none."""
        for layer in self.spec.layer:
            if blob in layer.top:
                sizes = [getattr(layer, name).batch_size for name in BATCHED if layer.HasField(name)]  # type: ignore[arg-type]
                sizes += [shape.dim[0] for shape in layer.input_param.shape if shape.dim]
                return next((size for size in sizes if size), 1)
        return 1

    def give(self, words: Iterable[str], batch: int | None) -> None:
        """Take the shapes of --input, CxHxW or NAME=SHAPE, and the batch."""
        for word in words:
            name, named, sizes = word.rpartition("=")
            if not SHAPE.fullmatch(sizes):
                raise ValueError(
                    f"--input {word}: expected channels x height x width as 3x227x227, or NAME=10x3x227x227"
                )
            shape = tuple(map(int, re.split("[x,]", sizes)))
            name = name if named else self.first_input()
            self.inputs[name] = shape if named or len(shape) != 3 else (batch or self.batch_of(name), *shape)
        if batch is None:
            return
        net = self.load(device="meta")
        if net_table.batch_of(net) is None:
            raise ValueError(f"{self.file}: --batch {batch}: the net has no input with a batch")
        self.inputs = net_table.at_batch(net, batch)


def net_of_solver(file: Path) -> str | None:
    """The net that a solver's text names; None where the file is no solver."""
    try:
        solver = prototxt.read(file, SolverParameter)
    except ValueError:
        return None
    return solver.net or solver.train_net or "it stands in the solver itself; write it into a file"


def is_source(layer: LayerParameter) -> bool:
    return layer.type in LAYERS and LAYERS[layer.type].source


# -- the table and the drawing ---------------------------------------------------------------------------------------


def facts(asked: Asked, drawing: Path | None) -> dict[str, Any]:
    """All that `show NET` tells, as JSON can say it; the drawing is written too where one is asked for."""
    net = asked.load(device="meta")
    net.spec.name = asked.title
    listed = net_table.rows(net)
    sums = net_table.totals(net, listed)
    return {
        "net": str(asked.file),
        "name": asked.title,
        "phase": asked.phase,
        "batch": sums.batch,
        "layers": [layer_facts(row) for row in listed],
        "inputs": {name: list(shape) for name, shape in net.inputs.items()},
        "outputs": {name: list(net.shapes[name]) for name in net.outputs},
        "parameters": sums.parameters,
        "frozen": sums.frozen,
        "statistics": sums.statistics,
        "multiply_adds": sums.multiply_adds,
        "multiply_adds_an_item": sums.per_item,
        "uncounted": list(sums.uncounted),
        "blob_bytes": sums.blob_bytes,
        "parameter_bytes": sums.parameter_bytes,
        **drawn(net, drawing),
    }


def layer_facts(row: net_table.Row) -> dict[str, Any]:
    return {
        "name": row.name,
        "type": row.type,
        "settings": row.settings,
        "bottoms": list(row.bottoms),
        "tops": list(row.tops),
        "shapes": [list(shape) for shape in row.shapes],
        "in_place": row.inplace,
        "parameters": row.parameters,
        "frozen": row.frozen,
        "statistics": row.statistics,
        "shares_with": list(row.shared),
        "multiply_adds": row.multiply_adds,
        "bytes": row.bytes,
    }


def drawn(net: Net, drawing: Path | None) -> dict[str, Any]:
    """Draw, where it is asked for; not `ok` where Graphviz is missing and only its text could be written."""
    if drawing is None:
        return {"drawing": None}
    written = draw.write(net, drawing)
    if written == drawing:
        return {"drawing": str(written)}
    told = (
        f"Graphviz's program `dot` is not installed: wrote {written} in the place of {drawing}; {draw.HOW_TO_GET_DOT}"
    )
    return {"ok": False, "drawing": str(written), "problem": told}
