"""The page in a real browser, against a real server: what it says is what the pool does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dashboard.browser import Browser
from tests.dashboard.site import N, Site, serve

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="the browser is Debian's")
HELD = "return document.querySelectorAll('#slots .leased').length === arguments[0]"
SAYS = "return document.querySelector('#sentence').innerText.includes(arguments[0])"


@pytest.fixture
def site() -> Iterator[Site]:
    """Serve the page."""
    with serve() as site:
        yield site


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Browser]:
    """Open the page; see at the end that it was content, and asked nobody else."""
    browser.go(f"{site.url}/poolkit")
    browser.until(SAYS, "Nobody waits")
    yield browser
    assert browser.complaints() == []
    urls = browser.requests()
    assert any(url.endswith("/poolkit/state") for url in urls)
    assert [url for url in urls if not url.startswith((f"{site.url}/", "data:,"))] == []


def counter(page: Browser, name: str) -> int:
    """Return a counter as the page shows it."""
    script = (
        "return [...document.querySelectorAll('#counters dt')]"
        ".find(one => one.textContent === arguments[0]).nextElementSibling.textContent"
    )
    return int(page.run(script, name))


def test_numbers_change_under_load(page: Browser, site: Site) -> None:
    """Squares, queue, leases, counters and the legend of the chart follow, and go back."""
    assert page.run(HELD, 0)
    assert page.run("return document.querySelectorAll('#slots button').length") == N
    assert counter(page, "leased") == 0
    site.hold(N + 4)
    page.until("return document.querySelector('#waiting').innerText === '4'")
    assert page.run(HELD, N)
    assert page.run("return document.querySelectorAll('#queue li').length") == 4
    assert page.run("return document.querySelectorAll('#leases details').length") == N
    assert counter(page, "leased") == N
    assert counter(page, "waiting") == 4
    assert page.text("#leased") == str(N)
    assert page.text("#idle") == "0"
    site.let_go()
    page.until(HELD, 0)
    page.until("return document.querySelector('#waiting').innerText === '0'")
    # On a busy machine some of the others may have waited for the ping of a connection, too.
    assert counter(page, "waited") >= 4
    assert counter(page, "waited") + counter(page, "direct") == N + 4
    # The waits of those four are in the chart, and took longer than no time.
    drawn = "return [...document.querySelectorAll('#waits polyline.p99')].map(l => l.getAttribute('points')).join(' ')"
    heights = {float(point.split(",")[1]) for point in page.run(drawn).split()}
    assert len(heights) > 1, heights


def test_advice_comes_with_the_first_lease_that_ends(page: Browser, site: Site) -> None:
    """How many connections were needed, and how many would do: the words of `poolkit.advise`."""
    assert page.run("return document.querySelector('#advice').hidden")
    site.hold(N + 4)
    page.until("return document.querySelector('#waiting').innerText === '4'")
    site.let_go()
    page.until("return document.querySelector('#advice').innerText.includes('waited')")
    page.until(HELD, 0)
    page.until("return document.querySelector('#waiting').innerText === '0'")
    advice = page.text("#advice")
    assert advice.startswith(f"Peak need {N} of {N} connections; ")
    assert advice.endswith("connections would let 99 % find one idle.")
    page.look(width=360, height=740, dark=False)
    page.until("return innerWidth === 360")
    assert page.run("return document.documentElement.scrollWidth") == 360


def test_judgement_names_who_holds_all_of_it(page: Browser, site: Site) -> None:
    """Nobody waiting is not yet bad; more than a second is, and the route is named."""
    site.hold(N)
    page.until(SAYS, f"All {N} connections are held, and nobody waits")
    site.hold(2)
    page.until(SAYS, f"2 requests have waited more than 1 s; GET /hold holds {N} of {N}")
    assert page.run("return document.querySelector('#sentence').className") == "bad"
    site.let_go()
    page.until(SAYS, "Nobody waits; 0 of 3 connections are held")
    assert page.run("return document.querySelector('#sentence').className") == "good"


def test_keyboard_leads_from_a_square_to_its_stack(page: Browser, site: Site) -> None:
    """And what was opened stays open, and keeps the focus, when the next numbers come."""
    site.hold(1)
    page.until(HELD, 1)
    page.run("document.querySelector('#slots .leased').focus()")
    page.key("\ue007")
    page.until("return document.querySelector('#leases details').open")
    assert "site.py" in page.text("#leases pre")
    seconds = page.text("#leases summary span")
    page.until(
        "return document.querySelector('#leases summary span').innerText !== arguments[0]", seconds
    )
    assert page.run("return document.querySelector('#leases details').open")
    assert page.run("return document.activeElement.localName") == "summary"


def test_page_that_is_not_seen_asks_for_nothing(page: Browser, site: Site) -> None:
    """A pause and a hidden page stop the timer; seen again, it goes on."""
    asked = "return performance.getEntriesByType('resource').filter(e => e.name.includes('/state')).length"
    hide = (
        "Object.defineProperty(document, 'hidden', {value: arguments[0], configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    elapsed = "window.from ??= performance.now(); return performance.now() - window.from > 2500"
    page.run(hide, True)
    page.until("return new Promise(r => setTimeout(() => r(true), 300))")  # one may be under way
    before = page.run(asked)
    page.until(elapsed)
    assert page.run(asked) == before
    page.run(hide, False)
    page.until(f"return ({asked.removeprefix('return ')}) > {before}")


def test_browser_reports_the_wait_and_the_hold(page: Browser, site: Site) -> None:
    """`performance` has both, with the numbers of the request."""
    entry = (
        "const [entry] = performance.getEntriesByName(new URL(arguments[0], location).href);"
        "return entry && Object.fromEntries("
        "entry.serverTiming.map(one => [one.name, [one.duration, one.description]]))"
    )
    page.run("fetch('/stream').then(answer => answer.text())")
    page.until(HELD, 1)
    began = time.monotonic()
    page.until(SAYS, "1 of 3 connections")
    held = 1000 * (time.monotonic() - began)
    site.let_go()
    free = page.until(entry, "/stream")
    assert free["pool"] == [0, "wait"]
    assert free["db"][0] >= held
    assert free["db"][1] == "held"
    site.hold(N)
    page.until(HELD, N)
    page.run("fetch('/short').then(answer => answer.text())")
    page.until(SAYS, "1 request has waited more than 1 s")
    site.let_go()
    assert page.until(entry, "/short")["pool"][0] > 1000


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_page_fits_a_phone(page: Browser, site: Site, dark: bool, tmp_path: Path) -> None:
    """Nothing is cut off at the side, and light and dark differ."""
    site.hold(N + 2)
    page.until("return document.querySelector('#waiting').innerText === '2'")
    page.look(width=360, height=740, dark=dark)
    page.until("return innerWidth === 360")
    assert page.run("return document.documentElement.scrollWidth") == 360
    colour = page.run("return getComputedStyle(document.body).backgroundColor")
    assert (colour == "rgb(20, 23, 26)") is dark
    if folder := os.environ.get("SCREENSHOTS"):  # for docs/images
        page.until(SAYS, "2 requests have waited more than 1 s")
        page.screenshot(Path(folder) / f"dashboard-phone-{'dark' if dark else 'light'}.png")
        page.look(width=900, height=900, dark=dark)
        page.until("return innerWidth === 900")
        page.until("return document.querySelectorAll('#waits polyline').length")
        page.screenshot(Path(folder) / f"dashboard-{'dark' if dark else 'light'}.png")


def test_server_stops_within_its_grace_while_the_page_is_open(
    browser: Browser, tmp_path: Path
) -> None:
    """SIGTERM ends it at once: no request is kept open."""
    log = tmp_path / "log"
    program = (
        "import sys, socket, uvicorn; from fastapi import FastAPI; import poolkit.fastapi;"
        "from poolkit import Pool; from poolkit.testing import FakeDriver;"
        "app = FastAPI(lifespan=poolkit.fastapi.lifespan(Pool(FakeDriver(), min_size=2)));"
        "app.include_router(poolkit.fastapi.router(dashboard=True, public=True));"
        "uvicorn.run(app, fd=int(sys.argv[1]), timeout_graceful_shutdown=10)"
    )
    with socket.create_server(("127.0.0.1", 0)) as listener, log.open("w") as output:
        fd = listener.fileno()
        command = [sys.executable, "-c", program, str(fd)]
        with subprocess.Popen(
            command, cwd=ROOT, pass_fds=[fd], stdout=output, stderr=output
        ) as server:
            browser.go(f"http://127.0.0.1:{listener.getsockname()[1]}/poolkit")
            browser.until(SAYS, "Nobody waits")
            began = time.monotonic()
            server.send_signal(signal.SIGTERM)
            server.wait(20)
            took = time.monotonic() - began
    assert took < 5, log.read_text()
    assert "Application shutdown complete" in log.read_text()
    assert "Cancel" not in log.read_text()
    browser.until(SAYS, "No numbers")
    browser.go("about:blank")
