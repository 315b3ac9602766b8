"""Connections beside the slots of a pool, for who needs one for as long as the pool is open.

They are opened and set up as all others are, and nobody leases them. The server counts them, and so
does `PoolStats.listening`. They end with the pool, whatever their user does.
"""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Generic

from poolkit._awaits import awaited
from poolkit._core.outage import backoff
from poolkit._driver import C, Verdict
from poolkit._errors import PoolConfigError
from poolkit._shell import messages
from poolkit._shell.log import say
from poolkit._text import shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolkit._driver import Driver
    from poolkit._options import Options
    from poolkit._shell.life import Life
    from poolkit._shell.pool import Pool


class Beside(Generic[C]):
    """Opens and closes connections beside the slots of a pool, from `begin` to `end`.

    ``Pool.aclose`` calls ``ended``, on the pool's event loop and maybe more than once, and waits
    for `end` as it waits for connections to be closed. What is open after that is terminated.
    """

    def __init__(self, pool: Pool[C], ended: Callable[[], None]) -> None:
        self._pool = pool
        self._ended = ended
        self._life: Life | None = None
        self._open: list[C] = []

    @property
    def name(self) -> str:
        """The pool's name."""
        return self._pool.name

    @property
    def driver(self) -> Driver[C]:
        """The pool's driver."""
        return self._pool._driver

    @property
    def options(self) -> Options:
        """The pool's options."""
        return self._pool._state.options

    def begin(self) -> None:
        """Have the pool know of this one, until it is closed or `end` is called.

        Raises `PoolClosed` if the pool is not open, `WrongLoop` on another event loop than its own.
        """
        life = self._pool._life
        if life is None or not self._pool.is_open:
            raise messages.not_open(self.name)
        life.runtime.check()
        self._life = life
        life.beside.add(self)

    def check(self) -> None:
        """Raise `WrongLoop` if another event loop than the pool's is running, or none."""
        if self._life is not None:
            self._life.runtime.check()

    def end(self) -> None:
        """Terminate what is open, and have the pool forget this one."""
        while self._open:
            self.terminate(self._open[-1])
        if self._life is not None:
            self._life.beside.discard(self)
            self._life.changed()

    def pool_closes(self) -> None:
        """Be told that the pool is being closed."""
        if self._life is not None and not self._life.runtime.has_ended():
            self._ended()

    # -- one connection --------------------------------------------------------------------------

    async def connect(self, lost: Callable[..., None]) -> C:
        """Open a connection, within ``connect_timeout``.

        ``lost`` is called as the driver's ``watch`` calls ``dead``. Raises the library's error, a
        `TimeoutError`, or what ``on_connect`` raises; then no connection is left.
        """
        life, hooks, options = self._life, self._pool._hooks, self.options
        if life is None or self not in life.beside:
            raise messages.not_open(self.name)
        with life.runtime.limited(life.runtime.after(options.connect_timeout)) as scope:
            connection = await self.driver.connect()
            self._open.append(connection)
            self._pool._state.listening += 1
            try:
                if self not in life.beside:  # ended meanwhile
                    raise messages.not_open(self.name)
                if options.on_connect is not None:
                    await hooks.set_up(connection, options.on_connect)
                if hooks.watch is not None:
                    hooks.watch(connection, lost)
            except BaseException:
                self.terminate(connection)
                raise
        if scope.cancelled_caught:
            raise TimeoutError(f"connecting took longer than {options.connect_timeout} s")
        return connection

    async def close(self, connection: C) -> None:
        """Close a connection that is idle, within ``close_timeout``; terminate it after that."""
        options, life = self.options, self._life
        assert life is not None
        try:
            with life.runtime.limited(life.runtime.after(options.close_timeout)):
                if options.on_close is not None:
                    await awaited("on_close", options.on_close, connection)
                await self.driver.close(connection)
        except Exception as error:
            self._pool._hooks.tell(
                say,
                logging.DEBUG,
                "close_failed",
                "pool %r: closing a connection failed: %s",
                *(self.name, shown(error)),
                pool=self.name,
            )
        finally:
            self.terminate(connection)

    def terminate(self, connection: C) -> None:
        """Close a connection at once; one that is closed already does not mind."""
        for nth, one in enumerate(self._open):
            if one is connection:
                del self._open[nth]
                self._pool._state.listening -= 1
                break
        self._pool._hooks.terminate(connection)

    # -- what to make of an error ----------------------------------------------------------------

    def can_pass(self, error: BaseException) -> bool:
        """Tell whether what connecting has raised is known to pass by itself."""
        if isinstance(error, PoolConfigError):
            return False
        return self._pool._hooks.classify(error, None) is Verdict.TRANSIENT

    def pause(self, failures: int) -> float:
        """Return for how many seconds to wait before connecting again, after so many failures.

        From ``backoff_min`` up to ``backoff_max``, with jitter.
        """
        return backoff(failures, self.options, random.random())  # noqa: S311  # no secret
