"""The contract of what belongs to one lease: the objects made in it, and its transactions."""

from __future__ import annotations

import gc
import inspect
from typing import TYPE_CHECKING, Any, Final

from poolkit._text import told
from poolkit.testing._bench import turns
from poolkit.testing._contract import Broken, Chapter, WrongProbe

if TYPE_CHECKING:
    from poolkit.testing._bench import Bench

LINES: Final = Chapter()


# -- revoke -------------------------------------------------------------------------------------


@LINES.line(
    "revoke is sync, and may be called at every release, also of a dead connection", needs="revoke"
)
async def _(bench: Bench) -> None:
    async with bench.connection() as c:
        for _ in range(2):
            bench.ask("revoke", c)
        await bench.ping(c, "after revoke")
        bench.ask("terminate", c)
        bench.ask("revoke", c)
    async with bench.connection() as c:
        await bench.attempt("close", bench.driver.close, c)
        bench.ask("revoke", c)


@LINES.line("revoke ends the objects made from the connection", needs="revoke", probes="derive")
async def _(bench: Bench) -> None:
    async with bench.connection() as c:
        for _ in range(2):
            use = await bench.within("Probe.derive", bench.probe.derive(c))
            if error := await bench.attempt("what Probe.derive returned", use):
                raise WrongProbe(
                    f"what Probe.derive returned raises before revoke: {told(error)}"
                ) from error
            bench.ask("revoke", c)
            if await bench.attempt("what Probe.derive returned", use) is None:
                raise Broken("one could be used after revoke")
            await bench.attempt("reset", bench.driver.reset, c)


@LINES.line(
    "dead(error) is not called for an object of an earlier lease",
    needs="revoke watch",
    probes="derive",
)
async def _(bench: Bench) -> None:
    told: list[tuple[object, ...]] = []
    async with bench.connection(lambda *error: told.append(error)) as c:
        use = await bench.within("Probe.derive", bench.probe.derive(c))
        bench.ask("revoke", c)
        told.clear()
        await bench.attempt("what Probe.derive returned", use)
        if any(told):
            raise Broken(f"it was, with {told}: the next lease's connection would pay for it")


# -- transaction ---------------------------------------------------------------------------------


@LINES.line(
    "transaction returns an async context manager that is no generator", needs="transaction"
)
async def _(bench: Bench) -> None:
    async with bench.connection() as c:
        manager = bench.ask("transaction", c)
        for name in ("__aenter__", "__aexit__"):
            if not hasattr(type(manager), name):
                raise Broken(f"it returned {manager!r}, which has no {name}")
        if inspect.isasyncgen(getattr(manager, "gen", None)):
            raise Broken("it is a generator, which rolls back whenever it is finalized")


@LINES.line(
    "transaction commits at the end of the block", needs="transaction", probes="write count_rows"
)
async def _(bench: Bench) -> None:
    before = await bench.probe.count_rows()
    async with bench.connection() as c:
        manager = await _begun(bench, c)
        await bench.within("commit", manager.__aexit__(None, None, None))
        await _rows(bench, before + 1, "after the commit")


@LINES.line(
    "transaction rolls back after an exception, and lets it through",
    needs="transaction",
    probes="write count_rows",
)
async def _(bench: Bench) -> None:
    before = await bench.probe.count_rows()
    async with bench.connection() as c:
        manager = await _begun(bench, c)
        error = ValueError("of the block")
        try:
            if await bench.within("rollback", manager.__aexit__(ValueError, error, None)):
                raise Broken("it swallowed the exception")
        except ValueError as raised:
            if raised is not error:
                raise
        await _rows(bench, before, "after an exception")
        await _rows_of_another(bench, c, before)


@LINES.line(
    "transaction that is dropped without being left is undone by reset",
    needs="transaction",
    probes="write count_rows",
)
async def _(bench: Bench) -> None:
    before = await bench.probe.count_rows()
    async with bench.connection() as c:
        manager = await _begun(bench, c)
        del manager
        bench.revoke(c)
        if await bench.attempt("reset", bench.driver.reset, c) is None:
            gc.collect()
            await turns(5)
            await _rows(bench, before, "after the reset")
            await _rows_of_another(bench, c, before)


@LINES.line(
    "transaction that says that it has undone its lease has",
    needs="transaction",
    probes="write spoil is_spoiled",
)
async def _(bench: Bench) -> None:
    async with bench.connection() as c:
        manager = await _begun(bench, c)
        if not hasattr(manager, "ends_lease"):
            return
        await bench.within("Probe.spoil", bench.probe.spoil(c))
        manager.ends_lease = True
        if await bench.attempt("commit", manager.__aexit__, None, None, None) is None:
            bench.revoke(c)
            assert bench.probe.is_spoiled is not None
            if manager.has_reset and await bench.probe.is_spoiled(c):
                raise Broken("has_reset was True after Probe.spoil, and Probe.is_spoiled says True")


async def _begun(bench: Bench, c: Any) -> Any:
    manager = bench.driver.transaction(c)
    await bench.within("begin", manager.__aenter__())
    await bench.within("Probe.write", bench.probe.write(c))
    return manager


async def _rows(bench: Bench, expected: int, when: str) -> None:
    found = await bench.within("Probe.count_rows", bench.probe.count_rows())
    if found != expected:
        raise Broken(f"{when} there were {found} rows, not {expected}")


async def _rows_of_another(bench: Bench, c: Any, before: int) -> None:
    """Commit a row in a next transaction: it alone is there."""
    manager = await _begun(bench, c)
    await bench.within("commit", manager.__aexit__(None, None, None))
    await _rows(bench, before + 1, "after the commit of the next transaction")
