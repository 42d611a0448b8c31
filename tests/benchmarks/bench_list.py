"""A folder tree of a million files: listed by us, beside two bare processes that walk the same folders with os.scandir.

The peer reads every entry, tells files from folders, counts, and keeps nothing. Ours gives the whole list: paths in the
order of their names, labels, classes. Each run is a new process, without its start and imports; runs alternate, and the
median of the ratios counts. The whole command, with Python's start and the lists written, is printed apart.
"""

from __future__ import annotations

import os
import statistics
import sys
import textwrap
from pathlib import Path

from tests.benchmarks.common import cortado, row, timed, workplace

FOLDERS, FILES = 1000, 1000
ROUNDS = 9
PEER = """
import multiprocessing, os, sys, time

def walk(folders):
    count = 0
    for folder in folders:
        with os.scandir(folder) as entries:
            for entry in entries:
                count += entry.is_file()
    assert count == 1000 * len(folders)

began = time.perf_counter()
folders = [entry.path for entry in os.scandir(sys.argv[1])]
start = multiprocessing.get_context("fork").Process
processes = [start(target=walk, args=(folders[place::2],)) for place in range(2)]
for process in processes:
    process.start()
for process in processes:
    process.join()
assert not any(process.exitcode for process in processes)
print(time.perf_counter() - began)
"""
OURS = """
import sys, time
import ops.inputs.folder
from ops.inputs.listing import open_listing
began = time.perf_counter()
listed = open_listing(sys.argv[1], workers=2)
print(time.perf_counter() - began, len(listed), len(listed.classes))
"""


def make(root: Path) -> None:
    """FOLDERS class folders of FILES empty files, named as ImageNet's validation set is."""
    for number in range(FOLDERS):
        folder = root / f"n{number * 7919 % 10**8:08d}"
        folder.mkdir(parents=True)
        here = os.open(folder, os.O_RDONLY)
        for place in range(FILES):
            os.close(
                os.open(f"ILSVRC2012_val_{number * FILES + place:08d}.JPEG", os.O_CREAT | os.O_WRONLY, dir_fd=here)
            )
        os.close(here)


def peer(root: Path) -> float:
    """Seconds that two bare processes need."""
    return float(timed([sys.executable, "-c", textwrap.dedent(PEER), str(root)]).out)


def ours(root: Path) -> float:
    """Seconds that the list needs, in a new process too."""
    seconds, files, classes = timed([sys.executable, "-c", textwrap.dedent(OURS), str(root)]).out.split()
    assert int(files) == FOLDERS * FILES
    assert int(classes) == FOLDERS
    return float(seconds)


def main() -> None:
    with workplace("list") as folder:
        root = folder / "photos"
        make(root)
        pairs = [(ours(root), peer(root)) for _ in range(ROUNDS)]
        total = FOLDERS * FILES
        print(f"{total:,} files in {FOLDERS:,} folders on {folder.parent}, {os.cpu_count()} CPUs, files/s")
        for mine, theirs in pairs:
            rates = f"ours {total / mine:>12,.0f}   two bare os.scandir {total / theirs:>12,.0f}"
            print(f"  {rates}   ratio {theirs / mine:.2f}")
        median = [statistics.median(side) for side in zip(*pairs, strict=True)]
        row(
            "list of a million files, thousands a second",
            total / median[0] / 1e3,
            total / median[1] / 1e3,
            "k/s",
            "(0.8)",
        )
        print(f"median of the ratios: {statistics.median(theirs / mine for mine, theirs in pairs):.2f}")
        whole = timed([*cortado("list", root, "--out", folder / "lists", "--split", "train=0.8,test=0.2"), "--json"])
        print(f"whole command, with a split and both lists written: {whole.seconds:.2f} s")


if __name__ == "__main__":
    sys.exit(main())
