"""The demo's net behind HTTP: held-out pictures are sent as any program would send them, and the page has its picture
taken."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

AT_ONCE = 50  # pictures of a request
ANSWER_SECONDS, BROWSER_SECONDS = 60, 60
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
WINDOW = (1200, 1000)  # pixels


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def held_out(listed: Path, root: Path) -> list[tuple[Path, int]]:
    """The pictures of a list, `path label` a line, below `root`."""
    lines = [line.rsplit(maxsplit=1) for line in listed.read_text(encoding="utf-8").splitlines()]
    return [(root / path, int(label)) for path, label in lines]


def classify(url: str, pictures: Sequence[tuple[Path, int]]) -> dict[str, Any]:
    """All of them through POST /v1/classify: how many, how many right, seconds. RuntimeError where one is refused."""
    began, right = time.perf_counter(), 0
    for first in range(0, len(pictures), AT_ONCE):
        part = pictures[first : first + AT_ONCE]
        images = [base64.b64encode(path.read_bytes()).decode() for path, _ in part]
        request = urllib.request.Request(
            f"{url}/v1/classify?top=1", json.dumps({"images": images}).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            told = json.load(answer)["images"]
        for (path, label), one in zip(part, told, strict=True):
            if "error" in one:
                raise RuntimeError(f"{path}: {one['error']}")
            right += one["top"][0]["label"] == label
    return {"images": len(pictures), "right": right, "seconds": round(time.perf_counter() - began, 3)}


def screenshot(url: str, file: Path) -> str | None:
    """A picture of the page with a sample answered; why there is none, where there is none."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        return "no Chromium here to take a picture of the page"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = [
            "--headless=new",
            "--disable-gpu",
            "--no-first-run",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
        ]
        options += ["--disable-background-networking", "--disable-component-update", "--virtual-time-budget=10000"]
        options += [f"--window-size={WINDOW[0]},{WINDOW[1]}", f"--screenshot={file.absolute()}"]
        options += ["--no-sandbox"] if os.geteuid() == 0 else []
        try:
            done = subprocess.run(
                [browser, *options, f"{url}/#try"], capture_output=True, timeout=BROWSER_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            return f"{browser} took no picture of the page within {BROWSER_SECONDS} s"
    return None if file.exists() else f"{browser} took no picture of the page (exit code {done.returncode})"
