"""A real browser for tests: headless Chromium, driven through its debugging protocol."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.pipelines.serving import PATIENCE

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WITH_CHROMIUM = "needs Chromium: apt-get install chromium (Debian, Ubuntu)"
DESKTOP, PHONE = (1200, 900, 1, False), (390, 844, 2, True)  # width, height, pixels of a pixel, whether it is a phone


def need_chromium() -> None:
    """Skip the test where there is no Chromium; fail where there must be one: .ci/run says so once it is installed."""
    if CHROMIUM is None and os.environ.get("CORTADO_REQUIRE_BROWSER"):
        pytest.fail(WITH_CHROMIUM, pytrace=False)
    if CHROMIUM is None:
        pytest.skip(WITH_CHROMIUM)


class ProtocolError(AssertionError):
    """What the browser answers to a call that it cannot do, as one of a page that has just gone."""


class Tab:
    """A page."""

    def __init__(self, socket: Any):
        self.socket, self.number, self.errors, self.asked = socket, 0, [], []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while True:
            told = json.loads(self.socket.recv(timeout=PATIENCE))
            if told.get("method") == "Runtime.exceptionThrown":
                self.errors.append(told["params"])
            if told.get("method") == "Network.requestWillBeSent":
                self.asked.append(told["params"]["request"]["url"])
            if told.get("id") == self.number:
                if "error" in told:
                    raise ProtocolError(told)
                return told["result"]

    def run(self, script: str) -> Any:
        """What a piece of JavaScript gives."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str) -> Any:
        """Wait until it gives something true."""
        until = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(ProtocolError):
                if found := self.run(f"(() => {{ try {{ return !!({script}) }} catch {{ return false }} }})()"):
                    return found
            assert time.monotonic() < until, f"{script}: {self.run('document.body.innerText')}"
            time.sleep(0.1)

    def press(self, key: str, *, shift: bool = False) -> None:
        """A key of the keyboard, as the browser gets it from a person."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        code = {"Tab": 9, "Enter": 13, " ": 32, "ArrowRight": 39, "ArrowLeft": 37}[key]
        more = {"key": key, "code": {" ": "Space"}.get(key, key), "windowsVirtualKeyCode": code}
        more["modifiers"] = 8 if shift else 0
        down = "keyDown" if text else "rawKeyDown"
        self.call("Input.dispatchKeyEvent", type=down, **more, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **more)

    def tab_to(self, script: str, most: int = 60) -> None:
        """Press Tab until the element that has the focus, `it`, is the one that is meant."""
        for _ in range(most):
            self.press("Tab")
            if self.run(f"(it => !!({script}))(document.activeElement)"):
                return
        raise AssertionError(f"Tab does not reach {script}")

    def choose(self, *files: Path) -> None:
        """As a person does with the file dialogue."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector="#files")["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def screen(self, size: tuple[int, int, int, bool], scheme: str) -> None:
        """A screen of that size, light or dark."""
        width, height, pixels, phone = size
        shape = {"width": width, "height": height, "deviceScaleFactor": pixels, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", **shape)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self, file: Path) -> None:
        """The whole page, however long."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(found["data"]))

    def faults(self) -> list[str]:
        """What axe calls serious or critical, each as: rule, where, how it is to be mended."""
        if not self.run("'axe' in window"):
            package = importlib.util.find_spec("axe_core_python")
            assert package is not None
            assert package.submodule_search_locations
            self.run((Path(package.submodule_search_locations[0]) / "axe.min.js").read_text() + ";0")
        found = self.run("axe.run().then(told => JSON.stringify(told.violations))")
        return [
            f"{one['id']}: {node['html']}: {node['failureSummary']}"
            for one in json.loads(found)
            if one["impact"] in ("serious", "critical")
            for node in one["nodes"]
        ]


def address_of(folder: Path) -> str:
    """Where the page of a browser that has just been started is driven."""
    told, until = folder / "DevToolsActivePort", time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(OSError):  # no such file, or nobody there yet
            port, written, _ = told.read_text().partition("\n")
            tabs = requests.get(f"http://127.0.0.1:{port}/json", timeout=PATIENCE).json() if written else []
            if pages := [tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"]:
                return pages[0]
        assert time.monotonic() < until
        time.sleep(0.1)


@contextlib.contextmanager
def browser(url: str, folder: Path) -> Iterator[Tab]:
    """A new Chromium that shows this address."""
    from websockets.sync.client import connect

    options = ["--headless=new", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0"]
    options += ["--disable-dev-shm-usage"]  # Ray may have filled it
    options += ["--no-sandbox"] if os.geteuid() == 0 else []
    command = [str(CHROMIUM), *options, f"--user-data-dir={folder}", url]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            # what it tells of itself while a test does other things is kept, and need not be acknowledged in time
            limits = {"max_size": None, "max_queue": None, "open_timeout": PATIENCE, "ping_interval": None}
            with connect(address_of(folder), **limits) as socket:
                tab = Tab(socket)
                for domain in ("Runtime", "DOM", "Page", "Network"):
                    tab.call(f"{domain}.enable")
                yield tab
        finally:
            process.kill()
