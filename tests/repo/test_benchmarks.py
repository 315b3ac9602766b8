"""The benchmarks run: each that needs no server, in its smallest form. Nothing here judges a time."""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import (
    cancel_storm,
    contended,
    drivers,
    outage,
    overload,
    page,
    postgresql,
    scale,
    spike,
    sqlite,
    uncontended,
    virtual,
)
from benchmarks.peers import Peer, Postgresql, Want, load, ours
from benchmarks.rounds import Spread
from benchmarks.table import Table, Target

PEERS: list[Peer] = load("PEERS")[0]
ON_ASYNCIO = [peer for peer in PEERS if "asyncio" in peer.loops]
(OURS,) = (peer for peer in PEERS if peer.name == "poolkit")

named = pytest.mark.parametrize("peer", ON_ASYNCIO, ids=lambda peer: peer.name)


@pytest.mark.parametrize("name", command.NAMES.values())
def test_benchmark_says_in_its_first_line_what_it_measures(name: str) -> None:
    """And can be imported without its peers and its servers."""
    try:
        module = importlib.import_module(f"benchmarks.{name}")
    except ImportError as missing:
        pytest.skip(str(missing))
    assert module.__doc__
    assert callable(module.run)


@named
def test_adapter_acquires_and_releases(peer: Peer) -> None:
    """What it gives can be used, and comes back."""

    async def main() -> int:
        want = Want(size=2)
        async with peer.open(want) as acquire:
            await uncontended.cycles(acquire, 5)
            async with acquire() as connection:
                if peer.has_query:
                    await connection.query(0.001)
        return want.database.attempts

    assert asyncio.run(main()) == 2


def test_overload_finds_that_a_bounded_queue_serves_in_time_and_an_unbounded_one_does_not() -> None:
    """The same arrivals come to both, in virtual time."""
    phases = overload.Phases(1, 5, 3)
    settings = {peer.name: peer for peer in overload.competitors()[0]}
    bounded = overload.measure(settings["poolkit, max_waiting=20"], phases, seed=0)
    endless = overload.measure(settings["poolkit"], phases, seed=0)
    assert bounded.goodput > 95
    assert endless.goodput < 80


def test_spike_does_not_open_a_connection_for_each_request() -> None:
    """Fifty of them, done by five connections before a sixth is there."""
    opened, took = spike.measure(OURS)
    assert opened <= 6
    assert len(took) == spike.REQUESTS


def test_outage_is_survived_with_few_attempts() -> None:
    """Seconds in virtual time."""
    found = outage.measure(OURS, down=3.0, phase=0.1)
    assert found.attempts < 10
    assert found.first < 3.1


@pytest.mark.parametrize("order", cancel_storm.ORDERS)
def test_cancel_storm_leaves_the_pool_usable(order: str) -> None:
    """Whoever was cancelled has left, and the next one is served."""
    each, after = asyncio.run(cancel_storm.storm(OURS, 50, order))
    assert each > 0
    assert after > 0


async def test_contended_serves_every_task(anyio_backend_name: str) -> None:
    """A few tasks on few connections."""
    async with OURS.open(Want(size=2)) as acquire:
        assert await contended.crowd(acquire, anyio_backend_name, 10, 50) > 0
        counts, waits = await contended.watch(acquire, anyio_backend_name, 10, 50)
    assert min(counts) > 0
    assert len(waits) == sum(counts)


def test_contended_finds_nobody_overtaken() -> None:
    """In the open loop, in virtual time."""
    assert contended.overtaken(OURS) == 0


async def crowd_in_virtual_time(
    monkeypatch: pytest.MonkeyPatch, *args: Any, **kwargs: Any
) -> postgresql.Crowd:
    """Measure for a second of the loop's clock."""
    clock = asyncio.get_running_loop().time
    times = types.SimpleNamespace(perf_counter=clock, process_time=time.process_time)
    monkeypatch.setattr(postgresql, "time", times)
    return await postgresql.crowd(*args, **kwargs)


def test_crowd_tells_tasks_that_waited_until_the_end_from_those_that_were_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two of five are served all the time; three are answered when it is over."""
    favoured: set[object] = set()

    async def request() -> None:
        task = asyncio.current_task()
        if len(favoured) < 2:
            favoured.add(task)
        await asyncio.sleep(0.010 if task in favoured else 5.0)

    found = virtual.run(lambda: crowd_in_virtual_time(monkeypatch, request, 5, 1.0))
    assert found.served == 2
    assert found.p99_served == pytest.approx(10)
    assert found.p99 == pytest.approx(5_000)


def test_crowd_pauses_between_requests_if_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what a request has taken is without the pause."""

    async def request() -> None:
        await asyncio.sleep(2**-6)

    pausing = functools.partial(crowd_in_virtual_time, monkeypatch, request, 2, 1.0)
    found = virtual.run(lambda: pausing(pause=lambda: 3 * 2**-6))
    assert found.rate == 2 * 16
    assert found.p99 == 1000 * 2**-6


@pytest.mark.parametrize("tasks", [sqlite.SIZE, sqlite.MANY])
def test_sqlite_compares_ways_to_read(tmp_path: Path, tasks: int) -> None:
    """In a table, with a column of its own for reads with pauses where there are many tasks."""
    path = sqlite.make_file(tmp_path)
    peers = [sqlite.HAND, *ours.SQLITE, sqlite.SPLIT]
    table = sqlite.table(tasks, sqlite.measure(sqlite.one_round, peers, path, tasks, 1, 0.01))
    assert [row[0] for row in table.rows] == [peer.name for peer in peers]
    assert ("paced p99 ms" in table.columns) is (tasks == sqlite.MANY)


def test_sqlite_has_one_task_write_beside_readers(tmp_path: Path) -> None:
    """It gets to write."""
    path = sqlite.make_file(tmp_path)
    found = {3: sqlite.measure(sqlite.one_writer, ours.SQLITE, path, 3, 1, 0.01)}
    table = sqlite.beside(found)
    (row,) = (dict(zip(table.columns, row, strict=True)) for row in table.rows)
    assert (row["pool"], row["readers"]) == ("poolkit", 3)
    assert row["reads/s"].low > 0
    assert row["writes/s"].low > 0


def test_drivers_are_compared_with_a_bare_semaphore() -> None:
    """In a table, with a target for each pair that is there, and for p99 where tasks wait."""

    async def connect() -> object:
        return object()

    async def ask(_: object) -> None:
        await asyncio.sleep(0)

    def way(name: str) -> Postgresql:
        def open_it(place: str, size: int, tasks: int) -> Any:
            assert (place, size >= 10, tasks) == ("here", True, 10)
            return drivers.semaphore(connect, ask, size)

        return Postgresql(name=name, settings="", reset="nothing", open=open_it)

    ways = [way(drivers.SEMAPHORE), way("poolkit")]
    pairs = [("poolkit", drivers.SEMAPHORE, 0.0), ("poolkit", "not installed", 9.0)]
    (table,) = drivers.tables("some", "Some", ways, "here", pairs, quick=True)
    assert [row[0] for row in table.rows] == [drivers.SEMAPHORE, "poolkit"]
    assert [str(target)[:4] for target in table.targets] == ["met:"]
    found = {way.name: [postgresql.Crowd(1.0, 2.0, 3.0, 4, 5.0)] for way in ways}
    held = list(
        drivers.targets({**found, "other": found["poolkit"]}, 50, [("poolkit", "other", 1)])
    )
    assert [target.at for target in held] == ["least", "most"]


def test_scale_measures_memory() -> None:
    """Of slots, and of waiters."""
    assert asyncio.run(scale.slot_bytes(OURS, 20)) > 0
    assert asyncio.run(scale.waiter_bytes(OURS, 20)) > 0


def test_virtual_clock_is_shown_to_those_who_look_at_clocks() -> None:
    """A minute passes at once."""

    async def main() -> float:
        await asyncio.sleep(60)
        return asyncio.get_running_loop().time()

    assert virtual.run(main) == 60


def test_table_is_written_for_people_and_for_programs(tmp_path: Path) -> None:
    """As text, JSON, a chart, and into a page with its mark."""
    table = Table("some", "Title", "About.", ["pool", "µs"], charted="µs")
    table.add("poolkit", Spread.of([1.0, 2.0, 3.0]))
    table.add("another <one>", 120.0)
    table.targets.append(Target("µs", 2.0, "most", 1.0))
    assert "2 (1..3)" in table.text()
    assert "MISSED: µs, at most 1: 2" in table.text()
    table.write(tmp_path)
    written = json.loads((tmp_path / "some.json").read_text("utf-8"))
    assert written["rows"][0] == ["poolkit", {"median": 2.0, "low": 1.0, "high": 3.0}]
    assert written["targets"][0]["met"] is False
    assert "another &lt;one&gt;" in (tmp_path / "some.svg").read_text("utf-8")
    there = tmp_path / "page.md"
    there.write_text("before\n<!-- bench some -->\nold\n<!-- end -->\nafter\n", "utf-8")
    assert page.fill(there, [table]) == []
    text = there.read_text("utf-8")
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "| poolkit | 2 (1..3) |" in text
    assert "\nMeasured on 20" in text


def a_table(name: str, value: float) -> Table:
    """Return one that is held to 1 at most."""
    table = Table(name, f"The title of {name}", "About.", ["pool", "µs"])
    table.add("poolkit", value)
    table.targets.append(Target("µs", value, "most", 1.0))
    return table


def marked(*names: str) -> str:
    """Return a page with these marks."""
    return "".join(f"<!-- bench {name} -->\nold {name}\n<!-- end -->\n" for name in names)


def test_page_lists_the_limits_that_were_missed(tmp_path: Path) -> None:
    """Of all its tables, also those that were not measured this time."""
    there = tmp_path / "page.md"
    there.write_text(marked("missed", "one", "two"), "utf-8")
    page.fill(there, [a_table("one", 2), a_table("two", 3)])
    page.fill(there, [a_table("two", 0.5)])
    listed = there.read_text("utf-8").partition("<!-- end -->")[0]
    assert "- The title of one\n  - µs, at most 1: 2\n" in listed
    assert "two" not in listed


def test_page_says_of_which_machine_it_is_only_if_all_was_measured(tmp_path: Path) -> None:
    """And which tables it has no mark for."""
    there = tmp_path / "page.md"
    there.write_text(marked("machine", "one"), "utf-8")
    assert page.fill(there, [a_table("one", 2), a_table("lost", 2)]) == ["lost"]
    assert "old machine" in there.read_text("utf-8")
    page.fill(there, [], is_whole=True)
    assert "old machine" not in there.read_text("utf-8")


def test_command_measures_the_others_if_one_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fills the page as far as there is something to fill, and fails in the end."""

    def run(*, quick: bool) -> Iterator[Table]:
        yield a_table("one", float(quick))
        raise RuntimeError("the server is gone")

    def run_well(*, quick: bool) -> Iterator[Table]:
        yield a_table("two", float(quick))

    for name, of in (("broken", run), ("well", run_well)):
        monkeypatch.setitem(
            sys.modules, f"benchmarks.{name}", types.SimpleNamespace(run=of, __doc__="A.")
        )
    monkeypatch.setattr(command, "NAMES", {"X": "broken", "Y": "well"})
    there = tmp_path / "page.md"
    there.write_text(marked("one", "two"), "utf-8")
    arguments = ["--quick", "--page", str(there), "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    with pytest.raises(SystemExit, match=r"Failed: X$"):
        command.main()
    assert "old" not in there.read_text("utf-8")
    assert "the server is gone" in capsys.readouterr().err
