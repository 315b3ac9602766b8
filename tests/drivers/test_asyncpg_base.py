"""The session as `on_connect` leaves it is what every reset of asyncpg's goes back to."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from poolkit import ConnectFailed, PoolConfigError
from poolkit.compat import asyncpg as compat
from poolkit.drivers._postgresql import base as _bases
from tests.drivers.asyncpg_help import (
    LOOPS,
    CountingProxy,
    of_one,
    quiet,
    warnings_in,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tests.postgres import Postgres

    SetUp = Callable[[Any], Awaitable[object]]


@pytest.fixture(params=LOOPS[:1])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio: none of this is the loop's affair."""
    return request.param


@pytest.fixture(scope="module")
def roles(postgres: Postgres) -> Iterator[None]:
    """Have an ordinary login, a role that it may take on, and roles with odd names."""
    names = ("bt_login", "bt_reader", "bt_admin", '"bt Odd ""name"""', "bt_default", '"bt ü ソ"')
    for name in names:
        postgres.query(f"CREATE ROLE {name} LOGIN")
    postgres.query("ALTER ROLE bt_admin SUPERUSER")
    postgres.query("GRANT bt_reader, bt_admin TO bt_login")
    postgres.query("GRANT bt_reader TO bt_default")
    postgres.query("ALTER ROLE bt_default SET role = 'bt_reader'")
    yield
    for name in names:
        postgres.query(f"DROP ROLE {name}")


def as_login(dsn: str, login: str) -> str:
    """Return the DSN for another login."""
    head, _, rest = dsn.partition("://")
    return f"{head}://{login}@{rest.rpartition('@')[2]}"


def statement(*sql: str) -> SetUp:
    """Return an ``on_connect`` that executes these."""

    async def set_up(conn: asyncpg.Connection) -> None:
        for each in sql:
            await conn.execute(each)

    return set_up


#: How a session is set up, what is asked, and the answer.
BASES = {
    "role": ("SET ROLE bt_reader", "SELECT current_user::text", "bt_reader"),
    "role, by set_config": (
        "SELECT set_config('role', 'bt_reader', false)",
        "SELECT current_user::text",
        "bt_reader",
    ),
    "role with an odd name": (
        'SET ROLE "bt Odd ""name"""',
        "SELECT current_user::text",
        'bt Odd "name"',
    ),
    "session authorization": (
        "SET SESSION AUTHORIZATION bt_reader",
        "SELECT session_user || ' ' || current_user",
        "bt_reader bt_reader",
    ),
    "session authorization and role": (
        "SET SESSION AUTHORIZATION bt_login; SET ROLE bt_reader",
        "SELECT session_user || ' ' || current_user",
        "bt_login bt_reader",
    ),
    "search_path": ('SET search_path TO "o\'dd", public', "SHOW search_path", '"o\'dd", public'),
    "statement_timeout": ("SET statement_timeout = 54321", "SHOW statement_timeout", "54321ms"),
    "work_mem": ("SET work_mem = '3MB'", "SHOW work_mem", "3MB"),
    "time zone": ("SET TIME ZONE 'Asia/Tokyo'", "SHOW timezone", "Asia/Tokyo"),
    "read only": (
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        "SHOW transaction_read_only",
        "on",
    ),
    "isolation": (
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
        "SHOW transaction_isolation",
        "serializable",
    ),
    "one that only a superuser may set": (
        "SET session_replication_role = replica; SET ROLE bt_reader",
        "SELECT current_setting('session_replication_role') || ' ' || current_user",
        "replica bt_reader",
    ),
    "backslashes and quotes": (
        r"""SET application_name = E'a\\b''c"d\\'""",
        "SHOW application_name",
        r"""a\b'c"d\ """.strip(),
    ),
    "backslashes, read differently": (
        r"""SET standard_conforming_strings = off; SET application_name = E'a\\\'; x'""",
        "SELECT current_setting('application_name') || current_setting('standard_conforming_strings')",
        r"a\'; xoff",
    ),
    "letters of all kinds": (
        'SET search_path TO "ünï"; SET app.tenant = \'ä\\\'; SET ROLE "bt ü ソ"',
        "SELECT concat(current_setting('search_path'), current_setting('app.tenant'), current_user)",
        '"ünï"ä\\bt ü ソ',
    ),
    "letters that the client's encoding lacks": (
        "SET app.tenant = 'é€'; SET client_encoding = 'LATIN1'",
        "SELECT ascii(substr(current_setting('app.tenant'), 2)) || current_setting('client_encoding')",
        "8364LATIN1",
    ),
    "setting of nobody's": ("SET app.tenant = 'alice'", "SHOW app.tenant", "alice"),
    "setting of nobody's, in quotes": (
        """SET "App" . "Tenant" = 'alice'""",
        "SELECT current_setting('app.tenant')",
        "alice",
    ),
    "setting of nobody's, by set_config": (
        "SELECT set_config('app.one', 'a', false), set_config('app.other', $$b'\\$$, false)",
        "SELECT current_setting('app.one') || current_setting('app.other')",
        "ab'\\",
    ),
}
#: What leases do that would end it.
LEASES = {
    "a query": "SELECT 1",
    "RESET": "RESET ALL; RESET SESSION AUTHORIZATION; RESET ROLE",
    "strings": "SET standard_conforming_strings = off; SET search_path TO nowhere",
    "a transaction": "BEGIN; SET LOCAL app.tenant = 'bob'; SET app.one = 'x'",
    "DISCARD ALL": "DISCARD ALL",
    "another encoding": "SET client_encoding = 'sjis'",
    "another one": "SET client_encoding = 'latin1'",
}


@pytest.mark.parametrize("what", BASES)
async def test_session_as_set_up_is_what_a_reset_goes_back_to(
    dsn: str, roles: None, what: str
) -> None:
    """Whatever a lease does, on the same backend."""
    set_up, question, answer = BASES[what]
    async with of_one(dsn, reset="full", on_connect=statement(set_up)) as pool:
        pids = set()
        for lease in LEASES.values():
            async with pool.acquire() as conn:
                pids.add(conn.get_server_pid())
                assert await conn.fetchval(question) == answer
                await conn.execute(lease)
        async with pool.acquire() as conn:
            pids.add(conn.get_server_pid())
            assert await conn.fetchval(question) == answer
        assert len(pids) == 1


USER = "SELECT current_user::text"


@pytest.mark.parametrize("level", ["full", "full+prepared", "transaction", "function"])
async def test_role_is_restored_at_each_level_that_resets(
    dsn: str, roles: None, level: Any
) -> None:
    """Or the next lease would have more rights than was meant; whatever the function does."""

    async def discard(conn: asyncpg.Connection) -> None:
        await conn.execute("DISCARD ALL")

    set_up = statement("SET ROLE bt_reader; SET app.tenant = 'alice'")
    reset = discard if level == "function" else level
    async with of_one(dsn, reset=reset, on_connect=set_up) as pool:
        for lease in LEASES.values():
            async with pool.acquire() as conn:
                pid = conn.get_server_pid()
                assert await conn.fetchval(USER) == "bt_reader"
                await conn.execute(lease)
        async with pool.acquire() as conn:
            assert await conn.fetchval(USER) == "bt_reader"
            if level != "transaction":
                assert await conn.fetchval("SHOW app.tenant") == "alice"
            assert conn.get_server_pid() == pid


@pytest.mark.parametrize("level", ["transaction", "none"])
async def test_light_reset_has_the_base_only_after_discard_all(dsn: str, level: Any) -> None:
    """What a lease sets stays at these levels, as for everybody; at none there is no base."""
    async with of_one(dsn, reset=level, on_connect=statement("SET work_mem = '3MB'")) as pool:
        async with pool.acquire() as conn:
            assert await conn.fetchval("SHOW work_mem") == "3MB"
            await conn.execute("SET work_mem = '5MB'")
        async with pool.acquire() as conn:
            assert await conn.fetchval("SHOW work_mem") == "5MB"
            await conn.execute("DISCARD ALL")
        async with pool.acquire() as conn:
            has_base = await conn.fetchval("SHOW work_mem") == "3MB"
            assert has_base == (level == "transaction")


async def test_role_that_on_connect_has_put_off_is_not_taken_on_again(
    dsn: str, roles: None
) -> None:
    """RESET ROLE would: it is what the login begins with."""
    dsn = as_login(dsn, "bt_default")
    async with of_one(dsn, on_connect=statement("SET ROLE NONE")) as pool:
        for _ in range(2):
            async with pool.acquire() as conn:
                assert await conn.fetchval(USER) == "bt_default"


class Own(asyncpg.Connection):
    """Resets itself, as asyncpg's pool has it do."""

    async def reset(self, *, timeout: float | None = None) -> None:
        """Do what it always does, and more."""
        await super().reset(timeout=timeout)
        await self.execute("RESET ROLE")


@pytest.mark.parametrize("how", ["init", "connect", "init and reset", "init and class"])
async def test_base_is_that_of_init_in_asyncpgs_words(dsn: str, roles: None, how: str) -> None:
    """Changing one import must not end the role with the first lease; nor a connector's."""
    set_up = statement("SET ROLE bt_reader", "SET search_path TO elsewhere; SET app.x = '1'")

    async def connect(*args: Any, **kwargs: Any) -> Any:
        conn = await asyncpg.connect(*args, **kwargs)
        await set_up(conn)
        return conn

    options: dict[str, Any] = {"connect": connect} if how == "connect" else {"init": set_up}
    if how == "init and reset":
        options["reset"] = statement("DISCARD ALL")
    if how == "init and class":
        options["connection_class"] = Own
    async with compat.create_pool(dsn, min_size=1, max_size=1, **options) as pool:
        for lease in LEASES.values():
            assert await pool.fetchval(USER) == "bt_reader"
            assert await pool.fetchval("SHOW search_path") == "elsewhere"
            assert await pool.fetchval("SHOW app.x") == "1"
            await pool.execute(lease)
        assert await pool.fetchval(USER) == "bt_reader"
        assert pool.stats().connected == 1


async def test_rights_that_were_taken_away_cost_the_connection(
    dsn: str, postgres: Postgres, roles: None
) -> None:
    """A reset that cannot restore the role hands nothing on."""
    login = as_login(dsn, "bt_login")
    async with of_one(login, on_connect=statement("SET ROLE bt_reader"), min_size=0) as pool:
        async with pool.acquire() as conn:
            assert await conn.fetchval(USER) == "bt_reader"
            postgres.query("REVOKE bt_reader FROM bt_login")
        try:
            with pytest.raises(ConnectFailed):
                await pool.acquire()
        finally:
            postgres.query("GRANT bt_reader TO bt_login")
        assert pool.stats().retired["broken"] == 1


async def test_setting_of_the_roles_own_right_is_restored_by_the_role(
    dsn: str, postgres: Postgres, roles: None
) -> None:
    """The login itself may not set it."""
    login = as_login(dsn, "bt_login")
    set_up = statement("SET ROLE bt_admin; SET session_replication_role = replica")
    question = "SELECT current_setting('session_replication_role') || ' ' || current_user"
    async with of_one(login, on_connect=set_up) as pool:
        for _ in range(2):
            async with pool.acquire() as conn:
                assert await conn.fetchval(question) == "replica bt_admin"


REFUSED = {
    "temporary table": ("CREATE TEMP TABLE mine (x serial)", "in pg_temp: .*'table .*mine'"),
    "temporary view": ("CREATE TEMP VIEW mine AS SELECT 1", "in pg_temp: .*'view .*mine'"),
    "temporary function": (
        "CREATE FUNCTION pg_temp.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        r"in pg_temp: .*'function .*mine\(\)'",
    ),
    "temporary type": ("CREATE TYPE pg_temp.mine AS ENUM ('x')", "in pg_temp: 'type .*mine'"),
    "advisory lock": ("SELECT pg_advisory_lock(1), pg_advisory_lock_shared(2)", "2 advisory locks"),
    "LISTEN": ("LISTEN here; LISTEN there", "LISTEN '.*here'"),
    "held cursor": ("DECLARE held CURSOR WITH HOLD FOR SELECT 1", "cursor WITH HOLD 'held'"),
    "PREPARE": ("PREPARE mine AS SELECT 1", "PREPARE 'mine'"),
    "a setting that the role alone may set": (
        "SET ROLE bt_admin; SET session_replication_role = replica; SET ROLE bt_reader",
        "permission denied",
    ),
}
#: At which levels that is undone, hence refused.
LEVELS = {
    "LISTEN": {"full", "full+prepared", "transaction"},
    "PREPARE": {"full+prepared"},
    "a setting that the role alone may set": {"full", "full+prepared", "transaction"},
}


@pytest.mark.parametrize("what", REFUSED)
async def test_what_no_reset_can_restore_is_refused_where_it_would_be_undone(
    dsn: str, roles: None, what: str
) -> None:
    """At connect, with what was found and what to do; else the first lease only would have it."""
    sql, said = REFUSED[what]
    login = as_login(dsn, "bt_login")
    for level in ("full", "full+prepared", "transaction", "none"):
        pool = of_one(login, reset=level, on_connect=statement(sql))
        if level in LEVELS.get(what, {"full", "full+prepared"}):
            with pytest.raises(ConnectFailed, match=said) as caught:
                await pool.open()
            assert isinstance(caught.value.__cause__, PoolConfigError)
            assert "on_connect" in str(caught.value)
        else:
            async with pool, pool.acquire() as conn:
                assert await conn.fetchval("SELECT 1") == 1


async def test_what_asyncpg_prepares_for_itself_is_not_refused(dsn: str) -> None:
    """Nor the codecs of extensions, nor statements with names."""

    async def set_up(conn: asyncpg.Connection) -> None:
        await conn.execute("CREATE TYPE mood AS ENUM ('so', 'so so')")
        await conn.execute("CREATE TYPE pair AS (a int, b int)")
        await conn.set_type_codec("mood", encoder=str, decoder=str.upper)
        await conn.set_type_codec("pair", encoder=tuple, decoder=list, format="tuple")
        await conn.set_builtin_type_codec("mood", codec_name="text")
        assert await conn.fetchval("SELECT ROW(1, 2)::pair") == [1, 2]
        named.append(await conn.prepare("SELECT 1", name="named"))

    named: list[Any] = []
    for level in ("full", "full+prepared"):
        async with of_one(dsn, reset=level, on_connect=set_up) as pool:
            for _ in range(2):
                async with pool.acquire() as conn:
                    assert await conn.fetchval("SELECT ROW(1, 2)::pair") == [1, 2]
                    assert await conn.fetchval("SELECT 'so'::mood") == "so"
                    assert await conn.fetchval("EXECUTE named") == 1
            async with pool.acquire() as conn:
                await conn.execute("DROP TYPE pair; DROP TYPE mood")


OTHER = "DEALLOCATE own; PREPARE own AS SELECT 666"
#: How a lease replaces or ends a statement of on_connect's.
REPLACING: dict[str, Callable[[Any], Awaitable[object]]] = {
    "executed": lambda c: c.execute(OTHER),
    "fetched": lambda c: _fetch_each(c, *OTHER.split("; ")),
    "in a DO": lambda c: c.execute(
        "DO $$BEGIN EXECUTE 'DEALLOCATE own'; EXECUTE 'PREPARE own AS SELECT 666'; END$$"
    ),
    "ended": lambda c: c.execute("DEALLOCATE own"),
    "ended, fetched": lambda c: c.fetch(";deallocate/**/prepare -- it\n own"),
}


async def _fetch_each(conn: Any, *texts: str) -> None:
    for text in texts:
        await conn.fetch(text)


@pytest.mark.parametrize(
    ("by", "level"),  # on_connect with PREPARE is refused at full+prepared
    [
        ("SQL", "full"),
        ("SQL", "transaction"),
        ("asyncpg", "full"),
        ("asyncpg", "full+prepared"),
        ("asyncpg", "transaction"),
    ],
)
@pytest.mark.parametrize("how", REPLACING)
async def test_own_statement_that_a_lease_has_replaced_is_not_handed_on(
    dsn: str, how: str, by: str, level: Any
) -> None:
    """The next lease would execute what the last one has written."""
    kept = []

    async def set_up(conn: asyncpg.Connection) -> None:
        if by == "asyncpg":
            kept.append(await conn.prepare("SELECT 17", name="own"))
        else:
            await conn.execute("PREPARE own AS SELECT 17")

    async with of_one(dsn, reset=level, on_connect=set_up) as pool:
        for _ in range(2):
            async with pool.acquire() as conn:
                assert await conn.fetchval("EXECUTE own") == 17
                await conn.execute("PREPARE mine AS SELECT 1; DEALLOCATE mine")
        await quiet(pool)
        assert not pool.stats().retired["broken"]  # its own alone cost nothing
        async with pool.acquire() as conn:
            await REPLACING[how](conn)
        if by == "SQL" or "ended" not in how:
            async with pool.acquire() as conn:
                assert await conn.fetchval("EXECUTE own") == 17
            assert pool.stats().retired["broken"] == 1


async def test_name_of_a_statement_that_on_connect_has_dropped_is_free(dsn: str) -> None:
    """A lease may give it to another, which is ended like all of its own."""

    async def set_up(conn: asyncpg.Connection) -> None:
        kept.append(await conn.prepare("SELECT 17", name="own"))

    kept: list[Any] = []
    async with of_one(dsn, reset="full+prepared", on_connect=set_up) as pool:
        kept.clear()
        for _ in range(3):
            async with pool.acquire() as conn:
                pid = conn.get_server_pid()
                await conn.fetchval("SELECT 2")  # before which asyncpg drops what nobody has
                assert await (await conn.prepare("SELECT 1", name="own")).fetchval() == 1
        await quiet(pool)
        async with pool.acquire() as conn:
            assert conn.get_server_pid() == pid


async def test_names_of_settings_are_found_in_whatever_statement(dsn: str) -> None:
    """In texts and arguments, executed or prepared, one by one or many at once."""

    async def set_up(conn: asyncpg.Connection) -> None:
        sql = "SELECT set_config($1, $2, false)"
        await conn.execute("SET one.a = 'x'")
        await conn.fetch(sql, "one.b", "x")
        await conn.executemany(sql, [("one.c", "x"), ("one.d", "x")])
        await (await conn.prepare(sql)).fetch("one.e", "x")
        await (await conn.prepare("SELECT set_config('one.f', 'x', false)")).fetch()
        async with conn.transaction():
            await conn.cursor("SELECT set_config('one.g', $1, false)", "x")
        await conn.execute("SELECT pg_catalog.now(), a.b FROM (VALUES (1)) AS a (b)")

    every = " || ".join(f"current_setting('one.{name}')" for name in "abcdef")
    async with of_one(dsn, on_connect=set_up) as pool:
        for _ in range(2):
            async with pool.acquire() as conn:
                assert await conn.fetchval(f"SELECT {every}") == "xxxxxx"
                await conn.execute("RESET ALL")


SET = "SELECT set_config($1, $2, false)"
PAIRS = {"app.x": "1", "app.y": "2"}


async def _by_cursor(conn: asyncpg.Connection, how: str) -> None:
    async with conn.transaction():
        for each in PAIRS.items():
            if how == "iterated":
                assert [row async for row in conn.cursor(SET, *each)]
            elif how == "awaited":
                assert await (await conn.cursor(SET, *each)).fetch(1)
            else:
                assert [row async for row in (await conn.prepare(SET)).cursor(*each)]


async def _with_codec(conn: asyncpg.Connection) -> None:
    await conn.set_type_codec("jsonb", encoder=json.dumps, decoder=str, schema="pg_catalog")
    sql = "SELECT set_config(k, v, false) FROM jsonb_each_text($1::jsonb -> 'a' -> 0) e (k, v)"
    await conn.execute(sql, {"a": [PAIRS]})


async def _by_copy(conn: asyncpg.Connection, *args: str) -> None:
    sql = SET if args else "SELECT set_config('app.x', '1', false), set_config('app.y', '2', false)"
    await conn.copy_from_query(sql, *args, output=io.BytesIO())


async def _by_records(conn: asyncpg.Connection) -> None:
    records: Any = await conn.fetch("VALUES ('app.' || 'x', '1'), ('app.y', '2')")
    await conn.executemany(SET, records)


async def _prepared(conn: asyncpg.Connection, args: Any, *, fetches: bool = False) -> None:
    statement = await conn.prepare(SET)
    await (statement.fetchmany(args) if fetches else statement.executemany(args))


async def _after_many(conn: asyncpg.Connection) -> None:
    await conn.execute(
        "; ".join(f"SELECT {i} FROM (SELECT 1 b) s{i} WHERE s{i}.b = 1" for i in range(1100))
        + "; SET app.x = 1; SET app.y = 2"
    )


#: How settings with a dot in their names are set.
SETTING: dict[str, SetUp] = {
    "items": lambda c: c.executemany(SET, PAIRS.items()),
    "generator": lambda c: c.executemany(SET, ((k, v) for k, v in PAIRS.items())),
    "zip, fetched": lambda c: c.fetchmany(SET, zip(PAIRS, PAIRS.values(), strict=True)),
    "records": _by_records,
    "prepared, items": lambda c: _prepared(c, PAIRS.items()),
    "prepared, iterator": lambda c: _prepared(c, iter(PAIRS.items())),
    "prepared, fetched": lambda c: _prepared(c, iter(PAIRS.items()), fetches=True),
    "codec": _with_codec,
    "text of JSON": lambda c: c.execute(
        "SELECT set_config(k, v, false) FROM json_each_text($1) e (k, v)", json.dumps(PAIRS)
    ),
    "cursor": lambda c: _by_cursor(c, "iterated"),
    "cursor, awaited": lambda c: _by_cursor(c, "awaited"),
    "cursor, prepared": lambda c: _by_cursor(c, "prepared"),
    "copy": _by_copy,
    "copy with arguments": lambda c: _each(lambda pair: _by_copy(c, *pair)),
    "after many other names": _after_many,
    "after many others": lambda c: c.executemany(
        SET, [*((f"app.n{i}", "1") for i in range(1001)), *PAIRS.items()]
    ),
}


async def _each(do: Callable[[tuple[str, str]], Awaitable[None]]) -> None:
    for pair in PAIRS.items():
        await do(pair)


@pytest.mark.parametrize("how", SETTING)
async def test_settings_are_restored_however_they_were_set(dsn: str, how: str) -> None:
    """As far as a statement of on_connect's, or an argument, names them."""
    async with of_one(dsn, on_connect=SETTING[how]) as pool:
        for _ in range(2):
            async with pool.acquire() as conn:
                values = "SELECT current_setting('app.x') || current_setting('app.y')"
                assert await conn.fetchval(values) == "12"
                await conn.execute("SET app.x = 'another'")


async def test_more_settings_than_columns_are_restored(dsn: str) -> None:
    """A table has 1664 at most."""
    sql = "SELECT count(set_config('app.n' || i, '1', false)) FROM generate_series(1, 2000) i"

    async def set_up(conn: asyncpg.Connection) -> None:
        await conn.fetchval(f"{sql} WHERE $1 <> ''", " ".join(f"app.n{i}" for i in range(1, 2001)))

    async with of_one(dsn, on_connect=set_up) as pool:
        for _ in range(2):
            async with pool.acquire() as conn:
                assert await conn.fetchval("SHOW app.n2000") == "1"
                await conn.execute("SET app.n2000 = 2")


async def test_more_names_than_can_be_asked_for_are_refused(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some would be lost with the first lease, and nobody would know."""
    monkeypatch.setattr(_bases, "_MOST_NAMES", 2)
    async with of_one(dsn, on_connect=statement("SET app.x = 1; SET app.y = 1")):
        pass
    pool = of_one(dsn, on_connect=statement("SET app.x = 1; SET app.y = 1; SET app.z = 1"))
    with pytest.raises(ConnectFailed, match=r"more than 2 names with a dot.*server_settings"):
        await pool.open()


DEFERRABLE = (
    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE"
)


@pytest.mark.parametrize("level", ["full", "transaction"])
async def test_deferrable_session_is_reset_while_others_write(
    dsn: str, roles: None, outside: asyncpg.Connection, level: Any
) -> None:
    """Each query of it would wait for them; the pool's own do not."""
    set_up = statement("SET ROLE bt_reader", DEFERRABLE)
    pids = set()
    async with outside.transaction(isolation="serializable"):
        await outside.execute("INSERT INTO t VALUES (1)")
        async with of_one(dsn, reset=level, on_connect=set_up) as pool:
            for _ in range(2):
                async with pool.acquire() as conn:
                    pids.add(conn.get_server_pid())
                    await conn.execute("SET work_mem = '3MB'")
            await quiet(pool)
            assert not pool.stats().retired["broken"]
    assert len(pids) == 1


async def test_base_may_be_captured_again(dsn: str, roles: None) -> None:
    """As whoever sets up more later has to, SQLAlchemy for one."""
    async with of_one(dsn, on_connect=statement("SET app.one = '1'; SET work_mem = '3MB'")) as pool:
        driver: Any = pool._driver
        async with pool.acquire() as conn:
            c: Any = conn._poolkit_slot.connection  # type: ignore[attr-defined]
            c.collect_names()
            await conn.execute("SET app.two = '2'; SET work_mem = '5MB'; SET ROLE bt_reader")
            await driver.capture(c)
        question = "SELECT concat_ws(' ', current_user, current_setting('work_mem'), {}, {})"
        settings = ("current_setting('app.one')", "current_setting('app.two')")
        for _ in range(2):
            async with pool.acquire() as conn:
                assert await conn.fetchval(question.format(*settings)) == "bt_reader 5MB 1 2"
                await conn.execute("RESET ALL; RESET ROLE")
        assert pool.stats().connected == 1


@pytest.mark.parametrize(
    ("set_up", "connecting"),
    [
        (None, 0),
        ("SELECT 1", 2),
        ("SET work_mem = '3MB'; SET app.tenant = 'alice'", 4),
    ],
)
async def test_base_costs_no_round_trip_of_a_reset(
    postgres: Postgres, dsn: str, set_up: str | None, connecting: int
) -> None:
    """One at connect, after an on_connect; two more if there is something to restore."""
    with CountingProxy(postgres.host, postgres.port) as proxy:
        async with of_one(proxy.through(dsn), pooler="session") as pool:
            bare = proxy.trips
            await quiet(pool)
        proxy.trips = 0
        hook = None if set_up is None else statement(set_up)
        async with of_one(proxy.through(dsn), pooler="session", on_connect=hook) as pool:
            assert proxy.trips - bare == connecting
            async with pool.acquire() as conn:
                await conn.execute("SELECT 1")
            before = proxy.trips
            await quiet(pool)
            assert proxy.trips - before <= 1


async def test_session_that_cannot_be_seen_is_refused(
    database: str, postgres: Postgres, roles: None
) -> None:
    """Its role might be lost with the first lease, and nobody would know."""
    name = database.rpartition("/")[2]
    postgres.query("REVOKE SELECT ON pg_catalog.pg_settings FROM PUBLIC", database=name)
    pool = of_one(as_login(database, "bt_login"), on_connect=statement("SET ROLE bt_reader"))
    with pytest.raises(ConnectFailed, match=r"cannot be read.*pg_settings.*server_settings"):
        await pool.open()


async def test_server_that_is_no_postgresql_is_reset_as_ever(
    dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It has no such catalogue, which is said once."""
    monkeypatch.setattr(_bases, "_CAPTURE", "SELECT {names} FROM nowhere")
    async with of_one(
        dsn, on_connect=statement("SET app.tenant = '1'; SET work_mem = 12345")
    ) as pool:
        for value in ("12345kB", "4MB"):
            async with pool.acquire() as conn:
                assert await conn.fetchval("SHOW work_mem") == value
        pool.renew()
        async with pool.acquire() as conn:
            assert await conn.fetchval("SHOW work_mem") == "12345kB"
    (said,) = warnings_in(caplog)
    assert "a reset here ends what on_connect has set up" in said


async def test_way_back_that_leads_elsewhere_is_refused(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was restored is compared with what was found, by name."""
    monkeypatch.setattr(_bases, "literal", lambda text: "'" + text.replace("3", "4") + "'")
    pool = of_one(dsn, on_connect=statement("SET work_mem = '30MB'"))
    with pytest.raises(ConnectFailed, match=r"cannot restore after a reset: work_mem\. Give"):
        await pool.open()


def test_names_are_found_in_long_texts_in_no_time() -> None:
    """A million letters, quotes or spaces are no reason to stop the event loop."""
    statements = _bases.DottedNames()
    for text in (
        "x" * 1_000_000,
        '"' * 1_000_001,
        " " * 1_000_000,
        "a." * 300_000,
        "$" * 1_000_000,
    ):
        statements.read(text)
    statements.read("SET app.tenant = 1")
    assert "app.tenant" in statements.names


def test_names_are_found_in_values_of_all_kinds() -> None:
    """In those of other values too, if they contain each other."""
    ring: list[Any] = ["app.a"]
    ring += [ring, {"app.b": {"app.c": ["app.d"]}}, {"app.e"}, ("app.f", b"app.no", 1, None)]
    statements = _bases.DottedNames()
    statements.read(ring, range(10**12), {"x": 1}.items(), {"app.g": 1}.keys())
    assert sorted(statements.names) == [f"app.{letter}" for letter in "abcdefg"]


async def test_nothing_is_captured_where_there_is_no_session(
    dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Behind a pooler it would be that of others."""
    set_up = statement("LISTEN here; SELECT pg_advisory_lock(1)")
    async with of_one(dsn, pooler="transaction", on_connect=set_up) as pool:
        async with pool.acquire() as conn:
            assert await conn.fetchval("SELECT 1") == 1
    assert not warnings_in(caplog)
