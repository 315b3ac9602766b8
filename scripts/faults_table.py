"""Write ``docs/reference/faults.md`` from what the last run of ``tests/faults`` has found out.

Run the tests first, all of them: ``pytest tests/faults``, then ``python scripts/faults_table.py``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOUND = ROOT / "var" / "faults.json"
PAGE = ROOT / "docs" / "reference" / "faults.md"

ABOVE = """\
# Faults

This page says what your code sees, and what the pool does, when PostgreSQL or the way to it fails.
Every row is a test in `tests/faults`. The test ends, stops, suspends or cuts something real; the
last column names that process or port. The test fails if there was nothing there to hit. This page
is written by `scripts/faults_table.py` from a run of them against
PostgreSQL {postgresql}, with asyncpg {asyncpg}
on CPython {python}.

Pools are of 4 connections, with `poolkit.drivers.asyncpg` and the default options, unless the row
says otherwise.

- *At once* is within 0.5 s.
- A *deadline* is the `timeout` of an `acquire`, or the pool's `acquire_timeout`. It is kept within
  0.5 s whatever happens.
- *Back to normal* means three things: all connections can be had at the same time; the server
  knows of these and no others; and nobody is given a connection that was cut. The time counts from
  the end of the fault, or from the hit if the hit is all there is. The first number was measured.
  The second is what the test demands, on a machine with no more processes at work than cores.

| fault | your code sees | the pool | back to normal after | really hit |
|---|---|---|---|---|
"""
BELOW = """
A query that begins just after the server's last word, before the end of its connection has been
read, fails with `ConnectionDoesNotExistError` as well (cause: asyncpg's `InternalClientError`). If
that happens to the BEGIN of `pool.transaction()`, or of FastAPI's `transaction` dependency, the
pool sends the BEGIN once more, on another connection, within the same deadline: your code sees
nothing. If the client of a query is gone, the server runs the query to its end;
`client_connection_check_interval`, a setting of PostgreSQL 14 and later, makes the server check
earlier.

If a connection dies while nobody uses it, nobody gets an error once the pool knows of it. The pool
knows when its loop has read what the server or the network said, or when a ping has found out what
nobody said. Until then the pool hands the connection out, without a ping if it was heard from
within `ping_after` (1 s), and the first query on it fails. With `ping_after=0` each connection is
pinged before it is handed out. Whether to repeat a query that was under way is up to the caller:
only the caller knows whether it may have taken effect.
"""

Words = tuple[str, str, str, float, str]


def words(fault: dict[str, Any]) -> Words:
    """Return what a row of the page says of a fault, besides what was measured."""
    return fault["name"], fault["sees"], fault["pool"], fault["bound"], fault["hits"]


def render(rows: Iterable[tuple[Words, str]], versions: dict[str, str]) -> str:
    """Return the page: rows are a fault's words, and the seconds measured."""
    lines = [
        f"| {name} | {sees} | {pool} | {measured} s; at most {bound:g} s | {hits} |\n"
        for (name, sees, pool, bound, hits), measured in rows
    ]
    return ABOVE.format(**versions) + "".join(lines) + BELOW


def read(page: str) -> tuple[list[tuple[Words, str]], dict[str, str]]:
    """Return the rows and the versions of a page: the opposite of `render`."""
    found = re.search(r"PostgreSQL (\S+), with asyncpg (\S+)\non CPython (\S+)\.\n", page)
    assert found is not None
    versions = dict(zip(("postgresql", "asyncpg", "python"), found.groups(), strict=True))
    rows = []
    table = page.partition("|---|---|---|---|---|\n")[2].partition("\n\n")[0]
    for line in table.splitlines():
        name, sees, pool, after, hits = line.removeprefix("| ").removesuffix(" |").split(" | ")
        measured, bound = after.removesuffix(" s").split(" s; at most ")
        rows.append(((name, sees, pool, float(bound), hits), measured))
    return rows, versions


def main() -> None:
    """Write the page, or say what is missing."""
    if not FOUND.exists():
        sys.exit(f"there is no {FOUND}: run pytest tests/faults first")
    found = json.loads(FOUND.read_text())
    if found["missing"]:
        sys.exit("the last run was not complete: " + "; ".join(found["missing"]))
    slowest: dict[Words, float] = {}
    for row in found["rows"]:
        key = words(row["fault"])
        slowest[key] = max(row["seconds"], slowest.get(key, 0.0))
    rows = [(key, f"{seconds:.2f}") for key, seconds in slowest.items()]
    PAGE.write_text(render(rows, found["versions"]))


if __name__ == "__main__":
    main()
