"""Run SQLAlchemy's own tests of its asyncio extension on poolkit; compare with the known failures.

    python scripts/sqlalchemy_tests.py [WHAT PYTEST SELECTS ...]

The tests, `test/ext/asyncio`, come from the source distribution of the SQLAlchemy that is
installed, by pip, into `var/`. Nothing in them is changed. What they call to make an engine on
PostgreSQL makes one of `poolkit.sqlalchemy`, with the sizes that they ask for; one that names a
pool class or a creator of its own stays SQLAlchemy's, for it tests these. They run on a server of
their own, started from the binaries that our own tests use. The list,
`tests/sqlalchemy/expected_failures.toml`, has a reason for each test that fails, always or
sometimes, and may only shrink, as that of asyncpg's tests (`asyncpg_pool_tests.py`).
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tests" / "sqlalchemy" / "expected_failures.toml"
VERSION = importlib.metadata.version("sqlalchemy")
NAME = f"sqlalchemy-{VERSION}"
FOLDER = ROOT / "var" / NAME
RESULTS = FOLDER / "results.json"
TESTS = "test/ext/asyncio"
#: What SQLAlchemy calls them in a URL, by poolkit's names.
DRIVERS = {"asyncpg": "postgresql+asyncpg", "psycopg": "postgresql+psycopg_async"}
#: What a class is also called after: the driver, and the version of the server.
_BACKEND = re.compile(r"_postgresql\+\w+(?=::)")


# -- the tests -----------------------------------------------------------------------------------


def take_tests() -> None:
    """Put the tests into the folder, unless they are there."""
    if not any(FOLDER.glob("*.tar.gz")):
        what = ["--no-binary", "sqlalchemy", "--no-deps", f"sqlalchemy=={VERSION}"]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(FOLDER)]
        subprocess.run([*pip, *what], check=True)
    # Its plugin for pytest is loaded from there, all else from what is installed.
    wanted = ("test/", "lib/sqlalchemy/testing/plugin/", "setup.cfg", "pyproject.toml")
    (archive,) = FOLDER.glob("*.tar.gz")
    with tarfile.open(archive) as source:
        for each in source:
            path = each.name.partition("/")[2]
            if each.isfile() and path.startswith(wanted):
                source.extract(each.replace(name=path, deep=False), FOLDER, filter="data")


# -- engines on poolkit, inside of pytest --------------------------------------------------------


class OnPoolkit:
    """The plugin: has engines made on poolkit, and notes how each test ends."""

    def __init__(self, driver: str) -> None:
        self.driver = driver
        self.ended: dict[str, str] = {}
        self.engines: Counter[str] = Counter()

    def pytest_collection(self) -> None:
        """Before any test takes a name from SQLAlchemy, and after its own plugin is there."""
        import sqlalchemy.ext.asyncio as theirs  # noqa: PLC0415
        from sqlalchemy.ext.asyncio import engine  # noqa: PLC0415

        self.make = theirs.create_async_engine
        shown: Any = (theirs, engine)
        for module in shown:
            module.create_async_engine = self.create_async_engine
        open_and_close()
        count_what_is_open()

    def create_async_engine(self, url: Any, **options: Any) -> Any:
        """Make one on poolkit, unless the test is of a pool of SQLAlchemy's own."""
        from sqlalchemy import make_url  # noqa: PLC0415
        from sqlalchemy.pool import AsyncAdaptedQueuePool  # noqa: PLC0415

        import poolkit  # noqa: PLC0415

        url = make_url(url)
        of_their_own = {"pool", "creator", "async_creator", "module"} & options.keys()
        kind = options.pop("poolclass", AsyncAdaptedQueuePool)
        of_poolkit = kind.__module__ == "poolkit.sqlalchemy"
        if (
            url.get_backend_name() != "postgresql"
            or of_their_own
            or kind is not AsyncAdaptedQueuePool
        ):
            self.engines["SQLAlchemy"] += not of_poolkit
            return self.make(
                url, **options, **({} if kind is AsyncAdaptedQueuePool else {"poolclass": kind})
            )
        self.engines["poolkit"] += 1
        sizes = {
            "min_size": 0,
            "max_size": options.pop("pool_size", 5),
            "max_overflow": options.pop("max_overflow", 0),
            "acquire_timeout": options.pop("pool_timeout", 5.0),
        }
        options.pop("pool_recycle", None)
        dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
        pool = getattr(poolkit.drivers, self.driver).create_pool(dsn, **sizes)
        return poolkit.sqlalchemy.create_async_engine(pool, **options)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note it."""
        name = _BACKEND.sub("", report.nodeid.removeprefix(f"{TESTS}/"))
        name = f"{self.driver} {name}"
        if report.outcome != "passed" or report.when == "call":
            self.ended.setdefault(name, report.outcome)
            if report.failed:
                self.ended[name] = report.outcome

    def pytest_sessionfinish(self) -> None:
        """Leave the results in the folder."""
        RESULTS.write_text(json.dumps({"ended": self.ended, "engines": self.engines}))


def open_and_close() -> None:
    """Have a pool opened by a session, and closed with its engine: the tests know of neither."""
    from sqlalchemy.exc import MissingGreenlet  # noqa: PLC0415
    from sqlalchemy.util import await_only  # noqa: PLC0415

    from poolkit.sqlalchemy import PoolkitPool  # noqa: PLC0415

    shown: Any = PoolkitPool
    acquire, dispose = shown._acquire, shown.dispose

    def opened(self: Any, stack: Any) -> Any:
        if not self._lender.is_open:
            await_only(self._lender.open())
        return acquire(self, stack)

    def closed(self: Any) -> None:
        dispose(self)
        if self._lender.is_open and not self._lender.stats().leased:
            with contextlib.suppress(MissingGreenlet):
                await_only(self._lender.aclose())

    shown._acquire, shown.dispose = opened, closed


def count_what_is_open() -> None:
    """Have the sweeps of cancellations ask the driver's connections whether they are closed.

    They count what SQLAlchemy's pool closes; here the pool beneath closes most.
    """
    try:
        from sqlalchemy.testing import cancellation  # noqa: PLC0415
    except ImportError:  # before 2.1 there are none
        return
    shown: Any = cancellation.ConnectionAccounting
    create = shown._invoke_creator

    def created(self: Any, record: Any) -> Any:
        adapter = create(self, record)
        self._created.remove(adapter)
        self._created.add(adapter._connection._poolkit_slot.connection)
        return adapter

    shown._invoke_creator = created
    shown.leaked = property(lambda self: {c for c in self._created if not is_closed(c)})


def is_closed(connection: Any) -> bool:
    """Tell it of a connection of asyncpg's or psycopg's."""
    return bool(connection.is_closed() if hasattr(connection, "is_closed") else connection.closed)


# -- run and compare -----------------------------------------------------------------------------


def run_here(driver: str, dsn: str, selected: list[str]) -> None:
    """Run the tests in this process."""
    import pytest  # noqa: PLC0415

    os.chdir(FOLDER)
    words = ["--dburi", dsn, "-p", "no:cacheprovider", "-p", "no:anyio", "-p", "no:xdist"]
    plain = ["-o", "addopts=", "--tb=short", "-q", "--timeout=20", "-p", "warnings"]
    pytest.main([*plain, *words, *(selected or [TESTS])], plugins=[OnPoolkit(driver)])


def read_list() -> tuple[dict[str, str], dict[str, str]]:
    """Return the reasons of the tests that fail, and of those that do so sometimes."""
    listed = tomllib.loads(LIST.read_text())
    return listed["always"], listed["sometimes"]


def main() -> None:
    """Run them all, or those selected."""
    sys.path.insert(0, str(ROOT))
    selected = sys.argv[1:]
    if dsn := os.environ.get("POOLKIT_SQLALCHEMY_TESTS"):
        driver = next(name for name, scheme in DRIVERS.items() if dsn.startswith(f"{scheme}:"))
        run_here(driver, dsn, selected)
        return
    from tests.postgres import Server, usable_binaries  # noqa: PLC0415

    FOLDER.mkdir(parents=True, exist_ok=True)
    take_tests()
    ended: dict[str, str] = {}
    for driver, scheme in DRIVERS.items():
        RESULTS.unlink(missing_ok=True)
        with usable_binaries() as binaries, contextlib.closing(Server(binaries)) as server:
            server.start()
            server.query("CREATE DATABASE test")
            for schema in ("test_schema", "test_schema_2"):
                server.query(f"CREATE SCHEMA {schema}", database="test")
            dsn = server.dsn("test").replace("postgresql:", f"{scheme}:")
            # Without what a user's site adds, its plugin takes the SQLAlchemy that is installed.
            here = [sys.executable, "-s", __file__, *selected]
            subprocess.run(here, env={**os.environ, "POOLKIT_SQLALCHEMY_TESTS": dsn}, check=False)
        if not RESULTS.exists():
            sys.exit(f"the tests did not come to their end on {driver}")
        found = json.loads(RESULTS.read_text())
        ended |= found["ended"]
        many = [f"{number} {how}" for how, number in Counter(found["ended"].values()).items()]
        on_poolkit = f"engines on poolkit: {found['engines']['poolkit']}"
        print(f"SQLAlchemy {VERSION} on {driver}: {', '.join(many)}; {on_poolkit}", flush=True)
    from scripts.asyncpg_pool_tests import compare  # noqa: PLC0415

    wrong = compare(ended, *read_list(), all_ran=not selected)
    sys.exit("\n".join(wrong) or 0)


if __name__ == "__main__":
    main()
