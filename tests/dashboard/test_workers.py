"""The page of a server of four processes: whichever answers, it shows them all."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dashboard.browser import Browser
from tests.dashboard.processes import WORKERS, Many, serve_many

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the browser is Debian's")
N = 3
#: What the last line of the table says, column by column.
TOTAL = "[...document.querySelectorAll('#total td')].map(cell => cell.textContent)"
ROWS = "document.querySelectorAll('#rows tr').length"
CHOSEN = "document.querySelector('#rows [aria-pressed=true]')?.textContent"


@pytest.fixture
def many(tmp_path: Path) -> Iterator[Many]:
    """Start `uvicorn --workers 4`."""
    with serve_many(tmp_path) as many:
        yield many


def test_page_shows_all_processes_and_each_of_them(browser: Browser, many: Many) -> None:
    """With totals; one that is killed is gone, and one that ends leaves nothing behind."""
    browser.go(f"{many.url}/poolkit")
    browser.until(f"return {ROWS} === {WORKERS}", patience=60)
    browser.until(f"return ({TOTAL})[5] === '{WORKERS * N}'")
    pid = many.ask("POST", "/hold")
    browser.until(f"return ({TOTAL})[1] === '1'")
    # Look at the one that holds it.
    row = "[...document.querySelectorAll('#rows button')].find(b => b.textContent === arguments[0])"
    browser.run(f"{row}.click()", str(pid))
    browser.until("return document.querySelector('#leases').innerText.includes('nightly import')")
    assert browser.run(f"return {CHOSEN}") == str(pid)
    assert browser.text("#process").startswith(f"process {pid} on ")
    browser.until("return document.querySelectorAll('#sizes polyline').length > 0")
    browser.go(browser.run("return location.href"))  # by whomever it is answered now
    browser.until("return document.querySelector('#leases').innerText.includes('nightly import')")
    assert browser.run(f"return {CHOSEN}") == str(pid)
    browser.look(width=360, height=740, dark=False)
    browser.until("return innerWidth === 360")
    assert browser.run("return document.documentElement.scrollWidth") == 360
    if folder := os.environ.get("SCREENSHOTS"):
        browser.look(width=900, height=440, dark=False)
        browser.until("return innerWidth === 900")
        browser.screenshot(Path(folder) / "dashboard-processes.png")
    browser.complaints()
    os.kill(pid, signal.SIGKILL)  # uvicorn starts another in its place
    browser.until(f"return {CHOSEN} && {CHOSEN} !== arguments[0]", str(pid))
    browser.until(f"return ({TOTAL})[1] === '0' && {ROWS} === {WORKERS}", patience=60)
    browser.until("return !document.body.classList.contains('old')")
    assert not list((many.folder / "snapshots").glob(f"*-{pid}-*"))
    browser.go("about:blank")
    many.process.terminate()
    many.process.wait(30)
    assert list((many.folder / "snapshots").glob("*.json")) == [], many.log.read_text()
