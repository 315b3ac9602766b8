"""Instructions of the processor, as valgrind's callgrind counts them: a speed that CI can judge.

    python -m benchmarks.instructions [--record]

A count does not depend on what else the machine does. Each is the difference between a long and a
short loop, divided by the difference of their lengths, so that nothing of the way there is in it;
the least of two. The clock stands still, and garbage is collected between two loops. All loops run
in one process, whose calls of ``getpgid`` and ``getsid``, for which it has no other use, tell
callgrind where a loop begins and ends.

What other versions count is another number. So a count is compared with the recorded one only on
the very same interpreter and libraries (`instructions.json`), and elsewhere only told.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import functools
import gc
import importlib.metadata
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks import page
from benchmarks.table import Table

ROOT: Final = Path(__file__).resolve().parents[1]
RECORDED: Final = Path(__file__).with_suffix(".json")
PAGE: Final = ROOT / "docs" / "explanation" / "performance.md"
#: How much more than recorded fails. Two runs differ by less than a tenth of it.
SLACK: Final = 0.03
REPEATS: Final = 2
#: Lengths of the short loop and the long one: the ratio of the second to the first.
LONGER: Final = 3

begin, end = (getattr(os, name, None) for name in ("getpgid", "getsid"))

Loop = Callable[[int], Awaitable[object]]


# -- what is counted -----------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def cycles(name: str, tasks: int = 0) -> AsyncIterator[Loop]:
    """Run the cycles of tables A and B: of one task, or of so many on ten connections."""
    from benchmarks import contended, uncontended
    from benchmarks.peers import Want, floor, ours  # importing all would take longest

    (chosen,) = (peer for peer in (*floor.PEERS, *ours.PEERS) if peer.name == name)
    async with chosen.open(Want(size=contended.SIZE, timeout=contended.TIMEOUT)) as acquire:
        if tasks:
            yield lambda number: contended.crowd(acquire, "asyncio", tasks, number)
        else:
            yield lambda number: uncontended.cycles(acquire, number)


@contextlib.asynccontextmanager
async def statement(*, forwarded: bool) -> AsyncIterator[Loop]:
    """Run an awaited method of a connection, directly or through the handle."""
    import poolkit
    from benchmarks.peers.ours import Driver
    from benchmarks.wire import Database, Wire

    database = Database()
    async with poolkit.Pool(Driver(database)) as pool, pool.acquire() as handle:
        connection: Any = handle if forwarded else database.wires[0]
        assert isinstance(connection, Wire)

        async def run(number: int) -> None:
            for _ in range(number):
                await connection.query()

        yield run


@contextlib.asynccontextmanager
async def reset() -> AsyncIterator[Loop]:
    """Run leases of one statement, each followed by a reset that takes a turn of the loop.

    There are connections enough that nobody waits for one.
    """
    import poolkit
    from benchmarks.peers.ours import Driver
    from benchmarks.wire import Database, Wire

    class Resetting(Driver):
        def is_clean(self, c: Wire) -> bool:  # noqa: ARG002  # the protocol's
            return False

        async def reset(self, c: Wire) -> None:
            await asyncio.sleep(0)
            c.check()

    async with poolkit.Pool(Resetting(Database()), min_size=10) as pool:

        async def run(number: int) -> None:
            for _ in range(number):
                async with pool.acquire() as connection:
                    await connection.query()
                await asyncio.sleep(0)

        yield run
        assert pool.stats().waiting == 0


@contextlib.asynccontextmanager
async def request(dependency: str | None) -> AsyncIterator[Loop]:
    """Serve requests whose endpoint is empty, with or without a dependency of poolkit's."""
    import poolkit
    from benchmarks.fastapi_dependency import SCOPE, make_app, receive, send
    from poolkit.testing import FakeDriver

    app = make_app(getattr(poolkit.fastapi, dependency) if dependency else None)
    async with poolkit.Pool(FakeDriver()) as pool:
        app.state.poolkit = pool

        async def run(number: int) -> None:
            for _ in range(number):
                await app(dict(SCOPE), receive, send)

        yield run


@dataclasses.dataclass(frozen=True)
class Case:
    """Something to count: how to open it, and how often the short loop does it."""

    open: Callable[[], contextlib.AbstractAsyncContextManager[Loop]]
    times: int


CASES: Final[Mapping[str, Case]] = {
    "floor": Case(functools.partial(cycles, "floor"), 200),
    # A pool sorts what it has counted after 300 leases of a connection: the loops differ by two.
    "A": Case(functools.partial(cycles, "poolkit"), 300),
    "bare hand-off": Case(functools.partial(cycles, "bare hand-off", 100), 200),
    "B": Case(functools.partial(cycles, "poolkit", 100), 200),
    "direct statement": Case(functools.partial(statement, forwarded=False), 200),
    "statement": Case(functools.partial(statement, forwarded=True), 200),
    "reset": Case(reset, 60),
    "empty endpoint": Case(functools.partial(request, None), 20),
    "connection": Case(functools.partial(request, "connection"), 20),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table."""

    case: str
    says: str
    beside: str | None = None
    """Told as a multiple of this."""
    above: str | None = None
    """What is above this is counted."""
    libraries: tuple[str, ...] = ("anyio",)
    """Whose versions make a difference."""

    def count(self, counts: Mapping[str, float]) -> float:
        """Return its count."""
        return counts[self.case] - (counts[self.above] if self.above else 0.0)


ROWS: Final = (
    Row("A", "A: acquire and release, nobody waits", beside="floor"),
    Row("B", "B: wait, hand-off, release; 100 tasks, 10 connections", beside="bare hand-off"),
    Row("statement", "forwarding an awaited statement", above="direct statement"),
    Row("reset", "acquire, a statement, release, and a reset of one turn of the loop"),
    Row(
        "connection",
        "FastAPI: `connection`, above an empty endpoint",
        above="empty endpoint",
        libraries=("anyio", "fastapi", "starlette", "pydantic"),
    ),
)


# -- inside of valgrind --------------------------------------------------------------------------


def stop_the_clock() -> None:
    """Have no time pass, for asyncio and for poolkit; before these have been imported.

    Otherwise what is due once a second would come into some loops, the more often the busier the
    machine is: in valgrind all takes fifty times as long.
    """
    assert "poolkit" not in sys.modules
    time.monotonic = itertools.repeat(time.monotonic()).__next__


async def run_loops() -> None:
    """Run every loop, each between its two marks."""
    assert begin is not None
    assert end is not None
    for case in CASES.values():
        async with case.open() as run:
            await run(LONGER * case.times)  # what is looked up once, and specialised, is so now
            gc.freeze()  # or collecting, which settles where memory is taken from, takes longest
            for _ in range(REPEATS):
                for number in (case.times, LONGER * case.times):
                    gc.collect()
                    begin(0)
                    await run(number)
                    end(0)


# -- around it -----------------------------------------------------------------------------------


class CannotCount(Exception):
    """There is no valgrind here, or it did not do what is needed."""


def count() -> dict[str, float]:
    """Return the instructions of each case, counted in a process of its own."""
    if (valgrind := shutil.which("valgrind")) is None:
        raise CannotCount("there is no valgrind here: `sudo make test-tools` installs it")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    path = os.pathsep.join(filter(None, sys.path))
    inside = [sys.executable, "-m", "benchmarks.instructions", "--inside"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        marks = [f"--zero-before={name}getpgid" for name in ("", "__")]
        marks += [f"--dump-before={name}getsid" for name in ("", "__")]
        done = subprocess.run(
            [valgrind, "--tool=callgrind", f"--callgrind-out-file={out}", *marks, *inside],
            env={**kept, "PYTHONHASHSEED": "0", "PYTHONPATH": path},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        totals = [total_of(out.with_name(f"out.{n}")) for n in range(1, 1 + _dumps(out))]
    if done.returncode or len(totals) != 2 * REPEATS * len(CASES):
        said = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise CannotCount(f"valgrind ended with {done.returncode}, {len(totals)} dumps:\n{said}")
    return dict(zip(CASES, _differences(totals), strict=True))


def _dumps(out: Path) -> int:
    return len([path for path in out.parent.glob("out.*") if path.suffix[1:].isdigit()])


def _differences(totals: list[int]) -> Iterator[float]:
    """Yield the instructions of one time, case by case."""
    each = 2 * REPEATS
    for place, case in enumerate(CASES.values()):
        mine = totals[place * each : (place + 1) * each]
        yield (min(mine[1::2]) - min(mine[::2])) / ((LONGER - 1) * case.times)


def total_of(path: Path) -> int:
    """Return the instructions that a file of callgrind's tells in all."""
    found = re.search(r"^(?:totals|summary): (\d+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert found, path
    return int(found[1])


def environment() -> dict[str, str]:
    """Return on what a count depends."""
    found = {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "build": platform.python_compiler(),
        "machine": " ".join((platform.system(), platform.machine(), *platform.libc_ver())),
    }
    for name in sorted({name for row in ROWS for name in row.libraries}):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def recorded(path: Path = RECORDED) -> dict[str, Any]:
    """Return what was recorded, by the version of Python."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def version() -> str:
    """Return the version of Python under which figures are kept."""
    return ".".join(map(str, sys.version_info[:2]))


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What there is to say of a row beside the recorded one."""

    says: str
    failed: bool = False


def judge(row: Row, counts: Mapping[str, float], here: Mapping[str, str], before: Any) -> Verdict:
    """Compare a row with what was recorded, if that can be compared."""
    if before is None:
        return Verdict(f"not compared: nothing is recorded for Python {version()}")
    if row.case not in before["counts"]:
        return Verdict("not compared: it is not recorded")
    for name in ("python", "build", "machine", *row.libraries):
        was, now = before["environment"].get(name), here.get(name)
        if was != now:
            return Verdict(f"not compared: recorded with {name} {was}, and this is {now}")
    old = before["counts"][row.case]
    change = row.count(counts) / old - 1
    says = f"{change:+.1%} of the recorded {old:,}"
    if change > SLACK:
        return Verdict(f"DEARER: {says}, more than {SLACK:.0%}", failed=True)
    return Verdict(f"CHEAPER: {says}" if change < -SLACK else says)


def table(counts: Mapping[str, float]) -> Table:
    """Return what was counted."""
    made = Table(
        name="instructions",
        title="Instructions, on asyncio",
        about="Counted by callgrind, and the same whatever else the machine does. "
        + ", ".join(f"{name} {value}" for name, value in environment().items())
        + ".",
        columns=["what", "instructions", "x the least"],
    )
    for row in ROWS:
        times = counts[row.case] / counts[row.beside] if row.beside else None
        made.add(row.says, round(row.count(counts)), times)
    made.notes += [
        "the least: of A a deque, of B a bare hand-off, as in their tables",
        "the connections are to nothing, so all of it is poolkit's, asyncio's and FastAPI's work",
    ]
    return made


def main() -> None:
    """Count, tell, and compare or record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--record", action="store_true", help="keep these figures, on the page too")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        gc.disable()
        stop_the_clock()
        asyncio.run(run_loops())
        return
    try:
        counts = count()
    except CannotCount as error:
        sys.exit(f"not counted: {error}")
    found = table(counts)
    print(f"{found.text()}\n")
    here, kept = environment(), recorded()
    if given.record:
        figures = {row.case: round(row.count(counts)) for row in ROWS}
        kept[version()] = {"environment": here, "counts": figures}
        RECORDED.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        page.fill(PAGE, [found], is_dated=False)
        print(f"recorded in {RECORDED.relative_to(ROOT)} and {PAGE.relative_to(ROOT)}")
        return
    verdicts = {row: judge(row, counts, here, kept.get(version())) for row in ROWS}
    for row, verdict in verdicts.items():
        print(f"{row.case}: {verdict.says}")
    if any(verdict.failed for verdict in verdicts.values()):
        sys.exit(
            "\nSomething costs more than it did. Find what it is. If it is worth that, say why in\n"
            "the commit, and record the new figures:\n"
            "    make bench-instructions ARGS=--record"
        )


if __name__ == "__main__":
    main()
