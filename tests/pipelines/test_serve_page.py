"""The page of a served net: what its files may hold, and how it behaves in a real browser."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import pipelines
from tests.pipelines.serving import PATIENCE, serving

PAGE = Path(pipelines.__path__[0]) / "page"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WITH_CHROMIUM = "needs Chromium: apt install chromium (Debian, Ubuntu)"


class Tags(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


@pytest.mark.parametrize("name", ["index.html", "docs.html", "page.css", "page.js", "docs.js"])
def test_the_page_asks_nobody_else(name):
    text = (PAGE / name).read_text()
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s'\"]*", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    assert "innerHTML" not in text
    assert "eval(" not in text


@pytest.mark.parametrize("name", ["index.html", "docs.html"])
def test_the_page_can_be_used_by_everybody(name):
    tags = Tags((PAGE / name).read_text()).found
    by_name = dict(tags)
    assert by_name["html"]["lang"] == "en"
    assert any(attributes.get("name") == "viewport" for tag, attributes in tags if tag == "meta")
    assert {"title", "main", "h1"} <= set(by_name)
    assert all("alt" in attributes for tag, attributes in tags if tag == "img")
    assert not [tag for tag, attributes in tags if any(key.startswith("on") or key == "style" for key in attributes)]
    assert all(attributes.get("src") for tag, attributes in tags if tag == "script")  # the policy lets no other run
    labelled = {attributes.get("for") for tag, attributes in tags if tag == "label"}
    for tag, attributes in tags:
        if tag == "input" and attributes.get("id") not in labelled:
            assert attributes["id"] == "top"  # stands inside its label


def test_every_part_that_the_script_names_is_on_the_page():
    ids = {attributes["id"] for _, attributes in Tags((PAGE / "index.html").read_text()).found if "id" in attributes}
    assert set(re.findall(r'\$\("([\w-]+)"\)', (PAGE / "page.js").read_text())) <= ids


def contrast(one: str, other: str) -> float:
    """WCAG 2: from 1 to 21."""

    def light(colour: str) -> float:
        full = "".join(2 * digit for digit in colour) if len(colour) == 3 else colour
        parts = [int(full[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dark = sorted((light(one), light(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_words_can_be_read_in_light_and_in_dark():
    schemes = re.findall(r":root \{(.*?)\}", (PAGE / "page.css").read_text(), re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): #([0-9a-f]{3,6});", scheme))
        for words in ("front", "soft", "link", "bad"):
            for behind in ("back", "card"):
                assert contrast(colours[words], colours[behind]) >= 4.5, (words, behind)


# -- in a browser ------------------------------------------------------------------------------------------------------


class Tab:
    """A page in headless Chromium, through its debugging protocol."""

    def __init__(self, socket: Any):
        self.socket, self.number, self.errors = socket, 0, []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while True:
            told = json.loads(self.socket.recv(timeout=PATIENCE))
            if told.get("method") == "Runtime.exceptionThrown":
                self.errors.append(told["params"])
            if told.get("id") == self.number:
                assert "error" not in told, told
                return told["result"]

    def run(self, script: str) -> Any:
        """What a piece of JavaScript gives."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str) -> Any:
        """Wait until it gives something true."""
        until = time.monotonic() + PATIENCE
        while not (found := self.run(f"(() => {{ try {{ return !!({script}) }} catch {{ return false }} }})()")):
            assert time.monotonic() < until, f"{script}: {self.run('document.body.innerText')}"
            time.sleep(0.1)
        return found

    def choose(self, *files: Path) -> None:
        """As a person does with the file dialogue."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector="#files")["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def picture(self, file: Path) -> None:
        import base64

        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextlib.contextmanager
def browser(url: str, folder: Path) -> Iterator[Tab]:
    import requests
    from websockets.sync.client import connect

    options = ["--headless=new", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0"]
    options += ["--no-sandbox"] if os.geteuid() == 0 else []
    command = [str(CHROMIUM), *options, f"--user-data-dir={folder}", url]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            told, until = folder / "DevToolsActivePort", time.monotonic() + PATIENCE
            while not (told.exists() and told.read_text().count("\n")):
                assert time.monotonic() < until
                time.sleep(0.1)
            tabs = requests.get(f"http://127.0.0.1:{told.read_text().splitlines()[0]}/json", timeout=30).json()
            address = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            with connect(address, max_size=None) as socket:
                tab = Tab(socket)
                for domain in ("Runtime", "DOM", "Page"):
                    tab.call(f"{domain}.enable")
                yield tab
        finally:
            process.kill()


@pytest.fixture
def photo(golden, tmp_path):
    file = tmp_path / "hat.jpg"
    file.write_bytes((golden / "files" / "photos" / "hat_1.jpg").read_bytes())
    return file


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason=WITH_CHROMIUM)
def test_pictures_are_answered_in_a_browser(ray_session, golden, tmp_path, photo):
    """Choose, sample, paste, a wrong file, one that is too large, and a server that goes away and comes back."""
    samples = tmp_path / "samples"
    samples.mkdir()
    cv2.imwrite(str(samples / "grey.png"), np.full((20, 20, 3), 90, np.uint8))
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "large.jpg").write_bytes(photo.read_bytes() + bytes(300_000))
    first = "document.querySelector('.answer')"
    with (
        serving(golden, tmp_path, "page", samples=samples, max_body=200_000) as server,
        browser(f"{server.url}/", tmp_path / "profile") as tab,
    ):
        tab.until("document.getElementById('net').textContent.includes('6 classes')")
        tab.choose(photo)
        tab.until(f"{first}?.querySelectorAll('.classes[data-list=top] li').length === 5")
        assert "n2 pear" in tab.run(f"{first}.innerText")
        tab.run(f"{first}.querySelectorAll('[role=tab]')[1].click()")
        assert tab.run(f"{first}.querySelector('.classes[data-list=accurate]').checkVisibility()")
        tab.run(f"{first}.querySelector('.maps').open = true")
        tab.until(f"{first}.querySelector('.maps p').textContent.startsWith('4 maps of 14')")
        tab.picture(tmp_path / "answer.png")
        tab.run("document.querySelector('#sample-list button').click()")
        tab.until("document.querySelectorAll('.answer .classes[data-list=top] li').length === 10")
        tab.choose(tmp_path / "notes.txt")
        tab.until(f"{first}.innerText.includes('not an image')")
        tab.choose(tmp_path / "large.jpg")
        tab.until(f"{first}.innerText.includes('the server takes 0.2 MB')")
        tab.run(
            "fetch('samples/grey.png').then(a => a.blob()).then(b => { const d = new DataTransfer();"
            "d.items.add(new File([b], 'pasted.png', {type: 'image/png'}));"
            "document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: d, bubbles: true})); })"
        )
        tab.until(f"{first}.innerText.includes('pasted.png') && {first}.querySelector('.classes li')")
        tab.call("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=2, mobile=True)
        assert tab.run("document.documentElement.scrollWidth <= innerWidth")  # nothing to scroll sideways on a phone
        tab.picture(tmp_path / "phone.png")
        gone_and_back(tab, photo, first)
        assert not tab.errors


def gone_and_back(tab: Tab, photo: Path, first: str) -> None:
    """The front is killed; the page says so, and asks again by itself when Ray has started it anew."""
    import ray

    from cluster import deploy

    os.kill(ray.get(deploy.find_front("page").state.remote())["pid"], 9)
    tab.choose(photo)
    tab.until(f"{first}.querySelector('.classes li')")
    tab.until("document.getElementById('banner').hidden")
