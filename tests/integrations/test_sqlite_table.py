"""The page on what a lease of SQLite's leaves behind says what is so, column by column."""

from pathlib import Path
from typing import Any

import pytest

from tests.drivers.sqlite_kinds import KINDS
from tests.integrations import sqlite_table


@pytest.fixture
def anyio_backend() -> Any:
    """Run on one loop: nothing here depends on it."""
    return ("asyncio", {"use_uvloop": False})


@pytest.mark.parametrize(
    ("driver", "head"),
    [
        (driver, head)
        for driver in sqlite_table.DRIVERS
        for head in sqlite_table.COLUMNS
        if driver == "aiosqlite" or head != sqlite_table.SESSION
    ],
)
async def test_page_says_what_becomes_of_each_kind_of_state(
    driver: str, head: str, tmp_path: Path
) -> None:
    """With either driver: run ``python -m tests.integrations.sqlite_table`` to write it anew."""
    found = await sqlite_table.column(driver, head, tmp_path / "app.db")
    said = sqlite_table.cells(head)
    assert {name: said.get(name) for name in found} == found
    assert set(said) == {kind.name for kind in KINDS}


def test_nothing_that_carries_rights_or_data_stays() -> None:
    """Whichever way the connection was taken."""
    for head in sqlite_table.COLUMNS:
        stays = {name for name, fate in sqlite_table.cells(head).items() if fate == "stays"}
        assert stays <= {"`total_changes`, `changes()`"}


def test_page_is_as_it_is_generated() -> None:
    """Its table has the words of the kinds, and no row is missing."""
    columns = {head: sqlite_table.cells(head) for head in sqlite_table.COLUMNS}
    lines = sqlite_table.table(columns)
    assert [line for line in sqlite_table.PAGE.read_text().splitlines() if line[:1] == "|"] == lines
