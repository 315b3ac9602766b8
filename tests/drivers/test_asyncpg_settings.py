"""What the asyncpg driver refuses, at once, in words that name the thing and repeat no secret."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import traceback
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

import poolkit
from poolkit import ConnectFailed, PoolConfigError
from poolkit.drivers.asyncpg import AsyncpgDriver, create_pool, from_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.postgres import Server

SECRET = "hunter" + "2"  # in two parts: tracebacks show lines of this file
GOOD = f"postgresql://app:{SECRET}@localhost/shop"


@pytest.fixture(autouse=True)
def nothing_is_said(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """The secret stands in no log."""
    caplog.set_level(logging.DEBUG)
    yield
    assert SECRET not in caplog.text


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's settings of libpq's are in the way."""
    for name in ("PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)


def text_of(error: BaseException | None) -> str:
    """Return all that anybody may ever print of an error."""
    parts = []
    while error is not None:
        parts += [str(error), repr(error), *traceback.format_exception(error)]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(parts)


def refuse(words: str, make: Callable[[], object]) -> None:
    """Check that this is refused in these words, and without the secret."""
    with pytest.raises(PoolConfigError) as caught:
        make()
    assert words.lower() in str(caught.value).lower(), str(caught.value)
    assert SECRET not in text_of(caught.value)


# -- DSNs ----------------------------------------------------------------------------------------

MALFORMED = {
    "no scheme": (f"app:{SECRET}@localhost/shop", "not a database URL"),
    "words": (f"host=localhost password={SECRET}", "not a database URL"),
    "one slash": (f"postgresql:/app:{SECRET}@localhost/shop", "'://'"),
    "empty": ("", "DATABASE_URL"),
    "other scheme": (f"mssql://app:{SECRET}@localhost/shop", "malformed DSN"),
    "other driver": (f"postgresql+psycopg2://app:{SECRET}@localhost/shop", "malformed DSN"),
    "port is a word": (f"postgresql://app:{SECRET}@localhost:five/shop", "port"),
    "port too high": (f"postgresql://app:{SECRET}@localhost:65536/shop", "port"),
    "port zero": (f"postgresql://app:{SECRET}@localhost:0/shop", "port"),
    "port negative": (f"postgresql://app:{SECRET}@localhost:-1/shop", "port"),
    "port empty": (f"postgresql://app:{SECRET}@localhost:/shop", "port"),
    "port of another script": (f"postgresql://app:{SECRET}@localhost:٣٤/shop", "port"),
    "port of the second host": (f"postgresql://app:{SECRET}@a:1,b:x/shop", "port"),
    "port without host": (f"postgresql://app:{SECRET}@:5432/shop", "host"),
    "bracket": (f"postgresql://app:{SECRET}@[::1/shop", "malformed DSN"),
    "slash": (f"postgresql://app:a/{SECRET}@localhost/shop", "%2F"),
    "slash after digits": (f"postgresql://app:5432/{SECRET}@localhost/shop", "%2F"),
    "question mark": (f"postgresql://app:a?{SECRET}@localhost/shop", "%3F"),
    "question mark after digits": (f"postgresql://app:5432?{SECRET}@localhost/shop", "%3F"),
    "question mark and equals": (f"postgresql://app:a?b={SECRET}@localhost/shop", "malformed DSN"),
    "hash": (f"postgresql://app:a#{SECRET}@localhost/shop", "%23"),
    "hash after digits": (f"postgresql://app:5432#{SECRET}@localhost/shop", "%23"),
    "hash at the end": (f"{GOOD}#{SECRET}", "#"),
    "open bracket": (f"postgresql://app:a[{SECRET}@localhost/shop", "malformed DSN"),
    "wide slash": (f"postgresql://app:a\uff0f{SECRET}@localhost/shop", "malformed DSN"),
    "wide at": (f"postgresql://app:a\uff20{SECRET}@localhost/shop", "malformed DSN"),
    "account of": (f"postgresql://app:a\u2100{SECRET}@localhost/shop", "malformed DSN"),
    "at": (f"postgresql://app:x@{SECRET}@localhost/shop", "%40"),
    "percent": (f"postgresql://app:100%{SECRET}@localhost/shop", "%25"),
    "question mark, equals and at": (f"postgresql://app:5432?b={SECRET}@localhost", "%3F"),
    "query without equals": (f"{GOOD}?sslmode", "name=value"),
    "query with a stray word": (f"{GOOD}?application_name=a&{SECRET}", "name=value"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_dsn_is_refused(name: str) -> None:
    """When the pool is made, not when it is opened."""
    dsn, words = MALFORMED[name]
    refuse(words, lambda: create_pool(dsn))


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_url_is_refused(name: str) -> None:
    """The same by URL, where the query is taken apart first."""
    url, _ = MALFORMED[name]
    refuse("", lambda: poolkit.create_pool(url))


@pytest.mark.parametrize(
    "dsn", [GOOD.encode(), 5432, ("localhost", 5432), {"host": "localhost"}, object()]
)
def test_dsn_of_another_type_is_refused(dsn: Any) -> None:
    """Bytes, a number, a tuple, a mapping, an object that some library has made."""
    refuse(
        f"the database URL is {type(dsn).__name__}"
        if isinstance(dsn, bytes)
        else f"the database URL is of type {type(dsn).__name__}",
        lambda: create_pool(dsn),
    )


@pytest.mark.parametrize(
    ("dsn", "name"),
    [
        (GOOD, "localhost:5432/shop"),
        ("postgres://localhost", "localhost:5432"),
        ("postgresql+asyncpg://localhost:6000/shop", "localhost:6000/shop"),
        ("postgresql://", "localhost:5432"),
        ("postgresql:///shop", "localhost:5432/shop"),
        (f"postgresql://app:{SECRET}@a,b:6000/shop", "a:5432,b:6000/shop"),
        (f"postgresql://app:{SECRET}@[::1]:6000/shop", "[::1]:6000/shop"),
        (f"postgresql://app:{SECRET}@[::1]/shop", "[::1]:5432/shop"),
        (f"postgresql://app:x:{SECRET}@localhost/shop", "localhost:5432/shop"),
        (f"postgresql://app:%2F%3F%23%40{SECRET}@localhost/shop", "localhost:5432/shop"),
        (f"postgresql:///shop?host=a&port=6000&password={SECRET}", "a:6000/shop"),
        (f"postgresql://localhost?dbname=shop&password={SECRET}", "localhost:5432/shop"),
        ("postgresql://localhost/a%20shop", "localhost:5432/a shop"),
        (None, "localhost:5432"),
    ],
)
def test_pool_is_named_after_its_address(dsn: str | None, name: str) -> None:
    """And after nothing that is secret."""
    pool = create_pool(dsn)
    assert pool.name == name
    assert SECRET not in repr(pool)
    assert SECRET not in repr(pool._driver)
    assert SECRET not in repr(pool._driver.settings)  # type: ignore[attr-defined]


def test_keywords_name_the_pool() -> None:
    """They come before the DSN, as they do for asyncpg."""
    given = {"host": ["a", "b"], "port": 6000, "database": "shop", "password": SECRET}
    pool = create_pool("postgresql://x/y", connect_kwargs=given)
    assert pool.name == "a:6000,b:6000/shop"
    assert SECRET not in repr(pool)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
def test_url_makes_the_driver(scheme: str) -> None:
    """With the options that stand in its query: the pool's, the driver's, and the session's."""
    pool = poolkit.create_pool(
        f"{scheme}://app:{SECRET}@localhost/shop?max_size=3&reset=none&pooler=session"
        "&tcp_timeout=none&application_name=me"
    )
    driver = pool._driver
    assert isinstance(driver, AsyncpgDriver)
    assert pool.stats().max_size == 3
    settings = driver.settings
    assert (settings.reset, settings.pooler, settings.tcp_timeout) == ("none", "session", None)
    assert driver._dsn == f"postgresql://app:{SECRET}@localhost/shop?application_name=me"


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("reset=some", "reset"),
        ("pooler=some", "pooler"),
        ("tcp_timeout=long", "tcp_timeout"),
        ("tcp_timeout=1", "tcp_timeout"),
        (f"connect_kwargs={SECRET}", "connect_kwargs"),
        ("note_statements=true", "note_statements"),
        ("max_size=0", "max_size"),
    ],
)
def test_setting_in_a_url_that_cannot_work_is_refused(query: str, words: str) -> None:
    """By its name."""
    refuse(words, lambda: poolkit.create_pool(f"{GOOD}?{query}"))
    if "max_size" not in query:
        refuse(words, lambda: from_url(f"{GOOD}?{query}"))


# -- options -------------------------------------------------------------------------------------


async def an_async_function(*_: object) -> None:
    """Be one."""


def a_function(*_: object) -> None:
    """Be none."""


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown option": ({"max_sise": 3}, "max_size"),
    "argument of asyncpg": ({"command_timeout": 3}, "connect_kwargs={'command_timeout': ...}"),
    "ssl": ({"ssl": "requird"}, "require, verify-ca"),
    "ssl of another type": ({"ssl": 3}, "ssl is a int"),
    "ssl among the arguments": ({"connect_kwargs": {"ssl": "some"}}, "verify-full"),
    "ssl twice": ({"ssl": True, "connect_kwargs": {"ssl": True}}, "twice"),
    "target": ({"connect_kwargs": {"target_session_attrs": "master"}}, "primary"),
    "secret argument of asyncpg": ({"password": SECRET}, "connect_kwargs={'password': ...}"),
    "timeout": ({"timeout": 3}, "connect_timeout"),
    "unknown argument": ({"connect_kwargs": {"sll": True}}, "ssl"),
    "unknown secret argument": ({"connect_kwargs": {"pasword": SECRET}}, "password"),
    "argument that is no string": ({"connect_kwargs": {1: SECRET}}, "connect_kwargs"),
    "dsn as an argument": ({"connect_kwargs": {"dsn": GOOD}}, "DSN"),
    "loop": ({"connect_kwargs": {"loop": None}}, "loop"),
    "arguments as a string": ({"connect_kwargs": SECRET}, "connect_kwargs"),
    "arguments as a list": ({"connect_kwargs": [("password", SECRET)]}, "connect_kwargs"),
    "arguments as None": ({"connect_kwargs": None}, "connect_kwargs"),
    "connection class": ({"connect_kwargs": {"connection_class": object}}, "connection_class"),
    "connection": ({"connect_kwargs": {"connection_class": 3}}, "connection_class"),
    "reset": ({"reset": "all"}, "reset"),
    "reset of another type": ({"reset": 3}, "reset"),
    "reset as a list": ({"reset": ["full"]}, "reset"),
    "reset that is not async": ({"reset": a_function}, "async function"),
    "pooler": ({"pooler": "pgbouncer"}, "'transaction', 'session'"),
    "pooler of another type": ({"pooler": True}, "pooler"),
    "note_statements": ({"note_statements": "yes"}, "True or False"),
    "tcp_timeout too small": ({"tcp_timeout": 2.9}, "tcp_timeout"),
    "tcp_timeout negative": ({"tcp_timeout": -1}, "tcp_timeout"),
    "tcp_timeout as a string": ({"tcp_timeout": "45"}, "tcp_timeout"),
    "tcp_timeout infinite": ({"tcp_timeout": float("inf")}, "None"),
    "full reset behind a pooler": ({"pooler": "transaction", "reset": "full"}, "pooler"),
    "fuller reset behind a pooler": ({"pooler": "transaction", "reset": "full+prepared"}, "pooler"),
    "settings behind a pooler": (
        {
            "pooler": "transaction",
            "connect_kwargs": {"server_settings": {"search_path": "a", "TimeZone": "UTC"}},
        },
        "search_path",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_option_that_cannot_work_is_refused(name: str) -> None:
    """When the pool is made, by its name and with the remedy."""
    options, words = REFUSED[name]
    refuse(words, lambda: create_pool(GOOD, **options))


def test_settings_in_a_dsn_behind_a_pooler_are_refused() -> None:
    """They would stay with a session that belongs to others; what poolers keep track of is fine."""
    refuse("search_path", lambda: create_pool(f"{GOOD}?search_path=a", pooler="transaction"))
    create_pool(f"{GOOD}?application_name=a&sslmode=disable", pooler="transaction")


@pytest.mark.parametrize(
    "name", ["reset", "password", "ssl", "on_connect", "on_close", "on_acquire"]
)
def test_coroutine_where_a_function_is_wanted_is_refused(name: str) -> None:
    """It would work once; it is named."""
    coroutine = an_async_function()
    try:
        of_asyncpg = name in ("password", "ssl")
        options: Any = {"connect_kwargs": {name: coroutine}} if of_asyncpg else {name: coroutine}
        refuse(name, lambda: create_pool(GOOD, **options))
        if name in ("reset", "password", "ssl"):
            assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
    finally:
        coroutine.close()


@pytest.mark.parametrize(
    "options",
    [
        {"reset": an_async_function},
        {"reset": functools.partial(an_async_function, 1)},
        {"tcp_timeout": 3},
        {"tcp_timeout": None},
        {"pooler": "transaction", "reset": an_async_function},
        {"pooler": "transaction", "reset": "none"},
        {"pooler": "session", "reset": "full"},
        {"connect_kwargs": {"password": an_async_function}},
        {"connect_kwargs": {"password": a_function}},
    ],
)
def test_option_that_can_work_is_taken(options: Any) -> None:
    """Lest the others refuse too much."""
    create_pool(GOOD, **options)


def test_pooler_by_transaction_has_no_cache_and_a_light_reset() -> None:
    """Unless they are asked for."""
    settings = AsyncpgDriver(GOOD, pooler="transaction").settings
    assert settings.arguments() == {"statement_cache_size": 0}
    assert settings.reset == "transaction"
    settings = AsyncpgDriver(
        GOOD, pooler="transaction", connect_kwargs={"statement_cache_size": 50}
    ).settings
    assert settings.arguments() == {"statement_cache_size": 50}
    assert AsyncpgDriver(GOOD, pooler="session").settings.reset == "full"


# -- secrets, when connecting fails --------------------------------------------------------------


def of_role(server: Server, **query: str) -> str:
    """Return the DSN of a role that needs a password, with a wrong one."""
    roles = {row[0] for row in server.query("SELECT rolname FROM pg_roles")}
    if "bob" not in roles:
        server.query("CREATE ROLE needs_password")
        server.query("CREATE ROLE bob LOGIN PASSWORD 'right' IN ROLE needs_password")
    return server.dsn(user="bob", password=SECRET, **query)


async def provide() -> str:
    """Return a wrong password."""
    return SECRET


async def fail_to_provide() -> str:
    """Fail as a vault does."""
    raise OSError("the vault is closed")


FAILURES: dict[str, tuple[dict[str, Any], str]] = {
    "wrong password": ({}, "password authentication failed"),
    "wrong password of a function": ({"password": provide}, "password authentication failed"),
    "password of another type": ({"password": SECRET.encode()}, ""),
    "password of no type": ({"password": [SECRET]}, ""),
    "unknown setting": (
        {"user": "postgres", "server_settings": {"my_option": SECRET[:0]}},
        "my_option",
    ),
    "settings of another type": ({"server_settings": [SECRET]}, ""),
    "nobody there": ({"port": 1}, ""),
    "no ssl": ({"ssl": "require"}, "TLS"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failed_connect_repeats_no_secret(own_postgres: Server, name: str) -> None:
    """Neither in an error, nor in what caused it, nor in the log."""
    arguments, words = FAILURES[name]

    async def main() -> None:
        pool = create_pool(
            of_role(own_postgres), connect_kwargs=arguments, acquire_timeout=0.3, max_size=2
        )
        with pytest.raises(poolkit.PoolUnavailable) as caught:
            await pool.open()
        text = text_of(caught.value)
        assert words in text
        assert SECRET not in text
        assert SECRET not in repr(pool)

    asyncio.run(main())


def test_password_function_that_fails_is_the_cause(own_postgres: Server) -> None:
    """Its own error, which may pass."""

    async def main() -> None:
        pool = create_pool(
            of_role(own_postgres),
            connect_kwargs={"password": fail_to_provide},
            acquire_timeout=0.3,
        )
        with pytest.raises(poolkit.PoolTimeout) as caught:
            await pool.open()
        assert "the vault is closed" in str(caught.value.__cause__)

    asyncio.run(main())


def test_wrong_password_is_told_at_once(own_postgres: Server) -> None:
    """To everybody who waits."""

    async def main() -> None:
        async with create_pool(of_role(own_postgres), min_size=0, max_size=3) as pool:
            results = await asyncio.gather(
                *[pool.acquire().__aenter__() for _ in range(5)], return_exceptions=True
            )
            for error in results:
                assert isinstance(error, ConnectFailed)
                assert isinstance(error.__cause__, asyncpg.InvalidPasswordError)

    asyncio.run(main())
