"""What the dependencies cost a request, beside an endpoint that has none.

    python benchmarks/fastapi_dependency.py [ROUNDS]

Each application has one endpoint and is called as a server would call it, without a socket. The
driver does nothing, so what is left is FastAPI's work and the pool's. All of them take turns, and
each ratio is that of neighbours: the median of all rounds, and the least and the greatest.
"""

import asyncio
import gc
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import fastapi
from fastapi import Depends, FastAPI

import poolkit
from poolkit.testing import FakeDriver

ROUNDS = 40
REQUESTS = 200
OK = 200
SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": "GET",
    "path": "/",
    "raw_path": b"/",
    "query_string": b"",
    "root_path": "",
    "headers": [(b"host", b"test")],
}


async def receive() -> Any:
    """Return an empty body."""
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message: Any) -> None:
    """Check that the request was served."""
    assert message.get("status", OK) == OK, message


def make_app(dependency: Callable[..., Any] | None) -> FastAPI:
    """Return an application with one endpoint."""
    app = FastAPI()
    if dependency is None:

        @app.get("/")
        async def bare() -> int:
            return 1

    else:

        @app.get("/")
        async def depending(it: Annotated[Any, Depends(dependency)]) -> int:
            return 1 if it else 0

    return app


async def measure(rounds: int) -> dict[str, list[float]]:
    """Return the microseconds of a request, for each application and round."""
    pool = poolkit.Pool(FakeDriver(), min_size=1)

    async def by_hand() -> AsyncIterator[Any]:
        async with pool.acquire() as conn:
            yield conn

    apps = {
        "bare": make_app(None),
        "pool": make_app(poolkit.fastapi.pool),
        "lazy, not used": make_app(poolkit.fastapi.lazy),
        "connection": make_app(poolkit.fastapi.connection),
        "a generator by hand": make_app(by_hand),
        "transaction": make_app(poolkit.fastapi.transaction),
    }
    took: dict[str, list[float]] = {name: [] for name in apps}
    async with pool:
        for app in apps.values():
            app.state.poolkit = pool
        for _ in range(rounds + 1):  # the first is for warming up
            for name, app in apps.items():
                gc.collect()
                began = time.process_time()
                for _ in range(REQUESTS):
                    await app(dict(SCOPE), receive, send)
                took[name].append((time.process_time() - began) / REQUESTS * 1e6)
    return {name: times[1:] for name, times in took.items()}


def main() -> None:
    """Measure, and print a table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    took = asyncio.run(measure(rounds))
    print(f"Python {sys.version.split()[0]}, fastapi {fastapi.__version__}, {rounds} rounds")
    print(f"{'':<22}{'µs a request':>13}{'more than bare':>16}{'times bare (least .. most)':>30}")
    for name, times in took.items():
        ratios = [mine / bare for mine, bare in zip(times, took["bare"], strict=True)]
        more = statistics.median(
            mine - bare for mine, bare in zip(times, took["bare"], strict=True)
        )
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} .. {max(ratios):.2f})"
        print(f"{name:<22}{statistics.median(times):>13.1f}{more:>16.1f}{spread:>30}")


if __name__ == "__main__":
    main()
