"""What commands that run a net need: the net that is meant, the device, its weights."""

from __future__ import annotations

import os

import torch

from ops.layers.registry import Phase
from ops.net import Net
from pipelines.stages.netshow import Asked, net_file


def ask(what: str, phase: Phase, *, stage: str = "", level: int = 0) -> Asked:
    """The net that a path or a name of the zoo means; ValueError where it is something else."""
    file = net_file(what)
    if file is None:
        found = "a folder" if os.path.isdir(what) else "no net" if os.path.exists(what) else "no file"
        raise ValueError(
            f"{what}: {found}; expected a prototxt, a .caffemodel or a net of the zoo, as caffenet/train_val"
        )
    stages = [name.strip() for name in stage.split(",") if name.strip()]
    return Asked(file, phase, stages=stages, level=level)


def device_of(word: str) -> torch.device:
    """cpu, cuda or cuda:1; ValueError where this machine has none."""
    try:
        device = torch.device(word)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {word}: expected cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            found = f"has {count} GPUs, counted from 0" if count else "has no GPU that torch can use"
            raise ValueError(f"--device {word}: this machine {found}")
    return device


def device_name(device: torch.device) -> str:
    """As "NVIDIA H100 80GB HBM3" or "CPU, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() != 1)}"


def open_net(asked: Asked, device: torch.device, weights: str | None) -> Net:
    """The net with the weights of files, of the .caffemodel that it is itself, or else its fillers'."""
    own = str(asked.file) if asked.saved else None
    return asked.load(device=device, weights=weights or own)
