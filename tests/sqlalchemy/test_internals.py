"""SQLAlchemy as its next version may be, without what it does not document; and instrumented."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa
import sqlalchemy.dialects.postgresql.asyncpg
import sqlalchemy.dialects.postgresql.psycopg
import sqlalchemy.pool.base

import poolkit
from poolkit.sqlalchemy import _internals, create_async_engine
from tests.forked import Done, Forking, forking

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.sqlalchemy.conftest import Database

    Use = Callable[..., tuple[int, list[str]]]

ROOT = Path(__file__).parents[2]
PATHS = [ROOT / "src", ROOT]

#: What poolkit does not need, by whatever name it goes.
HARMLESS = [
    *("_soft_invalidate_time", "_is_asyncio", "_dialect", "fairy_ref", "needs_gc", "await_only"),
    *("AsyncAdapt_aiosqlite_connection", "_handle_exception", "_adapt_connection", "_data"),
]
#: What it does without, and says so.
OF_POOL = ["_invalidate", "_orig_logging_name", "_reset_on_return", "_finalize_fairy"]
OF_ADAPTER = ["_execute_mutex", "_prepared_statement_cache"]
#: Without which there is no engine.
NEEDED = [
    (sqlalchemy.pool.base, "_ConnectionRecord"),
    *(
        (sqlalchemy.pool.Pool, f"_{name}")
        for name in ("do_get", "do_return_conn", "close_connection")
    ),
    (sqlalchemy.dialects.postgresql.asyncpg, "AsyncAdapt_asyncpg_connection"),
    (sqlalchemy.dialects.postgresql.asyncpg.AsyncAdapt_asyncpg_connection, "_transaction"),
]


@pytest.fixture
def anyio_backend() -> Any:
    """Run on asyncio: the loop makes no difference."""
    return ("asyncio", {"use_uvloop": False})


@pytest.fixture(autouse=True)
def nothing_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have everything said once more."""
    monkeypatch.setattr(_internals, "_told", type(_internals._told)())


@pytest.fixture(scope="module")
def use_renamed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Done]]:
    """Return what uses an engine in a process of its own, which has not yet imported SQLAlchemy."""
    with forking("asyncpg", "psycopg", "aiosqlite", "greenlet", "uuid", "zoneinfo") as interpreter:
        folder = tmp_path_factory.mktemp("renamed")

        def use(*arguments: str) -> Done:
            return interpreter.run(
                folder, "-m", "tests.sqlalchemy.renamed", *arguments, paths=PATHS
            )

        yield use


@pytest.fixture
def use(use_renamed: Callable[..., Done]) -> Use:
    """Return what uses an engine with members renamed; how often it connected, and what it said."""

    def use(database: Database, *names: str) -> tuple[int, list[str]]:
        ended = use_renamed(database.url, *names)
        assert ended.returncode == 0, ended.out + ended.err
        lines = ended.out.splitlines()
        (connected,) = [line.split()[1] for line in lines if line.startswith("connected ")]
        return int(connected), [line for line in lines if "does without" in line]

    return use


# -- other names ---------------------------------------------------------------------------------


#: How often an engine connects that lacks nothing: after a soft invalidation, and after disposal.
PLAINLY = 3


def test_engine_works_without_what_is_not_needed(use: Use, database: Database) -> None:
    """Nothing is said, and no connection is lost."""
    assert use(database, *HARMLESS) == (PLAINLY, [])


def test_engine_does_without_members_of_the_pool(use: Use, database: Database) -> None:
    """One warning names them all, and the version."""
    connected, (warning,) = use(database, *OF_POOL)
    assert connected == PLAINLY
    assert f"SQLAlchemy {sa.__version__} has no " in warning
    assert all(name in warning for name in OF_POOL)


def test_engine_does_without_members_of_the_adapter(use: Use, on_postgresql: Database) -> None:
    """One warning names them; statements are prepared anew, and each lease is reset."""
    connected, (warning,) = use(on_postgresql, *OF_ADAPTER)
    assert connected == PLAINLY
    assert all(name in warning for name in OF_ADAPTER)


def test_connection_ends_with_its_lease_where_settings_could_be_left(
    use: Use,
    on_postgresql: Database,
) -> None:
    """Where it is not known what an isolation level is kept in, no adapter goes on to another."""
    connected, (warning,) = use(on_postgresql, "_isolation_setting")
    assert connected > PLAINLY
    assert "_isolation_setting" in warning
    assert "each lease costs its connection" in warning


#: The same for psycopg.
OF_PSYCOPG = [
    (sqlalchemy.dialects.postgresql.psycopg, "AsyncAdapt_psycopg_connection"),
    (sqlalchemy.dialects.postgresql.psycopg, "AsyncAdapt_psycopg_cursor"),
]


@pytest.mark.parametrize(
    ("owner", "name", "where"),
    [(*each, "on_postgresql") for each in NEEDED] + [(*each, "on_psycopg") for each in OF_PSYCOPG],
    ids=lambda it: getattr(it, "__name__", it),
)
async def test_engine_is_refused_without_what_is_needed(
    owner: Any,
    name: str,
    where: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When it is made: by name, with the version."""
    monkeypatch.delattr(owner, name)
    pool = poolkit.create_pool(request.getfixturevalue(where).url)
    with pytest.raises(poolkit.PoolConfigError, match=rf"\.{name}, without which") as caught:
        create_async_engine(pool)
    assert f"SQLAlchemy {sa.__version__} has no " in str(caught.value)
    assert "install another version" in str(caught.value)


def test_modules_are_imported_without_what_is_needed(
    use_renamed: Callable[..., Done], on_postgresql: Database
) -> None:
    """Only who makes an engine is told, and not by an AttributeError in some depth."""
    ended = use_renamed(on_postgresql.url, "_ConnectionRecord")
    assert ended.returncode == 1
    error = ended.err.splitlines()[-1]
    assert "PoolConfigError" in error
    assert "._ConnectionRecord, without which" in error


@pytest.mark.parametrize("name", _internals.SETTINGS)
async def test_missing_member_is_told_once(
    name: str, on_postgresql: Database, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """However many engines there are."""
    missing = [name]
    monkeypatch.setattr("poolkit.sqlalchemy._adapters.missing_of_asyncpg", lambda: missing)
    async with poolkit.create_pool(on_postgresql.url, max_size=1) as pool:
        for _ in range(2):
            engine = create_async_engine(pool)
            async with engine.connect() as conn:
                assert await conn.scalar(sa.text("SELECT 1")) == 1
    (warning,) = [record.getMessage() for record in caplog.records]
    assert name in warning


# -- instrumented --------------------------------------------------------------------------------

INSTRUMENTED = """
    import asyncio, sys
    import sqlalchemy as sa
    from opentelemetry import trace
    from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    import poolkit
    import poolkit.sqlalchemy

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    def instrument(**options):
        SQLAlchemyInstrumentor().instrument(
            tracer_provider=provider, skip_dep_check=True, **options
        )

    async def main(url, before):
        if before:
            instrument()
        async with poolkit.create_pool(url, max_size=1) as pool:
            engine = poolkit.sqlalchemy.create_async_engine(pool)
            if not before:
                instrument(engine=engine.sync_engine)
            for _ in range(2):
                with provider.get_tracer("test").start_as_current_span("request"):
                    async with engine.begin() as conn:
                        await conn.execute(sa.text("INSERT INTO t VALUES (1)"))
                        assert await conn.scalar(sa.text("SELECT count(*) FROM t"))
            assert pool.stats().connected == 1
        spans = exporter.get_finished_spans()
        requests = {span.context.trace_id for span in spans if span.name == "request"}
        assert len(requests) == 2
        for word in ("INSERT", "SELECT"):
            found = [span for span in spans if span.name.startswith(word)]
            assert {span.context.trace_id for span in found} == requests, spans

    asyncio.run(main(sys.argv[1], sys.argv[2] == "before"))
"""


@pytest.fixture(scope="module")
def instrumenting() -> Iterator[Forking]:
    """Return an interpreter that has imported SQLAlchemy, and has instrumented nothing."""
    opentelemetry = ("opentelemetry.instrumentation.sqlalchemy", "opentelemetry.sdk.trace.export")
    with forking("asyncpg", "aiosqlite", "sqlalchemy.ext.asyncio", *opentelemetry) as interpreter:
        yield interpreter


@pytest.mark.parametrize("when", ["before", "after"])
def test_opentelemetry_sees_statements_in_the_span_of_their_user(
    instrumenting: Forking, when: str, database: Database, tmp_path: Path
) -> None:
    """Whether SQLAlchemy is instrumented before the engine is made, or the engine itself."""
    text = textwrap.dedent(INSTRUMENTED)
    ended = instrumenting.run_text(tmp_path, text, database.url, when, paths=PATHS)
    assert ended.returncode == 0, ended.err
