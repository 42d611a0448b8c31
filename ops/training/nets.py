"""The nets that a solver names: one to train, any number to test, each in its state (phase, level, stages)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ops.names import quoted
from ops.net import Net, assemble, read
from ops.proto import text as prototxt
from ops.proto.caffe_pb2 import TEST, TRAIN, NetParameter, NetState, SolverParameter
from ops.proto.upgrade import upgrade_net, upgrade_solver

TRAIN_FIELDS = ("net", "net_param", "train_net", "train_net_param")


@dataclass(frozen=True)
class Definition:
    """A net's text and where it stands; `state` is what it is built for."""

    name: str
    spec: NetParameter
    state: NetState
    folder: Path | None
    iterations: int = 0  # of a test net: batches of one test

    def net(self, *, seed: int = 0, inputs: dict[str, Sequence[int]] | None = None) -> Net:
        """The net, still without memory."""
        return assemble(self.name, self.spec, self.state, inputs=inputs, seed=seed, folder=self.folder)


def read_solver(path: str | Path) -> SolverParameter:
    """The solver in a prototxt file, in the current format."""
    spec = prototxt.read(path, SolverParameter)
    upgrade_solver(spec, str(path))
    return spec


def locate(name: str, beside: Path | None) -> Path:
    """A file that a prototxt names: from the working folder, as Caffe, else beside the prototxt."""
    places = [Path(name)] + ([beside / name] if beside is not None else [])
    for place in places:
        if place.exists():
            return place
    looked = " nor ".join(str(place.absolute()) for place in dict.fromkeys(places))
    raise FileNotFoundError(2, f"there is neither {looked}" if len(places) > 1 else f"there is no {looked}")


def train_definition(
    spec: SolverParameter, path: str | Path, *, level: int | None = None, stages: Sequence[str] = ()
) -> Definition:
    """The net to train; `level` and `stages` are those of the command line, on top of train_state."""
    given = [field for field in TRAIN_FIELDS if spec.HasField(field)]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        raise ValueError(f"{path}: gives {found}; a solver names its net in one of {', '.join(TRAIN_FIELDS)}")
    state = NetState()
    state.CopyFrom(spec.train_state)
    if level is not None:
        state.level = level
    state.stage.extend(stages)
    return define(getattr(spec, given[0]), path, given[0], TRAIN, state)


def definitions_of_tests(spec: SolverParameter, path: str | Path) -> list[Definition]:
    """The nets to test, in Caffe's order: test_net_param, test_net, then copies of net or net_param."""
    own = [(one, "test_net_param") for one in spec.test_net_param] + [(one, "test_net") for one in spec.test_net]
    count = len(spec.test_iter)
    shared = next((field for field in ("net_param", "net") if spec.HasField(field)), None)
    if count < len(own) or (count > len(own) and shared is None):
        raise ValueError(f"{path}: gives test_iter {count} times for {len(own)} test nets; give one for each")
    nets = own + [(getattr(spec, shared), shared)] * (count - len(own)) if shared else own
    if spec.test_state and len(spec.test_state) != len(nets):
        raise ValueError(
            f"{path}: gives test_state {len(spec.test_state)} times for {len(nets)} test nets; give none or all"
        )
    if nets and spec.test_interval <= 0:
        raise ValueError(f"{path}: has test nets, but test_interval {spec.test_interval}; give how often to test")
    definitions = []
    for number, (net, field) in enumerate(nets):
        if spec.test_iter[number] < 1:
            raise ValueError(f"{path}: test_iter {spec.test_iter[number]}: expected 1 or more")
        state = spec.test_state[number] if spec.test_state else NetState()
        definitions.append(define(net, path, field, TEST, state, spec.test_iter[number]))
    return definitions


def define(
    net: str | NetParameter, path: str | Path, field: str, phase: int, state: NetState, iterations: int = 0
) -> Definition:
    """A net in a file or inside the solver, in the phase, then the file's own state, then the solver's."""
    beside = Path(path).parent
    if isinstance(net, NetParameter):
        spec, name, folder = NetParameter(), f"{path}: {field}", beside
        spec.CopyFrom(net)
        upgrade_net(spec, name)
    else:
        try:
            file = locate(net, beside)
        except FileNotFoundError as error:
            raise FileNotFoundError(2, f"{path}: {field} {quoted(net)}: {error.strerror}") from None
        name, spec = read(file)
        folder = file.parent
    whole = NetState(phase=TEST if phase == TEST else TRAIN)
    whole.MergeFrom(spec.state)
    whole.MergeFrom(state)
    return Definition(name, spec, whole, folder, iterations)
