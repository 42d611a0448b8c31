"""Start-up: `cortado --help`, and the whole command for 100 pictures beside a bare `ray.init`."""

from __future__ import annotations

import statistics
import sys

from tests.benchmarks.common import cortado, timed, workplace
from tests.benchmarks.pictures import crops

INIT = "import ray; ray.init(address='local', num_cpus=2, include_dashboard=False, log_to_driver=False); ray.shutdown()"
RUNS = 3


def main() -> None:
    helps = [timed(cortado("--help")).seconds for _ in range(5)]
    print(f"cortado --help: {statistics.median(helps):.2f} s (under 0.5)")
    with workplace("start") as folder:
        files = crops(folder / "images", count=100)
        list_file = folder / "list.txt"
        list_file.write_text("".join(f"{file.name} {i % 10}\n" for i, file in enumerate(files)))
        whole, init = [], []
        for run in range(RUNS):
            out = folder / f"out{run}"
            command = cortado("convert", "--list", list_file, "--root", f"{folder}/images/", "--out", out)
            command += ["--resize-height", "256", "--resize-width", "256", "--set", "cpus=2", "--json"]
            init.append(timed([sys.executable, "-c", INIT]).seconds)
            whole.append(timed(command).seconds)
        bare, ours = statistics.median(init), statistics.median(whole)
        print(f"100 pictures: the whole command {ours:.1f} s, a bare ray.init and shutdown {bare:.1f} s", end="")
        print(f", {ours - bare:.1f} s on top (within 4)")


if __name__ == "__main__":
    main()
