"""Passwords that end: fetched once for all, ahead of time, and used while they are good."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import pickle
import threading
import traceback
import types
from typing import Any

import anyio
import anyio.to_thread
import pytest
from anyio import wait_all_tasks_blocked

import poolkit
from poolkit import ConnectFailed, Credential, Credentials, Pool, PoolConfigError, PoolError
from tests.fakes import Boom, CleanDriver, FakeConnection, gone
from tests.pool.virtual import RUNNERS, on_asyncio, on_trio


class Vault:
    """Gives out passwords that end; each time another one."""

    def __init__(self, lifetime: float | None = 100.0, **script: Any) -> None:
        self.lifetime = lifetime
        self.given = 0
        self.script: dict[int, Any] = {int(n[1:]): act for n, act in script.items()}

    async def fetch(self) -> Credential:
        """Give out the next password, or do what is in the script for it."""
        self.given += 1
        act = self.script.get(self.given)
        if isinstance(act, BaseException):
            raise act
        if act is not None:
            await (act.wait() if isinstance(act, anyio.Event) else anyio.sleep(act))
        return Credential(f"secret{self.given}", lifetime=self.lifetime)


class LoginDriver(CleanDriver):
    """A driver that logs in with credentials; connections know with which."""

    def __init__(self, credentials: Credentials, **script: Any) -> None:
        super().__init__(**script)
        self.credentials = credentials

    async def connect(self) -> FakeConnection:
        """Log in."""
        password = await self.credentials()
        c = await super().connect()
        c.label = password
        return c


def pool_of(vault: Vault, options: Any = {}, **more: Any) -> Pool[FakeConnection]:  # noqa: B006
    """Return a pool whose connections log in with what a vault gives out."""
    driver = LoginDriver(poolkit.credentials(vault.fetch, **more))
    return Pool(driver, **{"ping_after": None, "max_lifetime": None, "name": "shop", **options})


def labels(pool: Pool[FakeConnection]) -> list[str]:
    """Return with what the idle connections have logged in."""
    return sorted(slot.connection.label for slot in pool._state.idle)


@RUNNERS
def test_one_fetch_serves_all_connects(run: Any) -> None:
    """Those that are under way together wait for it; later ones find it."""

    async def main() -> None:
        vault = Vault(_1=0.3)
        began = anyio.current_time()
        async with pool_of(vault, {"min_size": 4, "max_connecting": 4}) as pool:
            assert labels(pool) == ["secret1"] * 4
            assert anyio.current_time() - began == pytest.approx(0.3, abs=0.01)
            pool.resize(min_size=8)
            await anyio.sleep(1.0)
            assert labels(pool) == ["secret1"] * 8
        assert vault.given == 1

    run(main)


@RUNNERS
def test_next_one_is_fetched_ahead_of_time_though_nobody_connects(run: Any) -> None:
    """By a task of the pool's; at most when half of its life is over."""

    async def main() -> None:
        for lifetime, ahead, due in ((100.0, 60.0, 50.0), (100.0, 10.0, 90.0), (None, 60.0, None)):
            vault = Vault(lifetime)
            async with pool_of(vault, refresh_before=ahead) as pool:
                await anyio.sleep((due or 9e3) - 2.0)
                assert vault.given == 1
                await anyio.sleep(4.0)
                assert vault.given == (1 if due is None else 2)
                assert labels(pool) == ["secret1"]

    run(main)


@RUNNERS
def test_old_one_is_used_while_fetching_fails_and_until_it_ends(run: Any, caplog: Any) -> None:
    """With pauses that grow; the log says it once, and that it is over once."""
    caplog.set_level(logging.INFO, "poolkit")

    async def main() -> None:
        vault = Vault(100.0, **{f"_{n}": Boom("vault is sealed") for n in range(2, 9)})
        async with pool_of(vault, refresh_before=60.0) as pool:
            await anyio.sleep(95.0)
            assert vault.given in (6, 7)  # at 50, 51, 53, 57, 65, 81
            pool.resize(min_size=2)
            await anyio.sleep(3.0)
            assert labels(pool) == ["secret1"] * 2
            await anyio.sleep(60.0)  # it ends, and the vault works again
            pool.resize(min_size=3)
            await anyio.sleep(3.0)
            assert labels(pool)[-1] == f"secret{vault.given}"

    run(main)
    failed, over = (r for r in caplog.records if r.poolkit_event.startswith("credentials"))
    assert failed.levelno == logging.WARNING
    assert "pool 'shop': " in failed.getMessage()
    assert "fetching the credentials failed: Fault: vault is sealed" in failed.getMessage()
    assert "the old ones are used for" in failed.getMessage()
    assert over.poolkit_event == "credentials_fetched"


@RUNNERS
def test_fetch_that_fails_is_told_as_why_connecting_fails(run: Any) -> None:
    """All who connect share the failure; the pool tries again as it does for connects."""

    async def main() -> None:
        vault = Vault(100.0, _1=Boom("no access"))
        async with pool_of(vault, {"min_size": 0}) as pool:
            with pytest.raises(ConnectFailed, match="fetching the credentials failed") as caught:
                await pool.acquire()
            cause = caught.value.__cause__
            assert type(cause) is PoolError
            assert isinstance(cause.__cause__, Boom)
            async with pool.acquire() as conn:
                assert conn.label.startswith("secret")

    run(main)


@RUNNERS
@pytest.mark.parametrize("limit", [3.0, None])
def test_fetch_that_hangs_is_bounded(run: Any, limit: float | None) -> None:
    """By its own limit, and by that of the connect."""

    async def main() -> None:
        vault = Vault(**{f"_{n}": 3600.0 for n in range(1, 20)})
        async with pool_of(vault, {"min_size": 0}, fetch_timeout=limit) as pool:
            began = anyio.current_time()
            with pytest.raises(PoolError) as caught:
                await pool.acquire(timeout=9.0)
            assert anyio.current_time() - began <= 9.01
            said = f"{caught.value} {caught.value.__cause__}"
            assert ("it took longer than 3.0 s" in said) == (limit is not None)
            assert ("connecting took longer than 5.0 s" in said) == (limit is None)

    run(main)


@RUNNERS
def test_who_waits_for_a_fetch_that_is_cancelled_makes_another(run: Any) -> None:
    """Nobody is told of a cancellation that was not for him."""

    async def main() -> None:
        vault = Vault(_1=anyio.Event())
        credentials = poolkit.credentials(vault.fetch, fetch_timeout=None)
        got: list[str] = []

        async def user() -> None:
            got.append(await credentials())

        async with anyio.create_task_group() as group:
            async with anyio.create_task_group() as first:
                first.start_soon(user)
                await wait_all_tasks_blocked()
                group.start_soon(user)
                group.start_soon(user)
                await wait_all_tasks_blocked()
                first.cancel_scope.cancel()
        assert got == ["secret2"] * 2

    run(main)


@RUNNERS
def test_connections_of_an_old_login_are_replaced_over_a_window(run: Any) -> None:
    """If that is wanted: one after the other, each after its successor is there."""

    async def main() -> None:
        for renew_over in (None, 20.0, 0.0):
            vault = Vault(100.0)
            options = {"min_size": 4, "max_size": 6}
            async with pool_of(vault, options, refresh_before=30.0, renew_over=renew_over) as pool:
                await anyio.sleep(72.5)
                if renew_over == 20.0:
                    assert 0 < labels(pool).count("secret2") < 4
                    assert pool.stats().idle >= 4
                await anyio.sleep(20.0)
                new = 0 if renew_over is None else 4
                assert labels(pool).count("secret2") == new
                assert gone(pool.stats()) == ({} if new == 0 else {"stale": 4})

    run(main)


@RUNNERS
def test_same_password_with_a_later_end_replaces_nothing(run: Any) -> None:
    """The login is what it was."""

    async def main() -> None:
        async def fetch() -> Credential:
            return Credential("always the same", lifetime=10.0)

        driver = LoginDriver(poolkit.credentials(fetch, renew_over=0.0))
        async with Pool(driver, max_lifetime=None) as pool:
            await anyio.sleep(60.0)
            assert gone(pool.stats()) == {}

    run(main)


@RUNNERS
def test_clock_of_the_wall_that_jumps_ends_a_credential(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a suspension; if it jumps back, the clock of the event loop counts."""
    wall = 1e9
    clock = types.SimpleNamespace(time=lambda: wall)
    monkeypatch.setattr("poolkit._credentials.time", clock)

    async def main() -> None:
        nonlocal wall
        vault = Vault(100.0)
        credentials = poolkit.credentials(vault.fetch)
        assert await credentials() == "secret1"
        wall += 96.0
        assert await credentials() == "secret2"
        wall -= 5000.0
        assert await credentials() == "secret2"
        await anyio.sleep(96.0)
        assert await credentials() == "secret3"

    run(main)


def test_end_may_be_a_time_of_the_day_or_seconds() -> None:
    """Of both the earlier one counts."""
    now = dt.datetime(2026, 11, 30, 12, tzinfo=dt.UTC)
    asked_at = now.timestamp()
    later = now + dt.timedelta(seconds=60)
    assert Credential("p", expires_at=later).ends_at(asked_at) == asked_at + 60.0
    assert Credential("p", expires_at=asked_at + 60).ends_at(asked_at) == asked_at + 60.0
    assert Credential("p", lifetime=30.0, expires_at=later).ends_at(asked_at) == asked_at + 30.0
    assert Credential("p").ends_at(asked_at) == float("inf")
    with pytest.raises(PoolConfigError, match="expires_at has no timezone"):
        Credential("p", expires_at=dt.datetime(2026, 11, 30, 12))  # noqa: DTZ001
    for wrong in ({"lifetime": -1.0}, {"expires_at": "tomorrow"}, {"lifetime": float("nan")}):
        with pytest.raises(PoolConfigError, match=f"{next(iter(wrong))}="):
            Credential("p", **wrong)
    with pytest.raises(PoolConfigError, match="password is a bytes: give a str"):
        Credential(b"p")  # type: ignore[arg-type]
    with pytest.raises(PoolConfigError, match="user is a int"):
        Credential("p", user=3)  # type: ignore[arg-type]


@RUNNERS
def test_credential_that_has_ended_before_it_came_is_used_for_who_waits(run: Any) -> None:
    """The clocks may differ; the server decides. The next one asks again."""

    async def main() -> None:
        vault = Vault(0.0)
        credentials = poolkit.credentials(vault.fetch)
        assert await credentials() == "secret1"
        assert await credentials() == "secret2"

    run(main)


async def test_plain_function_runs_in_a_thread_and_may_return_a_text() -> None:
    """A text does not end."""
    threads = []

    def fetch() -> str:
        threads.append(threading.get_ident())
        return "plain"

    credentials = poolkit.credentials(fetch)
    assert await credentials() == await credentials() == "plain"
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()

    async def later() -> Credential:
        return Credential("later")

    assert await poolkit.credentials(lambda: later())() == "later"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"fetch": "secret"}, "fetch is a str: give a function"),
        ({"refresh_before": None}, "refresh_before=None: give a number"),
        ({"refresh_before": -1}, "refresh_before=-1"),
        ({"fetch_timeout": 0}, "fetch_timeout=0: no fetch could ever succeed"),
        ({"renew_over": "soon"}, "renew_over='soon'"),
    ],
)
def test_arguments_that_cannot_work_are_refused(wrong: dict[str, Any], said: str) -> None:
    """When the credentials are made; no message has a secret."""
    with pytest.raises(PoolConfigError, match=said) as caught:
        poolkit.credentials(**{"fetch": Vault().fetch, **wrong})
    assert "secret" not in str(caught.value)


def test_coroutine_is_refused() -> None:
    """It could be awaited only once."""
    with pytest.raises(PoolConfigError, match="without calling it"):
        poolkit.credentials(Vault().fetch())  # type: ignore[arg-type]


async def test_function_that_returns_something_else_is_a_configuration_error() -> None:
    """And fatal, so that it is told at once."""
    driver = LoginDriver(poolkit.credentials(lambda: None))
    with pytest.raises(ConnectFailed, match="has returned a NoneType: return a str") as caught:
        await Pool(driver).open()
    assert isinstance(caught.value.__cause__, PoolConfigError)


async def test_secret_is_in_no_repr_message_log_or_traceback(caplog: Any) -> None:
    """Whatever fails."""
    caplog.set_level(logging.DEBUG, "poolkit")
    vault = Vault(100.0)
    driver = LoginDriver(poolkit.credentials(vault.fetch), connect=[Boom("refused")] * 9)
    with pytest.raises(PoolError) as caught:
        await Pool(driver, acquire_timeout=0.2, backoff_min=0.0).open()
    shown = "".join(traceback.format_exception(caught.value))
    held = driver.credentials.held()
    assert held is not None
    texts = [repr(driver.credentials), repr(held), str(held[0]), shown, caplog.text]
    assert "Vault.fetch" in texts[0]
    assert not [text for text in texts if "secret1" in text]


def test_pool_that_is_opened_again_on_another_loop_goes_on_with_what_is_good() -> None:
    """Its end is known by the clock of the wall."""
    vault = Vault(3600.0)
    pool = pool_of(vault)

    async def main() -> list[str]:
        async with pool:
            return labels(pool)

    for run in (on_asyncio, on_trio, on_asyncio):
        assert run(main) == ["secret1"]
    assert vault.given == 1


def test_loop_that_has_ended_in_the_middle_of_a_fetch_leaves_nothing_locked() -> None:
    """Each event loop has a lock of its own."""
    vault = Vault(_1=3600.0)
    credentials = poolkit.credentials(vault.fetch)

    async def begin() -> asyncio.Task[str]:
        task = asyncio.get_running_loop().create_task(credentials())
        await wait_all_tasks_blocked()
        return task

    loop = asyncio.new_event_loop()
    try:
        task = loop.run_until_complete(begin())
        assert asyncio.run(credentials()) == "secret2"
        task.cancel()
        loop.run_until_complete(asyncio.wait([task]))
    finally:
        loop.close()


class Rude(BaseException):
    """What nobody should raise."""


@RUNNERS
def test_what_is_no_error_does_not_end_the_pool(run: Any, caplog: Any) -> None:
    """It is reported, and raised when the pool is closed."""
    caplog.set_level(logging.CRITICAL, "poolkit")

    async def main() -> None:
        vault = Vault(100.0, _2=Rude())
        pool = pool_of(vault)
        await pool.open()
        await anyio.sleep(60.0)
        async with pool.acquire():
            pass
        assert vault.given == 3
        with pytest.raises(Rude):
            await pool.aclose()

    run(main)


async def test_driver_without_credentials_has_no_task_for_them() -> None:
    """Nor has one whose attribute of that name is something else."""
    driver: Any = CleanDriver()
    driver.credentials = "something of its own"
    async with Pool(driver) as pool:
        async with pool.acquire():
            pass


def test_credential_may_be_pickled_and_compared() -> None:
    """It is a plain value."""
    credential = Credential("p", lifetime=3.0)
    assert pickle.loads(pickle.dumps(credential)) == credential


@RUNNERS
def test_fetch_ahead_of_time_that_hangs_is_bounded_by_the_connect_timeout(run: Any) -> None:
    """If it has no limit of its own: all who connect later would wait for it."""

    async def main() -> None:
        vault = Vault(100.0, _2=3600.0)
        options = {"connect_timeout": 4.0}
        async with pool_of(vault, options, fetch_timeout=None, refresh_before=30.0) as pool:
            await anyio.sleep(80.0)
            assert vault.given == 3
            pool.resize(min_size=2)
            await anyio.sleep(1.0)
            assert labels(pool) == ["secret1", "secret3"]

    run(main)


def test_cancellation_that_a_fetch_raises_does_not_end_fetching_ahead(caplog: Any) -> None:
    """It was for a task that the function has awaited; nobody has cancelled the pool."""
    caplog.set_level(logging.CRITICAL, "poolkit")

    async def main() -> None:
        vault = Vault(100.0, _2=asyncio.CancelledError())
        async with pool_of(vault, refresh_before=30.0) as pool:
            await anyio.sleep(80.0)
            assert vault.given == 3
            assert pool.is_open

    on_asyncio(main)


async def test_threads_that_hang_are_few_and_not_those_of_the_program() -> None:
    """A web framework runs plain functions in them; here they would be gone one by one."""
    ends = threading.Event()
    begun = 0

    def fetch() -> str:
        nonlocal begun
        begun += 1
        ends.wait()
        return "late"

    limiter = anyio.to_thread.current_default_thread_limiter()
    before, limiter.total_tokens = limiter.total_tokens, 1
    try:
        credentials = poolkit.credentials(fetch, fetch_timeout=0.05)
        for _ in range(100):
            if begun == 10:
                break
            with pytest.raises(PoolError, match=r"longer than 0\.05 s"):
                await credentials()
        assert (begun, limiter.borrowed_tokens) == (10, 0)
        with pytest.raises(PoolError, match="10 calls that were made before have not returned"):
            await credentials()
    finally:
        ends.set()
        limiter.total_tokens = before
    with anyio.fail_after(5):
        while True:
            with contextlib.suppress(PoolError):
                assert await credentials() == "late"
                break


@RUNNERS
def test_credentials_that_have_ended_when_they_come_are_not_fetched_each_second(run: Any) -> None:
    """Whoever issues them may have a cache, or another clock; who connects asks all the same."""

    async def main() -> None:
        vault = Vault(0.0)
        async with pool_of(vault) as pool:
            await anyio.sleep(100.0)
            assert vault.given in (4, 5)
            pool.resize(min_size=2)
            await anyio.sleep(1.0)
            assert labels(pool)[-1] == f"secret{vault.given}"

    run(main)


async def test_what_is_no_credential_is_in_no_frame_of_the_traceback() -> None:
    """Some logs show the local variables."""
    with pytest.raises(PoolConfigError) as caught:
        await poolkit.credentials(lambda: {"token": "secret1"})()
    frames = [frame.f_locals for frame, _ in traceback.walk_tb(caught.value.__traceback__)]
    ours = [shown for shown in map(repr, frames[1:]) if "secret1" in shown]
    assert not ours


def test_error_that_is_reported_has_no_secret_in_the_frames_of_its_traceback(caplog: Any) -> None:
    """The function may raise what nobody should."""
    caplog.set_level(logging.ERROR, "poolkit")

    async def main() -> None:
        vault = Vault(100.0, _2=Rude())
        with pytest.raises(Rude):
            async with pool_of(vault):
                await anyio.sleep(60.0)

    on_asyncio(main)
    (record,) = caplog.records
    frames = [frame.f_locals for frame, _ in traceback.walk_tb(record.exc_info[2])]
    assert len(frames) > 3
    assert not [shown for shown in map(repr, frames) if "secret" in shown]


@RUNNERS
def test_pool_that_closes_in_the_middle_of_a_fetch_does_not_wait_for_it(run: Any) -> None:
    """The task that looks ahead ends with the pool."""

    async def main() -> None:
        vault = Vault(100.0, _2=anyio.Event())
        pool = await pool_of(vault, fetch_timeout=None).open()
        await anyio.sleep(53.0)
        assert vault.given == 2
        began = anyio.current_time()
        await pool.aclose()
        assert anyio.current_time() == began

    run(main)


@RUNNERS
def test_credential_in_its_last_seconds_is_used_if_no_other_can_be_fetched(run: Any) -> None:
    """Whoever connects then tries to fetch first."""

    async def main() -> None:
        vault = Vault(100.0, _2=Boom("vault is sealed"))
        credentials = poolkit.credentials(vault.fetch)
        assert await credentials() == "secret1"
        await anyio.sleep(96.0)
        assert await credentials() == "secret1"
        assert vault.given == 2
        await anyio.sleep(2.0)
        assert await credentials() == "secret3"

    run(main)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_fetch_is_made_for_who_comes_as_all_who_wait_are_cancelled() -> None:
    """Just when the one before has ended, of which anyio 4.11's lock would tell nobody."""
    gate, passwords = asyncio.Event(), iter("ab")

    async def fetch() -> Credential:
        password = next(passwords)
        if password == "a":
            await gate.wait()
        return Credential(password, lifetime=0)

    found = poolkit.credentials(fetch)
    first = asyncio.create_task(found.get())
    await wait_all_tasks_blocked()
    waiting = asyncio.create_task(found.get())
    await wait_all_tasks_blocked()
    gate.set()
    newcomer = asyncio.create_task(found.get())
    waiting.cancel()
    async with asyncio.timeout(10):
        assert (await newcomer).password == "b"
        assert (await first).password == "a"
    assert waiting.cancelled()
