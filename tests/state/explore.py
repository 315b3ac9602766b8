"""Visit every state that a small world can get into, once: a breadth-first model checker.

What is explored is the shipped `PoolState` itself. Two states are the same if no event can ever tell
them apart: names and counters are left out, times count from now.
"""

from __future__ import annotations

import dataclasses
import functools
import pickle
from collections import deque
from typing import TYPE_CHECKING, Any

from poolkit._core.slot import NEVER, Slot
from tests.state.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.state.world import Event


@dataclasses.dataclass
class Report:
    """How far an exploration got."""

    states: int = 0
    transitions: int = 0
    complete: bool = False

    def __str__(self) -> str:
        how = "all there are" if self.complete else "stopped there"
        return f"{self.states} states, {self.transitions} transitions, {how}"


class Violation(AssertionError):
    """An invariant does not hold; the message has the shortest way there."""


def explore(
    start: World,
    *,
    most: int,
    events: dict[str, Any],
    skip: Callable[[World, Event], bool] = lambda *_: False,
) -> Report:
    """Visit every state, or as many as ``most``; from each, see also that it comes to rest.

    Raises `Violation` with the events that lead to the first state where something is wrong.
    """
    report = Report()
    frozen = pickle.dumps(start)
    seen = {key(start)}
    todo: deque[tuple[bytes, tuple[Event, ...]]] = deque([(frozen, ())])
    while todo and report.states < most:
        frozen, path = todo.popleft()
        report.states += 1
        world = pickle.loads(frozen)
        possible = list(world.events(**events))
        _guarded(world, path, World.come_to_rest)
        for event in possible:
            world = pickle.loads(frozen)
            if skip(world, event):
                continue
            report.transitions += 1
            _guarded(world, (*path, event), functools.partial(World.do, event=event))
            name = key(world)
            if name not in seen:
                seen.add(name)
                todo.append((pickle.dumps(world), (*path, event)))
    report.complete = not todo
    return report


def _guarded(world: World, path: tuple[Event, ...], step: Callable[[World], None]) -> None:
    try:
        step(world)
    except Exception as error:  # whatever the book raises is wrong
        way = "".join(f"\n  {event}," for event in path)
        raise Violation(f"{type(error).__name__}: {error}; the way there:{way}") from error


#: Seconds beyond which the past and the future are all the same to the worlds explored.
HORIZON = 4.0


def key(world: World) -> Any:
    """Return what distinguishes a state from others."""
    state, now = world.state, world.now

    def time(when: float) -> float:
        return when if when == NEVER else max(-HORIZON, min(HORIZON, round(when - now, 3)))

    def proved(slot: Slot) -> bool:
        return world.proved_at[slot] >= world.blocked_until

    def slot_key(slot: Slot) -> Any:
        until = time(slot.retire_at), time(slot.expires_at), time(world.stale_at.get(slot, NEVER))
        ages = until, slot.reason, slot.generation == state.generation, bool(slot.verdicts)
        uses = slot.uses if state.options.max_uses else 0
        if slot.state == "connecting":
            begun = time(slot.job_began_at), time(slot.overdue_at)
            return slot in world.at_work, begun, ages, slot in slow
        if slot.state == "idle":
            heard = time(slot.alive_at), time(slot.good_until), proved(slot)
            return heard, time(slot.used_at), ages, uses
        if slot.state == "recycling":
            begun = time(slot.job_began_at), time(slot.overdue_at)
            kept = slot in world.owing, slot.sent_at < state._back_at, time(slot.used_at), uses
            return world.at_work.get(slot), begun, kept, ages, slot in slow
        if slot.state == "leased":
            put_off = slot.unreset and (slot in world.owing, time(slot.unreset_since))
            return (
                put_off,
                time(slot.alive_at),
                ages,
                uses,
                slot.leased_at < state._back_at,
                proved(slot),
            )
        return (slot.reason,)

    holders = [(slot_key(slot), _held(world, slot)) for slot in state.leased]
    outage = state.outage
    slow = state.progress._connecting.slow | state.progress._recycling.slow
    shedder: Any = state.line.shedder
    came = time if shedder else lambda _: None
    return (
        world.is_overdue,
        (state.phase, bool(state.openers), state.ramp, state.options.capacity),
        time(state.renewed_at + state.options.backoff_max),
        (time(state._age_at), state.aging, time(min(state._age_at, state._ticked_at))),
        time(max(state.attempt_at, now - state.options.backoff_min)),
        tuple(sorted(map(repr, map(slot_key, state.connecting)))),
        tuple(map(slot_key, state.idle)),
        tuple(sorted(map(repr, holders))),
        tuple(sorted(map(repr, map(slot_key, state.recycling)))),
        tuple(sorted(map(repr, map(slot_key, state.closing)))),
        tuple((time(waiter.deadline), came(waiter.since)) for waiter in state.queue.values()),
        shedder and (came(state._fit_since), came(shedder._above_since or -NEVER)),
        tuple(sorted(job for slot, job in world.at_work.items() if slot.state == "gone")),
        sum(
            c.waiter is not None and c.waiter.slot is not None and c.waiter.slot.state != "leased"
            for c in world.callers
        ),
        outage
        and (min(outage.failures, 2), time(outage.retry_at), time(outage.since), outage._refuses),
    )


def _held(world: World, slot: Slot) -> str:
    unaware = any(c.waiter is not None and c.waiter.slot is slot for c in world.callers)
    return "served" if unaware else "held"
