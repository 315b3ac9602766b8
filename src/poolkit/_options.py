"""The options of a pool: frozen, validated once, each documented where it is declared.

Seconds are floats, ``None`` means no limit, and an option that is not given has its default.
"""

from __future__ import annotations

import dataclasses
import math
import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

from poolkit._awaits import check_hook
from poolkit._elsewhere import advice, name_shown, near, value_shown
from poolkit._errors import PoolConfigError
from poolkit._text import shown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from poolkit._core.shedding import Shedding

    Hook = Callable[[Any], Awaitable[object]]


Deadlock = Literal["raise", "warn", "off"]


class PoolOptions(TypedDict, total=False):
    """The keywords of every ``create_pool``; `Options` says what each one means."""

    min_size: int
    min_idle: int
    max_size: int
    max_overflow: int
    overflow_linger: float
    acquire_timeout: float | None
    max_waiting: int | None
    shedding: Shedding | None
    connect_timeout: float | None
    ping_timeout: float | None
    reset_timeout: float | None
    close_timeout: float | None
    max_connecting: int
    ping_after: float | None
    ping_every: float | None
    max_lifetime: float | None
    max_idle_time: float | None
    max_uses: int | None
    backoff_min: float
    backoff_max: float
    fail_fast_after: float | None
    deadlock: Deadlock
    leak_after: float | None
    wait_notice: float | None
    on_connect: Hook | None
    on_close: Hook | None
    on_acquire: Hook | None
    observers: Sequence[object]
    name: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What a pool was asked to do."""

    min_size: int = 1
    """Connections kept open. ``open()`` returns when they are there; 0 opens without a database."""

    min_idle: int = 0
    """Idle connections kept ready beside those in use, within ``max_size``, so that the first
    callers of a burst find them open. Looked after once a second, and by whatever else happens."""

    max_size: int = 10
    """Connections kept open for reuse, at least 1."""

    max_overflow: int = 0
    """Extra connections while all are leased. Capacity is ``max_size + max_overflow``."""

    overflow_linger: float = 0.0
    """Seconds that a surplus connection stays idle before it is closed, so that a burst does not
    connect and close on every request."""

    acquire_timeout: float | None = 10.0
    """Seconds that one acquire, or opening the pool, may take in all, whatever it waits for. With 0
    an acquire waits for no other user, as ``acquire(timeout=0)``, and opening for its connects."""

    max_waiting: int | None = None
    """The longest queue for connections that others hold; if it is full, the next caller gets
    `PoolBusy` at once. With 0 nobody waits for a connection that somebody holds, or that is not
    open yet (the pool opens it for the next caller, up to ``max_size``). A caller may always wait
    for a connection that is only being pinged or reset, one caller for each."""

    shedding: Shedding | None = None
    """An overload policy that refuses waiters with `PoolBusy`, so that others are served in time:
    ``poolkit.CoDel(target=0.05, interval=0.5)``. It decides only while connections are leased and
    the database can be reached."""

    connect_timeout: float | None = 5.0
    """Seconds for one connect, ``on_connect`` included. Keep it below ``acquire_timeout``, or a
    timeout cannot name its cause."""

    ping_timeout: float | None = 1.0
    """Seconds for one ping."""

    reset_timeout: float | None = 2.0
    """Seconds for one reset, and for the ROLLBACK that ends a failed transaction."""

    close_timeout: float | None = 1.0
    """Seconds for one graceful close, ``on_close`` included; then the connection is terminated."""

    max_connecting: int = 4
    """Connects in flight at once. While somebody waits, one more for each connect that is slow, in
    steps of ``backoff_min``, and twice as many at most: so connects that hang block nobody. Not
    counted are those that outlast ``connect_timeout`` because a library cannot be cancelled."""

    ping_after: float | None = 1.0
    """An idle connection not heard from for this many seconds is pinged before it is handed out.
    0: always. None: never."""

    ping_every: float | None = 30.0
    """An idle connection not heard from for this many seconds is pinged in the background, so that
    dead ones are found before anybody needs them. Meanwhile it cannot be handed out, so at most
    half are pinged at once. None: never, which lets a database that scales to zero fall asleep."""

    max_lifetime: float | None = 1800.0
    """Seconds after which a connection is replaced, counted from when it was open. Replacing begins
    at 90 %, with jitter, at a pace at which all of one age are replaced by 100 %. Of those in use,
    and of those that ``min_size`` and ``min_idle`` ask for, the successor is there before the old
    one goes, if there is room within ``max_size``; if not, at most a tenth of them, or two, are
    away at once. After 100 % a connection is never handed out."""

    max_idle_time: float | None = 600.0
    """Seconds after which a connection is closed if nobody has used it, above ``min_size`` and
    ``min_idle``. With 0 none is kept: one that comes back goes to the first in line, or is closed
    at once."""

    max_uses: int | None = None
    """Leases after which a connection is replaced."""

    backoff_min: float = 0.2
    """Seconds before the second attempt to connect; doubled after each failure."""

    backoff_max: float = 1.5
    """The longest pause between two attempts to connect; its upper half is jitter."""

    fail_fast_after: float | None = 5.0
    """Once the database has been unreachable for this many seconds, new acquires fail at once with
    its error instead of waiting."""

    deadlock: Deadlock = "raise"
    """What to do when every connection is held by a task that is itself waiting for one. With
    ``"raise"`` the last of these tasks gets `PoolDeadlock` at once; ``"warn"`` logs it and lets
    that task wait; ``"off"`` does not check. If the acquire of one of these tasks ends within a
    second by itself, that ends the deadlock, and the pool reports nothing."""

    leak_after: float | None = None
    """Seconds after which a lease that is still held is logged as a warning, with the stack that
    acquired it; its return is logged as well. Noting the stacks makes each acquire slower."""

    wait_notice: float | None = 5.0
    """Seconds after which a caller that still waits is logged as a warning, with the sizes and who
    holds for longest: once a minute at most, looked at once a second. None: never."""

    on_connect: Hook | None = None
    """Awaited with each new connection before its first use (codecs, session settings)."""

    on_close: Hook | None = None
    """Awaited with a healthy connection before it is closed; not with one that is terminated."""

    on_acquire: Hook | None = None
    """Awaited in the caller's task with the connection it just got, as if it were the first line of
    its block, but within the acquire's deadline; half a second for ``acquire(timeout=0)``. It may
    raise `AnotherConnection`: then this one retires, and the acquire goes on with another one, for
    as many as there can be; after three new ones it ends with `PoolUnavailable`."""

    observers: Sequence[object] = ()
    """Objects that are told of the pool's events, each with some of the methods of
    `poolkit.Observer`. They are never awaited."""

    name: str | None = None
    """Names the pool in errors, logs and metrics."""

    @property
    def capacity(self) -> int:
        """The most connections there can be: ``max_size + max_overflow``."""
        return self.max_size + self.max_overflow

    @property
    def keeps_none(self) -> bool:
        """Whether connections above ``min_size`` are closed when they come back."""
        return self.max_idle_time == 0

    def __post_init__(self) -> None:
        """Refuse whatever cannot work, naming the value and the remedy."""
        for name, low in _COUNTS.items():
            _check_count(name, getattr(self, name), low)
        for name in _SECONDS:
            check_seconds(name, getattr(self, name), optional=name not in _NEVER_NONE)
        for name, why in _NEVER_ZERO.items():
            if getattr(self, name) == 0:
                raise PoolConfigError(f"{name}=0: {why}; for no limit give None")
        _check_least("min_size", self.min_size, self.max_size)
        _check_least("min_idle", self.min_idle, self.max_size)
        if self.max_waiting == 0 and self.min_size == 0:
            raise PoolConfigError(
                "max_waiting=0 with min_size=0: nobody could wait for the first connection; give "
                "min_size=1 or more"
            )
        if self.backoff_min > self.backoff_max:
            raise PoolConfigError(
                f"backoff_min={self.backoff_min} is above backoff_max={self.backoff_max}"
            )
        _check_policy(self.shedding)
        if self.deadlock not in get_args(Deadlock):
            raise PoolConfigError(
                f"deadlock={self.deadlock!r} is unknown: give 'raise', 'warn' or 'off'"
            )
        for name in ("on_connect", "on_close", "on_acquire"):
            if (hook := getattr(self, name)) is not None:
                check_hook(name, hook)
        if not isinstance(self.observers, (list, tuple)):
            raise PoolConfigError(
                f"observers={shown(self.observers)} is no list: give [observer], also for one"
            )
        if self.name is not None and not isinstance(self.name, str):
            raise PoolConfigError(f"name={self.name!r} is not a string")


def _check_least(name: str, least: int, max_size: int) -> None:
    if least > max_size:
        raise PoolConfigError(
            f"{name}={least} is above max_size={max_size}: raise max_size or lower {name}"
        )


def _check_policy(policy: object) -> None:
    if isinstance(policy, type):
        kind = policy.__name__
        raise PoolConfigError(f"shedding={kind} is the class: give an instance, {kind}()")
    if policy is not None and not callable(getattr(policy, "begin", None)):
        raise PoolConfigError(
            f"shedding={policy!r} is not a policy: give poolkit.CoDel(), for example"
        )


_COUNTS = {
    "min_size": 0,
    "min_idle": 0,
    "max_size": 1,
    "max_overflow": 0,
    "max_waiting": 0,
    "max_connecting": 1,
    "max_uses": 1,
}
_NEVER_ZERO = {
    "connect_timeout": "no connect could ever succeed",
    "ping_timeout": "no ping could ever succeed",
    "reset_timeout": "no reset could ever succeed",
    "max_lifetime": "each connection would be replaced as soon as it is there",
}
_NEVER_NONE = frozenset({"overflow_linger", "backoff_min", "backoff_max"})
_SECONDS = (
    "overflow_linger",
    "acquire_timeout",
    "connect_timeout",
    "ping_timeout",
    "reset_timeout",
    "close_timeout",
    "ping_after",
    "ping_every",
    "max_lifetime",
    "max_idle_time",
    "backoff_min",
    "backoff_max",
    "fail_fast_after",
    "leak_after",
    "wait_notice",
)
NAMES = frozenset(field.name for field in dataclasses.fields(Options))


def make_options(given: Mapping[str, Any]) -> Options:
    """Return the validated options; an unknown name is refused with the nearest known ones."""
    for name in given:
        if name not in NAMES:
            raise PoolConfigError(unknown_option(name, NAMES))
    return Options(**given)


def unknown_option(
    name: str, known: Iterable[str], elsewhere: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Return the message that refuses an option nobody knows, naming those it may have meant."""
    known = sorted(known)
    hint = advice(name, known, elsewhere)
    if hint is None and (found := near(name, known, 0.6)):
        hint = f"did you mean {' or '.join(found)}?"
    if hint is not None and not hint.endswith("?"):
        return f"unknown option {name_shown(name)}: {hint}"
    hint = f"; {hint}" if hint else "."
    return f"unknown option {name_shown(name)}{hint} Known: {', '.join(known)}"


def parse_options(query: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return the pool options of a URL's query, as values; those of others are not looked at."""
    return {name: _parse(name, text) for name, text in query if name in NAMES}


def _parse(name: str, text: str) -> Any:
    if not text:
        raise PoolConfigError(f"{name} in the URL is empty: give it a value, or leave it out")
    if name in ("name", "deadlock"):
        return text
    if text.lower() == "none":
        return None
    if name in _COUNTS:
        return whole_number(name, text)
    if name in _SECONDS:
        return seconds(name, text)
    raise PoolConfigError(f"{name} cannot be given in a URL: give it as a keyword")


def whole_number(name: str, text: str) -> int:
    """Return the number that an option in a URL is."""
    if re.fullmatch(r"[+-]?[0-9]{1,18}", text) is None:
        raise PoolConfigError(f"{name}={value_shown(text)} in the URL is not a whole number")
    return int(text)


def seconds(name: str, text: str) -> float:
    """Return the seconds that an option in a URL is."""
    if re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", text, re.IGNORECASE) is None:
        raise PoolConfigError(
            f"{name}={value_shown(text)} in the URL is not a number of seconds: for no limit write "
            "none"
        )
    return float(text)


def _check_count(name: str, value: object, low: int) -> None:
    if value is None and name in ("max_waiting", "max_uses"):
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise PoolConfigError(f"{name}={value!r} is not a whole number")
    if name == "max_size" and value == 0:
        raise PoolConfigError(
            "max_size=0 (other pools read it as unlimited; poolkit has no unlimited pool): "
            "give the number of connections your database can spare"
        )
    if value < low:
        raise PoolConfigError(f"{name}={value} is below {low}")


def check_seconds(name: str, value: object, *, optional: bool = True) -> None:
    """Refuse what is not a number of seconds; infinity is spelled None."""
    if value is None:
        if optional:
            return
        raise PoolConfigError(f"{name}=None: give a number of seconds")
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise PoolConfigError(f"{name}={value!r} is not a number of seconds")
    if math.isnan(value) or math.isinf(value) or value < 0:
        remedy = "; for no limit give None" if optional else ""
        raise PoolConfigError(f"{name}={value!r} is not a number of seconds from 0 up{remedy}")
