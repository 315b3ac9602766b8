"""A browser for the page, and the event loop that servers run on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.dashboard.browser import Browser, chromium


@pytest.fixture
def anyio_backend() -> Any:
    """Run on asyncio: what is under test is not the loop."""
    return "asyncio"


@pytest.fixture(scope="session")
def one_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Start one browser for all."""
    with chromium(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def browser(one_browser: Browser) -> Browser:
    """Return the browser, on an empty page, having said nothing."""
    one_browser.go("about:blank")
    one_browser.look(width=1000, height=900, dark=False)
    one_browser.complaints()
    one_browser.requests()
    return one_browser
