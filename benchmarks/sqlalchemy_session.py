"""What an AsyncSession costs over poolkit, as a multiple of SQLAlchemy's own pool.

Both engines have five connections and no overflow. Two kinds of session: the shortest there is, one
``SELECT 1``, and one that reads a row with the ORM, changes it and commits. The engines take turns
in short blocks, so that what else the machine does meets both; shown are the median times, the
median of the ratios of neighbouring blocks, and the ratios' range. ``none`` is poolkit with
``pool_reset_on_return=None``, at the pool's ``reset="full"``. Run it::

    python benchmarks/sqlalchemy_session.py postgresql://postgres@localhost/postgres
    python benchmarks/sqlalchemy_session.py            # a SQLite file
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import statistics
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import poolkit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

BLOCKS = 60
SESSIONS = 50


class Base(DeclarativeBase):
    """Mapped classes."""


class Counter(Base):
    """A row."""

    __tablename__ = "poolkit_benchmark"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]


async def shortest(engine: AsyncEngine) -> None:
    """Run one statement."""
    async with AsyncSession(engine) as session:
        await session.execute(sa.text("SELECT 1"))


async def change(engine: AsyncEngine) -> None:
    """Read, change, commit."""
    async with AsyncSession(engine) as session:
        counter = await session.get_one(Counter, 1)
        counter.value += 1
        await session.commit()


async def block(engine: AsyncEngine, work: Callable[[AsyncEngine], Awaitable[None]]) -> float:
    """Return the microseconds that one session takes."""
    begin = time.perf_counter()
    for _ in range(SESSIONS):
        await work(engine)
    return (time.perf_counter() - begin) / SESSIONS * 1e6


async def measure(url: str) -> None:
    """Measure all in turn and print what came out."""
    dialect = "sqlite+aiosqlite" if url.startswith("sqlite") else "postgresql+asyncpg"
    theirs = create_async_engine(
        sa.make_url(url).set(drivername=dialect), pool_size=5, max_overflow=0
    )
    if dialect.startswith("sqlite"):  # as poolkit has it by default

        @sa.event.listens_for(theirs.sync_engine, "connect")
        def pragmas(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")

    async with poolkit.create_pool(url, max_size=5, max_overflow=0) as pool:
        engines = {
            "theirs": theirs,
            "poolkit": poolkit.sqlalchemy.create_async_engine(pool),
            "none": poolkit.sqlalchemy.create_async_engine(pool, pool_reset_on_return=None),
        }
        async with theirs.begin() as conn:
            await conn.run_sync(Base.metadata.drop_all)
            await conn.run_sync(Base.metadata.create_all)
            await conn.execute(sa.insert(Counter).values(id=1, value=0))
        for work in (shortest, change):
            times: dict[str, list[float]] = {name: [] for name in engines}
            for count in range(BLOCKS + 2):
                for name, engine in engines.items():
                    spent = await block(engine, work)
                    if count > 1:  # warm by then
                        times[name].append(spent)
            print(f"{dialect} {work.__name__:9}", end="")
            for name, found in times.items():
                print(f" {name} {statistics.median(found):.0f} µs", end="")
                if name != "theirs":
                    pairs = zip(found, times["theirs"], strict=True)
                    ratios = sorted(mine / their for mine, their in pairs)
                    middle = statistics.median(ratios)
                    print(f" = {middle:.2f} x ({ratios[0]:.2f} to {ratios[-1]:.2f})", end="")
            print(flush=True)
        async with theirs.begin() as conn:
            await conn.run_sync(Base.metadata.drop_all)
        assert pool.stats().size <= 5  # noqa: PLR2004  # as many as the other has
    await theirs.dispose()


def main() -> None:
    """Measure each database asked for."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("urls", nargs="*")
    versions = f"SQLAlchemy {sa.__version__}, poolkit {poolkit.__version__}"
    print(f"Python {sys.version.split()[0]}, {platform.machine()}, {versions}")
    with tempfile.TemporaryDirectory() as folder:
        for url in parser.parse_args().urls or [f"sqlite:///{folder}/benchmark.db"]:
            asyncio.run(measure(url))


if __name__ == "__main__":
    main()
