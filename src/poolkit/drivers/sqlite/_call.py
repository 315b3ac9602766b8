"""What methods return that may be awaited, or entered with ``async with``."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Generator

R = TypeVar("R")


class Call(Coroutine[Any, Any, R]):
    """A coroutine that may also be entered: the end of the block closes the cursor it has made.

    Nothing happens before it is awaited or entered. Once the connection has been given back, that
    raises `NotLeased`.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, R], *, closes: bool = True) -> None:
        self._coroutine = coroutine
        #: Whether it makes a cursor, to be closed.
        self._closes = closes

    def __await__(self) -> Generator[Any, Any, R]:
        return self._coroutine.__await__()

    def send(self, value: Any) -> Any:
        """As for any coroutine."""
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        """As for any coroutine."""
        return self._coroutine.throw(*error)

    def close(self) -> None:
        """As for any coroutine."""
        self._coroutine.close()

    async def __aenter__(self) -> R:
        made = self._made = await self._coroutine
        return made

    async def __aexit__(self, *_: object) -> None:
        if self._closes:
            made: Any = self._made
            await made.close()
