"""The driver protocol: what poolkit asks of a library.

A driver is a small object with six methods, whose docstrings below are their contracts, and
any of the optional ones below, discovered by presence. It is structural: nothing has to be
inherited, though inheriting from `Driver` lets a type checker point at what is missing.

All coroutines of one connection run strictly one at a time, each in a task that the pool owns and
under a time limit of its own. `reset`, `ping` and `close` that outlast their limit are cancelled
and the connection is terminated.

Optional methods, looked up once when the pool is made:

``set_up(c, on_connect)``
    Async: await ``on_connect(c)``, and note how it leaves ``c``, for that is what `reset` goes back
    to. Called in its place, and within the same time limit; raises what it raises, or for what no
    reset could restore.
``greeted(c)``
    Sync. ``on_acquire`` has run, or failed: what it has set up is undone at the release as
    everything is, but is not said to be left behind.
``revoke(c)``
    Sync. Called at every release, before anything else: objects made from ``c`` (statements,
    cursors, transactions, generators) are dead from now on. Without it a connection is retired, as
    ``derived``, that has given its user anything but plain data: numbers, strings, bytes, dates,
    decimals, UUIDs, members of enums, and lists, tuples, sets and dicts of these, none of it of a
    subclass, up to 16 levels deep and 100,000 elements in all. (Of its attributes only what cannot
    change, for that would be the next user's; nor may a list that a method returns be one of its
    attributes.) So it is with what its errors have inside, and with what it was given: a callback,
    or a container or object that has more than plain data in it after the call than before, or that
    it keeps. The traceback of an error is not looked at, though its frames have the connection; nor
    what is filled later than in the call.
``is_clean(c) -> bool``
    Sync, no I/O. True only if ``c`` is fit for the next user as it is; then release needs no job.
    Never asked when an operation may still be in flight or objects were made from ``c``.
``watch(c, dead)``
    Call ``dead()`` (from any thread) when the library learns by itself that ``c`` has died, and
    ``dead(exc)`` (in the loop's) when something made from ``c`` raises, a cursor for example: the
    pool sees only what methods of ``c`` itself raise. ``dead`` is the connection's, and not a
    lease's: keep it quiet for what was made in an earlier lease, or the next one's connection pays
    for its error. Called once for each connection, after ``on_connect``.
``classify(exc, c) -> Verdict | None``
    What an error says about ``c`` and about the others; about connecting, if ``c`` is None. None:
    the driver cannot tell. Asked of what an operation on ``c`` has raised, caught by its user or
    not; of what else leaves the block of a lease; and, one by one, of what is in their groups and
    what they were raised from, so that there is no need to look into an error. (Of connecting it is
    asked about the one error.) Of connecting, None (or no ``classify``) leaves it to the pool: an
    `OSError` or a `TimeoutError`, also inside of the error, is taken for ``TRANSIENT``, but for
    what somebody has to mend, such as a certificate or a permission. Verdicts other than
    ``TRANSIENT`` and ``FATAL`` say that nobody knows: the first failure is one caller's, the second
    everybody's.
``restate(exc, c) -> Exception | None``
    Sync. What its user is to see, raised from ``exc``, in place of what an operation on ``c`` has
    raised and does not say what has happened: a lost connection, say, that the library takes for a
    mistake of its own. None: ``exc`` itself. Asked after ``classify``.
``transaction(c, **settings)``
    An async context manager: begin; commit, or roll back on an exception. After a cancellation it
    is dropped without being left, so it must be a class: an async generator would be finalised at
    some later time, and roll back under somebody else. It may have ``has_ended() -> bool``, sync
    and without I/O: whether the database has ended the transaction already, by a statement in the
    block or by itself. Then whatever comes later in the block raises `TransactionEnded`, and so
    does the end of the block, which leaves the manager with that error. If it has an attribute
    ``patience`` and there is a deadline, that is set to the seconds left for beginning; the
    `TimeoutError` that beginning raises then is a `PoolTimeout` to the user, and its text a reason.
``check_options(options)``
    Sync. Raise `PoolConfigError` for pool options that this driver cannot work with; asked when the
    pool is made and at every resize.
``is_used_up(c) -> bool``
    Sync, no I/O. Whether a connection with which something was done is to be replaced, because it
    has done as much as it may; asked when it is given back.
``ends_lost_leases``
    An attribute: if true, a connection that `watch` reports dead is no longer leased from then on,
    and its slot is free, although its holder has not given it back.
``pool_opens()``
    Sync, no I/O. The pool is being opened, for the first time or again: the driver forgets what it
    knows of the database, whose place another one may have taken.
``name``
    An attribute: the pool's name unless it is given one, as ``host:port/database``; no secrets.
``view_bases``
    An attribute: a tuple of base classes for the class of views, so that a view passes the
    library's own ``isinstance`` checks where ``__class__`` alone does not. Methods that these
    classes define, special ones included, take the place of the connection's.

The pool calls whatever a driver has of these names: a method of its own needs another one.
"""

from __future__ import annotations

import enum
from typing import Any, Final, Protocol

from typing_extensions import TypeVar

from poolkit._errors import PoolConfigError

C = TypeVar("C", default=Any)


class Verdict(enum.Enum):
    """What an error means for the connection it came from, for the others, and for connecting."""

    OK = "only the statement failed"
    SUSPECT = "this connection is terminated"
    DEAD = "this connection is gone"
    SERVER_GONE = "this connection is gone and the idle ones are suspect"
    STALE = "the server's role changed: every connection is renewed"
    TRANSIENT = "connecting failed; later it may succeed"
    FATAL = "connecting failed; it will fail again until somebody mends it"


class Driver(Protocol[C]):
    """How poolkit opens, checks, cleans and closes the connections of one library."""

    async def connect(self) -> C:
        """Return a fresh connection. Must not leak one if cancelled; raises the library's error."""
        ...

    def is_dead(self, c: C, /) -> bool:
        """Tell without I/O, and without raising: True is proof of death, False proves nothing.

        True after a close of the connection's own: by this the pool learns that whoever held it
        has closed it, which ends the lease.
        """
        ...

    async def reset(self, c: C, /) -> str | None:
        """Make ``c`` fit for its next user.

        Returning says that ``c`` is clean and idle, and that the driver has verified it. A string
        names what the last user had left behind (``"an open transaction"``); the pool logs it, once
        per place in the user's code. Raising has the pool terminate ``c``.
        """
        ...

    async def ping(self, c: C, /) -> None:
        """One round trip, or raise."""
        ...

    async def close(self, c: C, /) -> None:
        """Close gracefully. May raise; a second call is harmless."""
        ...

    def terminate(self, c: C, /) -> None:
        """Close at once: sync, idempotent, never raises, never blocks.

        May be called at any time from the loop's thread, also while another method is pending.
        """
        ...


#: What each driver has.
_METHODS: Final = ("connect", "is_dead", "reset", "ping", "close", "terminate")


def require_driver(given: object) -> None:
    """Refuse what is no driver, without quoting it: it may be a URL with a password."""
    if isinstance(given, type):
        name = given.__name__
        raise PoolConfigError(f"Pool() was given the class {name}: give an instance, {name}(...)")
    missing = [name for name in _METHODS if not callable(getattr(given, name, None))]
    if missing:
        raise PoolConfigError(
            f"Pool() was given an object of type {type(given).__name__}, which is no driver: it "
            f"has no {', '.join(f'{name}()' for name in missing)}. For a database URL use "
            "poolkit.create_pool(url)"
        )
    if renamed := renamed_attribute(given):
        raise PoolConfigError(
            f"Pool() was given a driver of type {type(given).__name__}: {renamed}"
        )


def renamed_attribute(driver: object) -> str:
    """Return what to rename in a driver written for an earlier poolkit; "" if there is nothing."""
    # An attribute `view` that is no tuple is the driver's own.
    view = getattr(driver, "view", None)
    if isinstance(view, tuple) and view and not getattr(driver, "view_bases", ()):
        return "its attribute `view` is called view_bases: rename it"
    return ""


def missing_extra(extra: str, error: ImportError) -> PoolConfigError:
    """Return the error for a library that is not installed, naming the command that mends it."""
    return PoolConfigError(
        f"{error.name or extra} is not installed; run: pip install 'poolkit[{extra}]'"
    )
