"""The contract of cancellation: each job has a time limit, and the pool means it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import anyio

from poolkit.testing._bench import open_files, turns
from poolkit.testing._contract import Broken, Chapter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from poolkit.testing._bench import Bench

LINES: Final = Chapter()

#: At so many turns of the loop, and at so many moments of the time that connecting takes.
_TURNS = 12
_MOMENTS = 16


@LINES.line("connect ends soon when it is cancelled")
async def _(bench: Bench) -> None:
    for number in (0, 1, 2, 5):
        await _cancelled_connect(bench, turns(number))


@LINES.line("connect leaves no open file behind when it is cancelled, at whatever moment")
async def _(bench: Bench) -> None:
    await _sweep(bench, open_files, "files of this process are open")


@LINES.line(
    "connect leaves nothing on the server when it is cancelled, at whatever moment", probes="count"
)
async def _(bench: Bench) -> None:
    await _sweep(bench, bench.probe.count, "connections are on the server")


async def _sweep(bench: Bench, count: Callable[[], Awaitable[int]], what: str) -> None:
    begun = time.perf_counter()
    async with bench.connection() as c:
        took = time.perf_counter() - begun
        await bench.attempt("close", bench.driver.close, c)
    before = await bench.settled(count)
    for number in range(_TURNS):
        await _cancelled_connect(bench, turns(number))
    for number in range(_MOMENTS):
        await _cancelled_connect(bench, anyio.sleep(took * number / _MOMENTS))
    await bench.until_count(count, before, f"after {_TURNS + _MOMENTS} cancelled ones, {what}")


async def _cancelled_connect(bench: Bench, moment: Awaitable[None]) -> None:
    async with bench.call(bench.driver.connect) as call:
        await moment
        call.cancel()
        await call.end("a cancelled connect")
    if call.returned:
        bench.discard(call.result)


@LINES.line("ping ends soon when it is cancelled")
async def _(bench: Bench) -> None:
    await _cancel(bench, "ping")


@LINES.line("reset ends soon when it is cancelled")
async def _(bench: Bench) -> None:
    await _cancel(bench, "reset")


@LINES.line("close ends soon when it is cancelled")
async def _(bench: Bench) -> None:
    await _cancel(bench, "close")


async def _cancel(bench: Bench, name: str) -> None:
    for number in (0, 1, 2, 5):
        async with bench.connection() as c:
            async with bench.call(getattr(bench.driver, name), c) as call:
                await turns(number)
                call.cancel()
                await call.end(f"a cancelled {name}")
            bench.ask("terminate", c)
            if bench.ask("is_dead", c) is not True:
                raise Broken(f"after a cancelled {name} and terminate it is not dead")
