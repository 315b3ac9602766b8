"""The driver protocol: what poolkit needs to use a library.

A driver is a small object with six methods; their docstrings below are their contracts. It may have
any of the optional methods below too; the pool looks whether they are there. The protocol is
structural: nothing has to be inherited, but if a driver inherits from `Driver`, a type checker says
which methods are missing.

All coroutines of one connection run strictly one at a time, each in a task that the pool owns and
under a time limit of its own. `reset`, `ping` and `close` that outlast their limit are cancelled
and the connection is terminated.

The pool looks for the optional methods once, when the pool is made:

``set_up(c, on_connect)``
    Async. Called in the place of ``on_connect``, within the same time limit: await
    ``on_connect(c)``, and note how it leaves ``c``, because `reset` goes back to that. Raises what
    ``on_connect`` raises, or an error if it leaves something that no reset could restore.
``greeted(c)``
    Sync. ``on_acquire`` has run, or failed. What it has set up is undone at the release like
    everything else, but must not be reported as left behind.
``revoke(c)``
    Sync. Called at every release, before anything else: objects made from ``c`` (statements,
    cursors, transactions, generators) are dead from now on.

    Without ``revoke``, a connection that has given its user anything but plain data is retired, as
    ``derived``. Plain data are numbers, strings, bytes, dates, decimals, UUIDs, members of enums,
    and lists, tuples, sets and dicts of these. None of it may be of a subclass, and there may be up
    to 16 levels and 100,000 elements in all. Of attributes of ``c`` only values that cannot change
    are plain data, because the next user would see the change; and a list that a method returns
    must not be an attribute of ``c`` as well. What the errors of ``c`` have inside counts as given
    too. What the user gives to ``c`` retires it if it is a callback, or if it is a container or
    object that has more than plain data in it after the call than before, or that ``c`` keeps. The
    pool does not look at the traceback of an error, though its frames have the connection, nor at
    what is filled later than in the call.
``is_clean(c) -> bool``
    Sync, no I/O. True only if ``c`` is fit for the next user as it is; then release needs no job.
    Never asked when an operation may still be in flight or objects were made from ``c``.
``can_hand_on(c) -> bool``
    Sync, no I/O. Asked while a caller waits for a connection, when ``is_clean`` has not said that
    ``c`` is clean: True if ``c`` may go to that caller as it is, and be reset later. `reset` is
    called as soon as nobody waits, and after 100 leases or 5 seconds at the latest; an idle
    connection owes no reset. So what the driver has noted of a lease has to last until the next
    `reset`. Never asked when an operation may still be in flight or was cancelled; but objects may
    have been made from ``c``, which ``revoke`` has ended.
``watch(c, dead)``
    Called once for each connection, after ``on_connect``. Call ``dead()`` (from any thread) when
    the library learns by itself that ``c`` has died. Call ``dead(exc)`` (in the loop's thread) when
    something made from ``c`` raises, a cursor for example: the pool sees only errors that methods
    of ``c`` itself raise. ``dead`` belongs to the connection and not to a lease. So do not call it
    for objects made in an earlier lease, or the next user's connection pays for their errors.
``classify(exc, c) -> Verdict | None``
    What an error says about ``c`` and about the other connections; if ``c`` is None, about
    connecting. None means that the driver cannot tell.

    Asked about every error that an operation on ``c`` has raised, whether its user has caught it or
    not, and about every other error that leaves the block of a lease. Asked also, one by one, about
    the members of their groups and the errors they were raised from, so there is no need to look
    into an error. (If connecting fails it is asked about the one error.)

    If it returns None about connecting, or there is no ``classify``, the pool judges by itself: an
    `OSError` or a `TimeoutError`, also inside the error, counts as ``TRANSIENT``, unless somebody
    has to mend the cause, such as a certificate or a permission. If the verdict is neither
    ``TRANSIENT`` nor ``FATAL``, nobody knows whether connecting will succeed: the first failure is
    one caller's error, the second everybody's.
``restate(exc, c) -> Exception | None``
    Sync. The error to show to the user in the place of ``exc``, and raised from it, when ``exc``
    does not say what has happened: for example, the library takes a lost connection for a mistake
    of its own. None: ``exc`` itself. Asked after ``classify``, about errors of operations on ``c``.
``may_repeat(exc, c) -> bool``
    Sync. Whether a transaction that an operation on ``c`` has ended with ``exc`` may succeed if it
    is run again: it was in conflict with another one (a serialization failure, a deadlock, a lock
    that was not had in time), or its session has ended. `Pool.run` and `Pool.attempts` ask, about
    what leaves the block, and about BEGIN and COMMIT, except about a COMMIT that may have taken
    effect. Nothing of the transaction is or will be committed when it is run again. Without it, or
    if it is False, it is run again if ``classify`` says that ``c`` is gone, or if an operation on
    ``c`` has raised ``exc`` and ``c`` is dead.
``transaction(c, **settings)``
    An async context manager: begin; commit, or roll back on an exception. It must be a class.
    After a cancellation it is dropped without being left, and an async generator would be finalised
    at some later time, and roll back under another user. Keywords that its signature does not have
    are refused with a `PoolConfigError`.

    It may have ``has_ended() -> bool``, sync and without I/O: whether the database has ended the
    transaction already, by a statement in the block or by itself. Then whatever comes later in the
    block raises `TransactionEnded`, and so does the end of the block, which leaves the manager with
    that error. It may have an attribute ``patience``. If there is a deadline, the pool sets it to
    the seconds left for beginning. If beginning then raises a `TimeoutError`, the user gets a
    `PoolTimeout` that has the text of it as its reason.

    It may have attributes ``ends_lease`` and ``has_reset``, both false at first. Before a block is
    left without an error, the pool sets the first if the lease ends with the block, and nothing
    that was made from ``c`` lives on. Then the manager may do together with the commit what `reset`
    does, and set the second, which says of ``c`` what `reset` says by returning: the release needs
    no reset. What of it fails after the commit must not be raised, or the user would commit again.

    It may have ``may_have_committed(exc) -> bool``, sync and without I/O, which is asked about what
    leaving it without an error has raised: whether a COMMIT was sent, and nobody knows whether it
    took effect. Then the user gets a `CommitUnknown`. Without it that is so if the connection is
    lost.
``check_options(options)``
    Sync. Raise `PoolConfigError` for pool options that this driver cannot work with. Asked when the
    pool is made and at every resize.
``is_used_up(c) -> bool``
    Sync, no I/O. Whether a connection has been used as much as it may be, and has to be replaced.
    Asked at release, about a connection with which something was done.
``ends_lost_leases``
    An attribute. If true, the lease of a connection ends as soon as `watch` reports the connection
    dead: its slot is free, although its holder has not given it back.
``server_pid(c) -> int | None``
    Sync, no I/O. The number of the process at the server that serves ``c``, as the server's own
    lists of connections have it. Asked when somebody asks for the pool's leases, from any thread.
``last_statement(c) -> str | None``
    Sync, no I/O. The text of the last statement of this lease; None if there is none, or if the
    driver notes none, which is to be its default: texts may have values in them. Asked as
    ``server_pid`` is; its first line is shown.
``pool_opens()``
    Sync, no I/O. The pool is being opened, for the first time or again. The driver forgets what it
    knows of the database, because another one may have taken its place.
``credentials``
    An attribute: what `poolkit.credentials` has made, if `connect` asks it for its password. The
    pool has it fetch the next one ahead of time.
``name``
    An attribute: the pool's name unless it is given one, as ``host:port/database``; no secrets.
``view_bases``
    An attribute: a tuple of base classes for the class of views, so that a view passes the
    library's own ``isinstance`` checks where ``__class__`` alone does not. Methods that these
    classes define, special ones included, take the place of the connection's.

The pool calls every method that has one of these names. A method of the driver's own needs another
name.
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

        True after a method of the connection itself has closed it. From this the pool learns that
        the holder has closed the connection, which ends the lease.
        """
        ...

    async def reset(self, c: C, /) -> str | None:
        """Make ``c`` fit for its next user.

        Returning says that ``c`` is clean and idle, and that the driver has verified it. A returned
        string names what the last user had left behind (``"an open transaction"``); the pool logs
        it, once per place in the user's code. If this raises, the pool terminates ``c``.

        On asyncio from Python 3.12 on it runs up to its first wait inside of the release, though in
        a task and a context of the pool's: do no long work there. The time limit is one
        `asyncio.Task.cancel` then.
        """
        ...

    async def ping(self, c: C, /) -> None:
        """Make one round trip to the server, or raise."""
        ...

    async def close(self, c: C, /) -> None:
        """Close gracefully. May raise. A second call must do no harm."""
        ...

    def terminate(self, c: C, /) -> None:
        """Close at once: sync, idempotent, never raises, never blocks.

        May be called at any time from the loop's thread, even while another method is pending.
        """
        ...


#: The methods that each driver must have.
_METHODS: Final = ("connect", "is_dead", "reset", "ping", "close", "terminate")


def require_driver(given: object) -> None:
    """Refuse an object that is no driver, without quoting it: it may be a URL with a password."""
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


def missing_extra(extra: str, error: ImportError, package: str = "poolkit") -> PoolConfigError:
    """Return the error for a library that is not installed, naming the command that installs it.

    ``extra`` is the extra of ``package`` that brings the library.
    """
    return PoolConfigError(
        f"{error.name or extra} is not installed; run: pip install '{package}[{extra}]'"
    )
