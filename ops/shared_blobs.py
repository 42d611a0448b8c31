"""The blobs of a net as plain arrays, to be handed to other processes and used there where they lie.

arrays = blobs_of(net)                  # in one process
use_blobs(other, arrays, device)        # in another: a net of the same definition, without a copy where it is the CPU
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ops.memory import keep_freed
from ops.net import Net, layout

Arrays = list[tuple[int, int, bool, NDArray[Any]]]  # layer, blob, channels last?, contiguous values


def blobs_of(net: Net) -> Arrays:
    """Every blob that is a layer's own, in the order in which its numbers lie in memory."""
    out: Arrays = []
    for number, layer in enumerate(net.layers):
        for index, blob in enumerate(layer.blobs):
            if (number, index) in net.shared:
                continue
            values = blob.detach().cpu()
            last = values.dim() == 4 and not values.is_contiguous()
            out.append((number, index, last, (values.permute(0, 2, 3, 1) if last else values).contiguous().numpy()))
    return out


def use_blobs(net: Net, arrays: Arrays, device: torch.device) -> None:
    """Give a net that is still without memory these blobs; arrays may be read-only: nothing is trained here."""
    net.home = device
    if device.type == "cpu":
        keep_freed()
    net.memory_format = layout(net.layers, device)
    for number, index, last, values in arrays:
        blob = as_tensor(values)
        blob = blob.permute(0, 3, 1, 2) if last else blob
        if blob.dim() == 4:
            blob = blob.to(device, memory_format=net.memory_format)
        own = net.layers[number].blobs[index]
        blob = blob.to(device)
        net.layers[number].set_blob(index, nn.Parameter(blob, False) if isinstance(own, nn.Parameter) else blob)
    net.join()


def as_tensor(values: NDArray[Any]) -> Tensor:
    """A tensor over the array's memory, which may be read-only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(np.asarray(values))
