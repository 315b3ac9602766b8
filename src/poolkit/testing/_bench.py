"""The bench on which `check_driver` tries a driver: connections, and calls under observation."""

from __future__ import annotations

import contextlib
import inspect
import os
import time
from typing import TYPE_CHECKING, Any

import anyio
from anyio.lowlevel import checkpoint

from poolkit.testing._contract import AT_ONCE, SOON, Broken, WrongProbe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from anyio.abc import TaskGroup

    from poolkit._driver import Driver
    from poolkit.testing._contract import Probe


class Call:
    """A call that runs in a task of its own, can be cancelled, and tells how it ended."""

    def __init__(
        self, group: TaskGroup, soon: float, function: Callable[[], Awaitable[Any]]
    ) -> None:
        self.result: Any = None
        self.error: Exception | None = None
        self.returned = False
        self._soon = soon
        self._function = function
        self._scope = anyio.CancelScope()
        self._ended = anyio.Event()
        group.start_soon(self._run)

    async def _run(self) -> None:
        try:
            with self._scope:
                self.result = await self._function()
                self.returned = True
        except Exception as error:  # how it ended, for whoever asks
            self.error = error
        finally:
            self._ended.set()

    @property
    def has_ended(self) -> bool:
        """Whether it has returned, raised or was cancelled."""
        return self._ended.is_set()

    def cancel(self) -> None:
        """Cancel it."""
        self._scope.cancel()

    async def wait(self) -> None:
        """Wait until it has ended."""
        await self._ended.wait()

    async def end(self, what: str) -> None:
        """Wait until it has ended, which must be soon."""
        with anyio.move_on_after(self._soon):
            await self._ended.wait()
        if not self.has_ended:
            raise Broken(f"{what} was still under way after {self._soon} s")


class Bench:
    """One driver and its probe, and everything that is done with them."""

    def __init__(self, driver: Driver[Any], probe: Probe[Any], patience: float) -> None:
        self.driver: Any = driver
        self.probe: Any = probe
        self.patience = patience
        self.soon = min(SOON, patience)
        #: Exceptions of the library's, as they were met with.
        self.errors: list[Exception] = []

    @contextlib.asynccontextmanager
    async def connection(self, dead: Callable[..., object] = bool) -> AsyncIterator[Any]:
        """Connect as the pool does; terminate at the end."""
        c = await self.within("connect", self.driver.connect())
        try:
            if hasattr(self.driver, "watch"):
                self.driver.watch(c, dead)
            yield c
        finally:
            self.discard(c)

    def discard(self, c: Any) -> None:
        """Terminate; whether that goes well is not the question here."""
        self._try("terminate", c)

    async def within(self, what: str, awaitable: Awaitable[Any]) -> Any:
        """Await what may take its time, but not for ever."""
        with anyio.move_on_after(self.patience):
            return await awaitable
        raise Broken(f"{what} was not done after {self.patience} s")

    async def attempt(
        self, what: str, function: Callable[..., Awaitable[Any]], *args: Any
    ) -> Exception | None:
        """Call what may raise; return what it has raised."""
        try:
            await self.within(what, function(*args))
        except Broken:
            raise
        except Exception as error:  # the caller judges it
            self.errors.append(error)
            return error
        return None

    async def ping(self, c: Any, when: str) -> None:
        """Ping, which must succeed, and soon."""
        pinged = False
        with anyio.move_on_after(self.soon):
            try:
                await self.driver.ping(c)
                pinged = True
            except Exception as error:
                raise Broken(f"{when} ping raised {error!r}") from error
        if not pinged:
            raise Broken(f"{when} ping was not answered within {self.soon} s")

    def ask(self, method: str, *args: Any) -> Any:
        """Call a method that must neither raise, nor block, nor be a coroutine."""
        begun = time.perf_counter()
        try:
            answer = getattr(self.driver, method)(*args)
        except Exception as error:
            raise Broken(f"{method} raised {error!r}") from error
        took = time.perf_counter() - begun
        if inspect.isawaitable(answer):
            if inspect.iscoroutine(answer):
                answer.close()
            raise Broken(f"{method} returned something to await: it must be a plain function")
        if took > AT_ONCE:
            raise Broken(f"{method} took {took:.1f} s")
        return answer

    def is_dead(self, c: Any, *, expected: bool, when: str) -> None:
        """Ask whether a connection is dead, and expect the answer."""
        answer = self.ask("is_dead", c)
        if answer is not expected:
            raise Broken(f"is_dead returned {answer!r} {when}")

    @contextlib.asynccontextmanager
    async def call(
        self, function: Callable[..., Awaitable[Any]], *args: Any
    ) -> AsyncIterator[Call]:
        """Run a call beside the block, and cancel it at the block's end."""
        failure: Exception | None = None
        async with anyio.create_task_group() as group:
            call = Call(group, self.soon, lambda: function(*args))
            try:
                yield call
            except Exception as error:  # raised below, not in a group
                failure = error
            finally:
                call.cancel()
        if failure is not None:
            raise failure

    @contextlib.asynccontextmanager
    async def operation(self, c: Any, seconds: float) -> AsyncIterator[Call]:
        """Have the probe's operation run beside the block, which begins a little later."""
        async with self.call(self.probe.operate, c) as call:
            await turns(2)
            await anyio.sleep(seconds)
            if call.has_ended:
                raise WrongProbe(
                    f"Probe.operate ended by itself, with {call.error or call.result!r}: let it "
                    "run for a minute"
                )
            yield call

    def revoke(self, c: Any) -> None:
        """Do what every release begins with; whether that goes well is not the question here."""
        self._try("revoke", c)

    def _try(self, method: str, c: Any) -> None:
        with contextlib.suppress(Exception):
            answer = getattr(self.driver, method)(c)
            if inspect.iscoroutine(answer):
                answer.close()

    async def settled(self, count: Callable[[], Awaitable[int]]) -> int:
        """Return a number that has stopped changing."""
        found, same = await count(), 0
        while same < 3:  # noqa: PLR2004  # in a row
            await anyio.sleep(0.005)
            before, found = found, await count()
            same = same + 1 if before == found else 0
        return found

    async def until_count(self, count: Callable[[], Awaitable[int]], most: int, what: str) -> None:
        """Wait until there are no more than so many of what is counted."""
        deadline = time.monotonic() + self.patience
        while (found := await count()) > most:
            if time.monotonic() > deadline:
                raise Broken(f"{what}: {found - most} too many after {self.patience} s")
            await anyio.sleep(0.005)


async def open_files() -> int:
    """Return how many files and sockets this process has open; -1 where the system does not say."""
    try:
        return len(os.listdir("/dev/fd"))  # noqa: PTH208  # names are all there is
    except OSError:
        return -1


async def turns(number: int) -> None:
    """Let the others run, so many times."""
    for _ in range(number):
        await checkpoint()
