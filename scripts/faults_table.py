"""Write ``docs/reference/faults.md`` from what the last run of ``tests/faults`` has found out.

Run the tests first, all of them: ``pytest tests/faults``, then ``python scripts/faults_table.py``.
The sections of drivers that have not run stay as they are.
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

#: What the faults were tried on.
TRIED = """\
PostgreSQL {postgresql}, MariaDB {mariadb} and Redis {redis}, with asyncpg {asyncpg},
psycopg {psycopg}, asyncmy {asyncmy} and redis-py {redis-py}, on CPython {python}.
"""
ABOVE = (
    """\
# Faults

This page says what your code sees, and what the pool does, when a server or the way to it fails:
[PostgreSQL with asyncpg](#asyncpg), [with psycopg](#psycopg), [MySQL](#mysql), [Redis](#redis),
and [byte streams](#byte-streams). Every row is a test in `tests/faults`. The test ends, stops,
suspends or cuts something real; the last column names that process, session or port. The test fails
if there was nothing there to hit. This page is written by `scripts/faults_table.py` from a run of
them against
"""
    + TRIED
    + """
Pools are of 4 connections, with the default options, unless the row says otherwise.

- *At once* is within 0.5 s.
- A *deadline* is the `timeout` of an `acquire`, or the pool's `acquire_timeout`. It is kept within
  0.5 s whatever happens.
- *Back to normal* means three things: all connections can be had at the same time; the server
  knows of these and no others; and nobody is given a connection that was cut. The time counts from
  the end of the fault, or from the hit if the hit is all there is. The first number was measured.
  The second is what the test demands, on a machine with no more processes at work than cores.
"""
)
HEAD = """
| fault | your code sees | the pool | back to normal after | really hit |
|---|---|---|---|---|
"""
AFTER_ASYNCPG = """
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
AFTER_ASYNCMY = """
A server goes on with a statement whose client has hung up. So the pool ends the session of a
statement that nobody waits for any more by `KILL`, on a connection of its own, in a task of its
own; the slot is free when the server no longer lists the session. Where a new connection leads to
another server, behind a load balancer, nothing is killed: the number might be another session's.
"""

#: By driver: the section, what stands above its table, and below it.
SECTIONS = {
    "asyncpg": ("asyncpg", "", AFTER_ASYNCPG),
    "psycopg": ("psycopg", "", ""),
    "asyncmy": ("MySQL", "", AFTER_ASYNCMY),
    "redis": ("Redis", "", ""),
    "stream": (
        "Byte streams",
        'The server answers lines; the pool has `ping=(b"ping\\n", b"pong\\n")`.\n',
        "",
    ),
}

Words = tuple[str, str, str, str, float, str]


def words(fault: dict[str, Any]) -> Words:
    """Return what a row of the page says of a fault, besides what was measured."""
    names = ("driver", "name", "sees", "pool", "bound", "hits")
    driver, name, sees, pool, bound, hits = (fault[each] for each in names)
    return driver, name, sees, pool, bound, hits


def render(rows: Iterable[tuple[Words, str]], versions: dict[str, str]) -> str:
    """Return the page: rows are a fault's words, and the seconds measured."""
    rows = list(rows)
    page = ABOVE.format(**versions)
    for driver, (title, above, below) in SECTIONS.items():
        page += f"\n## {title}\n" + (above and f"\n{above}") + HEAD
        page += "".join(
            f"| {name} | {sees} | {pool} | {measured} s; at most {bound:g} s | {hits} |\n"
            for (whose, name, sees, pool, bound, hits), measured in rows
            if whose == driver
        )
        page += below
    return page


def read(page: str) -> tuple[list[tuple[Words, str]], dict[str, str]]:
    """Return the rows and the versions of a page: the opposite of `render`."""
    found = re.search(re.sub(r"\{\S+?\}", r"(\\S+?)", TRIED), page)
    assert found is not None
    versions = dict(zip(re.findall(r"\{(\S+?)\}", TRIED), found.groups(), strict=True))
    rows = []
    for driver, (title, _, _) in SECTIONS.items():
        section = page.partition(f"\n## {title}\n")[2]
        table = section.partition(HEAD)[2].partition("\n\n")[0].partition("\n## ")[0]
        for row in filter(None, table.splitlines()):
            name, sees, pool, after, hits = row.removeprefix("| ").removesuffix(" |").split(" | ")
            measured, bound = after.removesuffix(" s").split(" s; at most ")
            rows.append(((driver, name, sees, pool, float(bound), hits), measured))
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
    there, versions = read(PAGE.read_text())
    ran = {key[0] for key in slowest}
    kept = [(key, measured) for key, measured in there if key[0] not in ran]
    PAGE.write_text(render([*kept, *rows], {**versions, **found["versions"]}))


if __name__ == "__main__":
    main()
