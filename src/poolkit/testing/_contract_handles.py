"""The contract as users meet it: on a handle, in leases of a real pool."""

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING, Any, Final

from poolkit._shell.pool import Pool
from poolkit._text import shown, told
from poolkit.testing._contract import Broken, Chapter, WrongProbe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from poolkit.testing._bench import Bench

LINES: Final = Chapter()

#: What a connection's user may call to end it. (Others of such names may end the server.)
_CLOSERS: Final = ("close", "aclose", "terminate", "disconnect")


@contextlib.asynccontextmanager
async def _pool_of_one(bench: Bench, **options: Any) -> AsyncIterator[Pool[Any]]:
    limit = bench.patience
    pool: Pool[Any] = Pool(
        bench.driver,
        min_size=0,
        max_size=1,
        acquire_timeout=limit,
        connect_timeout=limit,
        reset_timeout=limit,
        ping_after=None,
        name="check_driver",
        **options,
    )
    async with pool:
        yield pool


@LINES.line("a handle is made of a connection: it passes for one, and shows no secrets")
async def _(bench: Bench) -> None:
    seen: list[Any] = []

    async def note(connection: Any) -> None:
        seen.append(connection)

    async with _pool_of_one(bench, on_connect=note, on_acquire=note) as pool:
        async with pool.acquire() as handle:
            kind = handle._poolkit_slot.connection.__class__
            if not isinstance(handle, kind):
                raise Broken(
                    f"isinstance(handle, {kind.__name__}) is False, for the metaclass has an "
                    "__instancecheck__ of its own: name a base class that it lets pass in the "
                    "driver's `view_bases`"
                )
            _asked_like_any(bench, handle)
        if len(seen) != 2:  # noqa: PLR2004  # on_connect and on_acquire
            raise Broken(f"of on_connect and on_acquire, {len(seen)} were awaited")


def _asked_like_any(bench: Bench, handle: Any) -> None:
    """Ask what debuggers, logs and containers ask of any object."""
    asked: dict[str, Callable[[Any], object]] = {
        "repr": repr,
        "str": str,
        "format": format,
        "dir": dir,
        "==": lambda handle: handle == handle,  # noqa: PLR0124
        "inspect.signature": _signatures,
    }
    for name, ask in asked.items():
        try:
            answer = str(ask(handle))
        except Exception as error:
            raise Broken(f"{name} of a handle raised {told(error)}") from error
        if any(secret in answer for secret in bench.probe.secrets):
            raise Broken(f"{name} of a handle has a secret in it, as that of its connection has")


def _signatures(handle: Any) -> None:
    for name in dir(type(handle)):
        method = inspect.getattr_static(type(handle), name)
        if hasattr(method, "_call"):
            with contextlib.suppress(ValueError):  # of what is written in C
                inspect.signature(getattr(handle, name))


async def _given(bench: Bench, probe: str, handle: Any) -> Any:
    """Have a part of the probe work on a handle, as it has worked on a connection."""
    try:
        return await bench.within(f"Probe.{probe}", getattr(bench.probe, probe)(handle))
    except (Broken, WrongProbe):
        raise
    except Exception as error:
        raise Broken(
            f"Probe.{probe} raised {told(error)} when it was given a handle, and not when it was "
            "given a connection"
        ) from error


@LINES.line("the next lease finds nothing of what the last one has left", probes="spoil is_spoiled")
async def _(bench: Bench) -> None:
    async with _pool_of_one(bench) as pool:
        async with pool.acquire() as handle:
            await _given(bench, "spoil", handle)
        async with pool.acquire() as handle:
            if await _given(bench, "is_spoiled", handle):
                raise Broken("Probe.is_spoiled says True in the next lease")


@LINES.line("an object made from a handle is dead after its release", probes="derive")
async def _(bench: Bench) -> None:
    async with _pool_of_one(bench) as pool:
        async with pool.acquire() as handle:
            use = await _given(bench, "derive", handle)
            if error := await bench.attempt("what Probe.derive returned", use):
                raise WrongProbe(
                    f"what Probe.derive returned raises before the release: {told(error)}"
                ) from error
        async with pool.acquire():
            if await bench.attempt("what Probe.derive returned", use) is None:
                raise Broken("one could be used in the next lease")


@LINES.line(
    "pool.transaction() commits at the end of its block, or rolls back",
    needs="transaction",
    probes="write count_rows",
)
async def _(bench: Bench) -> None:
    before = await bench.probe.count_rows()
    async with _pool_of_one(bench) as pool:
        try:
            async with pool.transaction() as handle:
                await _given(bench, "write", handle)
        except (Broken, WrongProbe):
            raise
        except Exception as error:
            raise Broken(f"a block that ends well raised {told(error)}") from error
        with contextlib.suppress(_Undone):
            async with pool.transaction() as handle:
                await _given(bench, "write", handle)
                raise _Undone
    found = await bench.within("Probe.count_rows", bench.probe.count_rows())
    if found != before + 1:
        raise Broken(f"after a commit and a rollback there were {found - before} rows more, not 1")


class _Undone(Exception):
    """What leaves the block of a transaction that is to be rolled back."""


@LINES.line("is_dead is True after a close of the connection's own, which ends its lease")
async def _(bench: Bench) -> None:
    async with _pool_of_one(bench) as pool:
        for name in _CLOSERS:
            handle = await pool.acquire()
            c = handle._poolkit_slot.connection
            try:
                if _takes_nothing(getattr(type(handle), name, None)):
                    await _close(bench, handle, name)
                    if not bench.ask("is_dead", c):
                        await _is_alive(bench, c, name)
                    elif pool.stats().leased:
                        raise Broken(f"after {name}() the lease went on")
            finally:
                bench.discard(c)
                with contextlib.suppress(Exception):
                    pool.release(handle)


def _takes_nothing(method: Any) -> bool:
    try:
        inspect.signature(method).bind(None)  # but for self
    except (TypeError, ValueError):
        return False
    return True


async def _close(bench: Bench, handle: Any, name: str) -> None:
    async def close() -> None:
        result = getattr(handle, name)()
        if inspect.isawaitable(result):
            await result

    await bench.attempt(f"{name}() of a connection", close)


async def _is_alive(bench: Bench, c: Any, name: str) -> None:
    error = await bench.attempt("ping", bench.driver.ping, c)
    if error is not None:
        raise Broken(
            f"after {name}() of a connection is_dead returned False, and ping raised "
            f"{shown(error)}: whoever closes a connection keeps its place in the pool for ever"
        )
