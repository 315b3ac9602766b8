"""The page says of each kind of state what becomes of it, by each way to take a connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.drivers import psycopg_kinds
from tests.drivers.postgresql_kinds import KINDS
from tests.integrations import postgresql_table as table
from tests.integrations import psycopg_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.postgres import Postgres

#: All that may stay: neither has rights or data.
MAY_STAY = {"`setseed`", "plans of cached statements", "plans of prepared statements"}


@pytest.fixture
def anyio_backend() -> str:
    """Run on one loop: nothing here depends on it."""
    return "asyncio"


@pytest.fixture(scope="module")
def dsn(postgres: Postgres) -> Iterator[str]:
    """Return the DSN of a database with what the kinds need."""
    name = postgres.create_database()
    table.prepare(postgres, name)
    yield postgres.dsn(name)
    postgres.drop_database(name)


@pytest.mark.parametrize("head", table.TABLE.heads)
async def test_page_says_what_a_lease_leaves(dsn: str, head: str) -> None:
    """Found out anew; and nothing that has rights or data stays."""
    found = await table.TABLE.column(head, dsn)
    assert {kind for kind, fate in found.items() if fate == "stays"} <= MAY_STAY
    assert found == table.read(table.PAGE.read_text())[head], table.HOW


def test_page_has_the_table_that_is_written() -> None:
    """With the rows and columns of today, and reasons for what stays."""
    page = table.PAGE.read_text()
    columns = table.read(page)
    assert list(columns) == list(table.TABLE.heads), table.HOW
    assert table.table(columns) in page, table.HOW
    assert len(KINDS) >= 30


def _page_of_psycopg() -> str:
    return table.PAGE.read_text().partition("\n## psycopg\n")[2]


@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")
@pytest.mark.parametrize("head", psycopg_table.TABLE.heads)
async def test_page_says_what_a_lease_of_psycopgs_leaves(dsn: str, head: str) -> None:
    """Found out anew; and nothing that has rights or data stays."""
    found = await psycopg_table.TABLE.column(head, dsn)
    assert {kind for kind, fate in found.items() if fate == "stays"} <= MAY_STAY
    assert found == table.read(_page_of_psycopg())[head], psycopg_table.HOW


def test_page_has_the_table_of_psycopg_that_is_written() -> None:
    """With the rows and columns of today."""
    columns = table.read(_page_of_psycopg())
    assert list(columns) == list(psycopg_table.TABLE.heads), psycopg_table.HOW
    assert table.table_of(psycopg_kinds.KINDS, columns) in _page_of_psycopg(), psycopg_table.HOW
