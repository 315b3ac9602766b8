"""The page has a row for each fault that is tested here, says of it what its test proves, no more."""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections import Counter
from pathlib import Path

import pytest

from scripts import faults_table
from tests.faults import harness
from tests.postgres import Postgres
from tests.proxy import Proxy

for _path in sorted(Path(__file__).parent.glob("test_*.py")):  # whatever tests are selected
    importlib.import_module(f"tests.faults.{_path.stem}")


@pytest.fixture
def anyio_backend() -> str:
    """Run on one loop: nothing here depends on it."""
    return "asyncio"


def test_page_says_what_the_tests_declare() -> None:
    """No row is without a test, and no test without its row, with the same words and bounds."""
    rows, versions = faults_table.read(faults_table.PAGE.read_text())
    declared = [faults_table.words(dataclasses.asdict(fault)) for fault in harness.FAULTS.values()]
    assert Counter(words for words, _ in rows) == Counter(declared), (
        "run pytest tests/faults, then scripts/faults_table.py"
    )
    assert all(float(measured) <= words[4] for words, measured in rows)
    assert faults_table.render(rows, versions) == faults_table.PAGE.read_text()


def test_faults_have_names_of_their_own() -> None:
    """A row is known by its driver and its name; a cell ends at a bar."""
    names = [(fault.driver, fault.name) for fault in harness.FAULTS.values()]
    assert len(set(names)) == len(names)
    for fault in harness.FAULTS.values():
        assert "|" not in f"{fault.name}{fault.sees}{fault.pool}"


def test_every_row_of_this_run_has_its_evidence() -> None:
    """A pid or a port for each, of the kind that its row names."""
    for row in harness.ROWS:
        assert row.evidence
        for hit in row.evidence:
            kind, _, number = hit.rpartition(" ")
            assert kind == row.fault.hits
            assert int(number) > 0


# -- a test that proves nothing fails ------------------------------------------------------------

_ROW = harness.Fault(name="a", sees="nothing", pool="b", hits="backend pid", bound=1.0)


async def test_run_that_has_hit_nothing_fails(postgres: Postgres, database: str) -> None:
    """Though all else was looked at."""
    run = harness.Run(_ROW)
    async with harness.create(database) as pool:
        run.over()
        await run.waits(pool, 1.0)
        await run.recovered(pool, postgres)
    with pytest.raises(AssertionError, match="nothing real"):
        run.finish()


async def test_run_that_has_hit_something_else_than_its_row_says_fails(
    postgres: Postgres, database: str
) -> None:
    """A row about backends is not proved by a port."""
    run = harness.Run(_ROW)
    run.hits_port(postgres.port)
    async with harness.create(database) as pool:
        await run.waits(pool, 1.0)
        await run.recovered(pool, postgres)
    with pytest.raises(AssertionError, match="the row says 'backend pid'"):
        run.finish()


def test_hit_of_what_is_not_there_fails(postgres: Postgres) -> None:
    """This process is no backend, and nobody listens at a port that is free."""
    run = harness.Run(_ROW)
    with pytest.raises(AssertionError, match="no backend"):
        run.hits_backend(postgres, os.getpid())
    with Proxy(postgres.host, postgres.port) as proxy:
        with pytest.raises(AssertionError, match="nobody is connected"):
            run.hits_sockets(proxy)
        proxy.refuse()
        with pytest.raises(OSError, match="refused"):
            run.hits_port(proxy.port)
    assert run.evidence == []


async def test_run_whose_row_names_an_error_that_was_not_seen_fails(
    postgres: Postgres, database: str
) -> None:
    """The words of a row are checked against what happened."""
    run = harness.Run(dataclasses.replace(_ROW, sees="`InterfaceError` at once"))
    async with harness.create(database) as pool:
        run.hits_backend(postgres, *await harness.have_all(pool))
        await run.waits(pool, 1.0)
        await run.recovered(pool, postgres)
    with pytest.raises(AssertionError):
        run.finish()
