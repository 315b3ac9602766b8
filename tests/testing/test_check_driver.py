"""The conformance battery: our own drivers pass it, and a driver that breaks a line fails in it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import sqlite3
from typing import TYPE_CHECKING, Any

import anyio
import asyncpg
import pytest

from poolkit.drivers.aiosqlite import AiosqliteDriver
from poolkit.drivers.asyncpg import AsyncpgDriver
from poolkit.drivers.psycopg import PsycopgDriver
from poolkit.drivers.sqlite import ThreadsDriver
from poolkit.testing import ContractBroken, FakeConnection, FakeDriver, Probe, check_driver
from poolkit.testing._bench import open_files
from poolkit.testing._check_driver import LINES
from poolkit.testing._fake import BareDriver
from tests.conftest import BACKENDS
from tests.testing import probes
from tests.testing.wrong import BROKEN, PATIENCE, ConnectLeavesFiles, Wrong

if TYPE_CHECKING:
    from pathlib import Path

LOOPS = [backend for backend in BACKENDS if backend.id != "trio"]


async def test_fake_driver_keeps_every_line() -> None:
    """On every event loop, with nothing skipped."""
    driver = FakeDriver()
    report = await check_driver(driver, probes.of_fake(driver))
    assert list(report.checked) == [line.words for line in LINES]
    assert not report.skipped
    assert not driver.alive


@pytest.mark.parametrize("anyio_backend", LOOPS, indirect=True)
@pytest.mark.parametrize("reset", ["full", "auto", "transaction"])
async def test_asyncpg_driver_keeps_every_line(database: str, reset: str) -> None:
    """On a real PostgreSQL; it has no options of the pool to refuse."""
    outside = await asyncpg.connect(database)
    try:
        await outside.execute("CREATE TABLE t (x int)")
        # A connect that is cancelled while it asks for TLS has asyncpg leave an exception to nobody.
        driver = AsyncpgDriver(database, reset=reset, connect_kwargs={"ssl": False})  # type: ignore[arg-type]
        probe = probes.of_asyncpg(outside, light=reset == "transaction")
        report = await check_driver(driver, probe)
    finally:
        await outside.close()
    assert set(report.skipped.values()) == {"the driver's check_options", "the driver's is_used_up"}


@pytest.mark.parametrize("anyio_backend", LOOPS, indirect=True)
@pytest.mark.parametrize("reset", ["full", "transaction"])
async def test_psycopg_driver_keeps_every_line(database: str, reset: str) -> None:
    """On a real PostgreSQL; it has no options of the pool to refuse."""
    outside = await asyncpg.connect(database)
    try:
        await outside.execute("CREATE TABLE t (x int)")
        driver = PsycopgDriver(database, reset=reset)  # type: ignore[arg-type]
        probe = probes.of_psycopg(outside, light=reset == "transaction")
        report = await check_driver(driver, probe)
    finally:
        await outside.close()
    wanting = ("check_options", "is_used_up")
    assert set(report.skipped.values()) == {f"the driver's {name}" for name in wanting}


@pytest.mark.parametrize(
    ("anyio_backend", "kind"),
    [
        *(pytest.param(*loop.values, AiosqliteDriver, id=f"aiosqlite-{loop.id}") for loop in LOOPS),
        *(pytest.param(*loop.values, ThreadsDriver, id=f"threads-{loop.id}") for loop in BACKENDS),
    ],
    indirect=["anyio_backend"],
)
async def test_sqlite_drivers_keep_every_line(tmp_path: Path, kind: Any) -> None:
    """On a file; nobody can end such a connection from outside."""
    path = tmp_path / "test.db"

    def ask(sql: str) -> Any:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
            return conn.execute(sql).fetchone()

    ask("CREATE TABLE t (x)")
    probe = probes.of_sqlite(path, lambda: int(ask("SELECT count(*) FROM t")[0]))
    report = await check_driver(kind(path), probe)
    wanting = {"Probe(kill=)"} | {
        f"the driver's {name}" for name in ("set_up", "greeted", "is_used_up", "can_hand_on")
    }
    if probe.count is None:
        wanting.add("Probe(count=)")
    assert set(report.skipped.values()) == wanting


def test_every_line_has_a_driver_that_breaks_it() -> None:
    """Or nobody would know that it is checked."""
    assert {line for line, _ in BROKEN} == {line.words for line in LINES}
    assert len({line.words for line in LINES}) == len(LINES)


@pytest.mark.parametrize(
    ("anyio_backend", "line", "kind"),
    [
        pytest.param(*loop.values, line, kind, id=f"{kind.__name__}-{loop.id}")
        for (line, kind), loop in zip(BROKEN, itertools.cycle(BACKENDS), strict=False)
    ],
    indirect=["anyio_backend"],
)
async def test_wrong_driver_fails_in_its_line(line: str, kind: Wrong) -> None:
    """It gets as far as that line, and the error names it and the driver."""
    driver = kind()
    if isinstance(driver, ConnectLeavesFiles) and await open_files() < 0:
        pytest.skip("this system does not tell which files are open")
    try:
        with anyio.fail_after(20), pytest.raises(ContractBroken) as caught:
            await check_driver(driver, probes.of_fake(driver), patience=PATIENCE)
    finally:
        for file in getattr(driver, "files", ()):
            os.close(file)
    assert caught.value.line == line
    assert str(caught.value).startswith(f"{kind.__name__} breaks its contract: {line}. But ")


async def test_without_a_probe_the_report_says_what_was_skipped() -> None:
    """And what would enable it."""
    report = await check_driver(FakeDriver())
    assert len(report.checked) + len(report.skipped) == len(LINES)
    missing = report.skipped["transaction commits at the end of the block"]
    assert missing == "Probe(write=), Probe(count_rows=)"
    assert f"(for want of {missing})" in str(report)


async def test_report_on_a_driver_without_revoke_says_what_that_costs() -> None:
    """Its author learns it here, and not from a pool that connects all the time."""
    driver: BareDriver[Any] = BareDriver()
    report = await check_driver(driver)
    assert "more than plain data is not used again" in str(report)


async def test_operation_that_ends_by_itself_is_the_probes_mistake() -> None:
    """It says nothing of the driver."""

    async def operate(c: FakeConnection) -> None:
        await c.query()

    with pytest.raises(ValueError, match=r"Probe\.operate ended by itself"):
        await check_driver(FakeDriver(), Probe(operate=operate))


async def test_mess_that_is_not_seen_is_the_probes_mistake() -> None:
    """Or every driver would pass."""
    driver = FakeDriver()

    async def is_spoiled(_: FakeConnection) -> bool:
        return False

    probe = dataclasses.replace(probes.of_fake(driver), is_spoiled=is_spoiled)
    with pytest.raises(ValueError, match=r"does not see what Probe\.spoil has done"):
        await check_driver(driver, probe)


async def test_derived_object_that_never_works_is_the_probes_mistake() -> None:
    """It would be dead after revoke in any case."""
    driver = FakeDriver()

    async def derive(c: FakeConnection) -> Any:
        return lambda: c.commit()

    probe = dataclasses.replace(probes.of_fake(driver), derive=derive)
    with pytest.raises(ValueError, match=r"raises before revoke: \w+: "):
        await check_driver(driver, probe)


async def test_derived_object_that_never_works_is_noticed_without_revoke_too() -> None:
    """It would be dead in the next lease in any case."""

    async def derive(_: Any) -> Any:
        async def use() -> None:
            raise LookupError("no rows")

        return use

    driver: BareDriver[Any] = BareDriver()
    with pytest.raises(ValueError, match="raises before the release: LookupError: no rows"):
        await check_driver(driver, Probe(derive=derive))
