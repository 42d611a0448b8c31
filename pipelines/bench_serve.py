"""`cortado bench-serve`: how fast a server answers, and how fast when many ask."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from pipelines.job import Job, say

if TYPE_CHECKING:
    from pipelines.stages.serving_load import Load, Taken, Target

TOKEN = "CORTADO_SERVE_TOKEN"
CLIENTS = "1,64"


@dataclass(frozen=True, kw_only=True)
class BenchServe(Job):
    """Ask a `cortado serve` as fast as it answers, and tell images a second and how long answers take.

    Clients ask one picture after the other, each over a connection of its own; with --rate requests come at times of
    chance, so many a second, and none waits for another. The load is made in this process: on the server's machine it
    takes CPU from it.

    Example: cortado bench-serve http://127.0.0.1:8000 --image cat.jpg --clients 1,16,64 --plot latency.png
    """

    url: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="URL")]
    """address of the server, as http://127.0.0.1:8000"""
    image: Annotated[tuple[Path, ...] | None, tyro.conf.arg(metavar="FILE...")] = None
    """pictures to ask for, in turn; default: the samples that the server offers"""
    clients: str | None = None
    """how many at once, with commas, one load each; default: 1,64, and none with --rate"""
    rate: float | None = None
    """requests a second, whatever becomes of them"""
    seconds: float = 10.0
    """of each load"""
    warm_up: float = 1.0
    """seconds before, which do not count"""
    timeout: float = 60.0
    """seconds until a request that got no answer is given up"""
    seed: int = 1
    """of the times of --rate"""
    token_file: Path | None = None
    """file with the word that the server wants; default: $CORTADO_SERVE_TOKEN, else none"""
    plot: Path | None = None
    """picture of the latencies to write, .png"""

    def __post_init__(self) -> None:
        if self.image == ():
            raise ValueError("--image needs a value: FILE...")
        for name in ("seconds", "timeout", "rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"--{name} {value:g}: expected more than 0")
        if self.warm_up < 0:
            raise ValueError(f"--warm-up {self.warm_up:g}: expected 0 or more")
        if self.plot is not None and self.plot.suffix.lower() != ".png":
            raise ValueError(f"--plot {self.plot}: expected a name that ends in .png")
        self.numbers()

    def numbers(self) -> list[int]:
        """--clients as numbers."""
        text = self.clients if self.clients is not None else "" if self.rate else CLIENTS
        words = [word.strip() for word in text.split(",") if word.strip()]
        if not all(word.isdecimal() and 1 <= int(word) <= 10_000 for word in words) or not (words or self.rate):
            raise ValueError(f"--clients {text}: expected numbers from 1 to 10000 with commas, as 1,64")
        return [int(word) for word in words]

    def run(self) -> dict[str, Any]:
        import asyncio

        from pipelines.stages.serving_load import Load, Target, figures, pictures_of, press

        target = Target(self.url.rstrip("/"), self.token(), self.timeout)
        offered = asyncio.run(pictures_of(target))
        bodies = [file.read_bytes() for file in self.image or ()] or offered
        if not bodies:
            raise ValueError("--image FILE missing: the server offers no samples")
        loads = [Load(clients=number) for number in self.numbers()] + [Load(rate=self.rate)] * (self.rate is not None)
        taken = {}
        for load in loads:
            say(f"bench-serve: {load.name}, {self.warm_up + self.seconds:g} s")
            limits = {"seconds": self.seconds, "warm_up": self.warm_up, "seed": self.seed}
            taken[load] = asyncio.run(press(target, load, bodies, **limits))
        rows = [figures(load, taken[load], self.seconds) for load in loads]
        found = {"server": target.url, "images": len(bodies), "seconds": self.seconds, "loads": rows}
        if self.plot is not None:
            self.draw(taken, target)
            found["picture"] = str(self.plot)
        return {**found, "ok": any(row["answers"] for row in rows)}

    def draw(self, taken: dict[Load, Taken], target: Target) -> None:
        import numpy as np

        from ops import latency_chart

        lines = {
            f"{load.name}: {len(found.seconds) / self.seconds:,.0f} images/s": 1000 * np.array(found.seconds)
            for load, found in taken.items()
        }
        assert self.plot is not None
        latency_chart.write(self.plot, lines, target.url)

    def token(self) -> str | None:
        if self.token_file is None:
            return os.environ.get(TOKEN) or None
        return self.token_file.read_text(encoding="utf-8").strip()

    def render(self, result: dict[str, Any]) -> Any:
        from rich.console import Group
        from rich.table import Table

        grid = Table(box=None, pad_edge=False)
        heads = ("load", "images/s", "p50 ms", "p90 ms", "p99 ms", "max ms", "pictures a forward", "failed")
        for head in heads:
            grid.add_column(head, justify="left" if head == "load" else "right")
        for row in result["loads"]:
            ms = [f"{row['ms'][name]:,.1f}" for name in ("p50", "p90", "p99", "max")] if "ms" in row else ["-"] * 4
            failed = ", ".join(f"{count:,} x {what}" for what, count in row["failed"].items()) or "0"
            batch = f"{row['batch']:.1f}" if "batch" in row else "-"
            grid.add_row(row["load"], f"{row['images_per_s']:,.1f}", *ms, batch, failed)
        return Group(grid, *([f"picture: {result['picture']}"] if "picture" in result else []))
