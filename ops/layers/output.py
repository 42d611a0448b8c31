"""What stands at the end of a net: probabilities, accuracy, a file, nothing."""

from __future__ import annotations

from pathlib import Path

import h5py
import torch
from torch import Tensor

from ops.layers.registry import Layer, Phase, Shape, axis_of, layer, text
from ops.layers.terms import class_index, ignored, is_channels_last, one_label_a_place, pick, same_batch
from ops.proto.caffe_pb2 import LayerParameter


@layer("Softmax")
class Softmax(Layer):
    """y = exp(x) / sum of exp(x) along `axis`."""

    keeps_shape = True

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        self.axis = axis_of(spec.softmax_param.axis, len(bottoms[0]))

    def forward(self, x: Tensor) -> Tensor:
        if is_channels_last(x) and self.axis == 1:  # torch's own leaves channels_last, at three times the cost
            return torch.softmax(x.permute(0, 2, 3, 1), -1).permute(0, 3, 1, 2)
        return torch.softmax(x, self.axis)


@layer("Accuracy")
class Accuracy(Layer):
    """The share of places whose true class has fewer than top_k other classes that score as high or higher.

    So, as Caffe, equal scores count against: a net that gives all classes the same is never right. Places with
    ignore_label do not count; 0 where none counts. A second top gets the accuracy of each class (0 for absent ones).
    """

    bottoms = (2, 2)
    tops = (1, 2)
    unlearnable = (0, 1)

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        p = spec.accuracy_param
        self.axis = axis_of(p.axis, len(bottoms[0]))
        self.k, self.ignore = p.top_k, ignored(p)
        self.two = len(spec.top) > 1
        one_label_a_place(bottoms[0], bottoms[1], self.axis)
        classes = bottoms[0][self.axis]
        if self.k > classes:
            raise ValueError(
                f"top_k is {self.k}, but bottom 0 is {text(bottoms[0])} with {classes} classes on axis {self.axis}"
            )

    def shapes(self, bottoms: list[Shape]) -> list[Shape]:
        return [(), (bottoms[0][self.axis],)] if self.two else [()]

    def forward(self, x: Tensor, labels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        one_label_a_place(x.shape, labels.shape, self.axis)
        x = x.detach()
        index, counted = class_index(labels, x.shape, self.axis, self.ignore)
        right, index = pick(x, self.axis, index)
        better = (x >= right).sum(self.axis, keepdim=True) - 1  # the true class is among them, unless it is nan
        correct = better < self.k
        counted = torch.ones_like(correct) if counted is None else counted
        correct = correct & counted
        kind = x.dtype if x.dtype == torch.float64 else torch.float32
        total = share(correct.sum(), self.in_all(counted.sum()), kind)
        if not self.two:
            return total
        places = index.reshape(-1)
        zeros = torch.zeros(x.shape[self.axis], dtype=torch.long, device=x.device)
        hits, seen = (zeros.scatter_add(0, places, each.reshape(-1).long()) for each in (correct, counted))
        return total, share(hits, self.in_all(seen), kind)


def share(part: Tensor, whole: Tensor, kind: torch.dtype) -> Tensor:
    """part / whole, 0 where the whole is 0."""
    return part.to(kind) / whole.clamp(min=1).to(kind)


@layer("Silence")
class Silence(Layer):
    """Takes blobs so that they are no outputs of the net; no gradient comes back."""

    bottoms = (1, None)
    tops = (0, 0)

    def forward(self, *bottoms: Tensor) -> tuple[()]:
        return ()


@layer("HDF5Output")
class HDF5Output(Layer):
    """Appends the rows of bottoms 0 and 1 to the datasets `data` and `label` of `file_name`.

    The first forward makes the file anew. (Caffe's aborts at the second, and so holds one batch at most.)
    """

    bottoms = (2, 2)
    tops = (0, 0)
    unlearnable = (0, 1)

    def __init__(self, spec: LayerParameter, bottoms: list[Shape], phase: Phase):
        super().__init__(spec, bottoms, phase)
        if not spec.hdf5_output_param.file_name:
            raise ValueError("hdf5_output_param.file_name is not given: name the file to write")
        self.file = Path(spec.hdf5_output_param.file_name)
        self.begun = False
        same_batch(bottoms[0], bottoms[1])

    def forward(self, data: Tensor, label: Tensor) -> tuple[()]:
        same_batch(data.shape, label.shape)
        if data.is_meta:
            return ()
        try:
            with h5py.File(self.file, "r+" if self.begun else "w") as file:
                for name, rows in (("data", data), ("label", label)):
                    append(file, name, rows)
        except OSError as error:
            raise ValueError(f"{self.file}: cannot be written: {' '.join(str(error).split())[:200]}") from error
        self.begun = True
        return ()


def append(file: h5py.File, name: str, rows: Tensor) -> None:
    """Add rows to a dataset; the first ones make it, float32 or float64."""
    values = rows.detach().to("cpu", rows.dtype if rows.dtype == torch.float64 else torch.float32).numpy()
    if name not in file:
        file.create_dataset(name, data=values, maxshape=(None, *values.shape[1:]), chunks=True)
        return
    dataset = file[name]
    if dataset.shape[1:] != values.shape[1:]:
        raise ValueError(
            f"{file.filename}: rows of {text(values.shape[1:])} after rows of {text(dataset.shape[1:])} in "
            f"'{name}'; one file holds rows of one shape"
        )
    start = len(dataset)
    dataset.resize(start + len(values), axis=0)
    dataset[start:] = values
