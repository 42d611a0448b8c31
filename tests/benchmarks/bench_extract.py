"""Images a second of `cortado extract`, beside a bare torch loop, a bare decoder, and plain Ray Data, in one run.

`python -m tests.benchmarks.bench_extract [NET ...]`: CaffeNet and ResNet-50 of the zoo with random weights, 256x256 raw
records in an LMDB on a memory file system, and JPEG files of about 400x530. BENCH_COUNT images, BENCH_RUNS turns of
which the median counts; everything on BENCH_CORES cores. Rates of commands are those between 10 and 90 % of the images.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch

from ops import net as nets
from ops import weights, zoo
from ops.records import datum
from ops.records.lmdb import Writer
from tests.benchmarks.common import cortado, row, timed, workplace
from tests.benchmarks.pictures import crops
from tests.benchmarks.torch_nets import PEERS

COUNT = int(os.environ.get("BENCH_COUNT", "1536"))
RUNS = int(os.environ.get("BENCH_RUNS", "3"))
CORES = int(os.environ.get("BENCH_CORES", "2"))
SIDE, FILES = 256, 256
BLOBS = {"caffenet": "fc7", "resnet50": "pool5"}
CAFFE = 100.0  # CaffeNet images a second of real Caffe on two quiet cores


def prepare(folder: Path, name: str) -> None:
    """records/ (raw), photos/ with list.txt, NET.prototxt with a transform_param, NET.caffemodel."""
    files = crops(folder / "photos", count=FILES)
    (folder / "list.txt").write_text("".join(f"{files[i % FILES]} {i % 100}\n" for i in range(COUNT)))
    if not (folder / "records").exists():
        pictures = [cv2.resize(cv2.imread(str(file)), (SIDE, SIDE), interpolation=cv2.INTER_AREA) for file in files]
        with Writer(folder / "records") as out:
            for i in range(COUNT):
                out.put(b"%08d" % i, datum.raw(pictures[i % FILES], i % 100))
    side = PEERS[name][1]
    text = zoo.find(name).read_text()
    start = text.index("layer")
    end = text.index("layer", start + 5)
    data = (
        f'layer {{ name: "data" type: "Data" top: "data" top: "label" transform_param {{ crop_size: {side} '
        "mean_value: 104 mean_value: 117 mean_value: 123 } }\n"
    )
    (folder / f"{name}.prototxt").write_text(text[:start] + data + text[end:])
    weights.write(nets.load(zoo.find(name)), folder / f"{name}.caffemodel")


# -- peers -------------------------------------------------------------------------------------------------------------


def bare_loop(name: str, seconds: float = 6.0) -> float:
    """The net written in torch by hand, data in memory; of a few batch sizes and layouts the best one."""
    torch.set_num_threads(CORES)
    kind, side = PEERS[name]
    best = 0.0
    for layout in (torch.channels_last, torch.contiguous_format):
        net = kind().eval().to(memory_format=layout)
        for batch in (16, 32, 64):
            x = torch.randn(batch, 3, side, side).to(memory_format=layout)
            with torch.inference_mode():
                net(x)
                done, began = 0, time.perf_counter()
                while time.perf_counter() - began < seconds / 6:
                    net(x)
                    done += batch
            best = max(best, done / (time.perf_counter() - began))
    return best


def decode(files: list[str], seconds: float) -> float:
    cv2.setNumThreads(1)
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        cv2.imdecode(np.frombuffer(Path(files[done % len(files)]).read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        done += 1
    return done / (time.perf_counter() - began)


def bare_decoder(folder: Path) -> float:
    """Nothing but the decoder, a process a core."""
    files = sorted(map(str, (folder / "photos").glob("*.jpg")))
    with multiprocessing.get_context("spawn").Pool(CORES) as pool:
        return sum(pool.starmap(decode, [(files, 2.0)] * CORES))


def ray_data(name: str, folder: Path) -> float:
    """Batch inference as Ray's documentation has a user write it: read_images, map_batches with a class, Parquet."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_extract", "--ray-data", name, str(folder)]
    return float(timed(command).result["rate"])


def plain_ray_data(name: str, folder: Path) -> None:
    import ray

    from cluster.quiet import quiet_ray

    quiet_ray()
    kind, side = PEERS[name]
    mean = np.float32([123, 117, 104])

    class Model:
        def __init__(self) -> None:
            self.net = kind().eval()

        def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            images = batch["image"][:, 14 : 14 + side, 14 : 14 + side].astype(np.float32) - mean
            with torch.inference_mode():
                return {"path": batch["path"], "fc": self.net(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()}

    ray.init(num_cpus=max(2, CORES), include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    count = min(COUNT, 512)
    files = [line.rpartition(" ")[0] for line in (folder / "list.txt").read_text().splitlines()[:count]]
    images = ray.data.read_images(files, size=(SIDE, SIDE), mode="RGB", include_paths=True)
    made = images.map_batches(Model, batch_size=32, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=1)
    made.limit(32).write_parquet(str(folder / "warm"))
    began = time.perf_counter()
    made.write_parquet(str(folder / "out"))
    print(json.dumps({"rate": count / (time.perf_counter() - began)}))


# -- ours --------------------------------------------------------------------------------------------------------------


def ours(name: str, folder: Path, source: str, *more: str) -> dict[str, float]:
    """One command in a fresh process; its result, with the steady rate."""
    out = folder / f"out-{time.monotonic_ns()}"
    command = cortado("extract", "--model", folder / f"{name}.prototxt", "--weights", folder / f"{name}.caffemodel")
    command += ["--blobs", BLOBS[name], "--input", str(folder / source), "--out", str(out), "--json"]
    command += ["--set", f"cpus={CORES}", *more]
    done = timed(command, partial(lines_done, out))
    return {**done.result, "steady": done.steady(COUNT)}


def lines_done(out: Path) -> int:
    total = 0
    for file in (*(out / ".run" / "done").glob("part-*.json"), *(out / ".run" / "attempts").glob("*/progress")):
        try:
            text = file.read_text()
            total += json.loads(text)["lines"] if file.suffix == ".json" else int(text or 0)
        except (OSError, ValueError):
            continue
    return total


def turns(**kinds: Callable[[], float]) -> dict[str, float]:
    """The median of each, measured one after the other, again and again."""
    found = [{name: measure() for name, measure in kinds.items()} for _ in range(RUNS)]
    return {name: statistics.median(one[name] for one in found) for name in kinds}


def compare(name: str, folder: Path) -> None:
    prepare(folder, name)
    last: dict[str, dict[str, float]] = {}

    def rate(source: str) -> float:
        last[source] = ours(name, folder, source)
        return last[source]["steady"]

    found = turns(
        bare=partial(bare_loop, name),
        shards=partial(rate, "records"),
        decoder=partial(bare_decoder, folder),
        jpeg=partial(rate, "list.txt"),
        ray=partial(ray_data, name, folder),
    )
    serial = 1 / (1 / found["decoder"] + 1 / found["bare"])
    row(f"{name} from shards, bare torch loop", found["shards"], found["bare"], "images/s", "(at least 0.93)")
    row(f"{name} from JPEG, bare decode then forward", found["jpeg"], serial, "images/s", "(at least 0.93)")
    row(f"{name} from JPEG, plain Ray Data", found["jpeg"], found["ray"], "images/s", "(at least 1.5)")
    if name == "caffenet":
        row("caffenet from shards, Caffe's forward", found["shards"], CAFFE, "images/s", "(at least 2)")
    for source, one in last.items():
        told = ", ".join(f"{key} {one[key + '_percent']} %" for key in ("decode", "forward", "write"))
        print(f"  {source}: {told} (write under 5 %); {one['limited_by']}", flush=True)


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--ray-data"]:
        return plain_ray_data(arguments[1], Path(arguments[2]))
    with workplace("extract") as folder:
        print(f"extract: {COUNT:,} images on {folder.parent}; {CORES} of {os.cpu_count()} cores", flush=True)
        for name in arguments or BLOBS:
            compare(name, folder)
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
