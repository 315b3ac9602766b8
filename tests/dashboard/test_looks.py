"""How the page looks: who can read it, what it says where the pointer is, and when it is old."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poolkit import Pool
from poolkit.testing import FakeDriver
from tests.dashboard.browser import Browser
from tests.dashboard.site import N, Site, serve

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the browser is Debian's")
HELD = "return document.querySelectorAll('#slots .leased').length === arguments[0]"
SAYS = "return document.querySelector('#sentence').innerText.includes(arguments[0])"
NASTY = "<img src=x onerror=alert(1)>\n\"'&\u202e"


class TellingDriver(FakeDriver):
    """Knows what the server calls a connection, and what it was last asked."""

    def server_pid(self, _: Any, /) -> int:
        """Return a number."""
        return 4711

    def last_statement(self, _: Any, /) -> str:
        """Return a text."""
        return f"SELECT 1 -- {NASTY}"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Serve the page of a pool, of which there is much to tell; and leave what others would."""
    pool = Pool(TellingDriver(), min_size=N, max_size=N, acquire_timeout=60.0, name=f"shop {NASTY}")
    with serve(pool, two=True, workers_folder=tmp_path) as site:
        for n, age in ((7, -1000), (8, 20)):
            stats = {"leased": n, "idle": 1, "waiting": n, "oldest_wait": n, "size": 9}
            document = {
                "at": time.time() - age,
                "data": {"pools": {"default": {"stats": {**stats, "capacity": 10 * n}}}},
            }
            (tmp_path / f"other.host-{n}-0.json").write_text(json.dumps(document))
        yield site


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Browser]:
    """Open the page; see at the end that it was content."""
    browser.go(f"{site.url}/poolkit")
    browser.until(SAYS, "Nobody waits")
    yield browser
    assert browser.complaints() == []


def drawn(page: Browser, selector: str) -> str:
    """Return a text in a chart."""
    return str(page.run("return document.querySelector(arguments[0]).textContent", selector))


#: Each visible text, and what is drawn in the charts: the lowest contrast of all, and where.
CONTRAST = """
const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
function light(colour) {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = [...canvas.getImageData(0, 0, 1, 1).data].map(n => n / 255);
  const part = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  return {a, l: 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b)};
}
function behind(element) {
  for (let one = element; one; one = one.parentElement) {
    const {a, l} = light(getComputedStyle(one).backgroundColor);
    if (a === 1) return l;
    if (a > 0) throw new Error('half transparent: ' + one.outerHTML);
  }
  return 1;
}
const found = [];
for (const element of document.querySelectorAll('body *')) {
  const style = getComputedStyle(element);
  if (!element.getClientRects().length || Number(style.opacity) !== 1) continue;
  const text = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  const colour = element.localName === 'polyline' ? style.stroke
    : !text ? null : element.closest('svg') ? style.fill : style.color;
  if (!colour) continue;
  const [a, b] = [light(colour).l, behind(element)].sort((x, y) => y - x);
  found.push([(a + 0.05) / (b + 0.05), element.outerHTML.slice(0, 120)]);
}
return found.sort((x, y) => x[0] - y[0]);
"""


@pytest.mark.parametrize("is_old", [False, True], ids=["new", "old"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_everything_can_be_read(page: Browser, site: Site, *, dark: bool, is_old: bool) -> None:
    """Texts and lines stand out by 4.5 : 1, in both modes, and also when the numbers are old."""
    page.look(width=1000, height=900, dark=dark)
    site.hold(N + 2)
    page.until("return document.querySelectorAll('#queue li').length === 2")
    page.until("return document.querySelectorAll('.slot.leased[data-age=\"1\"]').length > 1")
    page.until("return document.querySelectorAll('svg polyline').length >= 3")
    page.run("document.querySelector('#leases details').open = true")
    page.point("#sizes", 0.9)
    if is_old:
        page.run("window.fetch = () => Promise.reject(new TypeError('gone'))")
        page.until("return document.body.className === 'old'")
    found = page.run(CONTRAST)
    assert len(found) > 50
    assert [one for one in found if one[0] < 4.5] == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing(page: Browser, site: Site, *, dark: bool) -> None:
    """Nor does anything stay for a person to judge but the contrast of what is drawn."""
    page.look(width=1000, height=900, dark=dark)
    site.hold(N + 2)
    page.until("return document.querySelectorAll('#queue li').length === 2")
    page.run("document.querySelector('#leases details').open = true")
    violations, unsure = page.axe()
    assert violations == []
    assert {one[0] for one in unsure} <= {"color-contrast"}, unsure


def test_silent_process_is_told_of_and_not_added(page: Browser, site: Site) -> None:
    """The sums are of those of whom one knows; looked at, its numbers are old ones."""
    page.until("return document.querySelectorAll('#rows tr').length === 3")
    cells = "return [...document.querySelectorAll(arguments[0])].map(cell => cell.textContent)"
    assert page.run(cells, "#total td") == ["all", "7", "4", "7", "7.0 s", f"{70 + N}"]
    buttons = page.run(cells, "#rows button")
    (own,) = (button for button in buttons if "other.host" not in button)
    assert "7 on other.host" in buttons
    assert any(button.startswith("8 on other.host, silent for 2") for button in buttons)
    click = (
        "[...document.querySelectorAll('#rows button')]"
        ".find(one => one.textContent.startsWith(arguments[0])).click()"
    )
    page.run(click, "7 on")
    page.until(SAYS, "Process 7 was asked for its numbers")
    assert page.run("return document.body.className") == "old"
    page.run(click, "8 on")
    page.until(SAYS, "Process 8 has told nothing for 2")
    assert page.run("return document.title").startswith("No answer for ")
    page.run(click, own)
    page.until(SAYS, "Nobody waits")
    assert page.run("return document.body.className") == ""


def test_names_are_shown_as_they_are(page: Browser, site: Site) -> None:
    """HTML, quotes and new lines do nothing; the process and the text of a lease are there."""
    site.hold(1)
    page.until(HELD, 1)
    page.run("document.querySelector('#leases details').open = true")
    shown = page.run(
        "return [document.querySelector('#name').textContent, document.title,"
        "document.querySelector('#leases').textContent, document.querySelectorAll('img').length]"
    )
    name, title, leases, images = shown
    assert name == f"shop {NASTY}"
    assert title.startswith("shop <img src=x onerror=alert(1)>")
    assert "SELECT 1 -- <img src=x onerror=alert(1)>" in leases
    assert "server process 4711" in leases
    assert images == 0


def test_chosen_pool_is_there_again(page: Browser, site: Site) -> None:
    """When the page is loaded again; and one that is gone gives way to the first."""
    choose = (
        "const select = document.querySelector('#pool'); select.value = arguments[0];"
        "select.dispatchEvent(new Event('change'))"
    )
    capacity = "return document.querySelector('#capacity').textContent === arguments[0]"
    page.until(capacity, "3")
    page.run(choose, "other")
    page.until(capacity, "7")
    page.go(page.run("return location.href"))
    page.until(capacity, "7")
    assert page.run("return document.querySelector('#pool').value") == "other"
    page.go(f"{site.url}/poolkit?pool=none")
    page.until(capacity, "3")
    assert "pool" not in page.run("return location.search")
    assert "/poolkit/state?pool=none" in "".join(page.complaints())  # the 404, and nothing else


def test_charts_tell_values_where_one_points(page: Browser, site: Site) -> None:
    """With the pointer and with the keyboard; and the scale has a middle."""
    site.hold(N)
    page.until(SAYS, f"All {N} connections are held")
    page.until("return document.querySelectorAll('#sizes polyline').length > 0")
    assert drawn(page, "#sizes .middle") == "2"  # of 4, the next even number
    assert drawn(page, "#waits .middle").endswith("ms")
    page.point("#sizes", 0.999)
    reading = "return document.querySelector('#sizes .reading')?.textContent.endsWith(arguments[0])"
    page.until(reading, f" s ago: leased {N}, idle 0")
    assert "p50" in drawn(page, "#waits .reading")  # of the same moment
    assert page.run("return document.querySelector('#sizes').ariaLabel").endswith("idle 0")
    page.point("#sentence", 0.5)
    page.until("return !document.querySelector('.reading')")
    page.run("document.querySelector('#waits').focus()")
    page.key("\ue012")
    page.until("return document.querySelector('#sizes .reading')")
    page.run("document.activeElement.blur()")
    page.until("return !document.querySelector('.reading')")


def test_old_numbers_are_dimmed_and_the_title_says_so(page: Browser, site: Site) -> None:
    """Until the server answers again; a pause is in the title, too."""
    colour = "return getComputedStyle(document.querySelector('#slots .slot')).backgroundColor"
    fresh, title = page.run(colour), page.run("return document.title")
    page.run(
        "window.real = window.fetch; window.fetch = () => Promise.reject(new TypeError('gone'))"
    )
    page.until(SAYS, "No numbers: gone")
    page.until("return /^No answer for .* s: shop/.test(document.title)")
    assert page.run(colour) != fresh
    assert page.run("return document.title").endswith(title)
    page.run("window.fetch = window.real")
    page.until(SAYS, "Nobody waits")
    assert page.run(colour) == fresh
    assert page.run("return document.title") == title
    page.run("document.querySelector('#pause').click()")
    assert page.run("return document.title") == f"Paused: {title}"
