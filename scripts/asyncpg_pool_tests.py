"""Run asyncpg's own tests of its pool on `poolkit.compat.asyncpg`; compare with the known failures.

    python scripts/asyncpg_pool_tests.py [NAME ...]

The tests come from the source distribution of the asyncpg that is installed, by pip, into `var/`.
Nothing in them is changed but the imports. They look at private attributes of asyncpg's pool, too:
`Window` shows them the like of ours. They start their servers themselves, from the binaries that
our own tests use. The list, `tests/compat/asyncpg_expected_failures.toml`, has a reason for each
test that fails, always or sometimes, and may only shrink: it is an error if another fails or does
not run, and if one passes that always fails.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import logging
import os
import subprocess
import sys
import tarfile
import tomllib
import types
import unittest
from collections import Counter
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
        # pip also installs what asyncpg is built with: to compile that, too, takes ten minutes.
        what = ["--no-binary", "asyncpg", "--no-deps", f"asyncpg=={VERSION}"]
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
        self._state = pool._state

    @property
    def holders(self) -> list[Holder]:
        """As many as connections are allowed."""
        state = self._state
        slots = [*state.idle, *state.recycling, *state.leased]
        return [Holder(slot) for slot in [*slots, *[None] * (state.options.max_size - len(slots))]]

    def qsize(self) -> int:
        """Return how many connections could be had without waiting for another's release."""
        state = self._state
        return int(state.options.max_size - state.size + len(state.idle))


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
        return slot.connection if slot.release_count == view._poolkit_release_count else None

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
        self.ended[_name(test)] = how


def run_here(names: list[str]) -> None:
    """Run the tests in this process; leave the results in the folder."""
    sys.path.insert(0, str(FOLDER))
    logging.basicConfig(level=logging.ERROR)
    open_windows()
    demote_servers()
    loader = unittest.TestLoader()
    loader.testNamePatterns = [f"*{name}*" for name in names] or None
    suite = loader.loadTestsFromName("asyncpg_test_pool")
    # Those of a class whose server does not start end in no way: nobody begins them.
    ended = dict.fromkeys((_name(test) for test in _each(suite)), "not run")
    runner = unittest.TextTestRunner(resultclass=Result, verbosity=2)
    result: Any = runner.run(suite)
    (FOLDER / "results.json").write_text(json.dumps({**ended, **result.ended}))


def _each(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for test in suite:
        yield from _each(test) if isinstance(test, unittest.TestSuite) else (test,)


def _name(test: unittest.TestCase) -> str:
    return test.id().partition(".")[2]


# -- asyncpg's servers ---------------------------------------------------------------------------


def demote_servers() -> None:
    """Have asyncpg start its servers as nobody if we are root: PostgreSQL refuses to be."""
    from asyncpg import cluster  # noqa: PLC0415

    from tests.postgres import demoted  # noqa: PLC0415

    shown: Any = cluster
    user = demoted()
    # The locale that is everywhere, whatever the environment says.
    settings: Any = {**user, "env": {**os.environ, "LC_ALL": "C"}}
    run = functools.partial(subprocess.run, **settings)
    start = functools.partial(subprocess.Popen, **settings)
    shown.subprocess = types.SimpleNamespace(**{**vars(subprocess), "run": run, "Popen": start})
    make_folder = shown._mkdtemp

    def mkdtemp(**names: Any) -> str:
        folder: str = make_folder(**names)
        if user:
            os.chown(folder, user["user"], user["group"])
        return folder

    shown._mkdtemp = mkdtemp


@contextlib.contextmanager
def place_for_servers() -> Iterator[dict[str, str]]:
    """Yield an environment in which asyncpg finds PostgreSQL's binaries, and a folder for data."""
    from tests.postgres import Folder, usable_binaries  # noqa: PLC0415

    with usable_binaries() as binaries, contextlib.closing(Folder("asyncpg")) as folder:
        # With a setting of somebody else's server, such as PGHOST, it would start none.
        others = {name: text for name, text in os.environ.items() if not name.startswith("PG")}
        yield {**others, "PGINSTALLATION": str(binaries), "TMPDIR": str(folder.path)}


def read_list() -> tuple[dict[str, str], dict[str, str]]:
    """Return the reasons of the tests that fail, and of those that do so sometimes."""
    listed = tomllib.loads(LIST.read_text())
    return listed["always"], listed["sometimes"]


def compare(
    ended: dict[str, str], always: dict[str, str], sometimes: dict[str, str], *, all_ran: bool
) -> list[str]:
    """Return what is not as the list has it."""
    expected = always | sometimes
    wrong = [
        f"{name}: {how}, and is not in the list"
        for name, how in ended.items()
        if how != "passed" and name not in expected
    ]
    wrong += [
        f"{name} passes: take it off the list" for name in always if ended.get(name) == "passed"
    ]
    wrong += [f"{name} is in the list without a reason" for name in expected if not expected[name]]
    if all_ran:
        wrong += [f"{name} is in the list, but is no test" for name in expected.keys() - ended]
    return wrong


def main() -> None:
    """Run them all, or those named."""
    sys.path.insert(0, str(ROOT))
    names = sys.argv[1:]
    if os.environ.get("POOLKIT_ASYNCPG_TESTS"):
        run_here(names)
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    take_tests()
    results = FOLDER / "results.json"
    results.unlink(missing_ok=True)
    with place_for_servers() as environment:
        here = [sys.executable, __file__, *names]
        subprocess.run(here, env={**environment, "POOLKIT_ASYNCPG_TESTS": "1"}, check=False)
    if not results.exists():
        sys.exit("the tests did not come to their end")
    ended = json.loads(results.read_text())
    many = Counter(ended.values())
    print(f"asyncpg {VERSION}:", ", ".join(f"{number} {how}" for how, number in many.items()))
    wrong = compare(ended, *read_list(), all_ran=not names)
    sys.exit("\n".join(wrong) or 0)


if __name__ == "__main__":
    main()
