"""The zoo's nets against the same nets written in torch by hand, in the layout that suits the device best.

`python -m tests.benchmarks.bench_net [NET ...]`: forward, and forward with backward, batch 32, on the CPU with two
threads or on the GPU; the norm layers' share of CaffeNet; building and loading. Ours and the peer's take turns.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from ops import net as nets
from ops import weights, zoo
from tests.benchmarks.common import PROJECT, row, workplace
from tests.benchmarks.torch_nets import PEERS

BATCH, THREADS, ROUNDS, WARM = 32, 2, 7, 2
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def turns(*runs: Callable[[], object]) -> list[float]:
    """Milliseconds of each, the median of rounds in which they take turns."""
    spent: list[list[float]] = [[] for _ in runs]
    for turn in range(WARM + ROUNDS):
        for times, run in zip(spent, runs, strict=True):
            wait()
            began = time.perf_counter()
            run()
            wait()
            if turn >= WARM:
                times.append(1000 * (time.perf_counter() - began))
    return [statistics.median(times) for times in spent]


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def forward(module: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return module()

    return run


def compare(name: str) -> None:
    """Forward in TEST, forward with backward in TRAIN."""
    kind, side = PEERS[name]
    peer = kind().to(DEVICE)
    if DEVICE == "cpu":
        peer = peer.to(memory_format=torch.channels_last)
    x = torch.randn(BATCH, 3, side, side, device=DEVICE)
    label = torch.randint(0, 1000, (BATCH,), device=DEVICE)
    shapes = {"data": (BATCH, 3, side, side), "label": (BATCH,)}
    test = nets.load(zoo.find(name), "TEST", inputs={"data": shapes["data"]}, device=DEVICE)
    train = nets.load(zoo.find(name, "train_val.prototxt"), "TRAIN", inputs=shapes, device=DEVICE)
    peer.eval()
    ours, theirs = turns(forward(lambda: test(data=x)), forward(lambda: torch.softmax(peer(x), 1)))
    row(f"{name} forward", ours, theirs, "ms", "(at most 1.03)")
    peer.train()

    def theirs_step() -> None:
        peer.zero_grad()
        peer.loss(x, label).backward()

    def our_step() -> None:
        train.zero_grad()
        train.loss(train(data=x, label=label.float())).backward()

    ours, theirs = turns(our_step, theirs_step)
    row(f"{name} forward + backward", ours, theirs, "ms", "(at most 1.03)")


def norms() -> None:
    """What the two norm layers of CaffeNet take of a pass."""
    net = nets.load(zoo.find("caffenet"), "TEST", inputs={"data": (BATCH, 3, 227, 227)}, device=DEVICE)
    x = torch.randn(BATCH, 3, 227, 227, device=DEVICE)
    with torch.no_grad():
        blobs = net(data=x)
    bottoms = [blobs[name].detach().requires_grad_() for name in ("pool1", "pool2")]
    layers = [layer for layer in net.layers if layer.spec.type == "LRN"]

    def both() -> list[torch.Tensor]:
        return [layer(bottom) for layer, bottom in zip(layers, bottoms, strict=True)]

    def step() -> None:
        for top in both():
            top.backward(top.detach())

    def whole() -> None:
        net.zero_grad()
        net(data=x)["prob"].sum().backward()

    part, all_ = turns(forward(both), forward(lambda: net(data=x)))
    row("caffenet's norm layers in its forward", part, all_, "ms", "(under 0.15)")
    part, all_ = turns(step, whole)
    row("caffenet's norm layers in forward + backward", part, all_, "ms", "(under 0.15)")


def building() -> None:
    """A net of 200 layers and 100 MB of weights, in a process of its own: seconds, and memory beside the weights."""
    with workplace("net") as folder:
        file = folder / "resnet50.caffemodel"
        weights.write(nets.load(zoo.find("resnet50")), file)
        command = [sys.executable, "-m", "tests.benchmarks.bench_net", "--load", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT)
        seconds, memory = map(float, done.stdout.split())
        size = file.stat().st_size
    print(f"a net of 228 layers built, {size / 1e6:,.0f} MB of weights loaded: {seconds:.2f} s (under 1.5)")
    row("its peak memory, beside the size of the weights", memory / 1e6, size / 1e6, "MB", "(under 2.2)")


def load(file: str) -> None:
    """Print the seconds that building and loading take, and the bytes that they add to the process."""
    nets.load(zoo.find("lenet"))  # what torch and the layers take by themselves
    before = peak()
    began = time.perf_counter()
    nets.load(zoo.find("resnet50"), weights=file)
    seconds = time.perf_counter() - began
    print(seconds, peak() - before)


def peak() -> int:
    """The most bytes that this program has had in memory (getrusage would count its parent's)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def main(arguments: list[str]) -> None:
    torch.set_num_threads(THREADS)
    if arguments[:1] == ["--load"]:
        return load(arguments[1])
    print(f"torch {torch.__version__}, {DEVICE}, batch {BATCH}; ours, by hand, ratio of times")
    for name in arguments or PEERS:
        compare(name)
    if not arguments:
        norms()
        building()
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
