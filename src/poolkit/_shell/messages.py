"""The words of errors and logs: who holds what, where, and why somebody got nothing."""

from __future__ import annotations

import functools
import re
import weakref
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from poolkit._core.reading import facts_of
from poolkit._errors import (
    CommitUnknown,
    ConnectFailed,
    NotLeased,
    PoolBusy,
    PoolClosed,
    PoolDeadlock,
    PoolError,
    PoolTimeout,
    PoolUnavailable,
    TransactionEnded,
    WrongLoop,
)
from poolkit._shell.callsite import place, stack_shown
from poolkit._stats import ENDED, LeaseInfo, task_name
from poolkit._text import one_line, shown, told

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolkit._core.slot import Caller, Slot, Waiter
    from poolkit._core.state import PoolState
    from poolkit._shell.driver_calls import Hooks
    from poolkit._stats import Facts, Holder, PoolStats


#: Of a statement what is shown of it: its first line that is not empty, and so many characters.
_LONGEST: Final = 200
_FIRST_LINE: Final = re.compile(rf"\S[^\r\n]{{0,{_LONGEST}}}")


# -- who holds what ------------------------------------------------------------------------------


def place_of(holder: Holder | Caller) -> str:
    """Return where a lease was acquired, and what for if it has a label."""
    assert holder.code is not None
    return place(holder.code, holder.lasti, holder.label)


def label_of(holder: Holder | Caller) -> str:
    """Return what a lease is for: its label, or the function that acquired it."""
    assert holder.code is not None
    return holder.code.co_qualname if holder.label is None else holder.label


def lease(slot: Slot, now: float, hooks: Hooks | None = None) -> LeaseInfo:
    """Return who holds a connection; with hooks, what the driver has to say of it, too."""
    holder = slot.holder
    assert holder is not None
    server_pid = None if hooks is None else hooks.server_pid(slot.connection)
    statement = None if hooks is None else hooks.last_statement(slot.connection)
    return _lease(task_name(holder), now - slot.leased_at, holder, server_pid, statement)


def _lease(
    task: str,
    seconds: float,
    holder: Holder,
    server_pid: int | None = None,
    statement: str | None = None,
) -> LeaseInfo:
    line = statement and _FIRST_LINE.search(statement)
    return LeaseInfo(
        task=task,
        seconds=seconds,
        place=place_of(holder),
        label=label_of(holder),
        stack=stack_shown(holder.stack),
        server_pid=server_pid,
        statement=one_line(line[0], _LONGEST) if line else "",
    )


def leases(
    state: PoolState, now: float, task: object = None, hooks: Hooks | None = None
) -> list[LeaseInfo]:
    """Return who holds what, the longest first; or only what one task has acquired."""
    return [
        lease(slot, now, hooks)
        for slot in state.leased
        # A finalizer may ask while a connection is on its way to a holder.
        if slot.task is not None and (task is None or slot.task() is task)
    ]


# -- transactions --------------------------------------------------------------------------------


def not_begun(pool: str, limit: float | None, reason: str, stats: PoolStats) -> PoolTimeout:
    """Return the error for a transaction that the driver could not begin before the deadline."""
    return PoolTimeout(
        f"pool {pool!r}: no transaction within {limit} s: {reason} ({stats}). Keep transactions "
        "short, or raise acquire_timeout"
    )


# -- why somebody got nothing --------------------------------------------------------------------


def no_task(pool: str) -> WrongLoop:
    """Return the error for an acquire where there is nobody to hold the connection."""
    return WrongLoop(
        f"pool {pool!r}: a connection can only be acquired in a task, not in a callback of the "
        "event loop"
    )


def not_open(pool: str) -> PoolClosed:
    """Return the error for a pool that is closed, or not open yet."""
    return PoolClosed(
        f"pool {pool!r} is not open: use `async with pool:` or `await pool.open()` first, or in "
        "FastAPI `lifespan=poolkit.fastapi.lifespan(pool)`"
    )


def amid(pool: str) -> PoolBusy:
    """Return the error for a finalizer that acquires in the middle of a line of the pool's."""
    return PoolBusy(
        f"pool {pool!r}: a finalizer interrupted the pool and cannot acquire: do so in a task"
    )


def was_cancelled(pool: str, name: str) -> NotLeased:
    """Return the error for going on after a transaction block was cancelled."""
    what = f".{name}: this" if name else "this"
    return NotLeased(
        f"{what} connection of pool {pool!r} was in a transaction that was cancelled, and is "
        "rolled back when it is released: acquire another to go on"
    )


def transaction_ended(pool: str) -> TransactionEnded:
    """Return the error for going on in a block whose transaction is over."""
    return TransactionEnded(
        f"pool {pool!r}: the transaction of this block is over: a COMMIT or ROLLBACK in the block "
        "has ended it, or the database has rolled it back after an error. Nothing more can be done "
        "in this block. Leave the COMMIT to the end of the block; to undo everything, raise an "
        "exception; to undo a part, use `async with poolkit.transaction(conn)` inside of the block"
    )


def commit_unknown(pool: str, cause: BaseException) -> CommitUnknown:
    """Return the error for a COMMIT whose answer never came."""
    return CommitUnknown(
        f"pool {pool!r}: nobody knows whether this transaction took effect: its COMMIT was sent, "
        f"and then: {told(cause)}. Look whether it is there before you do it again"
    )


#: How many of the leases held dead connections, in the facts that timeouts tell.
_dead: Final[weakref.WeakKeyDictionary[Facts, int]] = weakref.WeakKeyDictionary()


def refusal(
    pool: str, waiter: Waiter, limit: float | None, count_dead: Callable[[], int] | None = None
) -> PoolError:
    """Return the error for a wait that ended without a connection: its facts are the waiter's."""
    facts: Facts | None = waiter.facts
    if facts is None:
        meanwhile = "waiting for" if waiter.slot is None else "handing out"
        error: PoolError = PoolClosed(f"pool {pool!r} was closed while {meanwhile} a connection")
        error.__cause__ = waiter.cause
        return error
    kinds = {"timed_out": PoolTimeout, "failed": ConnectFailed}
    kind: type[PoolError] = kinds.get(waiter.outcome, PoolBusy)
    if waiter.outcome == "timed_out":
        if count_dead is not None and facts not in _dead:  # once for all that share them
            _dead[facts] = count_dead()
        what = "no connection"
        if waiter.code is None:  # it waits for all that are to be there
            what = f"fewer than min_size={facts.options.min_size} connections"
        compose = functools.partial(_timed_out, pool, limit, facts, what)
    elif waiter.outcome == "busy":
        compose = functools.partial(_busy, pool, facts)
    elif waiter.outcome == "shed":
        compose = functools.partial(_shed, pool, facts.now - waiter.since, facts)
    else:
        compose = functools.partial(_failed, pool, waiter.cause, facts)
    error = kind.composed_by(compose)
    error.__cause__ = facts.error if waiter.outcome == "timed_out" else waiter.cause
    return error


def rejected(pool: str, tries: int, why: Exception, stats: PoolStats) -> PoolUnavailable:
    """Return the error for an acquire whose ``on_acquire`` is content with no connection."""
    return PoolUnavailable(
        f"pool {pool!r}: on_acquire has rejected {tries} connections in a row, the last one with "
        f"{told(why)} ({stats})"
    )


def rejected_too_long(
    pool: str, tries: int, why: Exception, limit: float | None, stats: PoolStats
) -> PoolTimeout:
    """Return the error for an acquire that has no time left for another connection."""
    return PoolTimeout(
        f"pool {pool!r}: no connection within {limit} s: on_acquire has rejected {tries}, the last "
        f"one with {told(why)} ({stats})"
    )


def _timed_out(pool: str, limit: float | None, facts: Facts, what: str) -> str:
    return f"pool {pool!r}: {what} within {limit} s ({facts.stats}){_why(facts)}"


def _busy(pool: str, facts: Facts) -> str:
    return (
        f"pool {pool!r}: no place in line with max_waiting={facts.options.max_waiting} "
        f"({facts.stats}){_why(facts)}"
    )


def _shed(pool: str, waited: float, facts: Facts) -> str:
    return (
        f"pool {pool!r}: refused after {waited:.2f} s in line by "
        f"shedding={shown(facts.options.shedding)}, so that others are served in time "
        f"({facts.stats}){_why(facts)}"
    )


def _failed(pool: str, cause: BaseException | None, facts: Facts) -> str:
    return f"pool {pool!r}: connecting failed: {_brief(cause)} ({facts.stats})"


def long_wait(waiter: Waiter, state: PoolState, now: float) -> str:
    """Return what to say of a caller that has waited for long."""
    facts = facts_of(state, now)
    what = "" if waiter.code is None else f" at {place_of(waiter)}"
    return f"a caller{what} has waited for {now - waiter.since:.1f} s ({facts.stats}){_why(facts)}"


def deadlock(pool: str, state: PoolState, circle: list[Waiter], now: float) -> PoolDeadlock:
    """Return the error for a circle of tasks that wait for each other, the last one first."""
    held: dict[Any, list[tuple[float, Holder]]] = {}
    for slot in state.leased:
        holder = slot.holder
        assert holder is not None
        held.setdefault(holder.task, []).append((now - slot.leased_at, holder))
    tasks = [
        (task_name(waiting), waiting, held.get(waiting.task, []))
        for waiter in circle
        if (waiting := waiter.holder) is not None
    ]
    most = max(map(len, held.values()))
    return PoolDeadlock.composed_by(
        functools.partial(_deadlock, pool, tasks, len(held), most, state.stats(now))
    )


def _deadlock(
    pool: str,
    tasks: list[tuple[str, Holder, list[tuple[float, Holder]]]],
    holding: int,
    most: int,
    stats: PoolStats,
) -> str:
    said = "; ".join(
        f"{name} waits at {place_of(waiting)} and holds "
        + " and ".join(
            f"one for {seconds:.2f} s, acquired at {place_of(holder)}" for seconds, holder in held
        )
        for name, waiting, held in tasks
    )
    return (
        f"pool {pool!r}: deadlock: every task that holds a connection is waiting for another one "
        f"({stats}). {said}. Acquire once and pass the connection on, or have a "
        "capacity of tasks x (connections per task - 1) + 1, "
        f"here {holding} x ({most + 1} - 1) + 1 = {holding * most + 1}"
    )


#: What has been said of facts that are shared: thousands may time out together, and be logged.
_said: Final[weakref.WeakKeyDictionary[Facts, str]] = weakref.WeakKeyDictionary()


def _why(facts: Facts) -> str:
    """Say what keeps callers waiting, and what helps."""
    if facts not in _said:
        _said[facts] = _reason(facts)
    return _said[facts]


def _reason(facts: Facts) -> str:
    if facts.failures:
        error = _brief(facts.error)
        return f"; connecting has failed {facts.failures} times, the last time with {error}"
    if not facts.stats.leased:
        return "; nothing is leased: opening, resetting or closing connections takes long"
    most = Counter(label_of(holder) for holder in facts.holders if holder).most_common(3)
    capacity = facts.stats.capacity
    sums = "".join(f". {label} holds {n} of {capacity}" for label, n in most if n > 1)
    longest = "; ".join(str(_lease(*one)) for one in facts.longest)
    leak = ""
    if any(name == ENDED for name, _, _ in facts.longest):
        leak = ". What a task that has ended holds may be a leak: acquire with `async with`"
    return (
        f"{sums}. Held longest: {longest}{_of_the_dead(facts)}{leak}. Hold connections for a "
        "shorter time, raise max_size, or raise acquire_timeout; a task that holds one while it "
        "waits for tasks that acquire here may be waiting for itself"
    )


def _of_the_dead(facts: Facts) -> str:
    """Say how many hold what is of no use to them, nor to anybody."""
    dead = min(_dead.get(facts, 0), facts.stats.leased)
    if not dead:
        return ""
    return (
        f". {dead} of the {facts.stats.leased} leases hold{'s' * (dead == 1)} a connection that is "
        "dead, lost or closed behind the pool's back, and was not given back: release it, or leave "
        "the block that acquired it"
    )


def _brief(error: BaseException | None) -> str:
    return "no error" if error is None else told(error)
