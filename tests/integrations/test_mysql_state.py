"""The page says of each kind of a MySQL session's state what becomes of it when its lease ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.drivers.mysql_kinds import KINDS
from tests.integrations import mysql_table as table
from tests.integrations.postgresql_table import read, table_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.mariadb import MariaDB


@pytest.fixture
def anyio_backend() -> str:
    """Run on one loop: nothing here depends on it."""
    return "asyncio"


@pytest.fixture(scope="module")
def url(mariadb: MariaDB) -> Iterator[str]:
    """Return the URL of a database with what the kinds need."""
    name = mariadb.create_database()
    table.prepare(mariadb, name)
    yield mariadb.url(name)
    mariadb.query(f"DROP DATABASE {name}")


@pytest.mark.parametrize("head", table.COLUMNS)
async def test_page_says_what_a_lease_leaves(url: str, head: str) -> None:
    """Found out anew; and nothing stays."""
    found = await table.column(head, url)
    assert "stays" not in found.values()
    assert found == read(table.PAGE.read_text())[head], table.HOW


def test_page_has_the_table_that_is_written() -> None:
    """With the rows and columns of today."""
    page = table.PAGE.read_text()
    columns = read(page)
    assert list(columns) == list(table.COLUMNS), table.HOW
    assert table_of(KINDS, columns) in page, table.HOW
    assert len(KINDS) >= 40
