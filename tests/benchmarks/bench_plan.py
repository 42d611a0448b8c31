"""A list of ten million lines: read, checked for duplicates, planned and shuffled, beside a plain numpy script."""

from __future__ import annotations

import sys
import textwrap

from tests.benchmarks.common import row, timed, workplace

OURS = """
import resource, sys, time
from pathlib import Path
from pipelines.convert import Convert, note
from ops.inputs.listing import open_listing
began = time.perf_counter()
job = Convert(image_list=sys.argv[1], out=Path(sys.argv[2]), root="/", shuffle=True, resize_height=9, resize_width=9)
listed = open_listing(job.image_list)
plan, order = job.plan(listed, job.recipe(listed))
note(listed)
plan.write(listed, order, 1)
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""
NUMPY = """
import resource, sys, time
import numpy as np
began = time.perf_counter()
text = np.fromfile(sys.argv[1], np.uint8)
ends = np.flatnonzero(text == 10)
starts = np.concatenate([[0], ends[:-1] + 1])
order = np.random.default_rng(0).permutation(len(ends))
rows = np.stack([starts[order], ends[order]], axis=1)
np.save(sys.argv[2], rows)
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""


def main() -> None:
    with workplace("plan") as folder:
        seconds = {}
        for count in (1_000_000, 10_000_000):
            list_file = folder / f"{count}.txt"
            with list_file.open("w") as out:
                for start in range(0, count, 100_000):
                    numbers = range(start, start + 100_000)
                    out.writelines(
                        f"train/n{i * 7919 % 1000:08d}/n{i * 7919 % 1000:08d}_{i}.JPEG {i % 1000}\n" for i in numbers
                    )
            for name, script in (("ours", OURS), ("numpy", NUMPY)):
                command = [
                    sys.executable,
                    "-c",
                    textwrap.dedent(script),
                    str(list_file),
                    str(folder / f"{name}-{count}"),
                ]
                taken, memory = map(float, timed(command).out.split())
                seconds[name, count] = taken
                print(f"{name:>6}: {count:,} lines in {taken:.1f} s, {memory:.2f} GB", flush=True)
        row("ten million lines, seconds (within 15)", seconds["ours", 10_000_000], seconds["numpy", 10_000_000], "s")
        each = [1e6 * seconds["ours", count] / count for count in (1_000_000, 10_000_000)]
        print(f"microseconds a line: {each[0]:.2f} for a million, {each[1]:.2f} for ten")


if __name__ == "__main__":
    main()
