"""E: FastAPI on PostgreSQL through uvicorn: what the pool is worth to a whole request.

One worker, uvloop and httptools where they are installed, and a load generator on the same machine;
each answer is one small piece, so that the time to its first byte is the time to the whole of it.
Over a network of 20 ms there is a proxy between the application and the database, which delays
what passes. Then the four sizes that people ask about, with many short requests.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from benchmarks.postgres import NoServerError, server
from benchmarks.rounds import Spread
from benchmarks.table import Table, Target
from tests.proxy import HOST, Proxy, free_port

ROOT = Path(__file__).parent.parent
WAYS = (
    *("/floor", "/hand", "/poolkit", "/poolkit-auto", "/poolkit-transaction", "/asyncpg"),
    *("/poolkit-in-transaction", "/asyncpg-in-transaction", "/session", "/connect"),
)
SAYS = {
    "/floor": "no database at all",
    "/hand": "by hand: a bare hand-off in a yield dependency, no reset",
    "/poolkit": "poolkit: Depends(poolkit.fastapi.connection), the defaults",
    "/poolkit-auto": "poolkit: the same, reset='auto'",
    "/poolkit-transaction": "poolkit: the same, reset='transaction'",
    "/poolkit-in-transaction": "poolkit: Depends(poolkit.fastapi.transaction), the defaults",
    "/asyncpg": "asyncpg.Pool in a yield dependency, the defaults",
    "/asyncpg-in-transaction": "asyncpg.Pool in a yield dependency, with a transaction",
    "/session": "SQLAlchemy AsyncSession in a yield dependency, the defaults",
    "/connect": "no pool: asyncpg.connect in each request",
}
SETTINGS = ("20+10", "1+50", "5+0", "10+20")

Found = dict[str, float]


@contextlib.contextmanager
def application(dsn: str, pool: str = "10+0") -> Iterator[int]:
    """Serve the application; gives its port."""
    port = free_port()
    fast = ["--loop", "uvloop", "--http", "httptools"]
    options = fast if all(importlib.util.find_spec(name) for name in fast[1::2]) else []
    command = [sys.executable, "-m", "uvicorn", "benchmarks.web_app:app", "--host", HOST]
    command += ["--port", str(port), "--log-level", "warning", *options]
    environment = {**os.environ, "BENCH_DSN": dsn, "BENCH_POOL": pool}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        try:
            _wait_until_it_answers(port, process)
            yield port
        finally:
            process.terminate()


def _wait_until_it_answers(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(f"http://{HOST}:{port}/floor", timeout=5).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def load(port: int, path: str, connections: int, seconds: float) -> Found:
    """Put a load on it from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.load", str(port), path, str(connections)]
    said = subprocess.check_output([*command, str(seconds)], cwd=ROOT)
    found: Found = json.loads(said)
    return found


def connected(port: int) -> int:
    """Return how many connections poolkit has opened so far."""
    with urllib.request.urlopen(f"http://{HOST}:{port}/stats", timeout=10) as answer:
        return int(json.load(answer)["connected"])


def run(*, quick: bool) -> Iterator[Table]:
    """Return the tables."""
    if importlib.util.find_spec("fastapi") is None or importlib.util.find_spec("uvicorn") is None:
        print("E is left out: FastAPI and uvicorn are not installed\n")
        return
    rounds, seconds = (1, 0.5) if quick else (5, 1.2)
    try:
        with server() as postgres:
            dsn = postgres.dsn()
            for crowd in (50,) if quick else (10, 50):
                yield _ways("near", dsn, crowd, rounds, seconds, "on the same machine")
            if quick:
                return
            with Proxy(postgres.host, postgres.port) as proxy:
                proxy.delay(0.010)
                far = "20 ms away"
                yield _ways("far", proxy.through(dsn), 10, 3, 0.8, far)
            yield _settings(dsn, 3, 0.8)
    except NoServerError as missing:
        print(f"E is left out: {missing}\n")


def _ways(name: str, dsn: str, crowd: int, rounds: int, seconds: float, where: str) -> Table:
    found: dict[str, list[Found]] = {way: [] for way in WAYS}
    with application(dsn) as port:
        ways = [way for way in WAYS if load(port, way, 2, 0.1)["failed"] == 0]
        if missing := {"/floor", "/poolkit", "/asyncpg"}.difference(ways):
            raise RuntimeError(f"these do not answer: {', '.join(sorted(missing))}")
        for _ in range(rounds):
            for way in ways:
                found[way].append(load(port, way, crowd, seconds))
    table = Table(
        name=f"web-{name}-{crowd}",
        title=f"E: FastAPI, {crowd} clients, PostgreSQL {where}",
        about=f"Wall time, {rounds} interleaved rounds of {seconds:g} s.",
        columns=["way", "requests/s", "x asyncpg.Pool", "p50 ms", "p99 ms", "p50 above /floor ms"],
        charted="requests/s",
    )

    table.notes = [f"{way} is left out: it does not answer" for way in WAYS if way not in ways]
    for way in ways:
        if failed := sum(run["failed"] for run in found[way]):
            table.notes.append(f"{way}: {failed:.0f} requests were not answered with 200")

    def times(way: str, to: str) -> Spread:
        pairs = zip(found[way], found[to], strict=True)
        return Spread.of(a["rate"] / b["rate"] for a, b in pairs)

    for way in ways:
        spread = {key: Spread.of(run[key] for run in found[way]) for key in ("rate", "p50", "p99")}
        pairs = zip(found[way], found["/floor"], strict=True)
        above = Spread.of(a["p50"] - b["p50"] for a, b in pairs)
        more = times(way, "/asyncpg")
        table.add(SAYS[way], spread["rate"], more, spread["p50"], spread["p99"], above)
    wanted = [
        ("/poolkit", "/asyncpg", 1.0),
        ("/poolkit-in-transaction", "/asyncpg-in-transaction", 1.15),
        ("/poolkit-auto", "/asyncpg", 1.3),
        ("/poolkit-auto", "/hand", 1.0),
    ]
    if name == "near":
        table.targets = [
            Target(f"{way}: x {to}", times(way, to).median, "least", least)
            for way, to, least in wanted
            if way in ways and to in ways
        ]
    return table


def _settings(dsn: str, rounds: int, seconds: float) -> Table:
    crowd = 200
    table = Table(
        name="web-settings",
        title=f"E: the sizes people ask about, {crowd} clients, short requests",
        about="poolkit with max_size + max_overflow, the rest by default. Wall time, "
        f"{rounds} interleaved rounds of {seconds:g} s, each with an application just started.",
        columns=["max_size+max_overflow", "requests/s", "p50 ms", "p99 ms", "connections opened"],
        charted="p99 ms",
    )
    found: dict[str, list[Found]] = {setting: [] for setting in SETTINGS}
    for _ in range(rounds):
        for setting in SETTINGS:
            with application(dsn, setting) as port:
                run = functools.partial(load, port, "/poolkit", crowd, seconds)
                found[setting].append({**run(), "opened": connected(port)})
    for setting in SETTINGS:
        keys = ("rate", "p50", "p99", "opened")
        table.add(setting, *(Spread.of(run[key] for run in found[setting]) for key in keys))
    return table
