"""What it costs a driver not to have an optional method, as `docs/howto/write-a-driver.md` says it."""

from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path
from typing import Any

import pytest

import poolkit
from poolkit import Pool, PoolConfigError, Verdict
from poolkit.testing import Fault, Probe
from poolkit.testing._fake import BareConnection, BareDriver

PAGE = Path(__file__).parents[2] / "docs/howto/write-a-driver.md"


class Bare(BareDriver[BareConnection]):
    """The six methods, and no more."""


class Classifying(Bare):
    """One that says of each error what the test says."""

    verdict = Verdict.SERVER_GONE

    def classify(self, exc: BaseException, c: BareConnection | None, /) -> Verdict:
        """Say so."""
        return self.verdict


async def failures_after_a_restart(driver: Bare) -> int:
    """Return how many of three callers, one after the other, meet a dead connection."""
    failed = 0
    async with Pool(driver, min_size=3, max_size=3) as pool:
        for connection in driver.alive:
            connection.lost = True
        for _ in range(3):
            try:
                async with pool.acquire() as conn:
                    await conn.query()
            except Fault:
                failed += 1
    return failed


async def test_without_classify_each_dead_connection_costs_a_caller() -> None:
    """With it the first one has the others pinged before their use."""
    assert await failures_after_a_restart(Bare()) == 3
    assert await failures_after_a_restart(Classifying()) == 1


async def lines_of_failing_resets(
    driver: Bare, caplog: pytest.LogCaptureFixture
) -> list[tuple[int, str]]:
    """Return what two resets log that fail, one after the other."""
    driver.script["reset"] = [Fault("no such command"), Fault("no such command")]
    caplog.clear()
    with caplog.at_level(logging.DEBUG, logger="poolkit"):
        async with Pool(driver, max_size=1) as pool:
            for _ in range(2):
                async with pool.acquire() as conn:
                    await conn.query()
            async with pool.acquire():
                assert pool.stats().retired["broken"] == 2
    return [(r.levelno, r.getMessage()) for r in caplog.records if "its reset" in r.getMessage()]


async def test_reset_that_fails_is_a_warning_once_if_classify_says_ok_of_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without classify, and with another verdict, it is there for those who debug."""
    driver = Classifying()
    assert [n for n, _ in await lines_of_failing_resets(driver, caplog)] == [10, 10]
    driver.verdict = Verdict.OK
    levels = [n for n, _ in await lines_of_failing_resets(driver, caplog)]
    assert levels == [logging.WARNING, logging.DEBUG]
    assert [n for n, _ in await lines_of_failing_resets(Bare(), caplog)] == [10, 10]


class Cursor:
    """What libraries make, and what shows its connection."""

    def __init__(self, connection: BareConnection) -> None:
        self.connection = connection


class WithCursors(BareConnection):
    """A connection that makes them."""

    def cursor(self) -> Any:
        """Return one."""
        return Cursor(self)


async def test_connection_of_a_cursor_is_no_handle_so_without_revoke_it_costs_the_connection() -> (
    None
):
    """It would work on after the release, under the next user."""

    class Cursors(Bare):
        kind = WithCursors

    async with Pool(Cursors(), max_size=1) as pool:
        async with pool.acquire() as conn:
            kept = conn.cursor().connection
            assert type(kept) is WithCursors
        assert pool.stats().retired["derived"] == 1
        async with pool.acquire():
            assert kept.dead


async def test_without_transaction_there_are_none() -> None:
    """Of the pool's, nor on a connection that is held."""
    async with Pool(Bare()) as pool, pool.acquire() as conn:
        for block in (pool.transaction(), poolkit.transaction(conn)):
            with pytest.raises(PoolConfigError, match="Bare has no transactions"):
                async with block:
                    pass


async def test_without_view_a_handle_is_an_instance_all_the_same() -> None:
    """By its `__class__`, not by its type."""
    async with Pool(Bare()) as pool, pool.acquire() as conn:
        assert isinstance(conn, BareConnection)
        assert not issubclass(type(conn), BareConnection)


async def test_without_name_the_pool_is_named_after_the_drivers_class() -> None:
    """In errors and logs."""

    class Nameless(Bare):
        name = ""

    assert Pool(Nameless()).name == "Nameless"


def test_page_names_every_optional_method_and_every_part_of_a_probe() -> None:
    """And no others."""
    text = PAGE.read_text()
    table = text.split("## What each optional method is worth")[1].split("##")[0]
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE))))
    documented = set(
        re.findall(r"^``(\w+)(?:\(.*)?``$", poolkit._driver.__doc__ or "", re.MULTILINE)
    )
    assert named == documented
    probes = re.findall(
        r"^\| (`.*?) \|", text.split("| part of `Probe`")[1].split("\n\n")[0], re.MULTILINE
    )
    parts = re.findall(r"`(\w+)", " ".join(probes))
    assert sorted(parts) == sorted(field.name for field in dataclasses.fields(Probe))
