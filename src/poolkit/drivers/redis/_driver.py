"""`RedisDriver`: opens, checks, cleans and closes the connections of redis-py."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, Final

import redis.asyncio
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from poolkit import PoolConfigError, Verdict
from poolkit.drivers.redis._client import Client
from poolkit.drivers.redis._link import link_class

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping


class RedisDriver:
    """How connections of redis-py are opened, checked, cleaned and closed. On asyncio only."""

    def __init__(
        self,
        host: str = "localhost",
        port: int = 6379,
        *,
        tls: bool = False,
        connect_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        given = dict(connect_kwargs or {})
        for name in ("host", "port", "retry", "retry_on_error", "retry_on_timeout"):
            if name in given:
                raise PoolConfigError(f"{name} in connect_kwargs is for poolkit to decide")
        kind = redis.asyncio.SSLConnection if tls else redis.asyncio.Connection
        self._kind = link_class(kind)
        self._options = {"socket_timeout": None, **given, "host": host, "port": port}
        self.name: Final = f"{host}:{port}/{given.get('db', 0)}"

    async def connect(self) -> Client:
        """Open a connection, and log in."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise PoolConfigError("redis-py runs on asyncio only, and so does its pool") from None
        link = self._kind(**self._options, retry=Retry(NoBackoff(), 0))
        c = Client(link, self._options)
        try:
            await link.connect()
            link.begin()
        except BaseException:
            self.terminate(c)
            raise
        return c

    async def set_up(self, c: Client, on_connect: Callable[[Client], Awaitable[object]]) -> None:
        """Run ``on_connect``, which is run again after each RESET."""
        c.on_connect = on_connect
        await self._greet(c)

    async def _greet(self, c: Client) -> None:
        if c.on_connect is not None:
            await c.on_connect(c)
        if c.link.unanswered or not c.link.can_be_reset:
            raise exceptions.RedisError("on_connect has left what no reset undoes, or an answer")
        c.end_lease()
        if c.was_held:
            raise exceptions.RedisError("on_connect has left a pipeline or a subscription")
        c.link.begin()

    def is_dead(self, c: Client) -> bool:
        """Tell whether redis-py has closed it, or the server has."""
        reader = getattr(c.link, "_reader", None)
        return not c.link.is_connected or (reader is not None and reader.at_eof())

    def is_clean(self, c: Client) -> bool:
        """Tell whether all commands were answered, and left nothing on the session."""
        return c.link.is_plain and not c.link.unanswered and not c.was_held

    async def reset(self, c: Client) -> str | None:
        """Send RESET and log in again; after plain commands, see that no answer is left."""
        link = c.link
        if c.was_held or link.unanswered > 0 or not link.can_be_reset:
            raise exceptions.RedisError("an answer is outstanding, or RESET cannot undo the lease")
        if link.is_plain:
            await self.ping(c)
            return None
        await self._expect(c, ("RESET",), b"RESET")
        await link.on_connect()
        mark = os.urandom(8).hex()
        await self._expect(c, ("ECHO", mark), mark.encode())
        link.begin()
        await self._greet(c)
        return None

    async def ping(self, c: Client) -> None:
        """Make one round trip."""
        mark = os.urandom(8).hex()
        await self._expect(c, ("ECHO", mark), mark.encode())

    async def _expect(self, c: Client, command: tuple[str, ...], expected: bytes) -> None:
        if self.is_dead(c):
            raise exceptions.ConnectionError("the connection was lost")
        await c.link.send_command(*command)
        if await c.link.read_response(disable_decoding=True) != expected:
            raise exceptions.RedisError("an answer to a former command was outstanding")

    async def close(self, c: Client) -> None:
        """Close."""
        await c.link.disconnect()

    def terminate(self, c: Client) -> None:
        """Close at once; an operation under way raises redis-py's `ConnectionError`."""
        writer = getattr(c.link, "_writer", None)
        if writer is not None:
            c.link._writer = c.link._reader = None
            writer.transport.abort()

    def revoke(self, c: Client) -> None:
        """Let all that was made in the lease be dead: pipelines, locks, subscriptions, scripts."""
        c.end_lease()

    def classify(self, exc: BaseException, c: Client | None) -> Verdict | None:
        """Say what an error means."""
        if not isinstance(exc, exceptions.RedisError):
            return None
        if c is None:
            lost = isinstance(exc, (exceptions.ConnectionError, exceptions.TimeoutError))
            refused = isinstance(exc, exceptions.AuthenticationError)
            return Verdict.TRANSIENT if lost and not refused else Verdict.FATAL
        if isinstance(exc, exceptions.ReadOnlyError):
            return Verdict.STALE
        if self.is_dead(c):
            return Verdict.SERVER_GONE
        return Verdict.OK if isinstance(exc, exceptions.ResponseError) else None
