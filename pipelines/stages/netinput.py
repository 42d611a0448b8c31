"""What goes into a net on the command line: random numbers of a seed, an array, or an image."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ops import image, pictures
from ops.layers.registry import Shape, text
from ops.names import hint, quoted
from ops.net import Net
from ops.net_table import at_batch
from ops.random_inputs import random_inputs
from pipelines.stages.netpictures import read_mean

SEED = re.compile(r"\d{1,9}")
ARRAYS = (".npy", ".npz")


class Content:
    """--input: a seed as 7, a FILE.npy for the first input that it fits, a FILE.npz by blob names, or an image."""

    def __init__(self, word: str, *, mean: str | None = None, scale: float = 1.0):
        self.word, self.mean, self.scale = word, mean, scale
        self.seed = int(word) if SEED.fullmatch(word) and not Path(word).exists() else None
        self.arrays: dict[str, Tensor] = {}
        if self.seed is not None:
            return
        path = Path(word)
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, "No such file; expected an image, .npy, .npz, or a seed as 7", word)
        if path.suffix.lower() in ARRAYS:
            self.arrays = read_arrays(path)
        elif path.is_dir():
            raise ValueError(f"{word}: a folder; expected an image, .npy, .npz, or a seed as 7")

    def shapes(self, net: Net) -> dict[str, Shape]:
        """The shapes of inputs that it decides, and with them the batch of the others, for a net built at others."""
        if self.seed is not None:
            return {}
        if self.arrays:
            found = {name: tuple(array.shape) for name, array in self.fitting(net).items()}
        else:
            feed = self.image_input(net)
            found = {feed: (1, *net.inputs[feed][1:])}
        batch = next((shape[0] for shape in found.values() if shape), None)
        return found if batch is None else at_batch(net, batch) | found

    def values(self, net: Net) -> dict[str, Tensor]:
        """A tensor an input; what it does not decide, as labels, is random."""
        found = random_inputs(net, self.seed or 0)
        if self.arrays:
            found.update(self.fitting(net))
        elif self.seed is None:
            name = self.image_input(net)
            found[name] = self.picture(tuple(net.inputs[name]))
        return found

    def fitting(self, net: Net) -> dict[str, Tensor]:
        """The arrays by the inputs that they go into."""
        if "" not in self.arrays:
            for name in self.arrays:
                if name not in net.inputs:
                    raise ValueError(f"{self.word}: {net.name} has no input {quoted(name)}{hint(name, net.inputs)}")
            return self.arrays
        array = self.arrays[""]
        for name, shape in net.inputs.items():
            if len(shape) == array.dim() and tuple(shape[1:]) == tuple(array.shape[1:]):
                return {name: array}
        listed = ", ".join(f"{name} {text(shape)}" for name, shape in net.inputs.items()) or "none"
        raise ValueError(f"{self.word}: {text(tuple(array.shape))} fits no input of {net.name}: {listed}")

    def image_input(self, net: Net) -> str:
        """The first input that takes images."""
        for name, shape in net.inputs.items():
            if len(shape) == 4 and shape[1] in (1, 3):
                return name
        listed = ", ".join(f"{name} {text(shape)}" for name, shape in net.inputs.items()) or "none"
        raise ValueError(f"{self.word}: no input of {net.name} takes an image (N x 1 or 3 x height x width): {listed}")

    def picture(self, shape: Shape) -> Tensor:
        """The image, its middle resized to the input; minus --mean, times --scale."""
        try:
            pixels = image.decode(Path(self.word).read_bytes(), color=shape[1] == 3)
        except image.BadImage as error:
            raise ValueError(f"{self.word}: {error}") from error
        means = read_mean(self.mean)
        try:
            return torch.from_numpy(pictures.net_input(pixels, shape[1:], mean=means, scale=self.scale))
        except ValueError as error:
            raise ValueError(f"--mean {self.mean}: {error}") from error


def read_arrays(path: Path) -> dict[str, Tensor]:
    """The array of a .npy as "", those of a .npz by their names; numbers only."""
    try:
        loaded = np.load(path, allow_pickle=False)
        found = dict(loaded) if path.suffix.lower() == ".npz" else {"": loaded}
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: no arrays of numpy: {' '.join(str(error).split())}") from error
    for name, array in found.items():
        if array.dtype.kind not in "fiub":
            raise ValueError(f"{path}: {name or 'an array'} of {array.dtype}; expected numbers")
    return {name: torch.from_numpy(np.ascontiguousarray(array, np.float32)) for name, array in found.items()}
