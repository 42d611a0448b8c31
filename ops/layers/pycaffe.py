"""Blobs as Python layers of Caffe's kind know them: numpy views of values and gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ops.layers.registry import text

if TYPE_CHECKING:
    from ops.layers.python import Python

NUMPY_HAS = (torch.float32, torch.float64)


class Blob:
    """A blob as pycaffe shows it: `data` and `diff` are numpy arrays, zeros at first; `reshape` gives it its shape."""

    def __init__(self, shape: Sequence[int] = (), dtype: Any = np.float32):
        self.shape, self.dtype = tuple(map(int, shape)), dtype
        self._data: NDArray[Any] | None = None
        self._diff: NDArray[Any] | None = None

    @classmethod
    def of(cls, values: NDArray[Any]) -> Blob:
        blob = cls(values.shape, values.dtype)
        blob._data = values
        return blob

    @property
    def data(self) -> NDArray[Any]:
        if self._data is None:
            self._data = np.zeros(self.shape, self.dtype)
        return self._data

    @property
    def diff(self) -> NDArray[Any]:
        if self._diff is None:
            self._diff = np.zeros(self.shape, self.dtype)
        return self._diff

    def reshape(self, *shape: Any) -> None:
        """`reshape(2, 3)` or `reshape((2, 3))`; values stay where their number does."""
        sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], list | tuple) else shape
        new = tuple(map(int, sizes))
        if any(size < 0 for size in new):
            raise ValueError(f"a blob of shape {text(new)}; sizes are 0 or more")
        if math.prod(new) == self.count:
            self._data = None if self._data is None else self._data.reshape(new)
            self._diff = None if self._diff is None else self._diff.reshape(new)
        else:
            self._data = self._diff = None
        self.shape = new

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    num = property(lambda self: self._old(0))
    channels = property(lambda self: self._old(1))
    height = property(lambda self: self._old(2))
    width = property(lambda self: self._old(3))

    def _old(self, axis: int) -> int:
        """A size by its old name: 1 where there is no such axis; as Caffe, only of blobs of up to four axes."""
        if len(self.shape) > 4:
            raise ValueError(f"a blob of shape {text(self.shape)} has no num, channels, height and width; use shape")
        return self.shape[axis] if axis < len(self.shape) else 1


class Parameter(Blob):
    """A blob of the layer's own: `data` is the weight itself."""

    def __init__(self, owner: Python, index: int):
        self.owner, self.index = owner, index
        super().__init__(self.tensor.shape, numpy_type(self.tensor.dtype))

    @property
    def tensor(self) -> Tensor:
        return self.owner.blob(self.index).detach()

    @property
    def data(self) -> NDArray[Any]:
        """The weight's memory; where numpy cannot see that (GPU, half precision), a copy that `store` takes back."""
        if self.shared:
            return self.tensor.numpy()
        if self._data is None:
            self._data = array_of(self.tensor)
        return self._data

    @property
    def shared(self) -> bool:
        return self.tensor.device.type == "cpu" and self.tensor.dtype in NUMPY_HAS

    def store(self) -> None:
        """Take back what was written into a copy of the weight."""
        if self._data is not None and not self.shared:
            self.tensor.copy_(torch.from_numpy(self._data))
        self._data = None

    def renew(self) -> None:
        """A diff of zeros, of the shape and type that the weight has now."""
        self.shape, self.dtype = tuple(self.tensor.shape), numpy_type(self.tensor.dtype)
        self._diff = None

    def reshape(self, *shape: Any) -> None:
        raise ValueError("the shape of a parameter blob is fixed by add_blob")


class Blobs(list[Parameter]):
    """`self.blobs` of a user's layer."""

    def __init__(self, owner: Python):
        super().__init__()
        self.owner = owner

    def add_blob(self, *shape: Any) -> None:
        """One more parameter, zeros; `add_blob(2, 3)` or `add_blob((2, 3))`."""
        sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], list | tuple) else shape
        with torch.device("cpu"):
            self.owner.add_blob(tuple(map(int, sizes)))
        nn.init.zeros_(self.owner.blobs[-1])
        self.append(Parameter(self.owner, len(self)))


def array_of(tensor: Tensor) -> NDArray[Any]:
    """A tensor as a numpy array in C order, float32 or float64; its own memory where that can be."""
    tensor = tensor.detach()
    if tensor.dtype not in NUMPY_HAS:
        tensor = tensor.float()
    return tensor.cpu().contiguous().numpy()


def numpy_type(dtype: torch.dtype) -> Any:
    return np.float64 if dtype == torch.float64 else np.float32
