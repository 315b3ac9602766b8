"""H: what ``import poolkit`` costs, beside anyio, on which it stands; and what it leaves alone.

anyio imports asyncio only once it is used, which every program on asyncio does: hence two bases.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.rounds import Spread
from benchmarks.table import Table, Target

_CODE = """
import sys, time
begin = time.process_time()
import {}
took = time.process_time() - begin
print(took, *sorted({{name.partition(".")[0] for name in sys.modules}}))
"""
_KEEPS_NOTHING = "PYTHONDONTWRITEBYTECODE"
#: What nobody has asked for by importing a pool.
HEAVY = (
    "aiosqlite",
    "asyncpg",
    "fastapi",
    "psycopg",
    "pydantic",
    "sqlalchemy",
    "starlette",
    "trio",
)


def measure(module: str) -> tuple[float, set[str]]:
    """Return the CPU seconds of importing it, and what is imported then."""
    command = [sys.executable, "-c", _CODE.format(module)]
    # Compiling is no part of importing but for the first time, which may be kept.
    environment = {key: value for key, value in os.environ.items() if key != _KEEPS_NOTHING}
    said = subprocess.check_output(command, text=True, env=environment).split()
    return float(said[0]), set(said[1:])


def run(*, quick: bool) -> Iterator[Table]:
    """Return the table."""
    rounds = 5 if quick else 25
    names = ("anyio", "anyio, asyncio", "poolkit")
    took: dict[str, list[float]] = {name: [] for name in names}
    loaded: set[str] = set()
    for _ in range(rounds):
        for name in names:
            seconds, modules = measure(name)
            took[name].append(seconds)
            loaded = modules
    table = Table(
        name="importing",
        title="H: importing",
        about=f"CPU time in a fresh interpreter, {rounds} interleaved rounds.",
        columns=["module", "ms", "x anyio"],
    )
    for name in names:
        ratio = Spread.of(a / b for a, b in zip(took[name], took["anyio"], strict=True))
        table.add(name, Spread.of(1000 * seconds for seconds in took[name]), ratio)
    table.targets = [
        Target("import poolkit, x import anyio", ratio.median, "most", 1.3),
        Target("drivers and frameworks imported", len(loaded.intersection(HEAVY)), "most", 0),
    ]
    yield table
