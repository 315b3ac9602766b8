"""The benchmarks run: each that needs no server, in its smallest form. Nothing here judges a time."""

from __future__ import annotations

import asyncio
import importlib
import json
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import (
    cancel_storm,
    contended,
    outage,
    overload,
    page,
    scale,
    spike,
    uncontended,
    virtual,
)
from benchmarks.peers import Peer, Want, load
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
    page.fill(there, [table])
    text = there.read_text("utf-8")
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "| poolkit | 2 (1..3) |" in text
