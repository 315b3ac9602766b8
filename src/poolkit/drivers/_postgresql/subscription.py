"""What a subscriber has in hand: an async iterator over a mailbox that a listener fills."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from poolkit import PoolClosed

if TYPE_CHECKING:
    from poolkit.drivers._postgresql.listener import Listener
    from poolkit.drivers._postgresql.notes import Mailbox, Note


class Subscription:
    """What one subscriber hears: an async iterator of `Notification` and, now and then, `Missed`.

    It begins when it is entered, or first asked for a note, and ends with its block, with `close`,
    or when nobody refers to it any more, as after ``break``. Several tasks may iterate: each note
    goes to one of them.
    """

    def __init__(self, listener: Listener[Any], mailbox: Mailbox) -> None:
        self._listener = listener
        self._mailbox = mailbox
        self._has_begun = False

    def _begin(self) -> None:
        self._listener.check()
        if not self._has_begun:
            self._has_begun = True
            self._listener.add(self._mailbox)

    async def __aenter__(self) -> Self:
        """Wait until the server listens: what is sent from now on is heard, or missed and told.

        Raises `ConnectFailed` if the server refuses, for a reason that does not pass by itself;
        as long as it cannot be reached, this waits. Raises `PoolClosed` as iterating, and for a
        subscription that was closed.
        """
        try:
            self._begin()
            self._mailbox.check()
            while self._mailbox.is_new:
                await self._mailbox.wait()
                self._mailbox.check()
        except StopAsyncIteration:
            raise PoolClosed("this subscription was closed: make another one") from None
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """End the subscription."""
        self.close()

    def close(self) -> None:
        """End the subscription; what was not read is dropped, and whoever iterates is done."""
        if self._mailbox.over is None:
            self._listener.check()  # raises WrongLoop
            self._listener.remove(self._mailbox)
        self._mailbox.end(StopAsyncIteration)

    def __del__(self) -> None:
        """Let nothing be kept for whom nobody can read any more."""
        if self._has_begun and self._mailbox.over is None:
            self._listener.remove_soon(self._mailbox)

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> Note:
        """Wait for the next note.

        Raises `PoolClosed` when the listener or the pool has ended, `ConnectFailed` as entering.
        """
        self._begin()
        mailbox = self._mailbox
        while True:
            mailbox.check()
            note = mailbox.take()
            if note is not None:
                return note
            await mailbox.wait()
