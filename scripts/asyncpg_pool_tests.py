"""Run asyncpg's own tests of its pool on `poolkit.compat.asyncpg`; compare with the known failures.

    python scripts/asyncpg_pool_tests.py [NAME ...]

The tests come from the source distribution of the asyncpg that is installed, by pip, into `var/`.
Nothing in them is changed but the imports. They look at private attributes of asyncpg's pool, too:
`Window` shows them the like of ours. The list, `tests/compat/asyncpg_expected_failures.toml`, has a
reason for each test that fails, and may only shrink: it is an error if another fails, and if a
listed one passes.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import subprocess
import sys
import tarfile
import tomllib
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "tests" / "compat" / "asyncpg_expected_failures.toml"
VERSION = importlib.metadata.version("asyncpg")
FOLDER = ROOT / "var" / f"asyncpg-{VERSION}"
#: The only changes: from where the names come.
IMPORTS = {
    "import asyncpg\n": "from poolkit.compat import asyncpg\n",
    "from asyncpg import pool as pg_pool\n": "from poolkit.compat.asyncpg import pool as pg_pool\n",
    "from asyncpg import _testbase as tb\n": "import asyncpg_testbase as tb\n",
}
FILES = {
    "tests/test_pool.py": "asyncpg_test_pool.py",
    "asyncpg/_testbase/__init__.py": "asyncpg_testbase/__init__.py",
    "asyncpg/_testbase/fuzzer.py": "asyncpg_testbase/fuzzer.py",
}


# -- the tests -----------------------------------------------------------------------------------


def take_tests() -> None:
    """Put the tests into the folder, unless they are there."""
    name = f"asyncpg-{VERSION}"
    archive = FOLDER / f"{name}.tar.gz"
    if not archive.exists():
        what = ["--no-binary", ":all:", "--no-deps", f"asyncpg=={VERSION}"]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(FOLDER)]
        subprocess.run([*pip, *what], check=True)
    with tarfile.open(archive) as source:
        for path, place in FILES.items():
            member = source.extractfile(f"{name}/{path}")
            assert member is not None
            text = member.read().decode()
            for theirs, ours in IMPORTS.items():
                text = text.replace(f"\n{theirs}", f"\n{ours}")
            target = FOLDER / place
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)


# -- the inside of our pool, as asyncpg's tests look at it --------------------------------------


class Holder:
    """Shows a slot, or the lack of one, as asyncpg's holder of a connection."""

    _inactive_callback = None

    def __init__(self, slot: Any) -> None:
        self._slot = slot

    @property
    def _con(self) -> Any:
        is_there = self._slot is not None and self._slot.state not in ("closing", "gone")
        return self._slot.connection if is_there else None

    @property
    def _in_use(self) -> Any:
        return True if self._slot is not None and self._slot.state == "leased" else None

    def is_connected(self) -> bool:
        """Tell whether there is an open connection."""
        return self._con is not None and not self._con.is_closed()


class Window:
    """What asyncpg's tests look at in its pool, shown of ours. Nothing is changed by looking."""

    _maintenance_task = None

    def __init__(self, pool: Any) -> None:
        self._book = pool._book

    @property
    def holders(self) -> list[Holder]:
        """As many as connections are allowed."""
        book = self._book
        slots = [*book.idle, *book.recycling, *book.leased]
        return [Holder(slot) for slot in [*slots, *[None] * (book.options.max_size - len(slots))]]

    def qsize(self) -> int:
        """Return how many connections could be had without waiting for another's release."""
        book = self._book
        return int(book.options.max_size - book.size + len(book.idle))


def open_windows() -> None:
    """Let the private names be there."""
    from poolkit.compat.asyncpg import pool  # noqa: PLC0415

    shown: Any = pool.Pool
    shown._maintenance_task = None
    shown._holders = property(lambda self: Window(self).holders)
    shown._queue = property(Window)
    handle: Any = pool.PoolConnectionProxy

    def connection(view: Any) -> Any:
        slot = view._poolkit_slot
        return slot.connection if slot.turn == view._poolkit_turn else None

    handle._con = property(connection)
    handle._holder = property(lambda view: Holder(view._poolkit_slot))


# -- run and compare -----------------------------------------------------------------------------


class Result(unittest.TextTestResult):
    """Notes how each test ends."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ended: dict[str, str] = {}

    def stopTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        """Note it."""
        super().stopTest(test)
        bad = {getattr(t, "test_case", t).id() for t, _ in [*self.failures, *self.errors]}
        skipped = {t.id() for t, _ in self.skipped}
        how = "failed" if test.id() in bad else "skipped" if test.id() in skipped else "passed"
        self.ended[test.id().partition(".")[2]] = how


def run_here(names: list[str]) -> None:
    """Run the tests in this process; leave the results in the folder."""
    sys.path.insert(0, str(FOLDER))
    logging.basicConfig(level=logging.ERROR)
    open_windows()
    loader = unittest.TestLoader()
    loader.testNamePatterns = [f"*{name}*" for name in names] or None
    suite = loader.loadTestsFromName("asyncpg_test_pool")
    runner = unittest.TextTestRunner(resultclass=Result, verbosity=2)
    result: Any = runner.run(suite)
    (FOLDER / "results.json").write_text(json.dumps(result.ended))


@contextlib.contextmanager
def server() -> Iterator[dict[str, str]]:
    """Run PostgreSQL; yield the environment in which asyncpg's tests find it."""
    sys.path.insert(0, str(ROOT))
    from tests.postgres import Server, find_binaries  # noqa: PLC0415

    postgres = Server(find_binaries())
    try:
        postgres.start()
        at = {"PGHOST": postgres.host, "PGPORT": str(postgres.port), "PGUSER": postgres.user}
        yield {**os.environ, **at, "PGDATABASE": "postgres"}
    finally:
        postgres.close()


def compare(ended: dict[str, str], expected: dict[str, str], *, all_ran: bool) -> list[str]:
    """Return what is not as the list has it."""
    wrong = [
        f"{name} fails, and is not in the list"
        for name, how in ended.items()
        if how == "failed" and name not in expected
    ]
    wrong += [
        f"{name} passes: take it off the list" for name in expected if ended.get(name) == "passed"
    ]
    wrong += [f"{name} is in the list without a reason" for name in expected if not expected[name]]
    if all_ran:
        wrong += [f"{name} is in the list, but is no test" for name in expected.keys() - ended]
    return wrong


def main() -> None:
    """Run them all, or those named."""
    names = sys.argv[1:]
    if os.environ.get("POOLKIT_ASYNCPG_TESTS"):
        run_here(names)
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    take_tests()
    results = FOLDER / "results.json"
    results.unlink(missing_ok=True)
    with server() as environment:
        here = [sys.executable, __file__, *names]
        subprocess.run(here, env={**environment, "POOLKIT_ASYNCPG_TESTS": "1"}, check=False)
    if not results.exists():
        sys.exit("the tests did not come to their end")
    ended = json.loads(results.read_text())
    many = {how: list(ended.values()).count(how) for how in ("passed", "failed", "skipped")}
    print(f"asyncpg {VERSION}:", ", ".join(f"{number} {how}" for how, number in many.items()))
    wrong = compare(ended, tomllib.loads(LIST.read_text()), all_ran=not names)
    sys.exit("\n".join(wrong) or 0)


if __name__ == "__main__":
    main()
