"""Images a second of the feed, beside bare loops, torch's DataLoader and plain Ray Data over the same records.

Raw 256x256 records in an LMDB on a memory file system, crop 227, mirror, mean file, batches of 256; the same pictures
as JPEG records; a list of JPEG files of about 400x530, cropped as they are. BENCH_COUNT records, BENCH_RUNS alternating
runs of which the median counts.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import lmdb
import numpy as np
import torch
from google.protobuf import text_format

from cluster.quiet import quiet_ray
from ops import image
from ops.feed.feed import FeedOptions, open_feed
from ops.proto.caffe_pb2 import Datum, LayerParameter
from ops.records import binaryproto, datum
from ops.records.lmdb import Writer
from pipelines.stages.cluster_feed import Window
from tests.benchmarks.common import row, workplace
from tests.benchmarks.pictures import crops

COUNT = int(os.environ.get("BENCH_COUNT", "3072"))
RUNS = int(os.environ.get("BENCH_RUNS", "7"))
BATCH, SIDE, CROP = 256, 256, 227
PIXELS = 3 * SIDE * SIDE
HEAD = len(datum.raw(np.zeros((SIDE, SIDE, 3), np.uint8), 0)) - PIXELS - 4  # bytes before the pixels


def prepare(folder: Path) -> None:
    """raw/ and jpeg/ LMDBs, files/ with list.txt, mean.binaryproto."""
    files = crops(folder / "files", count=512)
    pictures = [cv2.resize(cv2.imread(str(file)), (SIDE, SIDE), interpolation=cv2.INTER_AREA) for file in files]
    encoded = [image.encode(picture, "jpg") for picture in pictures]
    with Writer(folder / "raw") as raw, Writer(folder / "jpeg") as jpeg:
        for i in range(COUNT):
            raw.put(b"%08d" % i, datum.raw(pictures[i % len(pictures)], i % 100))
            jpeg.put(b"%08d" % i, datum.encoded(encoded[i % len(encoded)], i % 100))
    lines = [f"{files[i % len(files)]} {i % 100}\n" for i in range(COUNT)]
    (folder / "list.txt").write_text("".join(lines))
    mean = np.mean(pictures, axis=0).transpose(2, 0, 1).astype(np.float32)
    binaryproto.write(folder / "mean.binaryproto", np.ascontiguousarray(mean))


# -- what is measured: each gives batches without end ------------------------------------------------------------------


def feed(
    folder: Path, source: str, threads: int, options: FeedOptions | None = None, *, where: str = "worker"
) -> Iterator[Any]:
    kind, message, mean = "Data", "data_param", f'mean_file: "{folder}/mean.binaryproto"'
    if source == "list.txt":  # pictures of many sizes have no mean image
        kind, message, mean = "ImageData", "image_data_param", "mean_value: 104 mean_value: 117 mean_value: 123"
    spec = text_format.Parse(
        f'name: "data" type: "{kind}" top: "data" top: "label" {message} {{ source: "{folder / source}" '
        f"batch_size: {BATCH} }} transform_param {{ crop_size: {CROP} mirror: true {mean} }}",
        LayerParameter(),
    )
    elsewhere = None
    if where == "cluster":
        start_ray()
        elsewhere = partial(Window, world=1)
    with open_feed(spec, "TRAIN", seed=1, threads=threads, options=options, elsewhere=elsewhere) as opened:
        if options is not None and options.arithmetic == "device":  # what CUDA is sent: the rest is the device's
            while True:
                yield opened.loader.next()
        yield from opened


def drawn() -> tuple[int, int, bool]:
    top, left = np.random.randint(SIDE - CROP + 1, size=2).tolist()
    return top, left, np.random.random() < 0.5


def bare(folder: Path, *, floats: bool) -> Iterator[Any]:
    """What numpy does in a few lines: read, crop, mirror, subtract, into the same two batches."""
    mean = binaryproto.read(folder / "mean.binaryproto")
    outs = [np.zeros((BATCH, 3, CROP, CROP), np.float32 if floats else np.uint8) for _ in range(2)]
    records = endless(folder / "raw")
    while True:
        for out in outs:
            for place in range(BATCH):
                top, left, flip = drawn()
                pixels = np.frombuffer(next(records), np.uint8, PIXELS, HEAD).reshape(3, SIDE, SIDE)
                window = pixels[:, top : top + CROP, left : left + CROP]
                if floats:
                    window = window.astype(np.float32)
                    window -= mean[:, top : top + CROP, left : left + CROP]
                out[place] = window[:, :, ::-1] if flip and floats else window
            yield out


def bare_decoding(folder: Path, source: str) -> Iterator[Any]:
    """Nothing but the decoder."""
    if source == "jpeg":
        records = (bytes(datum.parse(record).data) for record in endless(folder / "jpeg"))
    else:
        names = [line.split()[0] for line in (folder / source).read_text().splitlines()]
        records = (Path(name).read_bytes() for _ in iter(int, 1) for name in names)
    while True:
        for _ in range(BATCH):
            cv2.imdecode(np.frombuffer(next(records), np.uint8), cv2.IMREAD_COLOR)
        yield None


def endless(folder: Path) -> Iterator[Any]:
    with lmdb.open(str(folder), readonly=True, lock=False, readahead=False) as env, env.begin(buffers=True) as txn:
        while True:
            for _, value in txn.cursor():
                yield value


def number(value: bytes, mean: np.ndarray) -> tuple[np.ndarray, int]:
    """A record as scripts read it: protobuf, numpy."""
    record = Datum.FromString(value)
    top, left, flip = drawn()
    pixels = np.frombuffer(record.data, np.uint8).reshape(3, SIDE, SIDE)
    window = pixels[:, top : top + CROP, left : left + CROP].astype(np.float32)
    window -= mean[:, top : top + CROP, left : left + CROP]
    return np.ascontiguousarray(window[:, :, ::-1]) if flip else window, record.label


class Records(torch.utils.data.Dataset):
    """An LMDB as people write it for DataLoader."""

    def __init__(self, folder: Path):
        self.folder, self.env = folder, None
        self.mean = binaryproto.read(folder / "mean.binaryproto")

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if self.env is None:
            self.env = lmdb.open(str(self.folder / "raw"), readonly=True, lock=False, readahead=False)
        with self.env.begin(buffers=True) as txn:
            return number(txn.get(b"%08d" % index), self.mean)


def data_loader(folder: Path) -> Iterator[Any]:
    loader = torch.utils.data.DataLoader(
        Records(folder), BATCH, shuffle=True, num_workers=2, persistent_workers=True, drop_last=True
    )
    while True:
        yield from loader


def start_ray() -> Any:
    ray = quiet_ray()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
    return ray


def ray_batches(folder: Path) -> Iterator[Any]:
    ray = start_ray()

    def read(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        records = Records(folder)
        made = [records[int(index)] for index in rows["id"]]
        return {"data": np.stack([one for one, _ in made]), "label": np.array([label for _, label in made])}

    rows = ray.data.range(COUNT, override_num_blocks=max(1, COUNT // BATCH)).map_batches(read, batch_size=BATCH)
    while True:
        yield from rows.iter_torch_batches(batch_size=BATCH, drop_last=True)


# -- measuring ---------------------------------------------------------------------------------------------------------


def rate(make: Callable[[], Iterator[Any]], seconds: float = 1.5) -> float:
    """Images a second, after an epoch that maps the file's pages (where that is over in two seconds)."""
    batches, began = make(), time.perf_counter()
    for number in range(COUNT // BATCH):
        next(batches)
        if number >= 3 and time.perf_counter() - began > 2:
            break
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        next(batches)
        done += BATCH
    found = done / (time.perf_counter() - began)
    batches.close()
    return found


def in_processes(count: int, make: Callable[[], Iterator[Any]]) -> float:
    """The rate of `count` processes together, each by itself."""
    with multiprocessing.get_context("fork").Pool(count) as pool:
        return sum(pool.map(rate, [make] * count, chunksize=1))


def rates(cores: int, **kinds: Callable[[], float]) -> dict[str, float]:
    """The median rate of each, measured one after the other, again and again, on so many cores."""
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(every)[:cores])
    try:
        found = [{name: measure() for name, measure in kinds.items()} for _ in range(RUNS)]
    finally:
        os.sched_setaffinity(0, every)
    return {name: statistics.median(one[name] for one in found) for name in kinds}


def one_core(folder: Path) -> None:
    def ours(source: str, options: FeedOptions | None = None) -> Callable[[], float]:
        return partial(rate, partial(feed, folder, source, 1, options))

    def by_numpy(floats: bool) -> Callable[[], float]:
        return partial(rate, partial(bare, folder, floats=floats))

    def decoder(source: str) -> Callable[[], float]:
        return partial(rate, partial(bare_decoding, folder, source))

    device = FeedOptions(arithmetic="device")
    found = rates(1, ours=ours("raw"), bare=by_numpy(True), cut=ours("raw", device), bare_cut=by_numpy(False))
    row("raw to float32, one core, bare numpy", found["ours"], found["bare"], "images/s", "(at least 0.9)")
    row("raw to uint8 crops, one core, bare numpy", found["cut"], found["bare_cut"], "images/s")
    found = rates(1, ours=ours("list.txt"), bare=decoder("list.txt"))
    row("JPEG files, 400x530, one core, bare decoding", found["ours"], found["bare"], "images/s", "(at least 0.9)")
    found = rates(1, ours=ours("jpeg"), cut=ours("jpeg", device), bare=decoder("jpeg"))
    row("JPEG records, 256x256, the same", found["ours"], found["bare"], "images/s")
    row("JPEG records to uint8 crops, the same", found["cut"], found["bare"], "images/s", "(at least 0.9)")


def two_cores(folder: Path) -> None:
    def ours(source: str, threads: int) -> Callable[[], float]:
        return partial(rate, partial(feed, folder, source, threads))

    decoder = partial(bare_decoding, folder, "jpeg")
    found = rates(
        2,
        one=ours("jpeg", 1),
        two=ours("jpeg", 2),
        bare=partial(in_processes, 1, decoder),
        bares=partial(in_processes, 2, decoder),
    )
    row("JPEG records, two threads, one thread", found["two"], found["one"], "images/s", "(at least 1.85)")
    row("bare decoding, two processes, one process", found["bares"], found["bare"], "images/s")
    found = rates(2, one=ours("raw", 1), two=ours("raw", 2), loader=partial(rate, partial(data_loader, folder)))
    row("raw to float32, two threads, one thread", found["two"], found["one"], "images/s", "(at least 1.85)")
    row("raw, two threads, DataLoader of 2 workers", found["two"], found["loader"], "images/s")
    found = rates(2, two=ours("raw", 2), ray=partial(rate, partial(ray_batches, folder)))
    row("raw, two threads, plain Ray Data", found["two"], found["ray"], "images/s")
    apart = partial(rate, partial(feed, folder, "list.txt", 1, where="cluster"))
    found = rates(2, two=ours("list.txt", 2), tasks=apart)
    row("JPEG files, data.where: cluster, two threads", found["tasks"], found["two"], "images/s")


def main() -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with workplace("feed") as folder:
        prepare(folder)
        print(f"feed: {COUNT:,} records of 256x256 on {folder.parent}; {os.cpu_count()} cores", flush=True)
        one_core(folder)
        two_cores(folder)


if __name__ == "__main__":
    main()
