"""The options of commands that run a trained net over pictures: which net, and how pixels become its input."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pipelines.job import Job


@dataclass(frozen=True, kw_only=True)
class NetOptions(Job):
    model: Path | None = None
    """prototxt of a net, or a net of the zoo by its name; default: the run's"""
    weights: str | None = None
    """.caffemodel or .h5, several with commas; default: the run's best, else its newest"""
    run_folder: Annotated[Path | None, tyro.conf.arg(name="run", aliases=["--run-folder"])] = None
    """folder of a run, for net, weights, class names and preprocessing"""
    oversample: bool = False
    """mean over ten crops of each image: corners and centre, each mirrored too"""
    center_only: bool = False
    """the centre crop alone, which is the default here"""
    images_dim: Annotated[str | None, tyro.conf.arg(metavar="H,W")] = None
    """resize every image to height,width first; default with one of the next four: 256,256"""
    mean_file: str | None = None
    """mean to subtract, as Caffe's classify.py: .npy, .binaryproto, or values as 104,117,123"""
    raw_scale: float | None = None
    """multiply pixels of 0..1 by this before the mean; default with one of the others: 255"""
    input_scale: float | None = None
    """multiply by this after the mean; default with one of the others: 1"""
    channel_swap: str | None = None
    """order of the channels, of RGB; default with one of the others: 2,1,0, which is BGR"""
    gray: bool = False
    """read as one grey channel"""
    batch_size: int | None = None
    """images of one forward; default: what suits the device"""
    gpu: str | None = None
    """all, numbers with commas, or none: the CPU; default: all there are"""
    stage: str | None = None
    """the net's stages, with commas"""
    level: int = 0
    """the net's level"""
    code: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="FILE|DIR")] = ()
    """Python file or folder with layers of your own; may be given several times"""
    max_pixels: int = 100_000_000
    """pictures that announce more pixels are bad"""

    def __post_init__(self) -> None:
        if self.oversample and self.center_only:
            raise ValueError("--oversample and --center-only: give one of them")
        for name in ("max_pixels", "batch_size", "limit", "top"):
            value = getattr(self, name, None)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} {value}: expected 1 or more")
