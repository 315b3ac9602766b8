"""A headless Chromium, driven by its own chromedriver over HTTP: the few commands the tests use.

Nothing is installed for it but the distribution's two programs: `scripts/test-tools.sh`.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import importlib.resources
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_QUIET = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Browser:
    """One window."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._session = ""

    def begin(self, folder: Path) -> None:
        """Open the window."""
        made = self._send(
            "POST",
            "",
            {
                "capabilities": {
                    "alwaysMatch": {
                        "browserName": "chrome",
                        "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
                        "goog:chromeOptions": {
                            "binary": shutil.which("chromium"),
                            "args": [*_QUIET, f"--user-data-dir={folder}"],
                        },
                    }
                }
            },
        )
        self._session = f"/{made['sessionId']}"

    def end(self) -> None:
        """Close the window."""
        self._send("DELETE", "")

    def go(self, url: str) -> None:
        """Load a page."""
        self._send("POST", "/url", {"url": url})

    def run(self, script: str, *args: Any) -> Any:
        """Run a script in the page, and return what it returns."""
        return self._send("POST", "/execute/sync", {"script": script, "args": list(args)})

    def text(self, selector: str) -> str:
        """Return what an element says."""
        found: str = self.run("return document.querySelector(arguments[0]).innerText", selector)
        return found

    def until(self, script: str, *args: Any, patience: float = 20.0) -> Any:
        """Wait until a script returns something, and return that; the page has its own clock."""
        end = time.monotonic() + patience
        while not (found := self.run(script, *args)):
            assert time.monotonic() < end, f"not in {patience} s: {script}\n{self.text('body')}"
            time.sleep(0.02)  # or asking would keep the page from it
        return found

    def key(self, key: str) -> None:
        """Press a key."""
        actions = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        device = {"type": "key", "id": "keyboard", "actions": actions}
        self._send("POST", "/actions", {"actions": [device]})

    def point(self, selector: str, share: float) -> None:
        """Move the pointer to a share of the width of an element, from its left."""
        left, top = self.run(
            "const box = document.querySelector(arguments[0]); box.scrollIntoView();"
            "const { left, top, width, height } = box.getBoundingClientRect();"
            "return [Math.round(left + arguments[1] * width), Math.round(top + height / 2)]",
            *(selector, share),
        )
        move = {"type": "pointerMove", "x": left, "y": top, "duration": 0}
        self._send(
            "POST", "/actions", {"actions": [{"type": "pointer", "id": "m", "actions": [move]}]}
        )

    def cdp(self, command: str, **params: Any) -> Any:
        """Send a command of Chromium's own protocol."""
        return self._send("POST", "/goog/cdp/execute", {"cmd": command, "params": params})

    def look(self, *, width: int, height: int, dark: bool) -> None:
        """Be a window of a size, in light or dark."""
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.cdp("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        """Keep what is seen."""
        path.write_bytes(base64.b64decode(self._send("GET", "/screenshot")))

    def axe(self) -> tuple[list[Any], list[Any]]:
        """Return what axe finds wrong with the page, and what it leaves for a person to judge."""
        if importlib.util.find_spec("axe_core_python") is None:
            assert os.environ.get("CI") != "true", "axe-core-python is missing"
            pytest.skip("no axe-core-python here: make test")
        code = importlib.resources.files("axe_core_python").joinpath("axe.min.js").read_text()
        self.run(f"{code};")
        violations, unsure = self.run(
            "return axe.run(document, {resultTypes: ['violations', 'incomplete']}).then(found =>"
            "[found.violations, found.incomplete].map(all => all.map(one =>"
            "[one.id, one.help, one.nodes.map(node => node.html)])))"
        )
        return violations, unsure

    def complaints(self) -> list[str]:
        """Return what the console says, since it was last asked."""
        said = self._send("POST", "/se/log", {"type": "browser"})
        return [one["message"] for one in said]

    def requests(self) -> list[str]:
        """Return the addresses that were asked for, since this was last called."""
        urls = []
        for one in self._send("POST", "/se/log", {"type": "performance"}):
            message = json.loads(one["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                urls.append(message["params"]["request"]["url"])
        return urls

    def _send(self, method: str, path: str, body: Any = None) -> Any:
        conn = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        with contextlib.closing(conn):
            text = None if method != "POST" else json.dumps(body or {})
            conn.request(method, f"/session{self._session}{path}", text)
            answer = json.loads(conn.getresponse().read())["value"]
        if isinstance(answer, dict) and "error" in answer:
            raise AssertionError(f"{answer['error']}: {answer['message']}")
        return answer


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """Run a browser; skip where there is none, fail if that is in CI."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if missing:
        why = f"no {' and no '.join(missing)} here: make test-tools"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (folder / "chromedriver.log").open("w") as log:
        driver = subprocess.Popen(
            [str(shutil.which("chromedriver")), f"--port={port}"], stdout=log, stderr=log
        )
        try:
            _wait_for(port)
            browser = Browser(port)
            browser.begin(folder / "profile")
            try:
                yield browser
            finally:
                browser.end()
        finally:
            driver.terminate()
            driver.wait(20)


def _wait_for(port: int) -> None:
    end = time.monotonic() + 30
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert time.monotonic() < end, "chromedriver did not start"
