"""Images a second of `convert`, beside bare processes and the usual Ray Data script, in one run.

JPEGs of about 400x530 -> 256x256 raw LMDB on a memory file system. BENCH_IMAGES=DIR takes photographs of one's own,
BENCH_COUNT the number of lines, BENCH_RUNS the number of alternating runs.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.common import Timed, cortado, progress_of, row, timed, workplace
from tests.benchmarks.pictures import pictures

COUNT = int(os.environ.get("BENCH_COUNT", "30000"))
RUNS = int(os.environ.get("BENCH_RUNS", "5"))


def look_at(out: Path) -> Callable[[], int]:
    """Progress of a peer."""

    def look() -> int:
        files = [*out.glob("part-*/progress"), *out.glob("progress")]
        return sum(int(file.read_bytes() or b"0") for file in files)

    return look


def ours(list_file: Path, root: str, out: Path, cpus: int) -> Timed:
    shutil.rmtree(out, ignore_errors=True)
    command = cortado("convert", "--list", list_file, "--root", root, "--out", out, "--resize-height", "256")
    command += ["--resize-width", "256", "--set", f"cpus={cpus}", "--json"]
    return timed(command, progress_of(out))


def peer(kind: str, list_file: Path, root: str, out: Path, processes: int) -> Timed:
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "tests.benchmarks.peers", kind, str(list_file), root, str(out), str(processes)]
    return timed(command, look_at(out))


def main() -> None:
    with workplace("convert") as folder:
        files, told = pictures(folder / "images", count=1500)
        root = os.path.commonpath([str(file.parent) for file in files]) + "/"
        list_file, out = folder / "list.txt", folder / "out"
        names = [str(file)[len(root) :] for file in files]
        list_file.write_text("".join(f"{names[i % len(names)]} {i % 10}\n" for i in range(COUNT)))
        print(f"convert: {COUNT:,} lines over {told}; {os.cpu_count()} cores; on {folder.parent}")
        runs: dict[str, list[Timed]] = {"two": [], "bare": [], "one": [], "bare one": []}
        for number in range(RUNS):
            runs["bare"].append(peer("bare", list_file, root, out, 2))
            runs["two"].append(ours(list_file, root, out, 2))
            rates = runs["two"][-1].steady(COUNT), runs["bare"][-1].steady(COUNT)
            print("  steady: cortado {:,.0f}, bare {:,.0f} images/s".format(*rates), flush=True)
            if number % 2 == 0:  # the slow ones, in every second round
                runs["one"].append(ours(list_file, root, out, 1))
                runs["bare one"].append(peer("bare", list_file, root, out, 1))
        usual = peer("usual", list_file, root, out, 2)
        steady = {name: statistics.median(run.steady(COUNT) for run in made) for name, made in runs.items()}
        whole = {name: COUNT / statistics.median(run.seconds for run in made) for name, made in runs.items()}
        row("steady state, two cores, against bare", steady["two"], steady["bare"], "images/s", "(at least 0.95)")
        row("whole command against bare", whole["two"], whole["bare"], "images/s")
        row("steady state against the usual script", steady["two"], usual.steady(COUNT), "images/s", "(at least 3)")
        row("whole command against the usual script", whole["two"], COUNT / usual.seconds, "images/s")
        row("two cores against one, steady", steady["two"], steady["one"], "images/s", "(at least 1.85)")
        row("the same for bare processes", steady["bare"], steady["bare one"], "images/s")
        start = statistics.median(run.result["start_up_s"] for run in runs["two"])
        print(f"start-up (Ray, before the first slice): {start:.1f} s")


if __name__ == "__main__":
    main()
