"""What psycopg's driver is given: URLs, conninfos, settings, and what is refused in one sentence."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import trio

import poolkit
from poolkit import ConnectFailed, PoolConfigError, Verdict
from poolkit.drivers.psycopg import PsycopgDriver, create_pool, from_url
from tests.drivers.asyncpg_help import LOOPS, last_query
from tests.drivers.psycopg_help import of_one

if TYPE_CHECKING:
    from collections.abc import Callable

    import asyncpg


def refusal(call: Callable[[], object]) -> str:
    """Return what a call is refused with."""
    with pytest.raises(PoolConfigError) as refused:
        call()
    assert "s3cr3t" not in str(refused.value)
    assert refused.value.__cause__ is None
    return str(refused.value)


# -- URLs and conninfos --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("postgresql://app:s3cr3t@db.example/shop", "db.example:5432/shop"),
        ("postgresql+psycopg://app@a.example,b.example:6000/shop", "a.example:5432"),
        ("postgres://db.example?max_size=3&reset=transaction", "db.example:5432"),
        ("host=db.example port=6000 dbname=shop password=s3cr3t", "db.example:6000/shop"),
        (None, "localhost:5432"),
    ],
)
def test_server_is_named_by_what_is_given(
    given: str | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A URL, libpq's list, or nothing; without its password."""
    for variable in ("PGHOST", "PGPORT", "PGDATABASE"):
        monkeypatch.delenv(variable, raising=False)
    assert create_pool(given).name.startswith(name)


def test_url_of_poolkits_scheme_is_served() -> None:
    """By `poolkit.create_pool`, with the driver's settings in it, or as keywords."""
    pool = poolkit.create_pool(
        "postgresql+psycopg://db.example/shop?max_size=3&pooler=transaction", tcp_timeout=None
    )
    assert isinstance(pool._driver, PsycopgDriver)
    assert pool.stats().max_size == 3
    assert pool._driver.settings.reset == "transaction"
    assert pool._driver.settings.prepare_threshold is None


def test_settings_may_stand_in_the_url() -> None:
    """A keyword wins."""
    driver = from_url("postgresql://h/d?prepare_threshold=0&tcp_timeout=9", prepare_threshold=2)
    assert driver.settings.prepare_threshold == 2
    assert driver._arguments["keepalives_count"] == 3
    assert from_url("postgresql://h?prepare_threshold=none")._arguments["prepare_threshold"] is None
    given = from_url("postgresql://h/d?keepalives_idle=7")
    assert "tcp_user_timeout" not in given._arguments


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "another scheme": (lambda: create_pool("mysql://h/d"), "begins with postgresql://"),
    "what libpq does not know": (
        lambda: create_pool("postgresql://h/d?maxsize=3"),
        "did you mean max_size?",
    ),
    "no parameter at all": (lambda: create_pool("postgresql://h/d?nonsense=3"), "libpq knows no"),
    "a setting of the session": (
        lambda: create_pool("postgresql://h/d?search_path=s3cr3t"),
        "options=-c%20",
    ),
    "psycopg's argument in the URL": (
        lambda: create_pool("postgresql://h/d?autocommit=false"),
        "give connect_kwargs={'autocommit': ...}",
    ),
    "an object in the URL": (
        lambda: create_pool("postgresql://h/d?connection_class=x"),
        "cannot be given in a URL",
    ),
    "an @ in the password": (lambda: create_pool("postgresql://a:s3cr3t@b@h/d"), "%40"),
    "an unreadable conninfo": (
        lambda: create_pool("host=h password=s3cr3t 's3cr3t"),
        "libpq cannot read it",
    ),
    "psycopg's argument as a keyword": (
        lambda: create_pool(row_factory=None),  # type: ignore[call-arg]
        "give connect_kwargs={'row_factory': ...}",
    ),
    "a name of psycopg_pool's": (
        lambda: create_pool(num_workers=3),  # type: ignore[call-arg]
        "max_connecting",
    ),
    "a pool's option for the driver": (
        lambda: from_url("postgresql://h/d?max_size=3"),
        "max_size is an option of the pool",
    ),
    "an unknown setting of the driver": (
        lambda: PsycopgDriver(rset="full"),  # type: ignore[call-arg]
        "did you mean reset",
    ),
    "options in the driver's DSN": (
        lambda: PsycopgDriver("postgresql://h/d?max_size=3"),
        "which takes it apart",
    ),
    "another level": (
        lambda: create_pool(reset="ful"),  # type: ignore[arg-type]
        "give 'full', 'full+prepared', 'auto', 'transaction', 'none', or an async function",
    ),
    "another pooler": (
        lambda: create_pool(pooler="statement"),  # type: ignore[arg-type]
        "give 'transaction', 'session' or None",
    ),
    "a full reset behind a pooler": (
        lambda: create_pool(pooler="transaction", reset="full"),
        "a session that belongs to others",
    ),
    "settings behind a pooler": (
        lambda: create_pool(pooler="transaction", connect_kwargs={"options": "-c x=y"}),
        "no meaning behind pooler='transaction'",
    ),
    "settings behind a pooler, in the URL": (
        lambda: create_pool("postgresql://h/d?options=-c%20x%3Dy&pooler=transaction"),
        "no meaning behind pooler='transaction'",
    ),
    "a short tcp_timeout": (lambda: create_pool(tcp_timeout=1), "the shortest that systems"),
    "a wrong prepare_threshold": (
        lambda: create_pool(prepare_threshold=-1),
        "None for never",
    ),
    "a connection that blocks": (
        lambda: create_pool(connection_class=psycopg.Connection),  # type: ignore[arg-type]
        "would block the event loop: give psycopg.AsyncConnection",
    ),
    "a cursor that blocks": (
        lambda: create_pool(connect_kwargs={"cursor_factory": psycopg.ClientCursor}),
        "would block the event loop: give psycopg.AsyncCursor",
    ),
    "no class": (
        lambda: create_pool(connection_class="x"),  # type: ignore[arg-type]
        "connection_class is a str",
    ),
    "an unknown argument": (
        lambda: create_pool(connect_kwargs={"pasword": "s3cr3t"}),
        "did you mean password",
    ),
    "the conninfo in connect_kwargs": (
        lambda: create_pool(connect_kwargs={"conninfo": "s3cr3t"}),
        "as the first argument",
    ),
    "no dict": (lambda: create_pool(connect_kwargs=["s3cr3t"]), "is a dict"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_work_is_refused_with_what_to_write(what: str) -> None:
    """When the pool is made, and never with a password."""
    call, words = REFUSED[what]
    assert words in refusal(call)


def test_coroutine_as_reset_is_refused() -> None:
    """It could be awaited only once."""

    async def reset() -> None:
        pass

    made: Any = reset()
    assert "without calling it" in refusal(lambda: create_pool(reset=made))


# -- connecting ----------------------------------------------------------------------------------


async def _open(pool: Any) -> BaseException | None:
    with pytest.raises(ConnectFailed) as failed:
        async with pool:
            pass
    return failed.value.__cause__


@pytest.mark.parametrize("anyio_backend", LOOPS, indirect=True)
async def test_errors_that_nobody_but_a_human_mends_fail_at_once(dsn: str) -> None:
    """A database or a role that is not there."""
    for wrong in ("dbname", "user"):
        cause = await _open(of_one(dsn, connect_kwargs={wrong: "nobody"}))
        assert isinstance(cause, psycopg.OperationalError)
    classify = PsycopgDriver(dsn).classify
    refused = psycopg.OperationalError("connection failed: Connection refused")
    assert classify(refused, None) is Verdict.TRANSIENT
    assert classify(psycopg.OperationalError("Verbindung fehlgeschlagen"), None) is None
    assert classify(psycopg.ProgrammingError("conninfo"), None) is Verdict.FATAL


@pytest.mark.parametrize("anyio_backend", LOOPS, indirect=True)
async def test_password_may_be_a_function(dsn: str) -> None:
    """Called for each connect, awaited if it is asynchronous."""
    called: list[object] = []

    def plain() -> str:
        called.append(plain)
        return "s3cr3t"

    async def later() -> str:
        called.append(later)
        return "s3cr3t"

    for password in (plain, later):
        async with of_one(dsn, connect_kwargs={"password": password}) as pool:
            pool.renew()
            async with pool.acquire() as conn:
                await conn.execute("SELECT 1")
    assert called == [plain, plain, later, later]


@pytest.mark.parametrize("anyio_backend", LOOPS, indirect=True)
async def test_dead_peers_are_watched_for(dsn: str, outside: asyncpg.Connection) -> None:
    """By libpq's parameters; and statements are prepared as it is told."""
    async with of_one(dsn, tcp_timeout=9, prepare_threshold=0) as pool:
        async with pool.acquire() as conn:
            parameters = conn.info.get_parameters()
            assert parameters["keepalives_idle"] == "6"
            assert parameters["tcp_user_timeout"] == "9000"
            await conn.execute("SELECT 1")
            cursor = await conn.execute("SELECT count(*) FROM pg_prepared_statements")
            assert (await cursor.fetchone() or (0,))[0] >= 1
            assert await last_query(outside, conn.info.backend_pid)


def test_uvicorn_takes_the_loop_that_the_refusal_of_another_names() -> None:
    """On Windows its own choice is one on which psycopg does not run."""
    uvicorn = pytest.importorskip("uvicorn", minversion="0.36")
    config = uvicorn.Config("app:app", loop="asyncio:SelectorEventLoop")
    assert config.get_loop_factory() is asyncio.SelectorEventLoop


def test_trio_is_refused_with_the_reason() -> None:
    """It knows asyncio only."""

    async def main() -> None:
        cause = await _open(create_pool("postgresql://127.0.0.1:1/db"))
        assert isinstance(cause, PoolConfigError)
        assert "psycopg runs on asyncio only" in str(cause)

    trio.run(main)


def test_missing_library_is_an_error_that_names_the_command() -> None:
    """And one without libpq another."""
    for broken, words in (
        ("sys.modules['psycopg'] = None", "pip install 'poolkit[psycopg]'"),
        (
            "import os; os.environ['PSYCOPG_IMPL'] = 'nonsense'",
            "pip install 'psycopg[binary]'",
        ),
    ):
        code = f"import sys; {broken}; import poolkit; poolkit.drivers.psycopg.create_pool()"
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert words in done.stderr.splitlines()[-1]
