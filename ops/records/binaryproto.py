"""Mean images as BlobProto files: what compute_image_mean writes and `mean_file` names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ops.proto import binary, caffe_pb2


def write(file: Path | str, values: NDArray[np.float32]) -> None:
    """Write (C, H, W) float32 values: num 1, channels, height, width (the old fields, no shape), data; as Caffe."""
    channels, height, width = values.shape
    blob = caffe_pb2.BlobProto(num=1, channels=channels, height=height, width=width)
    blob.data.extend(np.ascontiguousarray(values, np.float32).ravel())
    binary.write(Path(file), blob)


def read(file: Path | str) -> NDArray[np.float32]:
    """(C, H, W) float32 values of a BlobProto file, its shape given by the old fields or the new one."""
    blob = binary.read(Path(file), caffe_pb2.BlobProto)
    values = np.array(blob.data if blob.data else blob.double_data, np.float32)
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else (blob.num, blob.channels, blob.height, blob.width)
    flat = tuple(side for side in shape[:-3] if side != 1)
    if len(shape) < 3 or flat or values.size != int(np.prod(shape)):
        found = f"{values.size} values in the shape {'x'.join(map(str, shape)) or '()'}"
        raise ValueError(f"{file}: not a mean image: {found}; expected 1 x channels x height x width")
    return values.reshape(shape[-3:])
