"""Memory of a conversion: peak anonymous memory of a worker at 1,000 and at 15,000 images, and Ray's object store."""

from __future__ import annotations

import contextlib
import shutil
import threading
from pathlib import Path

import psutil

from tests.benchmarks.common import workplace
from tests.benchmarks.pictures import crops


class Peak:
    """The largest anonymous memory of any worker that builds shards, looked at twenty times a second."""

    def __init__(self) -> None:
        self.bytes = 0
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self.stop.wait(0.05):
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error, OSError, ValueError):
                    if "MapWorker" in " ".join(process.cmdline()):
                        self.bytes = max(self.bytes, anonymous(process.pid))

    def __enter__(self) -> Peak:
        self.thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop.set()
        self.thread.join()


def anonymous(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def stored() -> int:
    """Bytes that were ever put into the object store of this session."""
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address
    from ray._private.worker import global_worker

    reply = get_memory_info_reply(get_state_from_address(global_worker.gcs_client.address))
    return int(reply.store_stats.object_store_bytes_used + reply.store_stats.spilled_bytes_total)


def main() -> None:
    from cluster import config
    from cluster.connect import connected
    from pipelines.convert import Convert

    peaks = {}
    with workplace("memory") as folder:
        files = crops(folder / "images", count=500)
        for count in (1000, 15000):
            list_file, out = folder / f"{count}.txt", folder / "out"
            list_file.write_text("".join(f"{files[i % len(files)].name} {i % 10}\n" for i in range(count)))
            with connected(config.load(None, ("cpus=2",))), Peak() as peak:
                job = Convert(
                    image_list=str(list_file), root=f"{folder}/images/", out=out, resize_height=256, resize_width=256
                )
                job.run()
                store = stored()
            peaks[count] = peak.bytes
            print(f"{count:,} images: worker's peak {peak.bytes / 1e6:.0f} MB anonymous (under 500)", end="")
            print(f", object store {store / 1e6:.2f} MB", flush=True)
            shutil.rmtree(out)
    print(f"15,000 images against 1,000: ratio {peaks[15000] / peaks[1000]:.2f} (flat)")


if __name__ == "__main__":
    main()
