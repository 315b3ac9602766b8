"""The contract of who says that a connection is clean: is_clean, and reset by returning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import anyio

from poolkit.testing._contract import Broken, Chapter, WrongProbe

if TYPE_CHECKING:
    from poolkit.testing._bench import Bench

LINES: Final = Chapter()

#: When an operation is cancelled, in seconds from its begin.
_MOMENTS = (0.0, 0.0005, 0.002, 0.01, 0.05)
_LIMIT = 2.0


@LINES.line("is_clean answers at once, without I/O, with a bool", needs="is_clean")
async def _(bench: Bench) -> None:
    async with bench.connection() as c:
        for _ in range(2):
            answer = bench.ask("is_clean", c)
            if not isinstance(answer, bool):
                raise Broken(f"it returned {answer!r}")
            await bench.ping(c, "on a live connection")


@LINES.line(
    "is_clean is False of a connection that its user has left a mess on",
    needs="is_clean",
    probes="spoil",
)
async def _(bench: Bench) -> None:
    async with bench.connection() as c:
        await _spoil(bench, c)
        if bench.ask("is_clean", c):
            raise Broken("it was True after Probe.spoil")


@LINES.line(
    "can_hand_on is False of a connection that its user has left a mess on, until it is reset",
    needs="can_hand_on",
    probes="spoil",
)
async def _(bench: Bench) -> None:
    async with bench.connection() as c:
        if not isinstance(answer := bench.ask("can_hand_on", c), bool):
            raise Broken(f"it returned {answer!r}")
        await _spoil(bench, c)
        for after in ("Probe.spoil", "another lease"):
            if bench.ask("can_hand_on", c):
                raise Broken(f"it was True after {after}")
            bench.revoke(c)
            await bench.ping(c, "between two leases")


@LINES.line("reset returns None or a str, and leaves a clean connection usable, also twice")
async def _(bench: Bench) -> None:
    async with bench.connection() as c:
        for _ in range(2):
            note = await bench.within("reset", bench.driver.reset(c))
            if note is not None and not isinstance(note, str):
                raise Broken(f"it returned {note!r}")
            await bench.ping(c, "after reset")


@LINES.line(
    "reset returns only if the connection is idle, after an operation was cancelled",
    probes="operate",
)
async def _(bench: Bench) -> None:
    for seconds in _MOMENTS:
        async with bench.connection() as c:
            was_clean = _is_clean(bench, c)
            async with bench.operation(c, seconds) as call:
                call.cancel()
                await bench.within("a cancelled operation", call.wait())
            bench.revoke(c)
            if await _returns(bench, c):
                await _is_fit(bench, c, was_clean=was_clean)


@LINES.line(
    "reset returns only if the connection is idle, while an operation is under way",
    probes="operate",
)
async def _(bench: Bench) -> None:
    async with bench.connection() as c:
        was_clean = _is_clean(bench, c)
        async with bench.operation(c, 0.02) as call:
            bench.revoke(c)
            if await _returns(bench, c):
                await _is_fit(bench, c, was_clean=was_clean)
                await call.end("after reset has returned, Probe.operate")


@LINES.line("reset undoes what the last user has left behind", probes="spoil is_spoiled")
async def _(bench: Bench) -> None:
    async with bench.connection() as c:
        was_clean = _is_clean(bench, c)
        await _spoil(bench, c)
        bench.revoke(c)
        if await bench.attempt("reset", bench.driver.reset, c) is None:
            await _is_fit(bench, c, was_clean=was_clean)


async def _spoil(bench: Bench, c: Any) -> None:
    """Spoil a connection, and see that it is spoiled."""
    await bench.within("Probe.spoil", bench.probe.spoil(c))
    seen = bench.probe.is_spoiled
    if seen is not None and not await bench.within("Probe.is_spoiled", seen(c)):
        raise WrongProbe("Probe.is_spoiled does not see what Probe.spoil has done")


def _is_clean(bench: Bench, c: Any) -> bool:
    return hasattr(bench.driver, "is_clean") and bench.ask("is_clean", c)


async def _returns(bench: Bench, c: Any) -> bool:
    """Reset; one that takes too long is cancelled by the pool, as good as one that raises."""
    with anyio.move_on_after(min(_LIMIT, bench.patience)):
        return await bench.attempt("reset", bench.driver.reset, c) is None
    return False


async def _is_fit(bench: Bench, c: Any, *, was_clean: bool) -> None:
    """Check that a connection is fit for the next user, as its reset has said."""
    bench.is_dead(c, expected=False, when="after reset has returned")
    if was_clean and not _is_clean(bench, c):
        raise Broken("is_clean was True at first, and is not after reset has returned")
    await bench.ping(c, "after reset has returned,")
    if bench.probe.is_spoiled is not None:
        with anyio.fail_after(bench.patience):
            if await bench.probe.is_spoiled(c):
                raise Broken("after reset has returned, Probe.is_spoiled says True")
