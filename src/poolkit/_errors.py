"""Everything poolkit raises on purpose.

::

    PoolError
    ├── PoolUnavailable            no connection to be had: one `except` for all of these
    │   ├── PoolTimeout            (also a TimeoutError) the deadline of an acquire has passed
    │   ├── PoolBusy               the queue is full, or the overload policy refuses this caller
    │   └── ConnectFailed          the database refused; the driver's error is the __cause__
    ├── AnotherConnection          what an `on_acquire` raises to be given another connection
    ├── PoolDeadlock               every holder waits for a connection: a bug and not a shortage
    ├── PoolClosed                 the pool is not open
    ├── NotLeased                  double release, wrong pool, use after release
    ├── TransactionEnded           a transaction ended before its block did
    ├── CommitUnknown              the answer to a COMMIT never came: nobody knows what it did
    ├── WrongLoop                  used from another event loop, or after a fork
    └── PoolConfigError            (also a ValueError) an option, URL or extra is wrong

A message has the numbers, the phase, the cause and the remedy, and never a password.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self


class PoolError(Exception):
    """The base of every error that poolkit itself raises."""

    __module__ = "poolkit"

    #: Makes the message when somebody reads it; most errors are caught and never read.
    _compose: Callable[[], str] | None = None

    @classmethod
    def composed_by(cls, compose: Callable[[], str]) -> Self:
        """Return an error whose message is made when somebody reads it for the first time."""
        error = cls()
        error._compose = compose
        return error

    def _read(self) -> None:
        compose = self._compose
        if compose is not None:
            self.args = (compose(),)

    if TYPE_CHECKING:  # for the checkers it is the attribute of every error
        args: tuple[Any, ...]
    else:

        @property
        def args(self) -> tuple[Any, ...]:
            """The message."""
            self._read()
            return super().args

        @args.setter
        def args(self, args: tuple[Any, ...]) -> None:
            vars(BaseException)["args"].__set__(self, args)
            self.__dict__.pop("_compose", None)

    def __str__(self) -> str:
        """Return the message."""
        self._read()
        return super().__str__()

    def __repr__(self) -> str:
        """Return the class's name with the message."""
        self._read()
        return super().__repr__()

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Return the error with its message made: what makes the message cannot be pickled."""
        self._read()
        return super().__reduce__()


class PoolUnavailable(PoolError):
    """There is no connection to be had right now; trying again later may help."""

    __module__ = "poolkit"


class PoolTimeout(PoolUnavailable, TimeoutError):
    """No connection came before the deadline; the message says what the pool was doing."""

    __module__ = "poolkit"


class PoolBusy(PoolUnavailable):
    """Refused: too many callers are waiting already, or the ``shedding`` policy says so."""

    __module__ = "poolkit"


class ConnectFailed(PoolUnavailable):
    """The database could not be reached; the driver's own error is the ``__cause__``."""

    __module__ = "poolkit"


class AnotherConnection(PoolError):
    """Raise this in ``on_acquire`` to reject the connection: the acquire goes on with another one.

    The one that is rejected retires. If several in a row are rejected, the acquire ends with
    `PoolUnavailable`, and the last of these is its cause.
    """

    __module__ = "poolkit"


class PoolDeadlock(PoolError):
    """Every connection is held by a task that is itself waiting for one, the caller included.

    Waiting would never end, and trying again would not help. Tasks hold one connection while they
    acquire another, and the pool is too small for that. The message says which tasks they are, and
    which size would do.
    """

    __module__ = "poolkit"


class PoolClosed(PoolError):
    """The pool is not open: not yet, no longer, or its event loop has ended."""

    __module__ = "poolkit"


class NotLeased(PoolError):
    """This view holds no connection: it was released before, or is not of this pool."""

    __module__ = "poolkit"


class TransactionEnded(PoolError):
    """The transaction of this block has ended before the block, or would have ended.

    A COMMIT or ROLLBACK inside the block has ended it, or the database has, after an error. Later
    statements would take effect by themselves. So each later operation in the block raises this,
    and so does the end of the block. Without an exception the end of the block commits. On SQLite a
    statement that would end the transaction raises this and is not done, and the block goes on.
    """

    __module__ = "poolkit"


class CommitUnknown(PoolError):
    """The COMMIT was sent and its answer never came: nobody knows whether it took effect.

    The driver's own error is the ``__cause__``. It is no `PoolUnavailable`, after which one may try
    again: that might do everything twice. Look first whether it is there.
    """

    __module__ = "poolkit"


class WrongLoop(PoolError):
    """The pool belongs to another event loop, or to the process this one was forked from."""

    __module__ = "poolkit"


class PoolConfigError(PoolError, ValueError):
    """An option, a URL or an installation is wrong; the message names the value and the remedy."""

    __module__ = "poolkit"
