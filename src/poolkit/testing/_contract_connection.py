"""The contract of connecting, of telling the dead from the living, and of ending."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Final

from poolkit._driver import renamed_attribute
from poolkit.testing._bench import turns
from poolkit.testing._contract import Broken, Chapter

if TYPE_CHECKING:
    from poolkit.testing._bench import Bench

LINES: Final = Chapter()

_METHODS = ("connect", "is_dead", "reset", "ping", "close", "terminate")


@LINES.line("The six methods are there")
async def _(bench: Bench) -> None:
    missing = [name for name in _METHODS if not callable(getattr(bench.driver, name, None))]
    if missing:
        raise Broken(f"it has no {', '.join(missing)}")


#: The optional methods, with what the pool gives them.
_TAKES: Final = {
    "set_up": ("c", "on_connect"),
    "greeted": ("c",),
    "revoke": ("c",),
    "is_clean": ("c",),
    "can_hand_on": ("c",),
    "watch": ("c", "dead"),
    "classify": ("exc", "c"),
    "transaction": ("c",),
    "check_options": ("options",),
    "pool_opens": (),
    "is_used_up": ("c",),
    "server_pid": ("c",),
    "last_statement": ("c",),
}


@LINES.line("Optional methods, if they are there, take what the pool gives them")
async def _(bench: Bench) -> None:
    if renamed := renamed_attribute(bench.driver):
        raise Broken(renamed)
    for name, gives in _TAKES.items():
        method = getattr(bench.driver, name, bench)
        if method is not bench and (why := _why_not(method, gives)):
            raise Broken(
                f"{name} {why}: the pool calls {name}({', '.join(gives)}) of a driver that has "
                "such a method. If it is one of your own, give it another name"
            )


def _why_not(method: object, gives: tuple[str, ...]) -> str:
    """Say why a method cannot be called with so many arguments, if so."""
    if not callable(method):
        return f"is {method!r}, which cannot be called"
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):  # of what is written in C
        return ""
    try:
        signature.bind(*gives)
    except TypeError:
        return f"takes {signature}"
    return ""


@LINES.line("terminate is sync, never raises, never blocks")
async def _(bench: Bench) -> None:
    async with bench.connection() as c:
        bench.ask("terminate", c)


@LINES.line("terminate may be called again, and after close")
async def _(bench: Bench) -> None:
    async with bench.connection() as c:
        for _ in range(3):
            bench.ask("terminate", c)
    async with bench.connection() as c:
        await bench.attempt("close", bench.driver.close, c)
        bench.ask("terminate", c)


@LINES.line("connect returns a fresh connection each time")
async def _(bench: Bench) -> None:
    async with bench.connection() as one, bench.connection() as two:
        if one is two:
            raise Broken("it returned the same one twice")
    async with bench.connection() as three:
        if three is one or three is two:
            raise Broken("it returned one that was terminated")


@LINES.line("connect returns a live connection: ping answers")
async def _(bench: Bench) -> None:
    async with bench.connection() as c:
        for _ in range(2):
            await bench.ping(c, "just connected,")


@LINES.line("is_dead answers at once, without I/O, with a bool")
async def _(bench: Bench) -> None:
    async with bench.connection() as c:
        for _ in range(3):
            answer = bench.ask("is_dead", c)
            if not isinstance(answer, bool):
                raise Broken(f"it returned {answer!r}")


@LINES.line("is_dead is True of the dead only")
async def _(bench: Bench) -> None:
    async with bench.connection() as c:
        bench.is_dead(c, expected=False, when="of a fresh connection")
        await bench.ping(c, "on a live connection")
        bench.is_dead(c, expected=False, when="of a connection that has answered a ping")


@LINES.line("is_dead is True after terminate")
async def _(bench: Bench) -> None:
    async with bench.connection() as c:
        bench.ask("terminate", c)
        bench.is_dead(c, expected=True, when="after terminate")


@LINES.line("is_dead is True after close")
async def _(bench: Bench) -> None:
    async with bench.connection() as c:
        if await bench.attempt("close", bench.driver.close, c) is None:
            bench.is_dead(c, expected=True, when="after close")


@LINES.line("ping raises on a terminated connection")
async def _(bench: Bench) -> None:
    async with bench.connection() as c:
        bench.ask("terminate", c)
        if await bench.attempt("ping", bench.driver.ping, c) is None:
            raise Broken("it returned")


@LINES.line("ping raises on a connection that was ended from outside", probes="kill")
async def _(bench: Bench) -> None:
    async with bench.connection() as c:
        await bench.within("Probe.kill", bench.probe.kill(c))
        if await bench.attempt("ping", bench.driver.ping, c) is None:
            raise Broken("it returned")
        bench.ask("terminate", c)
        bench.is_dead(c, expected=True, when="after that and terminate")


@LINES.line("close may be called twice, and after terminate")
async def _(bench: Bench) -> None:
    async with bench.connection() as c:
        for _ in range(2):
            await bench.attempt("close", bench.driver.close, c)
    async with bench.connection() as c:
        bench.ask("terminate", c)
        await bench.attempt("close", bench.driver.close, c)


@LINES.line("close ends the connection on the server", probes="count")
async def _(bench: Bench) -> None:
    before = await bench.settled(bench.probe.count)
    async with bench.connection() as c:
        if await bench.attempt("close", bench.driver.close, c) is None:
            await bench.until_count(bench.probe.count, before, "the server still had it")


@LINES.line("terminate ends the connection on the server", probes="count")
async def _(bench: Bench) -> None:
    before = await bench.settled(bench.probe.count)
    async with bench.connection() as c:
        bench.ask("terminate", c)
        await bench.until_count(bench.probe.count, before, "the server still had it")


@LINES.line("terminate ends a pending ping, reset or close")
async def _(bench: Bench) -> None:
    for name in ("ping", "reset", "close"):
        for number in (0, 1, 2, 5):
            async with bench.connection() as c:
                async with bench.call(getattr(bench.driver, name), c) as call:
                    await turns(number)
                    bench.ask("terminate", c)
                    await call.end(f"after terminate, {name}")
                bench.is_dead(c, expected=True, when=f"after terminate while {name} was pending")


@LINES.line("terminate ends a pending operation", probes="operate")
async def _(bench: Bench) -> None:
    for seconds in (0.0, 0.001, 0.05):
        async with (
            bench.connection() as c,
            bench.operation(c, seconds) as call,
        ):
            bench.ask("terminate", c)
            await call.end("after terminate, Probe.operate")


@LINES.line("terminate leaves another connection's connect alone")
async def _(bench: Bench) -> None:
    for number in (0, 1, 2, 3, 5):
        async with bench.connection() as c, bench.call(bench.driver.connect) as call:
            await turns(number)
            bench.ask("terminate", c)
            await bench.within("connect", call.wait())
        if not call.returned:
            raise Broken(f"it ended with {call.error!r}")
        try:
            await bench.ping(call.result, "on the other connection")
        finally:
            bench.discard(call.result)
