"""The peers: what a user would write by hand.

`python -m tests.benchmarks.peers bare|usual LIST ROOT OUT [PROCESSES]`
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

import cv2
import lmdb
import numpy as np

SIZE = 256


def lines(file: str) -> list[tuple[str, int]]:
    rows = (line.rpartition(" ") for line in Path(file).read_text().splitlines())
    return [(path, int(label)) for path, _, label in rows]


def bare(number: int, rows: list[tuple[int, str, int]], root: str, out: str) -> None:
    """One bare process: read, decode, resize, Datum, put, commit every 256, sync. No checksum."""
    from ops.proto import caffe_pb2

    cv2.setNumThreads(1)
    folder = Path(out) / f"part-{number}"
    folder.mkdir(parents=True)
    env = lmdb.open(str(folder), map_size=64 << 30, sync=False, metasync=False)
    progress = os.open(folder / "progress", os.O_CREAT | os.O_WRONLY)
    txn = env.begin(write=True)
    for done, (index, path, label) in enumerate(rows, 1):
        with open(root + path, "rb") as file:
            image = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR)
        image = cv2.resize(image, (SIZE, SIZE))
        datum = caffe_pb2.Datum(channels=3, height=SIZE, width=SIZE, label=label, encoded=False)
        datum.data = image.transpose(2, 0, 1).tobytes()
        txn.put(f"{index:08d}_{path}".encode(), datum.SerializeToString(), append=True)
        if done % 256 == 0:
            txn.commit()
            txn = env.begin(write=True)
        if done % 16 == 0 or done == len(rows):
            os.pwrite(progress, b"%-12d" % done, 0)
    txn.commit()
    env.sync(True)
    env.close()


def bare_processes(list_file: str, root: str, out: str, processes: int) -> None:
    rows = [(index, *row) for index, row in enumerate(lines(list_file))]
    cuts = [len(rows) * i // processes for i in range(processes + 1)]
    parts = [
        multiprocessing.Process(target=bare, args=(i, rows[cuts[i] : cuts[i + 1]], root, out)) for i in range(processes)
    ]
    for part in parts:
        part.start()
    for part in parts:
        part.join()
    if any(part.exitcode for part in parts):
        sys.exit("a bare process failed")


def usual(list_file: str, root: str, out: str, processes: int) -> None:
    """The usual Ray Data script: decode in map_batches, write in the driver."""
    import ray

    from ops.proto import caffe_pb2

    def decode(batch: dict) -> dict:
        cv2.setNumThreads(1)
        images = [cv2.resize(cv2.imread(root + path), (SIZE, SIZE)) for path in batch["path"]]
        return {**batch, "image": np.stack(images)}

    ray.init(address="local", num_cpus=processes, include_dashboard=False, log_to_driver=False, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"index": index, "path": path, "label": label} for index, (path, label) in enumerate(lines(list_file))]
    dataset = ray.data.from_items(rows).map_batches(decode, batch_size=64)
    folder = Path(out)
    folder.mkdir(parents=True)
    env = lmdb.open(str(folder), map_size=64 << 30, sync=False, metasync=False)
    progress = os.open(folder / "progress", os.O_CREAT | os.O_WRONLY)
    txn = env.begin(write=True)
    for done, row in enumerate(dataset.iter_rows(), 1):
        datum = caffe_pb2.Datum(channels=3, height=SIZE, width=SIZE, label=row["label"], encoded=False)
        datum.data = row["image"].transpose(2, 0, 1).tobytes()
        txn.put(f"{row['index']:08d}_{row['path']}".encode(), datum.SerializeToString())
        if done % 256 == 0:
            txn.commit()
            txn = env.begin(write=True)
        if done % 16 == 0:
            os.pwrite(progress, b"%-12d" % done, 0)
    txn.commit()
    env.sync(True)
    env.close()


if __name__ == "__main__":
    kind, list_file, root, out, *more = sys.argv[1:]
    {"bare": bare_processes, "usual": usual}[kind](list_file, root, out, int(more[0]) if more else 2)
