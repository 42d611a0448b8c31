"""The page of a served net: what its files may hold, and how it behaves in a real browser."""

from __future__ import annotations

import os
import re
import signal
from html.parser import HTMLParser
from pathlib import Path

import pytest

import pipelines
from ops.proto.caffe_pb2 import NetParameter
from pipelines.serve import Serve
from tests.pipelines import browser as browsers
from tests.pipelines.browser import DESKTOP, PHONE, Tab, browser, need_chromium
from tests.pipelines.serving import Server, front_pid, second_front, serving

PAGE = Path(pipelines.__path__[0]) / "page"
FIRST = "document.querySelector('.answer')"

pytestmark = pytest.mark.timeout(900)


class Tags(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


@pytest.mark.parametrize("name", ["index.html", "docs.html", "page.css", "page.js", "looks.js", "docs.js"])
def test_the_page_asks_nobody_else(name):
    text = (PAGE / name).read_text()
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s'\"]*", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    assert "innerHTML" not in text
    assert "eval(" not in text
    assert "@import" not in text


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
    scripts = "".join((PAGE / name).read_text() for name in ("page.js", "looks.js"))
    assert set(re.findall(r'\$\("([\w-]+)"\)', scripts)) <= ids


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


def test_a_missing_browser_is_told_and_a_failure_where_it_was_installed(monkeypatch):
    monkeypatch.setattr(browsers, "CHROMIUM", None)
    monkeypatch.delenv("CORTADO_REQUIRE_BROWSER", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install chromium"):
        need_chromium()
    monkeypatch.setenv("CORTADO_REQUIRE_BROWSER", "1")
    with pytest.raises(pytest.fail.Exception, match="apt-get install chromium"):
        need_chromium()


@pytest.fixture(scope="module")
def server(ray_session, golden, tmp_path_factory):
    need_chromium()
    with serving(golden, tmp_path_factory.mktemp("page"), "page", max_body=200_000) as found:
        yield found


@pytest.fixture
def tab(server, tmp_path):
    with browser(f"{server.url}/", tmp_path / "profile") as found:
        found.until("document.getElementById('net').textContent.includes('6 classes')")
        found.until("document.querySelectorAll('#sample-list button').length === 4")
        yield found
        assert not found.errors
        assert found.asked
        assert all(url.startswith((server.url, "blob:", "data:")) for url in found.asked)


@pytest.fixture
def artefacts(tmp_path) -> Path:
    """Where pictures of the screen are kept."""
    folder = Path(os.environ.get("CORTADO_ARTEFACTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def photo(golden, tmp_path):
    file = tmp_path / "hat.jpg"
    file.write_bytes((golden / "files" / "photos" / "hat_1.jpg").read_bytes())
    return file


@pytest.mark.ray
@pytest.mark.slow
def test_pictures_are_answered_however_they_come(server, tab, tmp_path, photo):
    """Choose, drop, paste, a wrong file, one that is too large, and a server that goes away and comes back."""
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "large.jpg").write_bytes(photo.read_bytes() + bytes(300_000))
    tab.choose(photo)
    tab.until(f"{FIRST}?.querySelectorAll('.list:not([hidden]) .classes li').length === 5")
    best = server.post("/v1/classify", photo.read_bytes()).json()["images"][0]["top"][0]
    assert tab.run(f"{FIRST}.querySelector('.name').textContent") == best["name"]
    assert tab.run(f"{FIRST}.querySelector('.score').textContent") == f"{100 * best['score']:.1f} %"
    assert tab.run("document.getElementById('said').textContent").startswith(f"hat.jpg: {best['name']}")
    tab.choose(tmp_path / "notes.txt")
    tab.until(f"{FIRST}.innerText.includes('Not an image')")
    assert not tab.run(f"{FIRST}.querySelector('.again').checkVisibility()")  # that would not help
    tab.choose(tmp_path / "large.jpg")
    tab.until(f"{FIRST}.innerText.includes('the server takes 0.2 MB')")
    for event, holder in (("ClipboardEvent('paste'", "clipboardData"), ("DragEvent('drop'", "dataTransfer")):
        tab.run(
            "fetch('v1/samples/cat.jpg').then(a => a.blob()).then(b => { const d = new DataTransfer();"
            f"d.items.add(new File([b], '{holder}.jpg', {{type: 'image/jpeg'}}));"
            f"document.dispatchEvent(new {event}, {{{holder}: d, bubbles: true, cancelable: true}})); }})"
        )
        tab.until(f"{FIRST}.innerText.includes('{holder}.jpg') && {FIRST}.querySelector('.classes li')")
    tab.run("{ const top = document.getElementById('top'); top.value = 3; top.dispatchEvent(new Event('change')); }")
    tab.until(f"{FIRST}.querySelectorAll('.classes[data-list=top] li').length === 3")
    gone_and_back(tab, photo)
    replaced(tab, server, tmp_path, photo)
    tab.run("document.getElementById('clear').click()")
    assert tab.run("document.querySelectorAll('.answer').length") == 0


def gone_and_back(tab: Tab, photo: Path) -> None:
    """The front is killed; the page says so, and asks again by itself when Ray has started it anew."""
    tab.run(
        "window.seen = []; new MutationObserver(() => seen.push(document.getElementById('banner').hidden))"
        ".observe(document.getElementById('banner'), {attributes: true})"
    )
    for _ in range(5):
        pid, answers = front_pid("page"), tab.run("document.querySelectorAll('.answer').length")
        os.kill(pid, signal.SIGKILL)
        tab.choose(photo)
        tab.until(f"document.querySelectorAll('.answer').length > {answers} && {FIRST}.querySelector('.classes li')")
        if tab.run("window.seen").count(False):
            break  # else it was back before the page asked
    tab.until("document.getElementById('banner').hidden")
    assert tab.run("window.seen").count(False) >= 1


def replaced(tab: Tab, server: Server, folder: Path, photo: Path) -> None:
    """Another model, with names of its own: the page notes it by the next answer."""
    (folder / "others.txt").write_text("\n".join(f"other {number}" for number in range(6)))
    saved = NetParameter.FromString(Path(server.options["weights"]).read_bytes())
    saved.layer[-1].blobs[-1].data[0] += 1
    (folder / "other.caffemodel").write_bytes(saved.SerializeToString())
    more = {"weights": str(folder / "other.caffemodel"), "labels": folder / "others.txt", "hierarchy": None}
    Serve(**{**server.options, **more, "port": None}).run()
    tab.run("document.getElementById('card').open = true")
    tab.choose(photo)
    tab.until(f"{FIRST}.querySelector('.name')?.textContent.startsWith('other')")
    assert not tab.run(f"{FIRST}.querySelector('.tabs').checkVisibility()")  # it has no hierarchy
    tab.until("document.getElementById('card').innerText.includes('other.caffemodel')")
    Serve(**{**server.options, "port": None}).run()


@pytest.mark.ray
@pytest.mark.slow
def test_everything_can_be_done_by_keyboard(tab):
    tab.press("Tab")
    assert tab.run("document.activeElement.textContent") == "To the answers"
    tab.tab_to("it.id === 'files'")
    tab.tab_to("it.querySelector('img')?.alt === 'Try cat.jpg'")
    tab.press("Enter")
    tab.until(f"{FIRST}?.querySelectorAll('.classes[data-list=top] li').length === 5")
    tab.tab_to("it.role === 'tab' || it.getAttribute('role') === 'tab'")
    assert tab.run(f"{FIRST}.querySelector('.list:not([hidden]) .score').textContent").endswith(" %")
    tab.press("ArrowRight")
    assert tab.run("document.activeElement.textContent") == "Maximally accurate"
    assert tab.run(f"{FIRST}.querySelector('.list:not([hidden]) .score').textContent").endswith(" bits")
    tab.tab_to("it.textContent === 'What the net sees in it'")
    tab.press("Enter")
    tab.until(f"{FIRST}.querySelector('.maps img').naturalWidth")
    assert tab.run(f"{FIRST}.querySelector('.maps .words').textContent") == "conv1: 4 maps of 14 x 14"
    for name, loaded in {
        "filters": "document.getElementById('filters-picture').naturalWidth",
        "layers": "document.querySelectorAll('#layers-rows tr').length === 5",
        "card": "document.querySelectorAll('#facts tr').length > 5",
    }.items():
        tab.tab_to(f"it.matches('#{name} > summary')")
        tab.press(" ")
        tab.until(loaded)
    assert "4 filters of 5 x 5, in colour" in tab.run("document.getElementById('filters').innerText")
    assert "resized to 40 × 48" in tab.run("document.getElementById('card').innerText")
    tab.run("document.activeElement.blur(); scrollTo(0, 0)")
    for _ in range(
        tab.run("document.querySelectorAll('a, button, input, select, summary, [tabindex=\\'0\\']').length")
    ):
        tab.press("Tab")  # whatever has the focus can be seen to have it
        outlined = "getComputedStyle(it.id === 'files' ? document.querySelector('.button') : it).outlineStyle"
        assert tab.run(f"(it => it === document.body || {outlined} !== 'none')(document.activeElement)")
    tab.tab_to("it.className === 'away'")
    tab.press("Enter")
    assert tab.run("document.activeElement.id") == "files"


@pytest.mark.ray
@pytest.mark.slow
def test_nothing_serious_stands_in_anybodys_way(tab, tmp_path, photo, artefacts):
    """Axe, in light and in dark, on a desktop and on a phone; what it looked at is kept as pictures."""
    (tmp_path / "notes.txt").write_text("not a picture")
    tab.screen(DESKTOP, "light")
    tab.picture(artefacts / "page-start.png")
    assert not tab.faults()
    tab.choose(photo, tmp_path / "notes.txt")
    tab.run("document.querySelector('#sample-list button').click()")
    tab.until("document.querySelectorAll('.answer').length === 3 && !document.querySelector('.waiting')")
    tab.run(
        "document.querySelectorAll('#about > details, .answer:not(.failed) .maps').forEach(it => { it.open = true; })"
    )
    tab.until(
        "[...document.querySelectorAll('.answer:not(.failed) .tiles, #about .tiles')].every(it => it.naturalWidth)"
    )
    tab.until("document.querySelector('#facts tr') && document.querySelector('#layers-rows tr')")
    tab.run(f"{FIRST}.querySelectorAll('[role=tab]')[1].click()")
    for name, size in (("desktop", DESKTOP), ("phone", PHONE)):
        for scheme in ("light", "dark"):
            tab.screen(size, scheme)
            assert tab.run("document.documentElement.scrollWidth <= innerWidth")  # nothing to scroll sideways
            assert not tab.faults(), (name, scheme)
            tab.picture(artefacts / f"page-{name}-{scheme}.png")


@pytest.mark.ray
@pytest.mark.slow
def test_the_page_asks_for_the_token_and_the_api_is_described(server, tmp_path, photo, artefacts):
    """A second front to the same model, which wants a token; then /docs."""
    with (
        second_front(server, "guarded", token="open-sesame") as guarded,
        browser(f"{guarded.url}/", tmp_path / "profile") as tab,
    ):
        tab.until("document.getElementById('token').checkVisibility()")
        tab.choose(photo)
        tab.until(f"{FIRST}?.innerText.includes('wants a token')")
        tab.run("document.getElementById('token').value = 'open-sesame'")
        tab.run("document.querySelector('#token-form button').click()")
        tab.until(f"{FIRST}.querySelectorAll('.classes[data-list=top] li').length === 5")
        tab.until("document.querySelectorAll('#sample-list img').length === 4")
        assert not tab.run("document.getElementById('token-form').checkVisibility()")
        tab.call("Page.navigate", url=f"{guarded.url}/docs")
        tab.until("document.body.innerText.includes('POST /v1/maps')")
        assert "GET /v1/samples/{name}" in tab.run("document.body.innerText")
        for scheme in ("light", "dark"):
            tab.screen(PHONE, scheme)
            assert tab.run("document.documentElement.scrollWidth <= innerWidth")
            assert not tab.faults(), scheme
        tab.picture(artefacts / "docs-phone-dark.png")
        assert not tab.errors
