"""``reset="auto"`` on a real PostgreSQL: which resets are put off while somebody waits, and which are not."""

from __future__ import annotations

import asyncio
import contextlib
from random import Random
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from poolkit import ConnectFailed, Pool, PoolConfigError
from poolkit._core import placement
from poolkit._core.slot import NEVER
from poolkit.drivers.asyncpg import AsyncpgDriver, create_pool
from poolkit.drivers.asyncpg import _parts as parts
from poolkit.drivers.asyncpg import _plain_lease as lease
from poolkit.testing import check_pool, verify_auto_reset
from tests.drivers.asyncpg_help import LOOPS, of_one, quiet, until
from tests.drivers.postgresql_kinds import KINDS, Kind, Own, is_seen, leave

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from tests.drivers.asyncpg_help import Pooled
    from tests.postgres import Postgres

    Act = Callable[[Any], Awaitable[object]]


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Run on asyncio and on uvloop: asyncpg knows no others."""
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
async def auto(dsn: str, **options: Any) -> AsyncIterator[tuple[Pooled, Seen]]:
    """Open a pool of one connection."""
    async with of_one(dsn, reset="auto", **options) as pool:
        yield pool, Seen(pool)
        await check_pool(pool)


async def and_hand_on(pool: Pooled, use: Act) -> Any:
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


async def wait(pool: Pooled) -> Any:
    """Acquire."""
    return await pool.acquire()


def sql(*statements: str) -> Act:
    """Return what executes statements."""

    async def act(conn: Any) -> None:
        for statement in statements:
            await conn.execute(statement)

    return act


async def is_reset(dsn: str, use: Act, **options: Any) -> bool:
    """Tell whether a connection is reset for the next user, who waits, after such a use."""
    async with auto(dsn, **options) as (pool, seen):
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


@pytest.mark.parametrize("use", [fetch, transact, look], ids=lambda use: use.__name__)
async def test_reset_is_put_off_after_plain_statements(dsn: str, use: Act) -> None:
    """As long as somebody waits."""
    assert not await is_reset(dsn, use)


async def test_reset_is_put_off_after_a_transaction_of_the_pools(dsn: str) -> None:
    """It commits by statements of its own."""
    async with auto(dsn) as (pool, seen):

        async def insert() -> None:
            async with pool.transaction() as conn:
                await conn.execute("INSERT INTO clean DEFAULT VALUES")

        await asyncio.gather(*(insert() for _ in range(10)))
        await quiet(pool)
        assert seen.resets == 1


async def test_transaction_that_is_not_plain_is_reset_with_its_commit(dsn: str) -> None:
    """So the reset that was put off before is made up as well, and the next may be put off."""
    async with auto(dsn) as (pool, seen):

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


async def test_everybody_in_a_crowd_is_served_and_in_the_end_all_is_reset(dsn: str) -> None:
    """Two connections, twenty users of fifty leases each, a few of which leave something."""
    async with create_pool(dsn, max_size=2, reset="auto") as pool:
        seen = Seen(pool)

        async def use(number: int) -> None:
            for turn in range(50):
                async with pool.acquire() as conn:
                    assert await conn.fetchval("SELECT current_setting('app.x', true)") in (
                        None,
                        "",
                    )
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
    assert not conn.is_in_transaction()
    row = await conn.fetchrow(
        "SELECT current_setting('app.x', true) AS x, current_setting('work_mem') AS memory"
    )
    assert (row["x"] or "", row["memory"]) == ("", "4MB")


@pytest.mark.parametrize("seed", range(3))
async def test_nobody_in_a_crowd_sees_what_others_have_left(dsn: str, seed: int) -> None:
    """Also if many are cancelled, at whatever moment, and fail; in the end nothing is lost."""
    random = Random(seed)
    async with create_pool(dsn, max_size=3, reset="auto", acquire_timeout=60) as pool:
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
            assert await conn.fetchval(f"{locks} AND objid = 3") == 0


# -- not put off ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
async def test_reset_is_not_put_off_after_any_kind_of_state(dsn: str, kind: Kind) -> None:
    """What the page says of ``"full"`` holds, also for a user who waits."""

    async def act(conn: Any) -> None:
        await leave(conn, kind)

    options = {"connect_kwargs": {"connection_class": Own}}
    async with auto(dsn, **options) as (pool, seen):
        before = pool.stats().connected
        conn = await and_hand_on(pool, act)
        # The pool undoes an attribute itself; plans stay at every level.
        if kind.name.startswith(("attribute of a class", "plans of cached")):
            assert seen.resets == 0
        else:
            assert seen.resets or pool.stats().connected > before
        stays = await is_seen(conn, kind)
        assert not stays or kind.note, f"{kind.name} was left"
        pool.release(conn)


async def caught(conn: Any) -> None:
    """Fail, and go on."""
    with contextlib.suppress(asyncpg.DivisionByZeroError):
        await conn.fetch("SELECT 1 / 0")


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
    assert await conn.fetchval("SELECT upper(x::varchar) FROM t") == "1"
    assert await conn.fetchval("SELECT current_setting('app.upper')") == "1"


async def like_a_column(conn: Any) -> None:
    """Call a function that takes a row."""
    await conn.fetchval("SELECT t.total FROM t")


async def of_many_like_a_column(conn: Any) -> None:
    """Call a function that takes any number of rows."""
    await conn.fetchval("SELECT t.many FROM t")


async def of_a_sequence_like_a_column(conn: Any) -> None:
    """Call a function of PostgreSQL's that takes what another one has returned."""
    await conn.fetchval("SELECT s.nextval FROM unnest(ARRAY['s'::regclass]) AS s")


async def of_an_extension_like_a_column(conn: Any) -> None:
    """Call a function of an extension's that takes what another one has returned."""
    await conn.fetchval("SELECT x.tune FROM unnest(ARRAY['1']) AS x")
    assert await conn.fetchval("SELECT current_setting('app.tuned')") == "1"


async def of_a_domain(conn: Any) -> None:
    """Cast to a type whose constraint calls a function."""
    await conn.fetchval("SELECT 'a'::mine")
    assert await conn.fetchval("SELECT current_setting('app.mine')") == "a"


async def of_a_type_with_such_a_name(conn: Any) -> None:
    """Cast to a type that might be a user's, going by its name."""
    await conn.fetchval("SELECT '08:00:2b:01:02:03'::macaddr")


OTHERS: list[Act] = [
    *(caught, prepared, only_prepared, cursor, iterated, copied_out, copied_in, with_codec),
    *(itself_reset, by_the_protocol, open_transaction, timed_out, chained, listened),
    *(
        many_at_once,
        shadowed,
        like_a_column,
        of_many_like_a_column,
        of_a_sequence_like_a_column,
        of_an_extension_like_a_column,
        of_a_domain,
        of_a_type_with_such_a_name,
    ),
]


@pytest.mark.parametrize("use", OTHERS, ids=lambda use: use.__name__)
async def test_reset_is_not_put_off_after_anything_else(dsn: str, use: Act) -> None:
    """Whether or not it has left something."""
    assert await is_reset(dsn, use)


async def test_reset_is_not_put_off_after_a_block_that_fails(dsn: str) -> None:
    """Whatever it was that has failed."""
    async with auto(dsn) as (pool, seen):

        async def fail() -> None:
            async with pool.acquire() as conn:
                await conn.fetch("SELECT 1")
                await until(lambda: pool.stats().waiting == 1)
                raise ValueError

        failing = asyncio.ensure_future(fail())
        await until(lambda: pool.stats().leased == 1)
        async with pool.acquire():
            assert seen.resets == 1
        with pytest.raises(ValueError):
            await failing


async def test_what_a_lease_has_done_counts_until_the_reset(dsn: str) -> None:
    """Also if a lease that is plain comes after one that was handed on."""
    async with auto(dsn) as (pool, seen):
        conn = await and_hand_on(pool, fetch)
        assert seen.resets == 0
        waiter = asyncio.ensure_future(wait(pool))
        await until(lambda: pool.stats().waiting == 1)
        await conn.execute("SET work_mem = '3MB'")
        pool.release(conn)
        conn = await waiter
        assert seen.resets == 1
        assert await conn.fetchval("SHOW work_mem") == "4MB"
        pool.release(conn)


async def test_on_acquire_has_each_lease_reset(dsn: str) -> None:
    """It may set up what it likes."""

    async def set_up(conn: Any) -> None:
        await conn.fetch("SELECT 1")

    assert await is_reset(dsn, fetch, on_acquire=set_up)


async def test_on_connect_does_not_keep_resets_from_being_put_off(dsn: str) -> None:
    """What it has set up is the base of the session."""
    set_up = sql(
        "SET app.x = 'base'", "SET search_path = public, pg_catalog", "SET ROLE pg_monitor"
    )
    assert not await is_reset(dsn, sql("SELECT 1"), on_connect=set_up)
    assert await is_reset(dsn, sql("SELECT upper('a')"), on_connect=set_up)


async def test_class_with_an_execute_of_its_own_has_each_lease_reset(dsn: str) -> None:
    """It may send something else."""

    class Other(asyncpg.Connection):
        async def execute(self, query: str, *args: Any, **kwargs: Any) -> str:
            return str(await super().execute(f"SET app.x = '1'; {query}", *args, **kwargs))

    assert await is_reset(dsn, sql("SELECT 1"), connect_kwargs={"connection_class": Other})


async def test_class_of_ones_own_is_none_the_worse(dsn: str) -> None:
    """Its methods go through asyncpg's."""

    class Other(asyncpg.Connection):
        async def answer(self) -> object:
            return await self.fetchval("SELECT 1")

        async def leave(self) -> object:
            return await self.fetchval("SELECT set_config('app.x', '1', false)")

    options = {"connect_kwargs": {"connection_class": Other}}
    assert not await is_reset(dsn, lambda conn: conn.answer(), **options)
    assert await is_reset(dsn, lambda conn: conn.leave(), **options)


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
    assert await is_reset(dsn, sql("SELECT 1"))


async def test_server_that_does_not_say_which_functions_there_are_has_each_lease_reset(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not PostgreSQL, and its functions may do other things."""
    monkeypatch.setattr(lease, "_TAKEN", "COPY (SELECT proname FROM not_there) TO STDOUT")
    assert await is_reset(dsn, sql("SELECT 1"))


async def test_pings_do_not_keep_a_reset_from_being_put_off(dsn: str) -> None:
    """They are the pool's own statements."""
    async with auto(dsn, ping_after=0.0) as (pool, seen):
        for _ in range(3):
            conn = await and_hand_on(pool, fetch)
            pool.release(conn)
            await quiet(pool)
        assert seen.resets == 3


# -- the option ----------------------------------------------------------------------------------


def test_auto_is_refused_behind_a_pooler_by_transaction() -> None:
    """There is no session to reset."""
    with pytest.raises(PoolConfigError, match="reset='auto' behind pooler='transaction'"):
        AsyncpgDriver("postgresql://u@h/d", reset="auto", pooler="transaction")


async def test_auto_may_be_given_in_a_url(dsn: str) -> None:
    """Like the other levels."""
    assert create_pool(f"{dsn}?reset=auto")._driver.settings.reset == "auto"  # type: ignore[attr-defined]


async def test_on_connect_may_not_leave_what_the_full_reset_undoes(dsn: str) -> None:
    """As at ``"full"``."""
    pool = of_one(dsn, reset="auto", on_connect=sql("CREATE TEMP TABLE mine2 ()"))
    with pytest.raises(ConnectFailed) as failed:
        await pool.open()
    assert "in pg_temp" in str(failed.value.__cause__)


# -- the verifier --------------------------------------------------------------------------------


async def use(pool: Pooled, statement: str, *arguments: object) -> None:
    """Acquire, and execute one statement."""
    async with pool.acquire() as conn:
        await conn.fetch(statement, *arguments)


async def test_clean_schema_is_verified(dsn: str) -> None:
    """Each lease that might have been handed on is looked at, whether somebody waits or not."""
    async with auto(dsn) as (pool, seen), verify_auto_reset(pool) as verified:
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
    dsn: str, statement: str
) -> None:
    """A trigger, a view, a default; it says the statement, and not its arguments."""
    arguments = [4321] if "$1" in statement else []
    async with auto(dsn) as (pool, _):
        with pytest.raises(AssertionError) as failed:
            async with verify_auto_reset(pool):
                await use(pool, "SELECT 1")
                await use(pool, statement, *arguments)
        assert f"\n- {LEAVING[statement]}, after: {statement}" in str(failed.value)
        assert "4321" not in str(failed.value)
        assert "SELECT 1" not in str(failed.value)
        async with pool.acquire() as conn:  # it was reset all the same
            assert await conn.fetchval("SHOW work_mem") == "4MB"


async def test_resets_are_put_off_again_after_the_verification(dsn: str) -> None:
    """The block is over, however it has ended."""
    async with auto(dsn) as (pool, seen):
        with pytest.raises(KeyError):
            async with verify_auto_reset(pool):
                await use(pool, "INSERT INTO audited VALUES (1)")
                raise KeyError
        await quiet(pool)
        before = seen.resets
        await asyncio.gather(*(use(pool, "SELECT 1") for _ in range(5)))
        await quiet(pool)
        assert seen.resets == before + 1


async def test_only_a_pool_with_auto_can_be_verified_and_once_at_a_time(dsn: str) -> None:
    """It says why not."""
    async with of_one(dsn) as full:
        with pytest.raises(PoolConfigError, match="has no reset='auto'"):
            async with verify_auto_reset(full):
                pass
    async with auto(dsn) as (pool, _), verify_auto_reset(pool):
        with pytest.raises(PoolConfigError, match="already"):
            async with verify_auto_reset(pool):
                pass
