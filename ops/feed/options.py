"""What a feed can do beyond the data layer's own text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from ops import augment as augmenting
from ops.image import MAX_PIXELS
from ops.names import unknown

ARITHMETIC = ("auto", "host", "device")


@dataclass(frozen=True)
class FeedOptions:
    """Everything off: a feed does what the layer says."""

    shuffle: bool | Literal["blocks"] | None = None
    """whether each epoch has an order of its own; "blocks" reads in long pieces; None: as the layer says"""
    block: int = 1024
    """consecutive records that "blocks" keeps together"""
    balance: bool = False
    """every class as often as any other; records of a rare one come up more often"""
    augment: str | augmenting.Augment = ""
    """small random changes, as `convert --augment`: rotate=10,translate=0.05,..."""
    labels: str = "caffe"
    """how ImageData reads its labels: caffe, int, float or vector:N"""
    arrays: Mapping[str, Any] = field(default_factory=dict)
    """the records of MemoryData and Input: top -> array whose axis 0 counts the records"""
    batch: int | None = None
    """size of the whole batch instead of the layer's"""
    max_bad: float = 0.0
    """share of the records that may be unreadable: the next good one in the order takes the place of such a one"""
    all_formats: bool = False
    """read pictures that Caffe's OpenCV could not"""
    max_pixels: int = MAX_PIXELS
    """a picture that announces more is bad"""
    arithmetic: str = "auto"
    """where crops become numbers: "host", "device", or "auto": on the device where that is CUDA"""

    def __post_init__(self) -> None:
        if self.shuffle not in (None, True, False, "blocks"):
            raise ValueError(f"shuffle: found {self.shuffle!r}, expected True, False or 'blocks'")
        if self.block < 1:
            raise ValueError(f"block: found {self.block}, expected 1 or more records")
        if not 0 <= self.max_bad < 1:
            raise ValueError(f"max_bad: found {self.max_bad}, expected a share from 0 to below 1")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"batch: found {self.batch}, expected 1 or more")
        if self.arithmetic not in ARITHMETIC:
            raise ValueError(unknown("arithmetic", self.arithmetic, ARITHMETIC))
        if self.balance and self.shuffle == "blocks":
            raise ValueError("balance takes records from everywhere: it does not go with shuffle 'blocks'")
        _ = self.augmentation

    @cached_property
    def augmentation(self) -> augmenting.Augment | None:
        """The augmentation, where it changes anything."""
        found = augmenting.parse(self.augment) if isinstance(self.augment, str) else self.augment
        return None if found == augmenting.Augment() else found
