"""The page protected word for word as `docs/howto/dashboard.md` shows, opened in a real browser."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dashboard.browser import Browser
from tests.dashboard.site import serving

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the browser is Debian's")
PAGE = Path(__file__).parents[2] / "docs" / "howto" / "dashboard.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
SAYS = "return document.querySelector('#sentence')?.innerText.includes(arguments[0])"
STATUS = "return fetch(arguments[0], arguments[1]).then(answer => answer.status)"


@pytest.fixture
def app(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the page's blocks, in an empty folder, up to the one that has a word; return its `app`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPS_PASSWORD", "")
    last = next(n for n, block in enumerate(BLOCKS) if request.param in block)
    names: dict[str, Any] = {}
    for block in BLOCKS[: last + 1]:
        exec(block, names)
    return names["app"]


@pytest.fixture
def served(app: Any) -> Iterator[str]:
    """Serve it; return the host and port."""
    with socket.create_server(("127.0.0.1", 0)) as listener, serving(app, listener):
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("app", ["HTTPBasic()"], indirect=True)
def test_page_behind_a_password_opens_in_a_browser(served: str, browser: Browser) -> None:
    """Refused without it; told it once, the browser sends it with all that the page asks for."""
    browser.go("data:text/html,")
    browser.go(f"http://ops:wrong@{served}/poolkit")
    assert not browser.run(SAYS, "Nobody waits")
    browser.go(f"http://ops:sesame@{served}/poolkit")
    browser.until(SAYS, "Nobody waits")
    browser.complaints()
    choose = "document.querySelector('#pool').dispatchEvent(new Event('change'))"
    browser.run(choose)  # the choice goes into an address that has a password in it
    browser.until("return location.search === '?pool=default'")
    browser.go(f"http://{served}/poolkit?pool=default")
    browser.until(SAYS, "Nobody waits")
    assert browser.complaints() == []


@pytest.mark.parametrize("app", ["Cookie()"], indirect=True)
def test_page_behind_a_login_opens_in_a_browser(served: str, browser: Browser) -> None:
    """With the cookie that the login has set, and without any word of the page's script."""
    browser.go(f"http://{served}/poolkit")
    assert browser.run(STATUS, "/poolkit/state", {}) == 401
    json = {"method": "POST", "headers": {"Content-Type": "application/json"}}
    assert browser.run(STATUS, "/login", {**json, "body": '{"password": "wrong"}'}) == 401
    assert browser.run(STATUS, "/login", {**json, "body": '{"password": "sesame"}'}) == 204
    browser.complaints()
    browser.go(f"http://{served}/poolkit")
    browser.until(SAYS, "Nobody waits")
    assert browser.run("return document.cookie") == ""
    assert browser.complaints() == []
