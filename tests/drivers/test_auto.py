"""``reset="auto"`` on a real PostgreSQL: which resets are put off while somebody waits, and which are not."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncpg
import psycopg
import pytest

import poolkit
from poolkit import ConnectFailed, Pool, PoolConfigError
from poolkit._core import placement
from poolkit._core.slot import NEVER
from poolkit.drivers._postgresql import auto as resets
from poolkit.drivers.asyncpg import _parts as parts
from poolkit.testing import check_pool, verify_auto_reset
from tests.drivers import postgresql_kinds, psycopg_kinds
from tests.drivers.asyncpg_help import LOOPS, quiet, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from tests.postgres import Postgres

    Act = Callable[[Any], Awaitable[object]]


class Library(NamedTuple):
    """A driver of PostgreSQL, and what can be left on its connections."""

    driver: Any
    kinds: Any
    #: What is undone without a reset, or stays after any.
    not_reset: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return its name."""
        return str(self.driver.__name__.rpartition(".")[2])

    def of_one(self, dsn: str, **options: Any) -> Pool[Any]:
        """Return a pool of one connection."""
        pool: Pool[Any] = self.driver.create_pool(dsn, **{"max_size": 1, **options})
        return pool

    def of_class(self, kind: type) -> dict[str, Any]:
        """Return the options by which connections are of a class."""
        own = {"connection_class": kind}
        return {"connect_kwargs": own} if self is ASYNCPG else own

    def pairs(self, *acts: Act) -> list[Any]:
        """Return it with each of some acts."""
        return [pytest.param(self, act, id=f"{self.name}-{act.__name__}") for act in acts]


ASYNCPG = Library(
    poolkit.drivers.asyncpg, postgresql_kinds, ("attribute of a class", "plans of cached")
)
PSYCOPG = Library(
    poolkit.drivers.psycopg,
    psycopg_kinds,
    (
        *("attribute of a class", "plans of", "`adapters`", "`row_factory`", "`cursor_factory`"),
        *(
            "`set_autocommit()`",
            "`set_isolation_level()`",
            "`set_read_only()`",
            "`prepare_threshold`",
        ),
    ),
)
LIBRARIES = [pytest.param(each, id=each.name) for each in (ASYNCPG, PSYCOPG)]


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> Library:
    """Return each in turn."""
    found: Library = request.param
    return found


async def value(conn: Any, sql: str) -> Any:
    """Return the first value of the first row."""
    if not isinstance(conn, psycopg.AsyncConnection):
        return await conn.fetchval(sql)
    (found,) = await (await conn.execute(sql)).fetchall()
    return found[0]


def in_transaction(conn: Any) -> bool:
    """Tell whether one is open."""
    if not isinstance(conn, psycopg.AsyncConnection):
        return bool(conn.is_in_transaction())
    return bool(conn.info.transaction_status != psycopg.pq.TransactionStatus.IDLE)


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop: neither library knows others."""
    return request.param


@pytest.fixture(autouse=True)
def no_reset_is_due_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is: `tests/pool/test_unreset.py` has that."""
    monkeypatch.setattr(placement, "_LONGEST_UNRESET", NEVER)


@pytest.fixture(scope="module")
def dsn(postgres: Postgres) -> Iterator[str]:
    """Return the DSN of a database with code of its own in it."""
    name = postgres.create_database()
    postgres.query("CREATE TABLE t (x int)", database=name)
    postgres.query("INSERT INTO t VALUES (1)", database=name)
    postgres.query("CREATE SEQUENCE s", database=name)
    for sql in SCHEMA:
        postgres.query(sql, database=name)
    yield postgres.dsn(name)
    postgres.drop_database(name)


#: What a text does not say.
SCHEMA = (
    "CREATE TABLE clean (id int GENERATED ALWAYS AS IDENTITY, x text NOT NULL DEFAULT 'a', at date)",
    "CREATE TABLE audited (x int)",
    (
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "PERFORM set_config('app.tenant', NEW.x::text, false); RETURN NEW; END $$"
    ),
    "CREATE TRIGGER note BEFORE INSERT ON audited FOR EACH ROW EXECUTE FUNCTION note()",
    "CREATE TABLE noted (x int)",
    (
        "CREATE FUNCTION note_locally() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "PERFORM set_config('app.user', NEW.x::text, true); RETURN NEW; END $$"
    ),
    "CREATE TRIGGER note BEFORE INSERT ON noted FOR EACH ROW EXECUTE FUNCTION note_locally()",
    "CREATE VIEW locking AS SELECT pg_advisory_lock(5) IS NULL AS x",
    "CREATE TABLE slow (x text DEFAULT set_config('work_mem', '3MB', false))",
    # It fits better than pg_catalog's, which takes text.
    (
        "CREATE FUNCTION upper(varchar) RETURNS text LANGUAGE sql AS "
        "$$ SELECT set_config('app.upper', $1, false) $$"
    ),
    (
        "CREATE FUNCTION total(t) RETURNS text LANGUAGE sql AS "
        "$$ SELECT set_config('app.total', '1', false) $$"
    ),
    (
        "CREATE FUNCTION many(VARIADIC t[]) RETURNS text LANGUAGE sql AS "
        "$$ SELECT set_config('app.total', '1', false) $$"
    ),
    (
        "CREATE FUNCTION tune(text) RETURNS text LANGUAGE sql AS "
        "$$ SELECT set_config('app.tuned', $1, false) $$"
    ),
    "ALTER EXTENSION plpgsql ADD FUNCTION tune(text)",
    "CREATE DOMAIN macaddr AS text",
    "CREATE DOMAIN mine AS text CHECK (set_config('app.mine', VALUE, false) IS NOT NULL)",
)


class Seen:
    """Counts the resets of a pool's connections."""

    def __init__(self, pool: Pool[Any]) -> None:
        self.resets = 0
        driver: Any = pool._driver
        reset = driver._reset

        async def counted(c: Any) -> Any:
            self.resets += 1
            return await reset(c)

        driver._reset = counted


@contextlib.asynccontextmanager
async def auto(library: Library, dsn: str, **options: Any) -> AsyncIterator[tuple[Pool[Any], Seen]]:
    """Open a pool of one connection."""
    async with library.of_one(dsn, reset="auto", **options) as pool:
        yield pool, Seen(pool)
        await check_pool(pool)


async def and_hand_on(pool: Pool[Any], use: Act) -> Any:
    """Use a connection while somebody waits for it; return the next lease's, and its lease's end."""
    conn = await pool.acquire()
    waiter = asyncio.ensure_future(wait(pool))
    await until(lambda: pool.stats().waiting == 1)
    try:
        await use(conn)
    finally:
        with contextlib.suppress(Exception):
            pool.release(conn)
    return await waiter


async def wait(pool: Pool[Any]) -> Any:
    """Acquire."""
    return await pool.acquire()


def sql(*statements: str) -> Act:
    """Return what executes statements."""

    async def act(conn: Any) -> None:
        for statement in statements:
            await conn.execute(statement)

    return act


async def is_reset(library: Library, dsn: str, use: Act, **options: Any) -> bool:
    """Tell whether a connection is reset for the next user, who waits, after such a use."""
    async with auto(library, dsn, **options) as (pool, seen):
        conn = await and_hand_on(pool, use)
        resets = seen.resets
        pool.release(conn)
        await quiet(pool)
        assert seen.resets == 1 or resets == 1, "an idle connection owes its reset"
        return resets == 1


# -- put off -------------------------------------------------------------------------------------


async def fetch(conn: Any) -> None:
    """Run plain statements, by all methods."""
    await conn.fetch("SELECT x FROM t WHERE x = $1", 1)
    await conn.fetchrow("SELECT x FROM t")
    await conn.fetchval("SELECT count(*) FROM t")
    await conn.execute("INSERT INTO clean (at) VALUES (now())")
    await conn.execute("UPDATE clean SET x = $1", "b")
    await conn.executemany("INSERT INTO clean (x) VALUES ($1)", [("c",), ("d",), ("e",)])
    await conn.execute("DELETE FROM clean")


async def transact(conn: Any) -> None:
    """Run transactions, one in another."""
    async with conn.transaction(isolation="serializable"):
        await conn.execute("INSERT INTO clean DEFAULT VALUES")
        async with conn.transaction():
            await conn.fetch("SELECT 1")
    await conn.execute("BEGIN READ ONLY")
    await conn.execute("ROLLBACK")


async def look(conn: Any) -> None:
    """Ask what asyncpg knows."""
    assert not conn.is_closed()
    assert not conn.is_in_transaction()
    conn.get_server_pid()
    conn.get_settings()


async def execute(conn: Any) -> None:
    """Run plain statements, by all that psycopg has for them."""
    cursor = await conn.execute("SELECT x FROM t WHERE x = %s", (1,))
    assert await cursor.fetchall() == [(1,)]
    async with conn.cursor(row_factory=psycopg.rows.dict_row) as cursor:
        await cursor.execute("SELECT count(*) AS many FROM t WHERE x = %(x)s", {"x": 1})
        assert await cursor.fetchone() == {"many": 1}
        await cursor.executemany("INSERT INTO clean (x) VALUES (%s)", [("c",), ("d",), ("e",)])
        for _ in range(10):  # and prepares it
            await cursor.execute("SELECT count(*) FROM t")
    table = psycopg.sql.Identifier("clean")
    await conn.execute(psycopg.sql.SQL("INSERT INTO {} (at) VALUES (now())").format(table))
    await conn.execute(b"UPDATE clean SET x = 'b'")
    await psycopg_client(conn, "SELECT %s::int", (2,))
    await conn.execute("DELETE FROM clean", prepare=True)


async def psycopg_client(conn: Any, query: str, arguments: tuple[object, ...]) -> None:
    """Execute with the values in the text."""
    conn.cursor_factory = psycopg.AsyncClientCursor
    await conn.execute(query, arguments)
    conn.cursor_factory = psycopg.AsyncCursor


async def transact_by_psycopg(conn: Any) -> None:
    """Run transactions, one in another, and without autocommit."""
    await conn.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)
    async with conn.transaction():
        await conn.execute("INSERT INTO clean DEFAULT VALUES")
        async with conn.transaction("mine"):
            await conn.execute("SELECT 1")
    with contextlib.suppress(psycopg.Rollback):
        async with conn.transaction():
            await conn.execute("SELECT 1")
            raise psycopg.Rollback
    await conn.set_autocommit(False)
    for end in (conn.commit, conn.rollback):
        await conn.execute("INSERT INTO clean DEFAULT VALUES")
        await end()


async def in_a_pipeline(conn: Any) -> None:
    """Send plain statements without waiting for the answers."""
    async with conn.pipeline():
        for _ in range(3):
            await conn.execute("INSERT INTO clean DEFAULT VALUES")


async def look_by_psycopg(conn: Any) -> None:
    """Ask what psycopg knows."""
    assert not conn.closed
    assert not in_transaction(conn)
    assert conn.info.backend_pid


@pytest.mark.parametrize(
    ("library", "use"),
    [
        *ASYNCPG.pairs(fetch, transact, look),
        *PSYCOPG.pairs(execute, transact_by_psycopg, in_a_pipeline, look_by_psycopg),
    ],
)
async def test_reset_is_put_off_after_plain_statements(
    library: Library, dsn: str, use: Act
) -> None:
    """As long as somebody waits."""
    assert not await is_reset(library, dsn, use)


async def test_reset_is_put_off_after_a_transaction_of_the_pools(
    library: Library, dsn: str
) -> None:
    """It commits by statements of its own."""
    async with auto(library, dsn) as (pool, seen):

        async def insert() -> None:
            async with pool.transaction() as conn:
                await conn.execute("INSERT INTO clean DEFAULT VALUES")

        await asyncio.gather(*(insert() for _ in range(10)))
        await quiet(pool)
        assert seen.resets == 1


async def test_transaction_that_is_not_plain_is_reset_with_its_commit(
    library: Library, dsn: str
) -> None:
    """So the reset that was put off before is made up as well, and the next may be put off."""
    async with auto(library, dsn) as (pool, seen):

        async def use(text: str) -> None:
            async with pool.transaction() as conn:
                await conn.execute(text)

        plain = "INSERT INTO clean DEFAULT VALUES"
        await asyncio.gather(use(plain), use(plain), use("SET app.x = 'left'"))
        stats = pool.stats()
        assert (seen.resets, stats.idle, stats.recycling) == (0, 1, 0)
        await asyncio.gather(use(plain), use("SET app.x = 'left'"), use(plain), use(plain))
        await quiet(pool)
        assert seen.resets == 1  # of the last one, as nobody waited


async def test_everybody_in_a_crowd_is_served_and_in_the_end_all_is_reset(
    library: Library, dsn: str
) -> None:
    """Two connections, twenty users of fifty leases each, a few of which leave something."""
    async with library.driver.create_pool(dsn, max_size=2, reset="auto") as pool:
        seen = Seen(pool)

        async def use(number: int) -> None:
            for turn in range(50):
                async with pool.acquire() as conn:
                    assert not await value(conn, "SELECT current_setting('app.x', true)")
                    if (number, turn % 25) == (3, 7):
                        await conn.execute("SET app.x = 'left'")

        await asyncio.gather(*map(use, range(20)))
        await check_pool(pool)
        assert 2 <= seen.resets < 100


#: What a user in a crowd does; the last ones leave something.
DEEDS = (
    "SELECT count(*) FROM t",
    "INSERT INTO clean DEFAULT VALUES",
    "UPDATE clean SET x = 'c'",
    "SET app.x = 'left'",
    "SELECT set_config('work_mem', '3MB', false)",
    "SELECT pg_advisory_lock_shared(3)",
    "BEGIN",
)


async def see_nothing(conn: Any) -> None:
    """Check that nobody was there before."""
    assert not in_transaction(conn)
    assert not await value(conn, "SELECT current_setting('app.x', true)")
    assert await value(conn, "SELECT current_setting('work_mem')") == "4MB"


@pytest.mark.parametrize("seed", range(3))
async def test_nobody_in_a_crowd_sees_what_others_have_left(
    library: Library, dsn: str, seed: int
) -> None:
    """Also if many are cancelled, at whatever moment, and fail; in the end nothing is lost."""
    random = Random(seed)
    async with library.driver.create_pool(
        dsn, max_size=3, reset="auto", acquire_timeout=60
    ) as pool:
        seen, leases = Seen(pool), 0

        async def turn() -> None:
            nonlocal leases
            is_plain = random.random() < 0.3
            async with pool.transaction() if is_plain else pool.acquire() as conn:
                leases += 1
                if not is_plain:
                    await see_nothing(conn)
                    if random.random() < 0.3:
                        await conn.execute(random.choice(DEEDS))
                else:
                    await conn.execute(random.choice(DEEDS[:3]))
                if random.random() < 0.1:
                    raise LookupError

        async def use() -> None:
            for _ in range(40):
                limit = random.choice([None, None, None, 0.0, 0.001, 0.004])
                with contextlib.suppress(LookupError, TimeoutError):
                    async with asyncio.timeout(limit):
                        await turn()

        await asyncio.gather(*(use() for _ in range(12)))
        await check_pool(pool)
        assert 0 < seen.resets < leases
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(3):
                conn = await stack.enter_async_context(pool.acquire())
                await see_nothing(conn)
            locks = (
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = "
                "(SELECT oid FROM pg_database WHERE datname = current_database())"
            )
            assert await value(conn, f"{locks} AND objid = 3") == 0


# -- not put off ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")
@pytest.mark.parametrize(
    ("library", "kind"),
    [
        pytest.param(library, kind, id=f"{library.name}-{kind.name}")
        for library in (ASYNCPG, PSYCOPG)
        for kind in library.kinds.KINDS
    ],
)
async def test_reset_is_not_put_off_after_any_kind_of_state(
    library: Library, dsn: str, kind: Any
) -> None:
    """What the page says of ``"full"`` holds, also for a user who waits."""

    async def act(conn: Any) -> None:
        await library.kinds.leave(conn, kind)

    async with auto(library, dsn, **library.of_class(library.kinds.Own)) as (pool, seen):
        before = pool.stats().connected
        conn = await and_hand_on(pool, act)
        # The driver undoes it itself; plans stay at every level.
        if not kind.name.startswith(library.not_reset):
            assert seen.resets or pool.stats().connected > before
        stays = await library.kinds.is_seen(conn, kind)
        assert not stays or kind.note, f"{kind.name} was left"
        pool.release(conn)


async def caught(conn: Any) -> None:
    """Fail, and go on."""
    with contextlib.suppress(asyncpg.DivisionByZeroError, psycopg.errors.DivisionByZero):
        await conn.execute("SELECT 1 / 0")


async def prepared(conn: Any) -> None:
    """Prepare a statement, and execute it."""
    await (await conn.prepare("SELECT 1")).fetch()


async def only_prepared(conn: Any) -> None:
    """Prepare a statement."""
    await conn.prepare("SELECT 1")


async def cursor(conn: Any) -> None:
    """Read from a cursor."""
    async with conn.transaction():
        await (await conn.cursor("SELECT 1")).fetch(1)


async def iterated(conn: Any) -> None:
    """Iterate over a cursor."""
    async with conn.transaction():
        assert [row async for row in conn.cursor("SELECT 1")]


async def copied_out(conn: Any) -> None:
    """COPY."""

    async def drop(_: bytes) -> None:
        pass

    await conn.copy_from_query("SELECT 1", output=drop)


async def copied_in(conn: Any) -> None:
    """COPY."""
    await conn.copy_records_to_table("t", records=[])


async def with_codec(conn: Any) -> None:
    """Set a codec."""
    await conn.set_type_codec("json", encoder=str, decoder=str, schema="pg_catalog")


async def itself_reset(conn: Any) -> None:
    """Reset it."""
    await conn.reset()


async def by_the_protocol(conn: Any) -> None:
    """Go past all methods."""
    await conn._protocol.query("SELECT 1", 5)


async def open_transaction(conn: Any) -> None:
    """Leave one."""
    await conn.execute("BEGIN")


async def timed_out(conn: Any) -> None:
    """Have a statement cancelled by its timeout."""
    with contextlib.suppress(TimeoutError):
        await conn.fetch("SELECT count(*) FROM generate_series(1, 1000000000)", timeout=0.05)


async def chained(conn: Any) -> None:
    """Leave another transaction."""
    await conn.execute("BEGIN")
    await conn.execute("COMMIT AND CHAIN")


async def listened(conn: Any) -> None:
    """Listen, and stop."""
    await conn.add_listener("here", print)
    await conn.remove_listener("here", print)


async def many_at_once(conn: Any) -> None:
    """Send several statements in one text."""
    await conn.execute("SELECT 1; SELECT 2")


async def shadowed(conn: Any) -> None:
    """Call a function by the name of one of PostgreSQL's."""
    assert await value(conn, "SELECT upper(x::varchar) FROM t") == "1"
    assert await value(conn, "SELECT current_setting('app.upper')") == "1"


async def like_a_column(conn: Any) -> None:
    """Call a function that takes a row."""
    await value(conn, "SELECT t.total FROM t")


async def of_many_like_a_column(conn: Any) -> None:
    """Call a function that takes any number of rows."""
    await value(conn, "SELECT t.many FROM t")


async def of_a_sequence_like_a_column(conn: Any) -> None:
    """Call a function of PostgreSQL's that takes what another one has returned."""
    await value(conn, "SELECT s.nextval FROM unnest(ARRAY['s'::regclass]) AS s")


async def of_an_extension_like_a_column(conn: Any) -> None:
    """Call a function of an extension's that takes what another one has returned."""
    await value(conn, "SELECT x.tune FROM unnest(ARRAY['1']) AS x")
    assert await value(conn, "SELECT current_setting('app.tuned')") == "1"


async def of_a_domain(conn: Any) -> None:
    """Cast to a type whose constraint calls a function."""
    await value(conn, "SELECT 'a'::mine")
    assert await value(conn, "SELECT current_setting('app.mine')") == "a"


async def of_a_type_with_such_a_name(conn: Any) -> None:
    """Cast to a type that might be a user's, going by its name."""
    await value(conn, "SELECT '08:00:2b:01:02:03'::macaddr")


async def streamed(conn: Any) -> None:
    """Read rows one by one."""
    assert [row async for row in conn.cursor().stream("SELECT 1")] == [(1,)]


async def by_a_cursor_of_the_servers(conn: Any) -> None:
    """Declare one."""
    async with conn.transaction(), conn.cursor("mine") as cursor:
        await cursor.execute("SELECT 1")
        await cursor.fetchall()


async def copied_by_psycopg(conn: Any) -> None:
    """COPY."""
    async with conn.cursor().copy("COPY (SELECT 1) TO STDOUT") as copy:
        assert [row async for row in copy.rows()]


async def by_a_class_of_cursors(conn: Any) -> None:
    """Execute by a class that may send anything."""

    class Other(psycopg.AsyncCursor[Any]):
        pass

    conn.cursor_factory = Other
    await conn.execute("SELECT 1")


async def by_a_cursor_that_tells_nothing(conn: Any) -> None:
    """Go past the methods of the connection."""
    inside = conn.cursor().connection
    await psycopg.AsyncCursor(inside).execute("SELECT 1")


async def unheard_and_not_sent(conn: Any) -> None:
    """Have another cursor tell of a text that it does not send."""
    await by_a_cursor_that_tells_nothing(conn)
    psycopg.AsyncClientCursor(conn).mogrify("SELECT 1")


async def many_by_a_client_cursor(conn: Any) -> None:
    """Send values in the text: each is another text."""

    class Dumper(psycopg.adapt.Dumper):
        def dump(self, obj: Any) -> bytes:
            return str(obj).encode()

        def quote(self, obj: Any) -> bytes:
            return b"set_config('work_mem', '3MB', false)" if obj else b"'plain'"

    conn.adapters.register_dumper(bool, Dumper)
    await psycopg.AsyncClientCursor(conn).executemany("SELECT %s", [(False,), (True,)])


async def by_a_generator(conn: Any) -> None:
    """Go past all methods."""
    inside = conn.cursor().connection
    await conn.wait(psycopg.generators.execute(inside.pgconn))


async def notified(conn: Any) -> None:
    """Wait for notifications."""
    assert [notice async for notice in conn.notifies(timeout=0)] == []


async def in_two_phases(conn: Any) -> None:
    """Begin a transaction that might outlive the connection."""
    await conn.set_autocommit(False)
    await conn.tpc_begin("mine")
    await conn.tpc_rollback()


async def handler_added(conn: Any) -> None:
    """Leave a handler, which is told of."""
    conn.add_notice_handler(print)


async def not_in_ascii(conn: Any) -> None:
    """Send what the judge does not read."""
    await conn.execute("SELECT 'é'")


async def cancelled(conn: Any) -> None:
    """Have a statement cancelled."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            await conn.execute("SELECT count(*) FROM generate_series(1, 1000000000)")


BY_SQL: list[Act] = [
    *(caught, open_transaction, chained, many_at_once, shadowed, like_a_column),
    *(of_many_like_a_column, of_a_sequence_like_a_column, of_an_extension_like_a_column),
    *(of_a_domain, of_a_type_with_such_a_name, not_in_ascii, cancelled),
]
OF_ASYNCPG: list[Act] = [
    *(prepared, only_prepared, cursor, iterated, copied_out, copied_in, with_codec),
    *(itself_reset, by_the_protocol, timed_out, listened),
]
OF_PSYCOPG: list[Act] = [
    *(streamed, by_a_cursor_of_the_servers, copied_by_psycopg, by_a_class_of_cursors),
    *(unheard_and_not_sent, many_by_a_client_cursor),
    *(by_a_cursor_that_tells_nothing, by_a_generator, notified, in_two_phases, handler_added),
]


@pytest.mark.parametrize(
    ("library", "use"),
    [*ASYNCPG.pairs(*BY_SQL, *OF_ASYNCPG), *PSYCOPG.pairs(*BY_SQL, *OF_PSYCOPG)],
)
async def test_reset_is_not_put_off_after_anything_else(
    library: Library, dsn: str, use: Act
) -> None:
    """Whether or not it has left something."""
    assert await is_reset(library, dsn, use)


async def test_reset_is_not_put_off_after_a_block_that_fails(library: Library, dsn: str) -> None:
    """Whatever it was that has failed."""
    async with auto(library, dsn) as (pool, seen):

        async def fail() -> None:
            async with pool.acquire() as conn:
                await conn.execute("SELECT 1")
                await until(lambda: pool.stats().waiting == 1)
                raise ValueError

        failing = asyncio.ensure_future(fail())
        await until(lambda: pool.stats().leased == 1)
        async with pool.acquire():
            assert seen.resets == 1
        with pytest.raises(ValueError):
            await failing


async def test_what_a_lease_has_done_counts_until_the_reset(library: Library, dsn: str) -> None:
    """Also if a lease that is plain comes after one that was handed on."""
    async with auto(library, dsn) as (pool, seen):
        conn = await and_hand_on(pool, sql("SELECT 1"))
        assert seen.resets == 0
        waiter = asyncio.ensure_future(wait(pool))
        await until(lambda: pool.stats().waiting == 1)
        await conn.execute("SET work_mem = '3MB'")
        pool.release(conn)
        conn = await waiter
        assert seen.resets == 1
        assert await value(conn, "SHOW work_mem") == "4MB"
        pool.release(conn)


async def test_on_acquire_has_each_lease_reset(library: Library, dsn: str) -> None:
    """It may set up what it likes."""

    async def set_up(conn: Any) -> None:
        await conn.execute("SELECT 1")

    assert await is_reset(library, dsn, sql("SELECT 1"), on_acquire=set_up)


async def test_on_connect_does_not_keep_resets_from_being_put_off(
    library: Library, dsn: str
) -> None:
    """What it has set up is the base of the session."""
    set_up = sql(
        "SET app.x = 'base'", "SET search_path = public, pg_catalog", "SET ROLE pg_monitor"
    )
    assert not await is_reset(library, dsn, sql("SELECT 1"), on_connect=set_up)
    assert await is_reset(library, dsn, sql("SELECT upper('a')"), on_connect=set_up)


async def test_class_with_an_execute_of_its_own_has_each_lease_reset(
    library: Library, dsn: str
) -> None:
    """It may send something else."""
    base: Any = asyncpg.Connection if library is ASYNCPG else psycopg.AsyncConnection

    class Other(base):  # type: ignore[misc]
        async def execute(self, query: str, *args: Any, **kwargs: Any) -> Any:
            return await super().execute(f"SET app.x = '1'; {query}", *args, **kwargs)

    assert await is_reset(library, dsn, sql("SELECT 1"), **library.of_class(Other))


async def test_class_of_ones_own_is_none_the_worse(library: Library, dsn: str) -> None:
    """Its methods go through the library's."""
    base: Any = asyncpg.Connection if library is ASYNCPG else psycopg.AsyncConnection

    class Other(base):  # type: ignore[misc]
        async def answer(self) -> object:
            return await value(self, "SELECT 1")

        async def leave(self) -> object:
            return await value(self, "SELECT set_config('app.x', '1', false)")

    options = library.of_class(Other)
    assert not await is_reset(library, dsn, lambda conn: conn.answer(), **options)
    assert await is_reset(library, dsn, lambda conn: conn.leave(), **options)


@pytest.mark.parametrize(
    "part", ["Protocol.queries_count", "Connection._get_statement", "Protocol._is_cancelling"]
)
async def test_without_a_part_of_asyncpgs_each_lease_is_reset(
    dsn: str, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """Nobody could tell what has been done."""
    examine = parts.examine

    def lacking(c: Any, kind: type) -> parts.Parts:
        found = examine(c, kind)
        found.missing.append(part)
        return found

    monkeypatch.setattr(parts, "examine", lacking)
    assert await is_reset(ASYNCPG, dsn, sql("SELECT 1"))


async def test_server_that_does_not_say_which_functions_there_are_has_each_lease_reset(
    library: Library, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not PostgreSQL, and its functions may do other things."""
    monkeypatch.setattr(resets, "TAKEN", "SELECT proname FROM not_there")
    assert await is_reset(library, dsn, sql("SELECT 1"))


async def test_pings_do_not_keep_a_reset_from_being_put_off(library: Library, dsn: str) -> None:
    """They are the pool's own statements."""
    async with auto(library, dsn, ping_after=0.0) as (pool, seen):
        for _ in range(3):
            conn = await and_hand_on(pool, sql("SELECT 1"))
            pool.release(conn)
            await quiet(pool)
        assert seen.resets == 3


# -- the option ----------------------------------------------------------------------------------


def test_auto_is_refused_behind_a_pooler_by_transaction(library: Library) -> None:
    """There is no session to reset."""
    with pytest.raises(PoolConfigError, match="reset='auto' behind pooler='transaction'"):
        library.driver.from_url("postgresql://u@h/d", reset="auto", pooler="transaction")


async def test_auto_may_be_given_in_a_url(library: Library, dsn: str) -> None:
    """Like the other levels."""
    assert library.of_one(f"{dsn}?reset=auto")._driver.settings.reset == "auto"  # type: ignore[attr-defined]


async def test_on_connect_may_not_leave_what_the_full_reset_undoes(
    library: Library, dsn: str
) -> None:
    """As at ``"full"``."""
    pool = library.of_one(dsn, reset="auto", on_connect=sql("CREATE TEMP TABLE mine2 ()"))
    with pytest.raises(ConnectFailed) as failed:
        await pool.open()
    assert "in pg_temp" in str(failed.value.__cause__)


# -- the verifier --------------------------------------------------------------------------------


async def use(pool: Pool[Any], statement: str, *arguments: object) -> None:
    """Acquire, and execute one statement."""
    async with pool.acquire() as conn:
        if not isinstance(conn, psycopg.AsyncConnection):
            await conn.fetch(statement, *arguments)
        else:
            await conn.execute(statement.replace("$1", "%s"), arguments)


async def test_clean_schema_is_verified(library: Library, dsn: str) -> None:
    """Each lease that might have been handed on is looked at, whether somebody waits or not."""
    async with auto(library, dsn) as (pool, seen), verify_auto_reset(pool) as verified:
        await use(pool, "INSERT INTO clean (x) VALUES ($1)", "a")
        await use(pool, "INSERT INTO noted VALUES (1)")  # for its transaction only
        await use(pool, "SELECT set_config('app.x', '1', false)")  # which is not plain
        await asyncio.gather(*(use(pool, "SELECT * FROM clean") for _ in range(5)))
        await quiet(pool)
        assert verified.checked == 7
        assert seen.resets == 8


LEAVING = {
    "INSERT INTO audited VALUES ($1)": "app.tenant",
    "SELECT x FROM locking": "1 advisory lock",
    "INSERT INTO slow DEFAULT VALUES": "work_mem",
}


@pytest.mark.parametrize("statement", LEAVING)
async def test_verifier_finds_what_the_text_of_a_statement_does_not_say(
    library: Library, dsn: str, statement: str
) -> None:
    """A trigger, a view, a default; it says the statement, and not its arguments."""
    arguments = [4321] if "$1" in statement else []
    async with auto(library, dsn) as (pool, _):
        with pytest.raises(AssertionError) as failed:
            async with verify_auto_reset(pool):
                await use(pool, "SELECT 1")
                await use(pool, statement, *arguments)
        assert f"\n- {LEAVING[statement]}, after: {statement}" in str(failed.value)
        assert "4321" not in str(failed.value)
        assert "SELECT 1" not in str(failed.value)
        async with pool.acquire() as conn:  # it was reset all the same
            assert await value(conn, "SHOW work_mem") == "4MB"


async def test_resets_are_put_off_again_after_the_verification(library: Library, dsn: str) -> None:
    """The block is over, however it has ended."""
    async with auto(library, dsn) as (pool, seen):
        with pytest.raises(KeyError):
            async with verify_auto_reset(pool):
                await use(pool, "INSERT INTO audited VALUES (1)")
                raise KeyError
        await quiet(pool)
        before = seen.resets
        await asyncio.gather(*(use(pool, "SELECT 1") for _ in range(5)))
        await quiet(pool)
        assert seen.resets == before + 1


async def test_only_a_pool_with_auto_can_be_verified_and_once_at_a_time(
    library: Library, dsn: str
) -> None:
    """It says why not."""
    async with library.of_one(dsn) as full:
        with pytest.raises(PoolConfigError, match="has no reset='auto'"):
            async with verify_auto_reset(full):
                pass
    async with auto(library, dsn) as (pool, _), verify_auto_reset(pool):
        with pytest.raises(PoolConfigError, match="already"):
            async with verify_auto_reset(pool):
                pass
