"""An `AsyncSession` of SQLAlchemy's as a dependency; imported when first asked for.

It ends with the endpoint, and for good. SQLAlchemy's own reopens itself when it is used after it
was closed: in a background task nobody would commit it, and in a stream nobody would close it.
"""

# No `from __future__ import annotations`: FastAPI reads the annotations of dependencies.

import asyncio
import contextlib
import functools
import types
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, Final, TypeAlias, TypeVar

from fastapi import Depends
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncResult, AsyncSession
from starlette.requests import HTTPConnection

from poolkit._errors import NotLeased, PoolConfigError
from poolkit._shell.pool import Pool
from poolkit.fastapi import _framework as framework
from poolkit.fastapi import _given as given
from poolkit.fastapi import _websockets as websockets
from poolkit.fastapi._dependencies import label, pool
from poolkit.fastapi._request import RequestLeases
from poolkit.fastapi._threads import refuse_in_threads, set_class, subclass
from poolkit.sqlalchemy._local import set_in_each_transaction
from poolkit.sqlalchemy._session import maker_of

S = TypeVar("S", bound=AsyncSession)

_MADE: Final = (
    "with new_session = async_sessionmaker(poolkit.sqlalchemy.create_async_engine(pool)), made once"
)
_OWN: Final = (
    f"a session of its own, where it runs: `async with new_session() as session:`, {_MADE}"
)
_FOR_A_MESSAGE: Final = f"`async with new_session.begin() as session:`, {_MADE}"


def depend_with(
    maker: Callable[..., Awaitable[Any]], /, **settings: object
) -> Callable[..., Awaitable[Any]]:
    """Return the dependency on a session of the maker that a dependency gives."""
    return _depend(maker, given.key(settings))


def _depend(
    maker: Callable[..., Awaitable[Any]], settings: given.Key
) -> Callable[..., Awaitable[Any]]:

    async def begun(
        http: HTTPConnection, label: str, maker: Any, **found: Any
    ) -> AsyncIterator[Any]:
        if RequestLeases.of(http).begins_late(session):
            raise PoolConfigError(
                f"{label} is a generator: it streams, and its body begins when its session was "
                f"closed. Open {_OWN}"
            )
        websockets.advise(http.scope, label, "a session", _FOR_A_MESSAGE)
        made: Any = None
        try:
            resolved = given.resolve(settings, found, label)
            async with maker() as made:
                if resolved:
                    set_in_each_transaction(made, **resolved)
                with contextlib.suppress(Exception):  # its class allows no subclasses
                    _note_given(made)
                    refuse_in_threads(made, _is_here)
                try:
                    yield made
                except BaseException as error:
                    if framework.has_closed(http, error):
                        await made.commit()
                    raise
                await made.commit()
        finally:
            if made is not None:
                _end(made, label)

    needs: dict[str, Any] = {
        "label": Annotated[str, Depends(label)],
        "maker": Annotated[Any, Depends(maker)],
    }
    given.needing(begun, settings, **needs)

    async def session(session: Annotated[Any, Depends(begun, scope="function")]) -> Any:
        """Depend on the request's session, committed or rolled back before the response."""
        return session

    return session


def _is_here(_: AsyncSession) -> bool:
    return asyncio._get_running_loop() is not None


# -- after the endpoint --------------------------------------------------------------------------

#: What cleans up does no harm, and SQLAlchemy itself calls it.
_CLEANS_UP: Final = frozenset(
    {"aclose", "close", "expunge", "expunge_all", "in_nested_transaction", "in_transaction"}
    | {"invalidate", "rollback"}
)


def _end(session: AsyncSession, label: str) -> None:
    """Have every use of a session raise, of the synchronous one inside, and of what it has given.

    A result would give what it has fetched already, and then the driver's own error.
    """
    ended: list[tuple[Any, Any]] = [(session, _ended), (session.sync_session, _ended)]
    for one in vars(session).pop(_GIVEN, ()):
        if not isinstance(one, AsyncConnection):
            ended.append((one, _ended_result))
        elif one.closed:  # and not another's, to which the session was bound
            ended += (one, _ended), (one.sync_connection, _ended)
    for one, ending in ended:
        kind: Any = type(one)
        with contextlib.suppress(Exception):  # it allows no subclasses
            set_class(one, ending(kind, label))


#: What a session has given: its connections, and the results that are read as they come.
_GIVEN: Final = "_poolkit_given"


def _note_given(session: AsyncSession) -> None:
    """Have a session note what it gives."""
    kind: Any = type(session)
    set_class(session, _noting(kind))
    vars(session)[_GIVEN] = []


def _note(session: Any, one: Any) -> None:
    given = vars(session).get(_GIVEN, [])  # none any more, if the endpoint has ended meanwhile
    # What has ended by itself need not be kept: a WebSocket's session may live for days.
    given[:] = [old for old in given if not (old.closed or getattr(old, "_soft_closed", False))]
    given.append(one)


@functools.lru_cache(maxsize=256)
def _noting(kind: Any) -> Any:
    async def stream(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = await kind.stream(self, *args, **kwargs)
        if isinstance(result, AsyncResult):
            _note(self, result._real_result)  # the same for all that is made from it
        return result

    async def connection(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = await kind.connection(self, *args, **kwargs)
        if isinstance(made, AsyncConnection):
            _note(self, made)
        return made

    return subclass(kind, {"stream": stream, "connection": connection})


@functools.lru_cache(maxsize=256)
def _ended(kind: Any, label: str) -> Any:
    def look(self: Any, name: str) -> Any:
        value = kind.__getattribute__(self, name)
        if name.startswith("_") or name in _CLEANS_UP or type(value) is not types.MethodType:
            return value
        raise _is_over(name, label)

    return subclass(kind, {"__getattribute__": look})


@functools.lru_cache(maxsize=256)
def _ended_result(kind: Any, label: str) -> Any:
    """Return the subclass that gives no rows; everything else of SQLAlchemy's asks these four."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise _is_over("fetch", label)

    names = ("_fetchone_impl", "_fetchmany_impl", "_fetchall_impl", "_fetchiter_impl")
    return subclass(kind, dict.fromkeys(names, refuse))


def _is_over(name: str, label: str) -> NotLeased:
    return NotLeased(
        f".{name}: the session of {label} was closed when its endpoint had returned, and this "
        "comes later, from a stream or a task in the background. Either do and await it before the "
        f"endpoint returns, or open {_OWN}"
    )


# -- of the application's pool -------------------------------------------------------------------


async def _maker(pool: Annotated[Pool[Any], Depends(pool)]) -> Any:
    return maker_of(pool)


def session_with(
    *, settings: object = None, role: object = None
) -> Callable[..., Awaitable[AsyncSession]]:
    """Return `session` with settings and a role that hold in each of its transactions.

    They are those of `transaction_with`, on PostgreSQL. SQLAlchemy begins a transaction with the
    first statement, and after each ``commit()`` another one: they are set right after that, in a
    round trip of their own. The same ones give the same dependency each time.
    """
    return _session_with(given.key({"settings": settings, "role": role}))


@functools.lru_cache(maxsize=1000)
def _session_with(settings: given.Key) -> Callable[..., Awaitable[AsyncSession]]:
    return _depend(_maker, settings)


#: Depend on the request's session: committed before the response is sent, or rolled back.
session: Final[Callable[..., Awaitable[AsyncSession]]] = session_with()

Session: TypeAlias = Annotated[AsyncSession, Depends(session)]
"""``session: Session`` depends on `session`, with its type."""
