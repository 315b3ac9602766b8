"""Use an engine of a SQLAlchemy in which members have other names, as another version might have.

``python -m tests.sqlalchemy.renamed URL NAME ...`` prints how many connections were opened, and what was said.
"""

from __future__ import annotations

import asyncio
import importlib.abc
import importlib.machinery
import logging
import re
import sys
from typing import Any


class Renaming(importlib.abc.MetaPathFinder):
    """Finds the modules of SQLAlchemy, and puts another name wherever a name stands in their source."""

    def __init__(self, names: list[str]) -> None:
        self.pattern = re.compile(rf"\b(?:{'|'.join(names)})\b") if names else None

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """Find a module."""
        if fullname.partition(".")[0] != "sqlalchemy" or self.pattern is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        loader = spec and spec.loader
        if spec is not None and isinstance(loader, importlib.machinery.SourceFileLoader):
            source = loader.get_data(loader.path).decode()
            if self.pattern.search(source):
                spec.loader = Loader(loader.name, loader.path, self.pattern)
        return spec


class Loader(importlib.machinery.SourceFileLoader):
    """Loads one module."""

    def __init__(self, name: str, path: str, pattern: re.Pattern[str]) -> None:
        super().__init__(name, path)
        self.pattern = pattern

    def get_code(self, fullname: str) -> Any:
        """Compile the changed source."""
        source = self.get_data(self.path).decode()
        changed = self.pattern.sub(lambda found: f"{found[0]}_renamed", source)
        return compile(changed, self.path, "exec", dont_inherit=True)


async def use(url: str) -> None:
    """Use an engine over one connection; each use finds it as new."""
    import poolkit
    from poolkit.sqlalchemy import create_async_engine

    async with poolkit.create_pool(url, max_size=1) as pool:
        engine = create_async_engine(pool)
        async with engine.connect() as conn:
            autocommit = await conn.execution_options(isolation_level="AUTOCOMMIT")
            await autocommit.execute(text("DELETE FROM t"))
        await _in_transactions(engine)
        await _not_in_transactions(engine, is_sqlite=url.startswith("sqlite"))
        assert await _rows(engine) == [0, 1, 2]
        fairy = await engine.raw_connection()
        fairy.invalidate(soft=True)
        fairy.close()
        async with pool.acquire() as view:
            await view.execute("INSERT INTO t VALUES (3)")
        await engine.dispose()
        assert await _rows(engine) == [0, 1, 2, 3]
        assert pool.stats().leased == 0
        print("connected", pool.stats().connected)


def text(sql: str) -> Any:
    """Return a statement."""
    import sqlalchemy as sa

    return sa.text(sql)


async def _rows(engine: Any) -> list[int]:
    async with engine.connect() as conn:
        return [*(await conn.execute(text("SELECT x FROM t ORDER BY x"))).scalars()]


async def _in_transactions(engine: Any) -> None:
    import poolkit

    insert = text("INSERT INTO t VALUES (:x)")
    for x in range(3):
        async with engine.begin() as conn:
            await conn.execute(insert, [{"x": x}])
        assert await _rows(engine) == list(range(x + 1))
    try:
        async with engine.begin() as conn:
            await conn.execute(insert, {"x": 9})
            raise KeyError
    except KeyError:
        assert await _rows(engine) == [0, 1, 2]
    try:
        async with engine.begin() as conn:
            await conn.execute(insert, {"x": 9})
            await conn.execute(text("ROLLBACK"))
            await conn.execute(insert, {"x": 9})
    except poolkit.TransactionEnded:
        return
    raise AssertionError("a transaction was lost")


async def _not_in_transactions(engine: Any, *, is_sqlite: bool) -> None:
    async with engine.connect() as conn:
        await conn.execution_options(isolation_level="SERIALIZABLE")
        await conn.execute(text("DELETE FROM t"))  # and forget to commit
    async with engine.connect() as conn:
        autocommit = await conn.execution_options(isolation_level="AUTOCOMMIT")
        await autocommit.execute(text("INSERT INTO t VALUES (9)"))
        await autocommit.execute(text("DELETE FROM t WHERE x = 9"))
    async with engine.connect() as conn:
        if not is_sqlite:
            assert await conn.scalar(text("SHOW transaction_isolation")) == "read committed"
        await conn.execute(text("DELETE FROM t"))  # and forget to commit


def main() -> None:
    """Do so."""
    _, url, *names = sys.argv
    sys.meta_path.insert(0, Renaming(names))
    logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="%(message)s")
    asyncio.run(use(url))


if __name__ == "__main__":
    main()
