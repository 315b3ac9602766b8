"""The page of a server of four processes: whichever answers, it shows them all."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dashboard.browser import Browser

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the browser is Debian's")
ROOT = Path(__file__).parents[2]
N = 3
WORKERS = 4
#: What the last line of the table says, column by column.
TOTAL = "[...document.querySelectorAll('#total td')].map(cell => cell.textContent)"
ROWS = "document.querySelectorAll('#rows tr').length"
CHOSEN = "document.querySelector('#rows [aria-pressed=true]')?.textContent"


class Many:
    """A server of several processes."""

    def __init__(self, folder: Path, port: int, process: subprocess.Popen[str], log: Path) -> None:
        self.folder = folder
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.process = process
        self.log = log

    def ask(self, method: str, path: str) -> Any:
        """Send a request to any of them."""
        conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            conn.request(method, path)
            return json.loads(conn.getresponse().read())
        finally:
            conn.close()


@pytest.fixture
def many(tmp_path: Path) -> Iterator[Many]:
    """Start `uvicorn --workers 4`."""
    log = tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as listener, log.open("w") as output:
        fd = listener.fileno()
        command = [sys.executable, "-m", "uvicorn", "tests.dashboard.many:app"]
        command += [f"--workers={WORKERS}", f"--fd={fd}", "--timeout-graceful-shutdown=3"]
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "MANY": str(tmp_path)},
            pass_fds=[fd],
            stdout=output,
            stderr=output,
            text=True,
        ) as process:
            try:
                yield Many(tmp_path, listener.getsockname()[1], process, log)
            finally:
                (tmp_path / "go").touch()
                process.terminate()
                try:
                    process.wait(30)
                finally:
                    process.kill()


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
