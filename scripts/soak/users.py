"""What users do with a pool, on any event loop; and one run of it all, drawn from a seed."""

from __future__ import annotations

import contextlib
import contextvars
import gc
import re
import types
from typing import TYPE_CHECKING, Any

import anyio

import poolkit
from scripts.soak.database import Database, DatabaseError, Rude, draw_options

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

    from scripts.soak.model import World

#: Seconds that ``timeout=0`` may take: a ping or a reset, and `on_acquire`.
_HASTE = 0.5

asking: contextvars.ContextVar[Ask | None] = contextvars.ContextVar("asking", default=None)


class Ask:
    """One acquire from its beginning to its end, in one of the ways there are."""

    def __init__(
        self, world: World, pool: poolkit.Pool[Any], who: str, way: str, **timeout: Any
    ) -> None:
        self._world = world
        self._pool = pool
        self._way = way
        self._timeout = timeout
        self.who = who
        self.number = world.begun + 1
        self.waited = False
        self.is_greeted = True
        self.overtaken: int | None = None  # when it has become too late to be served
        self.connection = 0
        self.closings = world.count_closings()

    async def __aenter__(self) -> Any:
        """Acquire."""
        world = self._world
        world.asked(self)
        if world.hooked:
            asking.set(self)
        began = world.now() - world.stalled
        try:
            if self._way == "transaction":
                self._inner: Any = self._pool.transaction(ask=self, **self._timeout)
            else:
                self._inner = self._pool.acquire(**self._timeout)
            entering = self._inner if self._way == "await" else self._inner.__aenter__()
            noticing: Any = self._noticing(entering)
            self._view: Any = await noticing
            self.got(self._view)
        except BaseException as error:
            cancelled = isinstance(error, (anyio.get_cancelled_exc_class(), GeneratorExit))
            if self.connection:
                if not self.is_greeted:
                    world.not_kept(self, error, cancelled=cancelled)
                world.gave_back(self)
            else:
                world.refused(self, error, cancelled=cancelled)
                limit = self._timeout.get("timeout", 1.0) or _HASTE
                late = world.now() - world.stalled - began - limit
                world.check(late < world.patience, f"ask {self.number} waited {late} s too long")
            raise
        finally:
            world.line.pop(self.number, None)
            if world.hooked:
                asking.set(None)  # or the context would keep the view
        return self._view

    async def __aexit__(self, *error: object) -> None:
        """Give back, as one does who acquired in this way."""
        if self._way == "await":
            self.release()
            return
        try:
            await self._inner.__aexit__(*error)
        finally:
            self._world.gave_back(self)

    def release(self) -> None:
        """Give back by a call; also in the middle of a block."""
        self._way = "released" if self._way == "await" else self._way
        try:
            self._pool.release(self._view)
        finally:
            self._world.gave_back(self)

    def got(self, view: object) -> None:
        """Note which connection this is, at the first opportunity of several."""
        if not self.connection:
            # From its text: asking the connection itself would leave a trace on the lease.
            self.connection = int(re.findall(r"#(\d+)", repr(view))[0])
            self._world.served(self)

    @types.coroutine
    def _noticing(self, entering: Awaitable[Any]) -> Generator[Any, Any, Any]:
        """Await, and notice whether the connection takes more than one step."""
        steps: Any = entering.__await__()
        resume, value = steps.send, None
        while True:
            try:
                step = resume(value)
            except StopIteration as done:
                return done.value
            self.waited |= not self.connection
            try:
                resume, value = steps.send, (yield step)
            except BaseException as error:
                resume, value = steps.throw, error


class Run:
    """One pool from its making to its end, and all who use it.

    ``tasks`` is what differs from loop to loop: ``spawn`` starts a task whose errors are failures,
    ``cancel`` cancels one, ``alive`` lists those that have not ended; ``lose`` begins a coroutine
    that nobody refers to, and ``park`` returns what it may await then.
    """

    def __init__(self, world: World, tasks: Any, own_cancelled: type[BaseException] | None) -> None:
        self.world = world
        self.random = world.random
        self.tasks = tasks
        self.database = Database(world, own_cancelled)
        options = draw_options(world, self.database)
        self.pings = options["ping_after"] is not None
        world.hooked = world.chance(0.2)
        if world.hooked:
            options["on_acquire"] = self._run_on_acquire
        self.pool: poolkit.Pool[Any] = poolkit.Pool(self.database, **options)
        world.resized(self.pool.stats().capacity, 0)
        self.users = 0
        self.closing = 0

    async def live(self, steps: int) -> None:
        """Do whatever comes to mind, then see whether all is well."""
        acts = {self._user: 10, self._cancel: 5, self._kill: 1, self._resize: 1, self._renew: 0.3}
        rude = {"collect": (self._collect, 1), "lost": (self._lose, 5), "reopen": (self._reopen, 1)}
        if self.world.stall is not None:
            rude["away"] = (self._stand_still, 2)
        acts.update(rude[name] for name in self.world.rude if name in rude)
        await self._open()
        for _ in range(steps):
            act: Any = self.random.choices([*acts], [*acts.values()])[0]
            self.world.note(act.__name__)
            await act()
            await anyio.sleep(self.random.choice((0, 0, 0, 0.001, 0.02)))
            if self.world.failure is not None:
                raise self.world.failure
        await self._rest()

    # -- what happens ----------------------------------------------------------------------------

    async def _user(self) -> None:
        if len(self.tasks.alive()) < 10:
            self.users += 1
            name = f"user {self.users}"
            self.tasks.spawn(name, lambda: self._use(name))

    async def _cancel(self) -> None:
        if alive := self.tasks.alive():
            self.tasks.cancel(self.random.choice(alive))

    async def _kill(self) -> None:
        there = [connection for connection in [*self.world.open.values()] if connection.there]
        if there:
            connection = self.random.choice(there)
            self.world.note(f"kill {connection}")
            connection.killed, connection.noticed = True, self.world.chance(0.5)
            if self.world.chance(0.5):
                connection.dead()

    async def _resize(self) -> None:
        max_size, overflow = self.random.randint(1, 3), self.random.randint(0, 1)
        self.world.resized(max_size + overflow, self.pool.stats().size)
        min_size = self.random.randint(0, max_size)
        self.pool.resize(min_size=min_size, max_size=max_size, max_overflow=overflow)

    async def _renew(self) -> None:
        over = self.random.choice((0.0, 0.05))
        if self.world.is_open and not over:
            self.world.renewed = next(self.world.numbers)
        self.pool.renew(over=over)

    async def _collect(self) -> None:
        gc.set_threshold(*self.random.choice(((50, 2, 2), (700, 10, 10))))
        gc.collect()

    async def _stand_still(self) -> None:
        """Have the event loop be away, and sessions end meanwhile that nobody asks."""
        world = self.world
        if world.stall is None or self.closing:
            return  # a pool that is closed in the meantime takes whoever is late for deaf
        for connection in world.open.values():
            # Not if it was handed to a waiter who has not run yet, which nobody sees from here.
            asked = connection.job in ("ping", "reset")
            if asked or connection.number in world.holders:
                connection.answered = asked and not connection.killed
                connection.killed = True
                connection.unheard = self.pings
        world.stall(5.0)
        world.stalled += 5.0
        for _ in range(3):  # who may be given what the others give back
            await self._user()

    async def _lose(self) -> None:
        self.tasks.lose(self._vanish())

    async def _vanish(self) -> None:
        with contextlib.suppress(poolkit.PoolError, DatabaseError):
            async with Ask(self.world, self.pool, "lost", "with", timeout=0) as view:
                if self.world.chance(0.5):
                    view.leave()
                await self.tasks.park()

    async def _reopen(self) -> None:
        world = self.world
        grace = self.random.choice((0.0, 0.02, 0.2))
        if world.chance(0.3):
            self.tasks.spawn("another aclose", lambda: self._close(0.1))
        if await self._perhaps_cancelled(lambda: self._close(grace)):
            world.check(not world.open, f"open after aclose(): {world.open}")
        await self._until(lambda: not world.open, "left open by a cancelled aclose()")
        await anyio.sleep(self.random.choice((0, 0.01)))
        await self._open()

    async def _close(self, grace: float) -> None:
        self.world.closings += 1
        self.world.is_open = False
        self.closing += 1
        try:
            await self.pool.aclose(grace=grace)
        except (Rude, BaseExceptionGroup):  # what a driver has raised is shown here
            self.world.check(self.database.rude_calls, "aclose() raised, and no driver did")
        finally:
            self.closing -= 1

    async def _open(self) -> None:
        world = self.world
        while not world.is_open:
            closings = world.closings
            try:
                opened = await self._perhaps_cancelled(self.pool.open)
                world.is_open = opened and closings == world.closings
                if not opened and "hurry" not in world.rude:
                    await self._until(lambda: not world.open, "left open by a cancelled open()")
            except (poolkit.PoolUnavailable, Rude, BaseExceptionGroup) as error:
                if not isinstance(error, poolkit.PoolUnavailable):
                    world.check(self.database.rude_calls, "open() raised, and no driver did")
                if "hurry" in world.rude:
                    world.check(not world.open, f"open after open() that failed: {world.open}")
                await self._until(lambda: not world.open, "left open by open() that failed")
            except poolkit.PoolClosed:
                await anyio.sleep(0.01)

    async def _perhaps_cancelled(self, function: Callable[[], Awaitable[object]]) -> bool:
        """Call, and return False if it was cancelled, by a scope."""
        patience = None
        if "abort" in self.world.rude and self.world.chance(0.3):
            patience = self.random.choice((0, 0.001, 0.01, 0.05))
        with anyio.move_on_after(patience) as scope:
            await function()
        return not scope.cancelled_caught

    # -- what one user does ----------------------------------------------------------------------

    async def _run_on_acquire(self, view: object) -> None:
        """Be an `on_acquire`, in the task of the user."""
        ask = asking.get()
        assert ask is not None
        ask.got(view)
        ask.is_greeted = False
        if self.world.chance(0.2):
            await anyio.sleep(0.01)
        if self.world.chance(0.1):
            raise DatabaseError("on_acquire")
        ask.is_greeted = True

    def _ask(self, who: str, *ways: str) -> Ask:
        timeout = self.random.choice(({}, {"timeout": 0}, {"timeout": 0.02}, {"timeout": 1.0}))
        return Ask(self.world, self.pool, who, self.random.choice(ways), **timeout)

    async def _use(self, who: str, depth: int = 0) -> None:
        for _ in range(self.random.randrange(1, 5 - depth)):
            closings = self.world.count_closings()
            try:
                async with (ask := self._ask(who, "await", "with", "transaction")) as view:
                    for _ in range(self.random.randrange(3)):
                        await self._act(who, depth, ask, view)
            except (poolkit.PoolUnavailable, poolkit.PoolDeadlock, poolkit.CommitUnknown):
                pass
            except (DatabaseError, Rude):
                pass
            except (poolkit.PoolClosed, poolkit.NotLeased):
                if not self.world.was_closed(closings):
                    raise
            await anyio.sleep(self.random.choice((0, 0, 0.005)))

    async def _act(self, who: str, depth: int, ask: Ask, view: Any) -> None:
        acts = ("work", "read", "leave", "derive", "pause", "straggle", "stop", "more")
        act = self.random.choice(acts)
        self.world.note(f"{who}: {act} with #{ask.connection}")
        match act:
            case "work" | "read":
                with contextlib.suppress(*[DatabaseError] * self.world.chance(0.5)):
                    await (view.work() if act == "work" else view.read())
            case "leave":
                view.leave()
            case "derive":
                await self._derive(view)
            case "pause":
                await anyio.sleep(self.random.choice((0, 0.01, 0.05)))
            case "straggle":  # a task that may go on for longer than the lease
                self.tasks.spawn(f"straggler of {who}", lambda: self._straggle(view))
                await anyio.sleep(0)
            case "stop":  # give back in the middle, and go on as if nothing were
                ask.release()
                with contextlib.suppress(poolkit.NotLeased):
                    await view.work()
                    self.world.check(holds=False, text=f"#{ask.connection} used after release")
                raise DatabaseError("it is over")
            case "more" if "lost" in self.world.rude and self.world.chance(0.3):
                lost = [await self._ask(who, "await").__aenter__()]
                lost += [lost] * self.world.chance(0.5)  # then only the collector finds it
            case "more" if depth < 2:
                await self._use(who, depth + 1)

    async def _derive(self, view: Any) -> None:
        """Get hold of something that acts on the connection, in one of the ways there are."""
        kept: list[object] = []
        match self.random.randrange(5):
            case 0:
                view.cursor()
            case 1:
                view.cursors()
            case 2:
                await view.visit(kept.append)
            case 3:
                await view.fill(kept)
            case 4:
                with contextlib.suppress(DatabaseError):
                    view.complain()

    async def _straggle(self, view: Any) -> None:
        with contextlib.suppress(poolkit.NotLeased, DatabaseError, Rude):
            await view.work()

    # -- the end ---------------------------------------------------------------------------------

    async def _rest(self) -> None:
        """Let things come to rest: then nothing may be lost, and all of the capacity be there."""
        world, pool = self.world, self.pool
        world.calm = True
        world.note("let things come to rest")
        await self._until(lambda: not self.tasks.alive(), "somebody goes on for ever")
        await self._open()
        await self._until(lambda: world.is_at_rest(pool.stats()), "no rest")
        world.check_at_rest(pool.stats())
        async with contextlib.AsyncExitStack() as stack:
            for nth in range(pool.stats().capacity):
                await self._acquire(f"number {nth + 1}", stack)
        await self._close(1.0)
        world.check_at_rest(pool.stats())

    async def _acquire(self, which: str, stack: contextlib.AsyncExitStack) -> None:
        for _ in range(100):  # there may have been an outage a moment ago
            with contextlib.suppress(poolkit.PoolUnavailable):
                ask = Ask(self.world, self.pool, which, "with", timeout=1.0)
                await stack.enter_async_context(ask)
                return
            await anyio.sleep(0.05)
        self.world.check(holds=False, text=f"cannot acquire {which}: {self.pool!r}")

    async def _until(self, holds: Callable[[], object], text: str) -> None:
        for nth in range(3000):
            if nth in {0, 20, 100, 500, 1000, 2000}:  # soon, and then seldom: it takes long
                gc.collect()
            if holds():
                return
            await anyio.sleep(0.01)
        doing = f"{self.pool!r}, {self.world.open}, {self.tasks.where()}"
        self.world.check(holds=False, text=f"{text}: {doing}")
