"""The score of the tests that decides which weights are the best, and when there is no use in going on.

watch = Watch.of(nets, "accuracy", patience=5)
better = watch.see(iteration, watch.score(values, loss))     # after each test of net `watch.net`
watch.done                                                  # not better in 5 tests
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ops.names import hint, quoted
from ops.net import Net

LOSS, ACCURACY = "loss", "accuracy"
DIRECTIONS = {"max": True, "min": False}


@dataclass
class Watch:
    """What is watched, and how it went: the best value and its iteration, tests since then, the last one's iteration.

    `output` is a blob of test net number `net`, the mean of its elements; None: the net's whole loss.
    """

    name: str
    net: int
    output: str | None
    higher: bool  # is better
    patience: int | None = None  # tests without a better score before the end; None: any number
    best: float | None = None
    iteration: int | None = None
    since: int = 0
    last: int = -1

    @staticmethod
    def of(nets: Sequence[Net], wanted: str | None, *, patience: int | None = None) -> Watch:
        """`wanted`: "accuracy", "loss" or an output, as "error:min" where it does not show which way is better.

        None: accuracy where there is one, else the loss. ValueError where no test net has it.
        """
        if not nets:
            raise ValueError("there is no test net to watch a score of: give the solver test_iter and test_interval")
        if patience is not None and patience < 1:
            raise ValueError(f"patience {patience}: expected 1 test or more")
        name, _, direction = (wanted or "").partition(":")
        if direction and direction not in DIRECTIONS:
            raise ValueError(f"{quoted(direction)} is no direction; write {name}:max or {name}:min")
        name = name or (ACCURACY if any(accuracy_of(net) for net in nets) else LOSS)
        number, output = find(nets, name)
        higher = DIRECTIONS[direction] if direction else better_is_higher(nets[number], output)
        if higher is None:
            raise ValueError(f"does more {quoted(name)} mean better? Write {name}:max or {name}:min")
        return Watch(name, number, output, higher, patience)

    def score(self, values: Mapping[str, np.ndarray], loss: float) -> float:
        """The watched number of a test: of its outputs' means, and its mean loss."""
        return loss if self.output is None else float(np.mean(values[self.output]))

    def see(self, iteration: int, score: float) -> bool:
        """Take note of a test; whether it is the best so far. The same iteration's again counts once."""
        better = not math.isnan(score) and (
            self.best is None or (score > self.best if self.higher else score < self.best)
        )
        if better:
            self.best, self.iteration, self.since = score, iteration, 0
        elif iteration > self.last:
            self.since += 1
        self.last = max(self.last, iteration)
        return better

    @property
    def done(self) -> bool:
        return self.patience is not None and self.since >= self.patience

    def state(self) -> dict[str, Any]:
        """How it went so far, for `resume`; numbers that JSON can hold."""
        seen = {"best": self.best, "iteration": self.iteration, "since": self.since, "last": self.last}
        return {"name": self.name, "net": self.net, "output": self.output, "higher": self.higher, **seen}

    def resume(self, state: Mapping[str, Any]) -> bool:
        """Go on from what `state` gave; False, and nothing is done, where that watched something else."""
        if any(state.get(key) != getattr(self, key) for key in ("net", "output", "higher")):
            return False
        self.best, self.iteration, self.since, self.last = (
            state[key] for key in ("best", "iteration", "since", "last")
        )
        return True

    def told(self) -> str:
        """Why the training stopped."""
        tests = f"{self.since} test{'s' * (self.since != 1)}"
        return f"{self.name} has not got better in {tests}" + (
            f": {self.best:g} at iteration {self.iteration}" if self.best is not None else ""
        )


def accuracy_of(net: Net) -> str | None:
    """The first output that an Accuracy layer makes as one number."""
    made = [layer.spec.top[0] for layer in net.layers if layer.spec.type == "Accuracy" and layer.spec.top]
    return next((name for name in made if name in net.outputs), None)


def find(nets: Sequence[Net], name: str) -> tuple[int, str | None]:
    """The first net with an output of that name, else the first that has what the words accuracy and loss mean."""
    for number, net in enumerate(nets):
        if name in net.outputs:
            return number, name
    for number, net in enumerate(nets):
        if name == ACCURACY and (found := accuracy_of(net)):
            return number, found
        if name == LOSS and net.loss_weights:
            return number, None
    outputs = list(dict.fromkeys(output for net in nets for output in net.outputs))
    raise ValueError(f"no test net has an output {quoted(name)}{hint(name, outputs)}")


def better_is_higher(net: Net, output: str | None) -> bool | None:
    """Whether more of it is better: of an Accuracy; less is of a loss. None: who knows."""
    if output is None or net.loss_weights.get(output, 0) > 0:
        return False
    kinds = [layer.spec.type for layer in net.layers if output in layer.spec.top]
    if kinds and kinds[-1].endswith("Loss"):
        return False
    return True if kinds and kinds[-1] == "Accuracy" else None
