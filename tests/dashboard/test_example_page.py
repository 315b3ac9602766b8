"""The example's page in a real browser: what it measures by itself, and that all can read it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dashboard.browser import Browser
from tests.dashboard.test_looks import CONTRAST

ROOT = Path(__file__).parents[2]
TABLES = ROOT / "docs" / "explanation" / "performance.md"
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


@pytest.fixture
def measured(example: str, browser: Browser) -> Browser:
    """Return the page when it has measured everything, without anything being pressed."""
    browser.go(example)
    browser.until("return document.querySelector('#sentence').className", patience=60)
    assert browser.run("return document.querySelector('#sentence').className") == "good"
    return browser


def table(browser: Browser, body: str) -> dict[str, list[str]]:
    """Return the rows of a table by their names."""
    rows = browser.run(
        "return [...document.querySelectorAll(`${arguments[0]} tr`)].map(row =>"
        "[...row.cells].map(cell => cell.innerText.trim()))",
        body,
    )
    return {name: cells for name, *cells in rows}


def number(cell: str) -> float:
    """Return the number that a cell begins with."""
    return float(cell.split(maxsplit=1)[0].rstrip(",").replace(",", ""))


def test_page_measures_by_itself_what_a_pool_is_for(example: str, measured: Browser) -> None:
    """The two ways differ in what they open, the line has an order, only a limit refuses."""
    compared = table(measured, "#comparison")
    pooled, unpooled = compared["connections opened"]
    answered = compared["requests answered, in 2 s at most"]
    assert number(pooled) == 5 < number(answered[0])
    assert number(unpooled) >= number(answered[1]) > 5
    pooled, unpooled = compared["opening and closing"]
    assert 0 < number(pooled) < number(unpooled)
    assert pooled.endswith(" %")
    assert unpooled.endswith(" %")
    assert all(
        number(cell) > 0 for row in ("p50", "p99") for cell in compared[f"whole request, {row}"]
    )
    why = measured.text("#why")
    assert "Opening a SQLite file is cheap" in why
    assert "DATABASE_URL=postgresql://" in why
    rows = re.findall(r"^\| (?:no pool|poolkit): .*", TABLES.read_text(), re.MULTILINE)
    shown = re.findall(r"of ([0-9.]+) ms with", why)
    assert len(shown) == 2
    assert all(any(f" {one} (" in row for row in rows) for one in shown)
    line = measured.run(
        "return Object.fromEntries([...document.querySelectorAll('#line dt')]"
        ".map(dt => [dt.innerText, dt.nextElementSibling.innerText]))"
    )
    assert number(line["served"]) > 0
    assert number(line["in line at once, at most"]) >= 7  # of twelve, five have a connection
    assert number(line["longest wait"]) > 0
    assert line["served out of turn"] == "0"
    overload = table(measured, "#overload")
    came, (free, limited) = overload["came"], overload["refused at once"]
    assert (free, overload["accepted"][0]) == ("0", came[0])
    assert 0 < number(limited) == number(came[1]) - number(overload["accepted"][1])
    assert number(overload["longest line"][1]) == 10 < number(overload["longest line"][0])
    assert measured.complaints() == []
    assert all(url.startswith((example, "data:")) for url in measured.requests())
    if folder := os.environ.get("SCREENSHOTS"):
        measured.look(width=900, height=1640, dark=False)
        measured.until("return innerWidth === 900")
        measured.screenshot(Path(folder) / "example.png")


def test_page_can_be_read_by_all(measured: Browser) -> None:
    """Axe finds nothing, every text stands out, in both modes; nothing is cut off on a phone."""
    for dark, width in ((False, 1000), (True, 360)):
        measured.look(width=width, height=900, dark=dark)
        measured.until("return innerWidth === arguments[0]", width)
        violations, unsure = measured.axe()
        assert violations == []
        assert {one[0] for one in unsure} <= {"color-contrast"}, unsure
        assert [one for one in measured.run(CONTRAST) if one[0] < 4.5] == []
        assert measured.run("return document.documentElement.scrollWidth") <= width


def test_visitors_are_seen_on_the_live_page(example: str, measured: Browser) -> None:
    """The five connections are held by visitors, and others wait; no second load is let in."""

    def fetch(path: str, data: bytes | None = None) -> Any:
        with urllib.request.urlopen(f"{example}{path}", data, timeout=20) as answer:
            return json.load(answer)

    measured.run("document.querySelector('#longer').click()")
    end = time.monotonic() + 60
    while fetch("/pool")["leased"] < 5:
        assert time.monotonic() < end
    with pytest.raises(urllib.error.HTTPError, match="409"):
        fetch("/loads/pooled", b"")
    measured.go(f"{example}/poolkit")  # the load goes on
    measured.until("return document.querySelector('#leases').innerText.includes('visitor')")
    assert measured.complaints() == []
