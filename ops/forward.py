"""One forward of many items, in pieces as large as memory allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Blobs = dict[str, Tensor]


class Pieces:
    """Runs `forward` on batches; where memory runs out it halves them, and stays at what fitted."""

    def __init__(self, forward: Callable[[Blobs], Mapping[str, Tensor]]):
        self.forward = forward
        self.most: int | None = None  # items at a time; None: memory never ran out

    def __call__(self, blobs: Blobs) -> Blobs:
        """Every blob of `forward`, for all items. MemoryError where not even one item fits."""
        count = len(next(iter(blobs.values())))
        found: list[Mapping[str, Tensor]] = []
        done = 0
        while done < count:
            size = min(self.most or count, count - done)
            try:
                found.append(self.forward({name: blob[done : done + size] for name, blob in blobs.items()}))
                done += size
            except (MemoryError, torch.OutOfMemoryError) as error:
                if size == 1:
                    told = str(error).partition("\n")[0]
                    raise MemoryError(told if "out of memory" in told else f"out of memory ({told})") from error
                self.most = size // 2
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
        if len(found) == 1:
            return dict(found[0])
        return {name: torch.cat([one[name] for one in found]) for name in found[0]}
