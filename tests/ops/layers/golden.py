"""Cases of real Caffe: a net of one layer `l`, its inputs, blobs, outputs and gradients (tests/golden/layers)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from ops import net as nets

FOLDER = Path(__file__).resolve().parents[2] / "golden/layers"


def names(*prefixes: str) -> list[str]:
    """The cases whose names start so; all without prefixes."""
    found = sorted(path.stem for path in FOLDER.glob("*.prototxt"))
    return [name for name in found if not prefixes or name.startswith(prefixes)]


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """||ours - theirs|| / max(||theirs||, 1e-6 sqrt n); where Caffe has nan, we must."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, f"shape {ours.shape}, Caffe's {theirs.shape}"
    assert np.array_equal(np.isnan(ours), np.isnan(theirs))
    ours, theirs = np.nan_to_num(ours), np.nan_to_num(theirs)
    return float(np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-6 * max(theirs.size, 1) ** 0.5))


def differences(name: str, folder: Path = FOLDER, *, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """What is compared (out/y, din/x, dparam/0, param_after/0, ...) -> relative error against Caffe."""
    about = json.loads((folder / f"{name}.json").read_text())
    case = dict(np.load(folder / f"{name}.npz"))
    net = nets.load(folder / f"{name}.prototxt", about["phase"]).to(dtype)

    def group(prefix: str) -> dict[str, np.ndarray]:
        return {key.partition("/")[2]: value for key, value in case.items() if key.startswith(prefix + "/")}

    blobs = net.params.get("l", [])
    with torch.no_grad():
        for index, value in group("param").items():
            blobs[int(index)].copy_(torch.from_numpy(value))
    inputs = {key: torch.from_numpy(value).to(dtype) for key, value in group("in").items()}
    for key in group("din"):
        inputs[key].requires_grad_()
    before = {key: value.detach().clone() for key, value in inputs.items()}
    outputs = net(**inputs)
    assert all(torch.equal(inputs[key].detach(), value) for key, value in before.items()), "an input was modified"
    errors = {f"out/{key}": distance(outputs[key].detach().numpy(), value) for key, value in group("out").items()}
    errors |= {f"shape/{key}": float(net.shapes[key] != tuple(value.shape)) for key, value in group("out").items()}
    for index, value in group("param_after").items():
        errors[f"param_after/{index}"] = distance(blobs[int(index)].detach().numpy(), value)
    if not about["backward"]:
        return errors
    if about["loss"]:
        net.loss(outputs).backward()
    else:
        fed = {key: torch.from_numpy(value).to(dtype) for key, value in group("dout").items()}
        fed = {key: value for key, value in fed.items() if outputs[key].requires_grad}
        torch.autograd.backward([outputs[key] for key in fed], list(fed.values()))
    for key, value in group("din").items():
        grad = inputs[key].grad
        errors[f"din/{key}"] = distance(np.zeros_like(value) if grad is None else grad.numpy(), value)
    for index, value in group("dparam").items():
        grad = blobs[int(index)].grad
        errors[f"dparam/{index}"] = distance(np.zeros_like(value) if grad is None else grad.numpy(), value)
    return errors
