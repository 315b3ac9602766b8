"""`asyncpg.Pool` over poolkit: its names, its defaults, its errors; poolkit's promises.

Everything of `poolkit.Pool` is there too: ``stats()``, ``leases()``, ``transaction()``, ...
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from typing import TYPE_CHECKING, Any, Concatenate, Final, Literal, ParamSpec, Self, TypeVar

import asyncpg
from asyncpg import InterfaceError

from poolkit._awaits import awaited, check_hook
from poolkit._errors import ConnectFailed, NotLeased, PoolClosed, PoolError
from poolkit._shell.callsite import caller
from poolkit._shell.lease import Lease, Released, TracedLease
from poolkit._shell.pool import Pool as _Pool
from poolkit.compat.asyncpg._driver import CompatDriver, PoolConnectionProxy, ReleasedError
from poolkit.compat.asyncpg._floor import Floor
from poolkit.compat.asyncpg._internals import Internals

if TYPE_CHECKING:
    from poolkit._core.slot import Slot
    from poolkit._shell.life import Life
    from poolkit._shell.limits import NotGiven

__all__ = ["Pool", "PoolAcquireContext", "PoolConnectionProxy", "create_pool"]

P = ParamSpec("P")
R = TypeVar("R")

Hook = Callable[[Any], Awaitable[object]]
#: Seconds for connecting and `init`. What asyncpg allows for connecting, 60 by default, is less.
_CONNECT_LIMIT = 120.0
#: Seconds: poolkit looks for unused connections every second, which is no matter above this.
_OFTEN_ENOUGH = 5.0


class PoolClosedError(PoolClosed, InterfaceError):
    """The pool is not open: not yet, or no longer."""

    __module__ = "poolkit.compat.asyncpg"


class AcquiredError(PoolError, InterfaceError):
    """What `acquire` has returned was used a second time."""

    __module__ = "poolkit.compat.asyncpg"


class _SetupError(Exception):
    """What `setup` has raised that the pool could have raised itself: of another pool, then."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class PoolAcquireContext(Lease[asyncpg.Connection]):
    """What `Pool.acquire` returns: for ``async with``, or to be awaited, once."""

    __slots__ = ()

    async def __aenter__(self) -> asyncpg.Connection:
        """Acquire; the connection is the caller's until the end of the block."""
        with self._in_asyncpgs_words():
            return self._noted(await super().__aenter__())

    async def _acquire(self) -> asyncpg.Connection:
        with self._in_asyncpgs_words():
            return self._noted(await super()._acquire())

    @contextlib.contextmanager
    def _in_asyncpgs_words(self) -> Iterator[None]:
        """Raise the errors that asyncpg's pool raises."""
        pool: Any = self._pool
        pool.check_initialized()
        try:
            yield
        except ConnectFailed as failed:
            error = failed.__cause__ or failed
        except PoolClosed as closed:
            raise pool.not_open() from closed
        except _SetupError as failed:
            error = failed.error
        except NotLeased as over:
            raise over if isinstance(over, InterfaceError) else ReleasedError(str(over)) from None
        else:
            return
        raise error.with_traceback(None)  # of the connect, and of others who were told

    def _noted(self, view: asyncpg.Connection) -> asyncpg.Connection:
        """Have a custom ``reset`` run at each release, as asyncpg does, also if nothing is done."""
        if self._pool.always_resets:  # type: ignore[attr-defined]  # a pool of this module
            view._poolkit_touch("reset")  # type: ignore[attr-defined]  # it is a view
        return view

    def is_used(self) -> AcquiredError:
        """Return the error for a second use."""
        return AcquiredError(f"a connection is already acquired: {super().is_used()}")

    @property
    def pool(self) -> Any:
        """The pool."""
        return self._pool

    @property
    def timeout(self) -> float | None:
        """Seconds that waiting may take."""
        return self._timeout

    @property
    def done(self) -> bool:
        """Whether it has been used."""
        return self._slot is not None


class _TracedContext(TracedLease[asyncpg.Connection], PoolAcquireContext):
    """One that notes the stack that acquires it."""

    __slots__ = ()


class _Done(Released, Coroutine[Any, Any, None]):
    """What release returns: done already; a task can be made of it, too."""

    __slots__ = ()

    def send(self, _: Any) -> Any:
        raise StopIteration

    def throw(self, error: Any, *_: Any) -> Any:
        raise error

    def close(self) -> None:
        pass


_DONE = _Done()


def _on_one(
    method: Callable[Concatenate[asyncpg.Connection, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Pool, P], Coroutine[Any, Any, R]]:
    """Return the pool's method that calls this one on a connection of its own."""

    async def call(pool: Pool, /, *args: P.args, **kwargs: P.kwargs) -> R:
        async with pool.acquire().at(caller(2)) as conn:
            run: Callable[P, Coroutine[Any, Any, R]] = getattr(conn, method.__name__)
            return await run(*args, **kwargs)

    return functools.update_wrapper(call, method)


class Pool(Internals, _Pool[asyncpg.Connection]):
    """A pool with the methods of `asyncpg.Pool`: ``async with pool``, or ``await pool``."""

    def __init__(
        self,
        dsn: str | None = None,
        *,
        init_size: int | None = None,
        min_size: int = 10,
        max_size: int = 10,
        max_queries: int = 50000,
        max_inactive_connection_lifetime: float = 300.0,
        connect: Callable[..., Awaitable[Any]] | None = None,
        setup: Hook | None = None,
        init: Hook | None = None,
        reset: Hook | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        connection_class: type[Any] = asyncpg.Connection,
        record_class: type[Any] = asyncpg.Record,
        **connect_kwargs: Any,
    ) -> None:
        refuser: Any = asyncpg.Pool  # what asyncpg refuses is refused, in its words
        refuser(
            dsn,
            init_size=init_size,
            min_size=min_size,
            max_size=max_size,
            max_queries=max_queries,
            max_inactive_connection_lifetime=max_inactive_connection_lifetime,
            loop=loop or self,
            connection_class=connection_class,
            record_class=record_class,
        )
        for name, hook in {"init": init, "setup": setup, "reset": reset}.items():
            if hook is not None:
                check_hook(name, hook)
        driver = CompatDriver(
            dsn,
            connect_kwargs,
            connect=connect,
            connection_class=connection_class,
            record_class=record_class,
            reset=reset,
            max_queries=max_queries,
        )
        own_limit = connect_kwargs.get("timeout") or 0
        super().__init__(
            driver,
            min_size=min_size if init_size is None else init_size,  # until it is open
            max_size=max_size,
            acquire_timeout=None,
            connect_timeout=max(_CONNECT_LIMIT, 2 * own_limit),
            reset_timeout=2.0 if reset is None else 60.0,
            max_lifetime=None,
            max_idle_time=max_inactive_connection_lifetime or None,
            deadlock="warn",  # whoever waits with a timeout expects a timeout
            on_connect=None if init is None else functools.partial(awaited, "init", init),
            on_acquire=None if setup is None else _or_terminate(setup),
            observers=[Floor()],
        )
        is_traced = self._new_lease is TracedLease
        self._new_lease = _TracedContext if is_traced else PoolAcquireContext
        self._compat = driver
        self._asked_loop = loop
        self._sizes = self._state.options.min_size, min_size
        self._max_idle = max_inactive_connection_lifetime
        self.always_resets: Final = reset is not None
        self._phase: Literal["new", "opening", "used"] = "new"

    # -- open and close --------------------------------------------------------------------------

    async def open(self, *, wait: bool = True) -> Self:
        """Open the pool, with ``init_size`` connections; the driver's own error if that fails."""
        if self._phase == "opening":
            raise InterfaceError("pool is being initialized in another task")
        if self._asked_loop not in (None, asyncio.get_running_loop()):
            raise InterfaceError("the pool was made for another event loop (loop=)")
        if self._state.is_open and self._life is not None and not self._runtime.has_ended():
            return await super().open(wait=wait)  # raises WrongLoop
        self._phase = "opening"
        try:
            await super().open(wait=wait)
            self.resize(min_size=self._min_to_keep())
        except ConnectFailed as failed:
            error: BaseException = failed.__cause__ or failed
        except PoolClosed as closed:
            error = PoolClosedError(str(closed))
        else:
            if 0 < self._max_idle < _OFTEN_ENOUGH and self._life is not None:
                _look_for_unused(weakref.ref(self), weakref.ref(self._life))
            return self
        finally:
            self._phase = "used"
        raise error.with_traceback(None)

    def __await__(self) -> Generator[Any, Any, Self]:
        """Open the pool."""
        return self.open().__await__()

    async def __aenter__(self) -> Self:
        """Open the pool, unless it is open."""
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        """Close the pool for all, as `close` does: without a limit."""
        await self.close()

    async def close(self) -> None:
        """Close the pool: wait for every connection to be given back; cancelled, terminate them."""
        self.check_initialized()
        await self.aclose(grace=None)

    def terminate(self) -> None:
        """Close the pool and all its connections at once."""
        self.check_initialized()
        if (life := self._life) is None:
            return
        self._abandon_leases(life)
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # its tasks end when it runs again
            self._tell(self._state.abort, self._now(), None)
            self._carry_out()
            life.runtime.call_soon(lambda: self._collapse(life, None))
        else:
            self._collapse(life, None)

    def is_closing(self) -> bool:
        """Tell whether the pool is being closed, or is closed."""
        return self._phase == "used" and not self._state.is_open

    async def expire_connections(self) -> None:
        """Replace every connection: the idle ones now, the others when they come back."""
        self.renew()

    def set_connect_args(self, dsn: str | None = None, **connect_kwargs: Any) -> None:
        """Connect with other arguments from now on."""
        self._compat.set_arguments(dsn, connect_kwargs)

    def check_initialized(self) -> None:
        """Raise `poolkit.PoolClosed`, an `asyncpg.InterfaceError`, for a pool nobody has opened."""
        if self._phase == "new":
            raise PoolClosedError("pool is not initialized")
        if self._phase == "opening":
            raise PoolClosedError(
                "pool is being initialized, but not yet ready: likely there is a race between "
                "creating a pool and using it"
            )

    def not_open(self) -> PoolClosedError:
        """Return the error for a pool that was open."""
        return PoolClosedError(f"pool is {'closed' if self._life is None else 'closing'}")

    # -- acquire and release ---------------------------------------------------------------------

    def acquire(  # type: ignore[override]  # whose signature is asyncpg's
        self, *, timeout: float | NotGiven | None = None
    ) -> Lease[asyncpg.Connection]:
        """Return what gives a connection: ``async with pool.acquire()``, or await it.

        Raises `TimeoutError` after so many seconds; asyncpg's error, or the system's, when
        connecting fails; `asyncpg.InterfaceError` when the pool is not open.
        """
        if isinstance(timeout, (int, float)) and timeout < 0:  # what is left of a deadline
            timeout = 0.0
        return super().acquire(timeout=timeout).at(caller(2))

    def release(self, connection: Any, *, timeout: float | None = None) -> Released:  # noqa: ARG002
        """Give a connection back: done when this returns; a second time changes nothing.

        There is nothing to wait for: ``timeout`` is taken, and has no meaning.
        """
        is_ours = issubclass(type(connection), PoolConnectionProxy)
        if not is_ours or connection._poolkit_pool is not self:
            raise ReleasedError(
                f"Pool.release() received invalid connection: {connection!r} is not a member of "
                "this pool"
            )
        self._runtime.check()  # raises WrongLoop
        connection._poolkit_lease.end(caller(2))
        return _DONE

    # -- on a connection of its own --------------------------------------------------------------

    execute: Final = _on_one(asyncpg.Connection.execute)
    executemany: Final = _on_one(asyncpg.Connection.executemany)
    fetch: Final = _on_one(asyncpg.Connection.fetch)
    fetchval: Final = _on_one(asyncpg.Connection.fetchval)
    fetchrow: Final = _on_one(asyncpg.Connection.fetchrow)
    fetchmany: Final = _on_one(asyncpg.Connection.fetchmany)
    copy_from_table: Final = _on_one(asyncpg.Connection.copy_from_table)
    copy_from_query: Final = _on_one(asyncpg.Connection.copy_from_query)
    copy_to_table: Final = _on_one(asyncpg.Connection.copy_to_table)
    copy_records_to_table: Final = _on_one(asyncpg.Connection.copy_records_to_table)

    # -- sizes -----------------------------------------------------------------------------------

    def get_size(self) -> int:
        """Return how many connections are open."""
        return self.get_idle_size() + sum(map(_is_open, self._state.leased))

    def get_idle_size(self) -> int:
        """Return how many connections are open and nobody's, those being reset included."""
        now, state = self._now(), self._state
        return sum(
            _is_open(slot) and now < slot.expires_at for slot in (*state.idle, *state.recycling)
        )

    def get_init_size(self) -> int:
        """Return how many connections the pool opens with."""
        return self._sizes[0]

    def get_min_size(self) -> int:
        """Return how many connections are kept."""
        return self._min_to_keep() if self._phase != "used" else self._state.options.min_size

    def _min_to_keep(self) -> int:
        """Return what `init_size` has the place of until the pool is open, unless resized."""
        init_size, min_size = self._sizes
        now = self._state.options.min_size
        return min_size if now == init_size else now

    def get_max_size(self) -> int:
        """Return how many connections there can be."""
        return self._state.options.max_size


def _as_function(make: Callable[P, R]) -> Callable[P, R]:
    @functools.wraps(make)
    def create_pool(*args: P.args, **kwargs: P.kwargs) -> R:
        """Return a pool; options and their defaults are those of `asyncpg.create_pool`."""
        return make(*args, **kwargs)

    create_pool.__name__ = create_pool.__qualname__ = "create_pool"
    return create_pool


create_pool: Final = _as_function(Pool)


def _look_for_unused(ref: weakref.ref[Pool], life: weakref.ref[Life]) -> None:
    """Look, and again, until the pool is closed; opened again, it has another life."""
    pool = ref()
    if pool is not None and pool._life is not None and pool._life is life() and pool._state.is_open:
        pool._on_alarm()
        pause = max(pool._max_idle / 4, 0.02)
        asyncio.get_running_loop().call_later(pause, _look_for_unused, ref, life)


def _is_open(slot: Slot) -> bool:
    return not slot.connection.is_closed()


def _or_terminate(setup: Hook) -> Hook:
    async def run(conn: Any) -> None:
        try:
            await awaited("setup", setup, conn)
        except BaseException as error:
            with contextlib.suppress(ReleasedError):  # `setup` has closed it itself
                conn._poolkit_touch("terminate").connection.terminate()
            if isinstance(error, (ConnectFailed, PoolClosed)):
                raise _SetupError(error) from error
            raise

    return run


def __getattr__(name: str) -> Any:
    """Return what else asyncpg's module of this name has; it is asyncpg's own."""
    return getattr(asyncpg.pool, name)
