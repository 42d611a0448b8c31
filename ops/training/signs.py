"""Signs that a training goes wrong: a loss that does not move, a loss that explodes; and what to try.

signs = Signs.of(net, spec, begun=0)
for line in signs.see(iteration, loss):     # after each iteration; one sign is told, once
    print(line)
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from ops.layers.registry import Layer
from ops.net import Net
from ops.proto.caffe_pb2 import SolverParameter

WINDOW = 10  # iterations whose mean loss is looked at
SOONEST, LATEST = 60, 3000  # iterations after which a loss should have moved; AlexNet may take thousands to begin
STILL = 0.02  # a change by less than this share is none
NEAR = 0.03  # a loss within this share of that of guessing is that of guessing
EXPLODES = 2.0  # times what it should be at most


@dataclass
class Signs:
    """What was seen of the losses. guess: the loss of a net that guesses, None where nobody can tell; patience:
    iterations after which a loss should have moved, None: it need not (as where a training goes on).
    """

    rate: float
    guess: float | None = None
    classes: int = 0
    patience: int | None = None
    seen: int = 0
    first: float = 0.0  # loss
    begun: float = 0.0  # mean of the first WINDOW losses
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    told: bool = False

    @staticmethod
    def of(net: Net, spec: SolverParameter, *, begun: int = 0) -> Signs:
        """Of a training by `spec` that begins at iteration `begun`."""
        heads = [layer for layer in net.layers if layer.spec.type == "SoftmaxWithLoss"]
        only = len(heads) == len([layer for layer in net.layers if layer.spec.type.endswith("Loss")]) > 0
        classes = {classes_of(net, layer) for layer in heads}
        guess = sum(weight_of(layer) * math.log(classes_of(net, layer)) for layer in heads) if only else None
        patience = None if begun else min(LATEST, max(SOONEST, spec.max_iter // 5))
        return Signs(spec.base_lr, guess, classes.pop() if len(classes) == 1 else 0, patience)

    def see(self, iteration: int, loss: float) -> list[str]:
        """Take note of an iteration's loss; lines for the person who trains, none nearly always."""
        self.seen += 1
        self.recent.append(loss)
        if self.seen <= WINDOW:
            self.first = loss if self.seen == 1 else self.first
            self.begun += loss / WINDOW
        if self.seen < WINDOW or self.told:
            return []
        mean = sum(self.recent) / WINDOW
        if self.exploded(mean):
            self.told = True
            return [self.explodes(iteration, mean)]
        if self.seen == self.patience and self.unmoved(mean):
            self.told = True
            return [self.stands(mean)]
        return []

    def exploded(self, mean: float) -> bool:
        """Whether the loss is far above that of guessing and its own first one; where nobody knows, above its first
        ones."""
        if self.guess is not None:
            return mean > EXPLODES * max(self.guess, self.first)
        return self.seen >= 2 * WINDOW and mean > EXPLODES * abs(self.begun) > 0

    def unmoved(self, mean: float) -> bool:
        """Whether the net is no better than one that guesses; where nobody knows, whether the loss is where it was."""
        if self.guess is not None:
            return mean >= (1 - NEAR) * self.guess
        return abs(mean - self.begun) <= STILL * abs(self.begun)

    def explodes(self, iteration: int, mean: float) -> str:
        return (
            f"the loss explodes: about {mean:.4g} by iteration {iteration:,}, {self.first:.4g} at first; try a tenth "
            f"of the rate (base_lr: {self.rate / 10:g}), clip_gradients, or a warm-up (warmup_iter)"
        )

    def stands(self, mean: float) -> str:
        what = ""
        if self.guess is not None and abs(mean - self.guess) <= NEAR * self.guess and self.classes:
            what = f", as if the net guessed among {self.classes:,} classes"
        return (
            f"the net has learnt nothing in {self.seen:,} iterations: the loss is about {mean:.4g}{what}; try another "
            f"rate (cortado train --lr-range finds one; it is {self.rate:g}), a shuffled list, mean and scale that fit "
            "the weights; --overfit 16 shows whether the net can learn at all"
        )


def classes_of(net: Net, layer: Layer) -> int:
    """Among how many a SoftmaxWithLoss chooses."""
    shape = net.shapes[layer.spec.bottom[0]]
    return max(2, int(shape[layer.spec.softmax_param.axis]))


def weight_of(layer: Layer) -> float:
    return float(layer.spec.loss_weight[0]) if layer.spec.loss_weight else 1.0
