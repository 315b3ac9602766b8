"""Passwords that end: one fetch for all connects, ahead of time, and again when it is refused.

A fetch is made by whoever connects, or by the pool that looks ahead (`_shell.credentials`), in
their own time. Whoever comes meanwhile waits for the same fetch, and shares its outcome; if it is
cancelled, the next one makes it.

When a credential ends, two clocks say, and the one that says it first is right: the clock of the
wall, which others may set, and that of the event loop, which stands still while the machine is
suspended.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import inspect
import time
from typing import TYPE_CHECKING, Any, Final

import anyio
from anyio.lowlevel import RunVar

from poolkit._errors import PoolConfigError, PoolError
from poolkit._options import check_seconds
from poolkit._text import told

if TYPE_CHECKING:
    from collections.abc import Callable

NEVER: Final = float("inf")
#: Seconds before its end from which on a credential is used only if there is no other: the server
#: has a clock of its own, and a login takes time.
_LAST: Final = 5.0
#: Threads in which a plain function may hang at once.
_THREADS: Final = 10
#: Seconds between two fetches while the first one fails and the old credential is good: doubled
#: each time, up to the longest.
_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0


@dataclasses.dataclass(frozen=True, repr=False)
class Credential:
    """A password, and for how long one may log in with it.

    Give ``lifetime``, in seconds from when it was asked for, or ``expires_at``, a
    `datetime.datetime` with a timezone or seconds since 1970; with both the earlier end counts,
    with neither there is none.
    """

    password: str
    lifetime: float | None = dataclasses.field(default=None, kw_only=True)
    expires_at: dt.datetime | float | None = dataclasses.field(default=None, kw_only=True)
    user: str | None = dataclasses.field(default=None, kw_only=True)
    """The name to log in with, if it comes with the password."""

    def __post_init__(self) -> None:
        """Raise `PoolConfigError` for what is no credential."""
        if not isinstance(self.password, str):
            raise PoolConfigError(f"password is a {type(self.password).__name__}: give a str")
        if self.user is not None and not isinstance(self.user, str):
            raise PoolConfigError(f"user is a {type(self.user).__name__}: give a str")
        check_seconds("lifetime", self.lifetime)
        if isinstance(self.expires_at, dt.datetime):
            if self.expires_at.tzinfo is None:
                raise PoolConfigError(
                    "expires_at has no timezone: if it is of UTC, give "
                    "expires_at.replace(tzinfo=datetime.UTC)"
                )
        else:
            check_seconds("expires_at", self.expires_at)

    def __repr__(self) -> str:
        """Return nothing that is secret."""
        return "<Credential>"

    @property
    def login(self) -> tuple[str | None, str]:
        """What the server is told."""
        return self.user, self.password

    def ends_at(self, asked_at: float) -> float:
        """Return when it ends, in seconds since 1970; ``asked_at``: when it was asked for."""
        ends_at = self.expires_at
        if isinstance(ends_at, dt.datetime):
            ends_at = ends_at.timestamp()
        return min(
            NEVER if ends_at is None else ends_at,
            NEVER if self.lifetime is None else asked_at + self.lifetime,
        )


class _Held:
    """A credential that was fetched."""

    def __init__(self, credential: Credential, asked_at: float, refresh_before: float) -> None:
        self.credential = credential
        self.ends_at = credential.ends_at(asked_at)
        #: Seconds before the end from which on another one is to be fetched: of a short life, half.
        self.ahead = max(0.0, min(refresh_before, (self.ends_at - asked_at) / 2))


class _Run:
    """What there is of the credentials on one event loop: the fetch, and times by its clock."""

    def __init__(self) -> None:
        #: Set when the fetch under way has ended, however. No `anyio.Lock`: that of 4.11 wakes
        #: nobody if those who wait are cancelled just when it is released.
        self.fetching: anyio.Event | None = None
        self.fetched = 0  # how often, whatever has come of it
        self.error: Exception | None = None  # what the last fetch has raised
        self.failures = 0  # in a row
        self.retry_at = -NEVER
        self.held: _Held | None = None  # what was fetched here
        self.ends_at = NEVER  # and its end

    def left(self, held: _Held) -> float:
        """Return for how many seconds a credential is good."""
        left = held.ends_at - time.time()
        return min(left, self.ends_at - anyio.current_time()) if held is self.held else left


class Credentials:
    """What `credentials` has made. Called, it returns the password: libraries may be given it."""

    def __init__(
        self,
        fetch: Callable[[], Any],
        refresh_before: float,
        fetch_timeout: float | None,
        renew_over: float | None,
    ) -> None:
        self._fetch = fetch
        self._refresh_before = refresh_before
        self._fetch_timeout = fetch_timeout
        #: In how many seconds connections with an old login are replaced; None: they stay.
        self.renew_over = renew_over
        self._held: _Held | None = None
        self._in_threads: list[None] = []  # one for each call that has not returned
        self._runs: RunVar[_Run] = RunVar("poolkit.credentials")

    def __repr__(self) -> str:
        """Return nothing that is secret."""
        name = getattr(self._fetch, "__qualname__", type(self._fetch).__name__)
        return f"<Credentials of {name}>"

    async def __call__(self) -> str:
        """Return the password."""
        return (await self.get()).password

    async def get(self, *, instead_of: Credential | None = None) -> Credential:
        """Return a credential that is good, if possible; fetch one if there is none.

        If that fails, one that has not ended yet will do.

        Args:
            instead_of: what the server has refused: then one that was fetched later.

        Raises `PoolError` if fetching has failed, and `PoolConfigError` for what cannot be one.

        """
        run = self._run()
        held = self._held
        if held is not None and held.credential is not instead_of:
            left = run.left(held)
            is_pausing = left > 0 and anyio.current_time() < run.retry_at
            if left > min(held.ahead, _LAST) or is_pausing:
                return held.credential
        try:
            return await self._fetch_once(run)
        except PoolConfigError:
            raise
        except PoolError:
            held = self._held
            if held is None or held.credential is instead_of or run.left(held) <= 0:
                raise
            return held.credential

    async def refresh(self, limit: float | None) -> None:
        """Fetch another one if what there is ends soon. Raises what `get` does.

        ``limit``: seconds, if ``fetch_timeout`` is None: those who connect wait for it.
        """
        run, held = self._run(), self._held
        if held is None or run.left(held) > held.ahead or anyio.current_time() < run.retry_at:
            return
        await self._fetch_once(run, limit)

    def held(self) -> tuple[Credential, float] | None:
        """Return what there is, and for how many seconds it is good, without fetching."""
        held = self._held
        return None if held is None else (held.credential, self._run().left(held))

    @property
    def is_failing(self) -> bool:
        """Whether the last fetch on this event loop has failed."""
        return self._run().failures > 0

    def _run(self) -> _Run:
        try:
            return self._runs.get()
        except LookupError:
            self._runs.set(run := _Run())
            return run

    async def _fetch_once(self, run: _Run, limit: float | None = None) -> Credential:
        """Fetch, or wait for the fetch under way and share what comes of it."""
        fetched = run.fetched
        while run.fetched == fetched and run.fetching is not None:
            await run.fetching.wait()
        if run.fetched == fetched:  # nobody has, since this was called
            run.fetching = ended = anyio.Event()
            try:
                await self._fetch_now(run, limit)
            finally:
                run.fetching = None
                ended.set()
        if run.error is None:
            assert self._held is not None
            return self._held.credential
        if isinstance(run.error, PoolConfigError):
            raise run.error
        raise PoolError(f"fetching the credentials failed: {told(run.error)}") from run.error

    async def _fetch_now(self, run: _Run, limit: float | None) -> None:
        limit = limit if self._fetch_timeout is None else self._fetch_timeout
        began_at, asked_at = anyio.current_time(), time.time()
        credential = error = None
        try:
            with anyio.move_on_after(limit):
                credential = _checked(await self._call())
        except Exception as raised:
            error = raised
        if credential is None:
            error = error or TimeoutError(f"it took longer than {limit} s")
        run.fetched += 1
        run.error = error
        if credential is None:
            pause = min(_PAUSE * 2.0 ** min(run.failures, 30), _LONGEST_PAUSE)
            run.failures += 1
            run.retry_at = anyio.current_time() + pause
            return
        run.failures, run.retry_at = 0, -NEVER
        self._held = run.held = held = _Held(credential, asked_at, self._refresh_before)
        run.ends_at = began_at + (held.ends_at - asked_at)
        if run.left(held) <= 0:  # already: whoever connects asks again, and nobody else soon
            run.retry_at = anyio.current_time() + _LONGEST_PAUSE

    async def _call(self) -> Any:
        """Call what the user has given: async on the event loop, else in a thread."""
        call = getattr(self._fetch, "__call__", None)  # noqa: B004  # an async one, of an object
        if inspect.iscoroutinefunction(self._fetch) or inspect.iscoroutinefunction(call):
            return await self._fetch()
        if len(self._in_threads) >= _THREADS:
            raise TimeoutError(f"{_THREADS} calls that were made before have not returned yet")
        # None of the threads that the program may have at once: one that hangs would be lost to it.
        limiter = anyio.CapacityLimiter(1)
        (made,) = await anyio.to_thread.run_sync(
            self._call_in_thread, abandon_on_cancel=True, limiter=limiter
        )
        return await made if inspect.isawaitable(made) else made

    def _call_in_thread(self) -> list[Any]:
        # In a list, since trio takes what a thread returns that can be awaited for a mistake.
        self._in_threads.append(None)
        try:
            return [self._fetch()]
        finally:
            self._in_threads.pop()


def _checked(fetched: Any) -> Credential:
    if isinstance(fetched, str):
        return Credential(fetched)
    if isinstance(fetched, Credential):
        return fetched
    kind = type(fetched).__name__
    del fetched  # it may be secret, and some logs show what is in the frames of a traceback
    raise PoolConfigError(
        f"what fetches credentials has returned a {kind}: return a str, or a poolkit.Credential"
    )


def credentials(
    fetch: Callable[[], Any],
    *,
    refresh_before: float = 60.0,
    fetch_timeout: float | None = 3.0,
    renew_over: float | None = None,
) -> Credentials:
    """Return a password that ends, for ``connect_kwargs={"password": ...}`` of PostgreSQL's.

    One fetch serves all connects. The pool fetches the next one ahead of time, in a task of its
    own; while that fails, it tries again after pauses, and the old one goes on being used until it
    ends. When the server refuses a password, one other is fetched before that is an error.

    Args:
        fetch: a function without arguments, async or not (then it runs in a thread), that returns a
            `Credential`, or a str that does not end.
        refresh_before: how many seconds before its end another one is fetched; at most half of its
            life.
        fetch_timeout: seconds for one fetch; None: no limit but ``connect_timeout``.
        renew_over: connections that were opened with an old password are replaced in the course of
            so many seconds after a new one has come; None: they stay, as the server lets them.

    Raises `PoolConfigError` for arguments that cannot work.

    """
    if inspect.iscoroutine(fetch):
        fetch.close()
        raise PoolConfigError("fetch is a coroutine: give the async function, without calling it")
    if not callable(fetch):
        raise PoolConfigError(f"fetch is a {type(fetch).__name__}: give a function")
    check_seconds("refresh_before", refresh_before, optional=False)
    check_seconds("fetch_timeout", fetch_timeout)
    if fetch_timeout == 0:
        raise PoolConfigError(
            "fetch_timeout=0: no fetch could ever succeed; for no limit give None"
        )
    check_seconds("renew_over", renew_over)
    return Credentials(fetch, refresh_before, fetch_timeout, renew_over)
