"""Every test of the shell runs on asyncio, on uvloop and on trio; the servers some tests need."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis  # noqa: F401  # before trio is frozen: it looks for what refers to trio's chance
import pytest

from tests.effort import EFFORT
from tests.mariadb import _own_mariadb, mariadb, mysql, own_mariadb
from tests.pgbouncer import pgbouncer
from tests.postgres import (
    _database,
    _own_postgres,
    database,
    own_database,
    own_postgres,
    postgres,
    postgres_binaries,
    pytest_terminal_summary,
)
from tests.spread import spread

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "_database",
    "_own_mariadb",
    "_own_postgres",
    "anyio_backend",
    "database",
    "mariadb",
    "mysql",
    "own_database",
    "own_mariadb",
    "own_postgres",
    "pgbouncer",
    "postgres",
    "postgres_binaries",
    "pytest_terminal_summary",
]

ROOT = Path(__file__).resolve().parents[1]

#: How many tests there are, by folder, before any are left out by an option.
COLLECTED = pytest.StashKey[Counter[str]]()

#: What starts a server.
SERVERS = {"postgres", "_own_postgres", "mariadb", "_own_mariadb", "pgbouncer"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what CI says where there are no servers."""
    parser.addoption(
        "--without-servers", action="store_true", help="leave out the tests that need a server"
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Iterator[None]:
    """Count the tests of each folder, see ``tests/repo/test_collected.py``; last, spread loops."""
    folders: Counter[str] = Counter()
    for file, many in Counter(item.path for item in items).items():
        path = file.relative_to(ROOT)
        folders["/".join(path.parts[:-1][:2]) or path.name] += many
    config.stash[COLLECTED] = folders
    yield
    if config.option.without_servers:
        with_server = [item for item in items if SERVERS & set(getattr(item, "fixturenames", ()))]
        items[:] = [item for item in items if item not in with_server]
        config.hook.pytest_deselected(items=with_server)
    if EFFORT < 4:
        items[:], left_out = spread(items)
        config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Iterator[None]:
    """Find thousands of tests, none of which is garbage, without looking for any."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Let the collections that tests force look at what tests made, not at thousands of tests."""
    gc.collect()
    gc.freeze()


BACKENDS = [
    pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
    pytest.param(("trio", {}), id="trio"),
]
if sys.platform != "win32":
    BACKENDS.insert(1, pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop"))


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on each event loop in turn."""
    return request.param
