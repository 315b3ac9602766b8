"""The contract of what a driver knows: news of a death, what errors mean, names."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, Final

import anyio

from poolkit._driver import Verdict
from poolkit._errors import PoolConfigError
from poolkit._options import Options
from poolkit._shell.view_class import view_class
from poolkit.testing._contract import Broken, Chapter

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from poolkit.testing._bench import Bench

LINES: Final = Chapter()


@LINES.line("watch does not report the living", needs="watch")
async def _(bench: Bench) -> None:
    told: list[bool] = []
    async with bench.connection(lambda *error: told.append(not error)) as c:
        await bench.ping(c, "on a watched connection")
        await bench.within("reset", bench.driver.reset(c))
        if any(told):
            raise Broken("dead() was called")


@LINES.line("watch reports a connection that was ended from outside", needs="watch", probes="kill")
async def _(bench: Bench) -> None:
    told: list[bool] = []
    async with bench.connection(lambda *error: told.append(not error)) as c:
        await bench.within("Probe.kill", bench.probe.kill(c))
        with anyio.move_on_after(bench.patience):
            while not any(told):  # noqa: ASYNC110  # it may come from any thread
                await anyio.sleep(0.005)
        if not any(told):
            raise Broken(f"dead() was not called for {bench.patience} s")


@LINES.line("set_up awaits on_connect once, and lets through what it raises", needs="set_up")
async def _(bench: Bench) -> None:
    seen: list[Any] = []
    error = ValueError("of on_connect")

    async def note(connection: Any) -> None:
        seen.append(connection)
        if len(seen) > 1:
            raise error

    async with bench.connection() as c:
        await bench.within("set_up", _awaitable("set_up", bench.driver.set_up(c, note)))
        if not (len(seen) == 1 and seen[0] is c):
            raise Broken(f"on_connect was called {len(seen)} times, with {seen!r}")
        await bench.ping(c, "after set_up")
    async with bench.connection() as c:
        raised = await bench.attempt("set_up", bench.driver.set_up, c, note)
        if raised is not error:
            raise Broken(f"it raised {raised!r} when on_connect had raised {error!r}")


def _awaitable(method: str, made: Any) -> Awaitable[Any]:
    if not inspect.isawaitable(made):
        raise Broken(f"{method} returned {made!r}, which cannot be awaited")
    return made


@LINES.line("greeted is sync, and may be called at every acquire", needs="greeted")
async def _(bench: Bench) -> None:
    async with bench.connection() as c:
        for _ in range(2):
            bench.ask("greeted", c)
        await bench.ping(c, "after greeted")


@LINES.line("pool_opens is sync, and may be called again", needs="pool_opens")
async def _(bench: Bench) -> None:
    for _ in range(2):
        bench.ask("pool_opens")
    async with bench.connection() as c:
        bench.ask("pool_opens")
        await bench.ping(c, "after pool_opens")


@LINES.line("is_used_up tells without changing anything", needs="is_used_up")
async def _(bench: Bench) -> None:
    async with bench.connection() as c:
        for _ in range(2):
            told = bench.ask("is_used_up", c)
            if not isinstance(told, bool):
                raise Broken(f"it returned {told!r}")
        await bench.ping(c, "after is_used_up")


@LINES.line("classify returns a Verdict or None, and never raises", needs="classify")
async def _(bench: Bench) -> None:
    async with bench.connection() as live, bench.connection() as dead:
        bench.ask("terminate", dead)
        await bench.attempt("ping", bench.driver.ping, dead)
        strange = [ValueError("no"), KeyError(), OSError(9, "bad"), ConnectionResetError()]
        strange += [TimeoutError(), EOFError(), PoolConfigError("no"), AssertionError()]
        for error in strange + bench.errors:
            for c in (live, dead, None):
                verdict = bench.ask("classify", error, c)
                if not (verdict is None or isinstance(verdict, Verdict)):
                    raise Broken(f"for {error!r} it returned {verdict!r}")


@LINES.line("may_repeat returns a bool, and never raises", needs="may_repeat")
async def _(bench: Bench) -> None:
    async with bench.connection() as live, bench.connection() as dead:
        bench.ask("terminate", dead)
        for error in [ValueError("no"), KeyError(), TimeoutError(), *bench.errors]:
            for c in (live, dead):
                told = bench.ask("may_repeat", error, c)
                if not isinstance(told, bool):
                    raise Broken(f"for {error!r} it returned {told!r}")


@LINES.line("name is a str without secrets", needs="name")
async def _(bench: Bench) -> None:
    name = bench.driver.name
    if not (isinstance(name, str) and name):
        raise Broken(f"it is {name!r}")
    shown = [secret for secret in bench.probe.secrets if secret in name]
    if shown or re.search(r"://[^/@]*:[^/@]+@|password=", name):
        raise Broken("it has a password in it")


@LINES.line("view_bases is a tuple of classes that a view can derive from", needs="view_bases")
async def _(bench: Bench) -> None:
    bases = bench.driver.view_bases
    if not (isinstance(bases, tuple) and all(isinstance(base, type) for base in bases)):
        raise Broken(f"it is {bases!r}")
    async with bench.connection() as c:
        view_class(type(c), bases)


@LINES.line("check_options returns, or raises PoolConfigError", needs="check_options")
async def _(bench: Bench) -> None:
    for options in (Options(), Options(min_size=0, max_size=1)):
        try:
            bench.driver.check_options(options)
        except PoolConfigError:
            pass
        except Exception as error:
            raise Broken(f"it raised {error!r}") from error
