"""What the page shows of one pool, as plain data: no objects, no secrets, nothing acquired."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from poolkit._shell import messages
from poolkit.dashboard._history import watch

if TYPE_CHECKING:
    from poolkit._core.slot import Slot
    from poolkit._shell.pool import Pool

#: A wait of so many seconds is told of, and so is a lease that nobody waits for.
LONG_WAIT: Final = 1.0
LONG_LEASE: Final = 30.0

#: A page with more of them is of no use to anybody.
_MOST: Final = 200


def snapshot(pool: Pool[Any], after: float) -> dict[str, Any]:
    """Return what is to be seen of a pool now, and the samples taken after a time."""
    looked = watch(pool)
    looked.look(pool)
    state, now = pool._state, pool._now()
    stats = pool.stats()
    slots = [*state.leased, *state.idle, *state.connecting, *state.recycling, *state.closing]
    places = looked.places(slots)
    numbers = {slot: n for n, slot in enumerate(places, 1) if slot is not None}
    level, sentence = judge(pool)
    squares = [_square(slot, now) for slot in places]
    squares += [_square(None, now)] * (stats.capacity - len(squares))
    return {
        "name": pool.name,
        "now": now,
        "level": level,
        "sentence": sentence,
        "slots": squares[:_MOST],
        "queue": [
            {"seconds": now - waiter.since, "label": messages.label_of(waiter)}
            for waiter in itertools.islice(state.queue.values(), _MOST)
            if waiter.task is not None
        ],
        "waiting": stats.waiting,
        "samples": looked.samples(after),
        "leases": [
            {
                # Not its turn: the next slot in this place begins with the same.
                "key": f"{numbers[slot]}-{slot.leased_at}",
                "slot": numbers[slot],
                **dataclasses.asdict(messages.lease(slot, now)),
            }
            for slot in itertools.islice(state.leased, _MOST)
        ],
        "settings": {
            field.name: _shown(getattr(state.options, field.name))
            for field in dataclasses.fields(state.options)
            if field.name != "name"
        },
        "counters": {"size": stats.size, **_counters(dataclasses.asdict(stats))},
    }


def judge(pool: Pool[Any]) -> tuple[str, str]:  # noqa: PLR0911  # a list of cases, in order
    """Return how things are in one sentence, and as a level: ``good``, ``busy`` or ``bad``."""
    state, now = pool._state, pool._now()
    if not state.is_open:
        return "bad", "The pool is closed"
    stats = pool.stats()
    if state.outage is not None and not (state.idle or state.leased):
        error = type(state.outage.error).__name__
        seconds = now - state.outage.since
        return "bad", f"The database cannot be reached for {seconds:.0f} s: {error}"
    most = _most(pool)
    long = sum(now - waiter.since >= LONG_WAIT for waiter in state.queue.values())
    if long:
        have = "request has" if long == 1 else "requests have"
        return "bad", f"{long} {have} waited more than {LONG_WAIT:.0f} s{most}"
    if stats.waiting:
        wait = "request waits" if stats.waiting == 1 else "requests wait"
        return "busy", f"{stats.waiting} {wait}, for less than {LONG_WAIT:.0f} s{most}"
    if stats.leased >= stats.capacity:
        return "busy", f"All {stats.capacity} connections are held, and nobody waits{most}"
    longest = next(iter(state.leased), None)
    limit = state.options.leak_after or LONG_LEASE
    if longest is not None and now - longest.leased_at >= limit:
        label, seconds = messages.label_of(longest), now - longest.leased_at
        return "busy", f"{label} has held a connection for {seconds:.0f} s; nobody waits"
    return "good", f"Nobody waits; {stats.leased} of {stats.capacity} connections are held"


def _most(pool: Pool[Any]) -> str:
    """Say who holds the most, unless all hold one each."""
    state = pool._state
    labels = Counter(messages.label_of(slot) for slot in state.leased)
    for label, held in labels.most_common(1):
        if held > 1 or len(labels) == 1:
            return f"; {label} holds {held} of {state.options.capacity}"
    return ""


def _square(slot: Slot | None, now: float) -> dict[str, Any]:
    if slot is None:
        return {"state": "free", "seconds": None, "label": ""}
    if slot.state == "closing":  # since when, nobody has noted
        return {"state": "closing", "seconds": None, "label": ""}
    since = {"leased": slot.leased_at, "idle": slot.used_at}.get(slot.state, slot.job_began_at)
    label = messages.label_of(slot) if slot.state == "leased" else ""
    return {"state": slot.state, "seconds": max(0.0, now - since), "label": label}


def _shown(value: Any) -> Any:
    """Return a setting as it may be shown: of a function no more than its name."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return getattr(value, "__qualname__", None) or type(value).__qualname__


def _counters(stats: dict[str, Any]) -> dict[str, Any]:
    retired = {f"retired: {reason}": n for reason, n in stats.pop("retired").items()}
    return {**{name.replace("_", " "): value for name, value in stats.items()}, **retired}
