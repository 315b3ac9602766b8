"""`Client`: redis-py's client on one connection, with all that is made from it bound to a lease."""

from __future__ import annotations

import copy
import functools
import inspect
from typing import Any

import redis.asyncio

from poolkit.drivers.redis._link import LeasePool, twin


class Client(redis.asyncio.Redis):  # type: ignore[misc]
    """A client of redis-py that has one connection.

    Each method is called on a copy that belongs to the lease. So a lock, a script or a pipeline
    that is kept has the copy's pool, which is over when the lease is.
    """

    def __init__(self, link: Any, options: dict[str, Any]) -> None:
        super().__init__(connection_pool=LeasePool(**options))
        self.link = link
        self.was_held: bool = False
        self.on_connect: Any = None
        self._template: Any = redis.asyncio.Redis(connection_pool=self.connection_pool)
        self._inner: Any = self._template
        self.end_lease()

    def end_lease(self) -> None:
        """Let all that was made in the lease be dead; note whether one has the connection still."""
        pool = self._inner.connection_pool
        if hasattr(pool, "link"):
            self.was_held |= not pool.end()
        self._inner = twin(self._template)
        self._inner.connection_pool = self._template.connection_pool.begin(self.link)

    def set_response_callback(self, command: str, callback: Any) -> None:
        """Set a callback for the answers to a command, in this lease."""
        inner = self._inner
        inner.response_callbacks = copy.copy(inner.response_callbacks)
        inner.set_response_callback(command, callback)

    async def aclose(self, *_: Any, **__: Any) -> None:
        """End the connection, and so the lease."""
        await self.link.disconnect()

    close = aclose


def _on_the_copy(name: str, method: Any) -> Any:
    def call(self: Client, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._inner, name)(*args, **kwargs)

    return functools.update_wrapper(call, method)


for _name, _method in inspect.getmembers(redis.asyncio.Redis, inspect.isfunction):
    if not _name.startswith("_") and _name not in vars(Client):
        setattr(Client, _name, _on_the_copy(_name, _method))
