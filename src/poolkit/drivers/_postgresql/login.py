"""A login with `poolkit.credentials`, and with others if the server refuses the first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from poolkit import Credential, Credentials, PoolError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

T = TypeVar("T")


class Login:
    """How the arguments of a library's ``connect`` get their password."""

    def __init__(
        self, arguments: Mapping[str, Any], is_refusal: Callable[[BaseException], bool]
    ) -> None:
        given = arguments.get("password")
        self.credentials: Credentials | None = given if isinstance(given, Credentials) else None
        self._arguments = arguments
        self._is_refusal = is_refusal

    async def connect(self, connect: Callable[..., Awaitable[T]]) -> T:
        """Connect; once more if the server has refused a password in whose place there is another.

        Raises what the library does, and `PoolError` if there is no password.
        """
        if self.credentials is None:
            return await connect(**self._arguments)
        first = await self.credentials.get()
        try:
            return await connect(**self._with(first))
        except Exception as error:
            if not self._is_refusal(error):
                raise
            try:
                second = await self.credentials.get(instead_of=first)
            except PoolError as failure:
                raise error from failure
            if second.login == first.login:
                raise
        return await connect(**self._with(second))

    def _with(self, credential: Credential) -> dict[str, Any]:
        user = {} if credential.user is None else {"user": credential.user}
        return {**self._arguments, "password": credential.password, **user}
