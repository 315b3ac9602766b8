"""What the page shows of one pool, as plain data: no objects, no secrets, nothing acquired."""

from __future__ import annotations

import dataclasses
import json
import time
import weakref
from typing import TYPE_CHECKING, Any, Final

from poolkit._advise import advise
from poolkit._shell.inspection import inspection_of
from poolkit._snapshots import plain
from poolkit.dashboard._history import watch

if TYPE_CHECKING:
    from poolkit._shell.inspection import Inspection, SlotSeen
    from poolkit._shell.pool import Pool

#: A wait of so many seconds is told of, and so is a lease that nobody waits for.
LONG_WAIT: Final = 1.0
LONG_LEASE: Final = 30.0

#: A page with more of them is of no use to anybody.
_MOST: Final = 200
#: Seconds: so long a snapshot serves all who ask.
_GOOD_FOR: Final = 0.5

clock = time.monotonic


#: When each snapshot was made, and its JSON.
_latest: Final[weakref.WeakKeyDictionary[Pool[Any], tuple[float, bytes]]] = (
    weakref.WeakKeyDictionary()
)


def see(pool: Pool[Any]) -> bytes:
    """Return what is to be seen of a pool, in JSON, as it was half a second ago at most."""
    now = clock()
    made_at, made = _latest.get(pool, (now, b""))
    if not made or not 0.0 <= now - made_at < _GOOD_FOR:
        made = json.dumps(snapshot(pool), allow_nan=False, separators=(",", ":")).encode()
        _latest[pool] = now, made
    return made


def snapshot(pool: Pool[Any]) -> dict[str, Any]:
    """Return what is to be seen of a pool now; take a sample, unless its event loop is another."""
    seen = inspection_of(pool, _MOST)
    places: list[int | None] = [slot.key for slot in seen.slots]
    if seen.is_here:
        looked = watch(pool)
        looked.look(seen)
        places = looked.places([slot.key for slot in seen.slots])
    by_key = {slot.key: slot for slot in seen.slots}
    numbers = {key: n for n, key in enumerate(places, 1) if key is not None}
    level, sentence = judge(seen)
    squares = [_square(None if key is None else by_key[key], seen.now) for key in places]
    squares += [_square(None, seen.now)] * (min(seen.stats.capacity, _MOST) - len(squares))
    return {
        "name": pool.name,
        "now": seen.now,
        "level": level,
        "sentence": sentence,
        "advice": str(advice) if (advice := advise(seen.stats)).leases else "",
        "slots": squares[:_MOST],
        "capacity": seen.stats.capacity,
        "queue": [{"label": label, "seconds": seconds} for label, seconds in seen.queue],
        "waiting": seen.stats.waiting,
        "leases": [
            {
                # Not its turn: the next slot in this place begins with the same.
                "key": f"{numbers[slot.key]}-{slot.since}",
                "slot": numbers[slot.key],
                **vars(slot.lease),
            }
            for slot in seen.slots
            if slot.lease is not None
        ],
        "leased": seen.stats.leased,
        "settings": {
            field.name: _shown(getattr(seen.options, field.name))
            for field in dataclasses.fields(seen.options)
            if field.name != "name"
        },
        "counters": {"size": seen.stats.size, **_counters(plain(seen.stats))},
    }


def judge(seen: Inspection) -> tuple[str, str]:  # noqa: PLR0911  # a list of cases, in order
    """Return how things are in one sentence, and as a level: ``good``, ``busy`` or ``bad``."""
    stats = seen.stats
    if not seen.is_open:
        return "bad", "The pool is closed"
    if seen.outage is not None and not (stats.idle or stats.leased):
        error, seconds = seen.outage
        return "bad", f"The database cannot be reached for {seconds:.0f} s: {error}"
    most = _most(seen)
    long = sum(wait >= LONG_WAIT for wait in seen.waits)
    if long:
        have = "request has" if long == 1 else "requests have"
        return "bad", f"{long} {have} waited more than {LONG_WAIT:.0f} s{most}"
    if stats.waiting:
        wait = "request waits" if stats.waiting == 1 else "requests wait"
        return "busy", f"{stats.waiting} {wait}, for less than {LONG_WAIT:.0f} s{most}"
    if stats.leased >= stats.capacity:
        return "busy", f"All {stats.capacity} connections are held, and nobody waits{most}"
    longest = seen.slots[0].lease if seen.slots else None
    limit = seen.options.leak_after or LONG_LEASE
    if longest is not None and longest.seconds >= limit:
        held = f"{longest.label} has held a connection for {longest.seconds:.0f} s"
        return "busy", f"{held}; nobody waits"
    return "good", f"Nobody waits; {stats.leased} of {stats.capacity} connections are held"


def _most(seen: Inspection) -> str:
    """Say who holds the most, unless all hold one each."""
    for label, held in seen.held.most_common(1):
        if held > 1 or len(seen.held) == 1:
            return f"; {label} holds {held} of {seen.stats.capacity}"
    return ""


def _square(slot: SlotSeen | None, now: float) -> dict[str, Any]:
    if slot is None:
        return {"state": "free", "seconds": None, "label": ""}
    seconds = None if slot.since is None else max(0.0, now - slot.since)
    label = "" if slot.lease is None else slot.lease.label
    return {"state": slot.state, "seconds": seconds, "label": label}


def _shown(value: Any) -> Any:
    """Return a setting as it may be shown: of a function no more than its name."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return plain(value)
    return getattr(value, "__qualname__", None) or type(value).__qualname__


def _counters(stats: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers alone, by their names in words."""
    retired = {f"retired: {reason}": n for reason, n in stats.pop("retired").items()}
    numbers = {name: value for name, value in stats.items() if isinstance(value, (int, float))}
    return {**{name.replace("_", " "): value for name, value in numbers.items()}, **retired}
