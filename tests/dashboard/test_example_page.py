"""The example's page in a real browser: its button loads the pool, and the pool's page shows it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dashboard.browser import Browser

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="the browser is Debian's")


@pytest.fixture
def example(tmp_path: Path) -> Iterator[str]:
    """Start what `make demo` starts, on a database of its own and any free port."""
    with subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "demo.py"), "0"],
        env={**os.environ, "DATABASE_URL": f"sqlite:///{tmp_path}/example.db"},
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        try:
            found = (re.search(r"http://[0-9.:]+", line) for line in server.stdout)
            yield next(address[0] for address in found if address)
        finally:
            server.terminate()


def press(browser: Browser, button: str) -> None:
    """Click when the page's scripts have run."""
    browser.until("return document.readyState === 'complete'")
    browser.run("document.querySelector(arguments[0]).click()", button)


def test_button_draws_both_latencies_and_the_pool_is_busy(example: str, browser: Browser) -> None:
    """Both lines grow, and the pool counts the acquires that its page shows."""
    browser.go(example)
    press(browser, "#load")
    browser.until("return document.querySelector('#load').disabled")
    browser.until("return document.querySelectorAll('#chart polyline').length === 2")
    points = (
        "return [...document.querySelectorAll('#chart polyline')]"
        ".every(line => line.getAttribute('points').split(' ').length > 4)"
    )
    browser.until(points)
    for kind in ("#pooled", "#unpooled", "#waited", "#held"):
        assert browser.text(kind).endswith(" ms"), kind
    answered = int(browser.text("#done"))
    browser.until("return !document.querySelector('#load').disabled")
    assert int(browser.text("#done")) > answered
    if folder := os.environ.get("SCREENSHOTS"):
        browser.look(width=900, height=420, dark=False)
        browser.until("return innerWidth === 900")
        browser.screenshot(Path(folder) / "example.png")
    assert browser.complaints() == []
    browser.go(f"{example}/poolkit")
    direct = (
        "return Number([...document.querySelectorAll('#counters dt')]"
        ".find(one => one.textContent === 'direct')?.nextElementSibling.textContent)"
    )
    browser.until(f"return ({direct.removeprefix('return ')}) > {answered // 10}")
    assert browser.complaints() == []


def test_twelve_visitors_are_seen_in_line(example: str, browser: Browser) -> None:
    """The five connections are held, and the others wait, by the name of the route."""

    def fetch(path: str, data: bytes | None = None) -> Any:
        with urllib.request.urlopen(f"{example}{path}", data, timeout=20) as answer:
            return json.load(answer)

    browser.go(example)
    # What a page has not sent when it is left is never sent.
    press(browser, "#visitors")
    end = time.monotonic() + 60
    while fetch("/pool")["leased"] < 5:  # asking takes a request, and the visitors come by others
        assert time.monotonic() < end
    browser.go(f"{example}/poolkit")
    fetch("/breathe", b"")  # they stay for ten seconds, and the page may have taken longer
    browser.until("return document.querySelectorAll('#slots .leased').length === 5")
    browser.until("return Number(document.querySelector('#waiting').innerText) > 0")
    assert "POST /breathe" in browser.text("#leases")
    assert browser.complaints() == []
