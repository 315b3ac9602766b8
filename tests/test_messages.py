"""What is wrong with a URL or an option is said at once, with the remedy, and without the password."""

from __future__ import annotations

import asyncio
import functools
import os
import pathlib
import sys
import traceback
import urllib.parse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import asyncpg
import databases
import httpx
import pydantic
import pytest
import sqlalchemy
from asyncpg import connect_utils
from starlette import datastructures

import poolkit
from poolkit import PoolConfigError, drivers
from poolkit.compat import asyncpg as compat
from poolkit.drivers.asyncpg._settings import CHOICES

if TYPE_CHECKING:
    from tests.pgbouncer import StartPgBouncer
    from tests.postgres import Server

SECRET = "hunter" + "2"  # in two parts: tracebacks show lines of this file
PG = f"postgresql://app:{SECRET}@db.example/shop"
LITE = "sqlite:///app.db"
FORM = "a database URL looks like postgresql://user:password@host/database, sqlite:///app.db"
NONE = (
    "there is no database URL: None was given. An environment variable such as DATABASE_URL may "
    "not be set"
)
EMPTY = (
    "the database URL is empty. An environment variable such as DATABASE_URL may be set to nothing"
)
PRINTED = (
    "which is how libraries print a URL without the password: give the URL itself, of SQLAlchemy's "
    "render_as_string(hide_password=False)"
)
POSTGRES = "Write postgresql://user:password@host:port/database"
SQLITE = "Write sqlite:///app.db for a relative path, sqlite:////srv/app.db for an absolute one"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's settings of libpq's are in the way."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)


def all_of(error: BaseException) -> str:
    """Return all that anybody may ever print of an error, what it came from included."""
    others = [other for other in (error.__cause__, error.__context__) if other is not None]
    own = [str(error), repr(error), *traceback.format_exception(error)]
    return "\n".join([*own, *map(all_of, others)])


def absolute(name: str) -> str:
    """Return the path of a file in the working directory."""
    return str(pathlib.Path.cwd() / name)


def refused(make: Callable[[], object]) -> str:
    """Return the message of the error that something raises; it has no secret in it."""
    with pytest.raises(PoolConfigError) as caught:
        make()
    assert SECRET not in all_of(caught.value)
    message = str(caught.value)
    assert "\n" not in message
    return message


# -- what is no URL ------------------------------------------------------------------------------


class Masking:
    """A URL that masks its password in its text, in a way that nobody knows."""

    scheme = "postgresql"
    password = SECRET

    def __str__(self) -> str:
        return "postgresql://app:~~~@db.example/shop"


class Redacted:
    """A URL that does so in a usual way."""

    def __str__(self) -> str:
        return "postgresql://app:[redacted]@db.example/shop"


class Rude:
    """What raises whatever it is asked, with the secret."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(PG)

    def __str__(self) -> str:
        raise RuntimeError(PG)


class Endless:
    """A secret in a secret in a secret."""

    def get_secret_value(self) -> Any:
        """Return another one."""
        return Endless()


async def coroutine() -> str:
    """Be awaitable."""
    return PG


NO_URL: dict[str, tuple[Any, str]] = {
    "None": (
        None,
        f"{NONE}; {FORM}",
    ),
    "empty": (
        "",
        f"{EMPTY}; {FORM}",
    ),
    "blank": (" \n", "may be set to nothing"),
    "secret of nothing": (pydantic.SecretStr(""), "may be set to nothing"),
    "bytes": (PG.encode(), "the database URL is bytes: decode() it first"),
    "secret bytes": (pydantic.SecretBytes(PG.encode()), "decode() it first"),
    "number": (5432, "the database URL is of type int: give a string"),
    "dict": ({"url": PG}, "of type dict"),
    "list": ([PG], "of type list"),
    "object": (object(), "of type object"),
    "class": (pydantic.PostgresDsn, "is the class PostgresDsn"),
    "class of secrets": (pydantic.SecretStr, "is the class SecretStr"),
    "function": (coroutine, "of type function"),
    "masks": (Masking(), "of type Masking"),
    "redacted": (Redacted(), "of type Redacted"),
    "rude": (Rude(), "of type Rude"),
    "endless": (Endless(), "of type Endless"),
    "masked string": (
        PG.replace(SECRET, "***"),
        f"its password is ***, {PRINTED}",
    ),
    "printed secret": ("**********", "it is what a secret prints instead of itself"),
    "newline": (f"{PG}\n", "there is a space or a line break around the database URL: strip() it"),
    "space": (f" {PG}", "a space or a line break around"),
    "carriage return": (f"{PG}\r", "a space or a line break around"),
    "byte order mark": (f"\ufeff{PG}", "a space or a line break around"),
    "newline inside": (PG.replace("shop", "sh\nop"), "a line break or another control character"),
    "double quotes": (f'"{PG}"', "there are quotes around the database URL"),
    "single quotes": (f"'{PG}'", "there are quotes around the database URL"),
    "one quote": (f'{PG}"', "there are quotes around the database URL"),
    "variable": (f"DATABASE_URL={PG}", "it begins with the name of a variable"),
    "exported": (f"export DATABASE_URL={PG}", "it begins with the name of a variable"),
    "placeholder": ("${DATABASE_URL}", "it is a placeholder that nothing has replaced"),
    "placeholder of a shell": ("$DATABASE_URL", "nothing has replaced"),
    "placeholder of a template": ("{{ database_url }}", "nothing has replaced"),
    "placeholder of an ini file": ("%(DB_URL)s", "nothing has replaced"),
    "no scheme": (f"app:{SECRET}@db.example/shop", f"it has no scheme with '://'. {POSTGRES}"),
    "host and port": ("db.example:5432/shop", f"it has no scheme with '://'. {POSTGRES}"),
    "password before": (f"app:{SECRET}@postgresql://db.example", "it has no scheme"),
    "libpq": (
        f"host=db user=app password={SECRET}",
        f"it is a list of names and values. {POSTGRES}",
    ),
    "libpq in capitals": (f"Host=db;Username=app;Password={SECRET}", POSTGRES),
    "ADO.NET of SQLite": ("Data Source=app.db", SQLITE),
    "JDBC": (f"jdbc:postgresql://app:{SECRET}@db.example/shop", f"it is one of JDBC's. {POSTGRES}"),
    "JDBC of SQLite": ("jdbc:sqlite:app.db", f"it is one of JDBC's. {SQLITE}"),
    "one slash": (
        f"postgresql:/app:{SECRET}@db",
        f"there is no '://' after its scheme. {POSTGRES}",
    ),
    "no slash": (f"postgresql:app:{SECRET}@db", "there is no '://' after its scheme"),
    "no colon": ("postgres//db.example/shop", "there is no '://' after its scheme"),
    "two colons": ("postgresql:://db.example/shop", "there is no '://' after its scheme"),
    "SQLite, one slash": ("sqlite:/app.db", f"it has too few slashes. {SQLITE}"),
    "SQLite, no slash": ("sqlite:app.db", f"it has too few slashes. {SQLITE}"),
    "SQLite, two slashes": ("sqlite://app.db", "three slashes before a relative path"),
    "SQLite with a bracket": ("sqlite://[app.db", "three slashes before a relative path"),
    "SQLite with a NUL": ("sqlite:///app%00.db", "NUL character"),
    "file": ("app.db", f"If it is a SQLite file: {SQLITE}, or give a pathlib.Path"),
    "file with a path": ("/srv/my data/app.db", f"If it is a SQLite file: {SQLITE}"),
    "file of Windows": (r"C:\data\app.db", f"If it is a SQLite file: {SQLITE}"),
    "URI of SQLite": ("file:app.db?mode=ro", "Write sqlite:///app.db?mode=ro, for example"),
    "memory": (":memory:", "Write sqlite:///name?vfs=memdb for a memory database"),
    "path of a URL": (pathlib.PurePosixPath(PG), "a PurePosixPath was made of a URL"),
    "path of a URL of SQLite": (pathlib.PurePosixPath(LITE), "which is no path"),
    "path of Windows of a URL": (pathlib.PureWindowsPath("sqlite:/x"), "which is no path"),
}


@pytest.mark.parametrize("name", NO_URL)
def test_what_is_no_url_is_told_what_it_is(name: str) -> None:
    """With what to write in its place."""
    given, words = NO_URL[name]
    assert words in refused(lambda: poolkit.create_pool(given))


def test_coroutine_instead_of_a_url_is_refused_and_closed() -> None:
    """Or a warning would follow, that it was never awaited."""
    given: Any = coroutine()
    assert "of type coroutine" in refused(lambda: poolkit.create_pool(given))
    with pytest.raises(RuntimeError, match="already awaited"):
        given.send(None)


SCHEMES = {
    "postgres+psycopg": "write postgresql:// (asyncpg)",
    "postgresql+psycopg2": "write postgresql:// (asyncpg)",
    "postgresql+psycopg_async": "write postgresql:// (asyncpg)",
    "postgis": "write postgresql:// (asyncpg)",
    "cockroachdb": "write postgresql:// (asyncpg)",
    "redshift+redshift_connector": "write postgresql:// (asyncpg)",
    "sqlite+pysqlite": "write sqlite:// (aiosqlite) or sqlite+threads://",
    "sqlite3": "write sqlite:// (aiosqlite) or sqlite+threads://",
    "postgressql": "did you mean postgresql?",
    "postgrsql": "did you mean postgresql?",
    "sqllite": "did you mean sqlite?",
    "prisma+postgres": "it is a proxy of Prisma's; give the URL of the database itself",
    "mysql+pymysql": "for MySQL and MariaDB write mysql:// (asyncmy).",
    "mariadb": "for MySQL and MariaDB write mysql:// (asyncmy).",
    "oracle": "a driver of your own can (docs/howto/write-a-driver.md). The installed drivers serve",
    "https": "The installed drivers serve: mysql, mysql+asyncmy, postgres, postgresql, ",
}


@pytest.mark.parametrize("scheme", [*SCHEMES, *map(str.upper, SCHEMES)])
def test_scheme_that_no_driver_serves_is_told_what_to_write(scheme: str) -> None:
    """In lower case and in upper case; `_` is no part of a scheme, and nothing is quoted then."""
    message = refused(lambda: poolkit.create_pool(f"{scheme}://app:{SECRET}@db.example/shop"))
    if "_" in scheme:
        assert "scheme" in message
    else:
        assert SCHEMES[scheme.lower()] in message
        assert repr(scheme.lower()) in message


# -- what has a URL in it ------------------------------------------------------------------------


class Kept(pydantic.BaseModel):
    """Settings, as FastAPI's users have them."""

    secret: pydantic.SecretStr
    dsn: pydantic.PostgresDsn
    both: pydantic.Secret[pydantic.PostgresDsn]


class Text(str):
    """A string that masks itself when it is printed."""

    __slots__ = ()

    def __str__(self) -> str:
        return "***"


def kept() -> Kept:
    """Return settings that have the URL in each."""
    return Kept(secret=pydantic.SecretStr(PG), dsn=PG, both=PG)  # type: ignore[arg-type]


OBJECTS: dict[str, Callable[[], Any]] = {
    "string": lambda: PG,
    "string that masks itself": lambda: Text(PG),
    "capitals": lambda: PG.replace("postgresql", "PostgreSQL"),
    "SecretStr": lambda: kept().secret,
    "PostgresDsn": lambda: kept().dsn,
    "Secret[PostgresDsn]": lambda: kept().both,
    "SQLAlchemy": lambda: sqlalchemy.make_url(PG),
    "Starlette": lambda: datastructures.URL(PG),
    "Starlette's secret": lambda: datastructures.Secret(PG),
    "databases": lambda: databases.DatabaseURL(PG),
    "httpx": lambda: httpx.URL(PG),
    "urlsplit": lambda: urllib.parse.urlsplit(PG),
    "urlparse": lambda: urllib.parse.urlparse(PG),
}
DOORS: dict[str, Callable[..., poolkit.Pool[Any]]] = {
    "poolkit": poolkit.create_pool,
    "driver": drivers.asyncpg.create_pool,
    "compat": lambda url, **_: compat.create_pool(url),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", OBJECTS)
def test_url_object_is_taken_with_its_password(kind: str, door: str) -> None:
    """Never the text in which it is masked."""
    driver: Any = DOORS[door](OBJECTS[kind]())._driver
    assert driver._dsn.partition(":")[2] == PG.partition(":")[2]
    assert driver.name == "db.example:5432/shop"


@pytest.mark.parametrize(
    "password", ["secret", "hidden", "xxx", "password", "**", "a%25b", "a%2541"]
)
@pytest.mark.parametrize("kind", ["PostgresDsn", "Secret", "DatabaseURL", "httpx", "string"])
def test_password_that_looks_like_a_mask_is_taken(kind: str, password: str) -> None:
    """Somebody has it where it does not matter."""
    url = PG.replace(SECRET, password)
    made: dict[str, Callable[[str], Any]] = {
        "PostgresDsn": pydantic.PostgresDsn,
        "Secret": datastructures.Secret,
        "DatabaseURL": databases.DatabaseURL,
        "httpx": httpx.URL,
        "string": str,
    }
    driver: Any = poolkit.create_pool(made[kind](url))._driver
    assert urllib.parse.urlsplit(driver._dsn).password in (password, urllib.parse.quote(password))


@pytest.mark.parametrize("door", [poolkit.create_pool, drivers.aiosqlite.create_pool])
@pytest.mark.parametrize(
    "make",
    [
        lambda: LITE,
        lambda: "SQLite:///app.db",
        lambda: pydantic.AnyUrl(LITE),
        lambda: pydantic.SecretStr(LITE),
        lambda: sqlalchemy.make_url("sqlite+aiosqlite:///app.db"),
        lambda: databases.DatabaseURL(LITE),
        lambda: urllib.parse.urlsplit(LITE),
        lambda: urllib.parse.urlparse(f"sqlite:///{absolute('app.db')}?max_size=3"),
        lambda: pathlib.Path("app.db"),
        lambda: pathlib.PurePath("app.db"),
    ],
)
def test_url_object_of_sqlite_is_taken(make: Callable[[], Any], door: Any) -> None:
    """By the driver's own door, too."""
    assert door(make())._driver._database.path == absolute("app.db")


NAMES = ["a b.db", "what?.db", "a#1.db", "100%.db", "a%20b.db", "%2F.db", "ü.db", "a&b=c.db"]


@pytest.mark.parametrize("name", [*NAMES, "file:a.db", "a:b@c.db", "host=a.db", "C:\\a.db", ":x"])
def test_path_is_the_file_whatever_its_name(tmp_path: pathlib.Path, name: str) -> None:
    """Absolute or relative; it is opened."""
    if sys.platform == "win32" and set(name) & set(":?\\"):
        pytest.skip("no file has such a name there")

    async def main() -> None:
        for door in (
            poolkit.create_pool,
            drivers.aiosqlite.create_pool,
            drivers.sqlite.create_pool,
        ):
            async with door(tmp_path / name, max_size=1) as pool, pool.acquire() as conn:
                await conn.execute("CREATE TABLE IF NOT EXISTS t (x)")
            relative: Any = door(pathlib.Path(name))
            assert relative._driver._database.path == absolute(name)

    asyncio.run(main())
    assert [each.name for each in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(sys.platform == "win32", reason="every path is text there")
def test_path_that_is_no_text_is_taken(tmp_path: pathlib.Path) -> None:
    """Its bytes come through the URL."""
    path = tmp_path / os.fsdecode(b"\xff.db")
    driver: Any = poolkit.create_pool(path)._driver
    assert driver._database.path == str(path)


# -- the address ---------------------------------------------------------------------------------

ADDRESSES = {
    "@": (f"postgresql://app:x@{SECRET}@db.example/shop", "has to be written %40"),
    "@ and :": (f"postgresql://app:x@y:{SECRET}@db.example/shop", "has to be written %40"),
    "@ in the user": (f"postgresql://app@tenant:{SECRET}@db.example/shop", "written %40"),
    "/": (f"postgresql://app:x/{SECRET}@db.example/shop", "%2F, %3F or %23"),
    "?": (f"postgresql://app:x?{SECRET}@db.example/shop", "%2F, %3F or %23"),
    "? and an option": (f"postgresql://app:5432?max_size={SECRET}@db.example/shop", "%3F"),
    "? and two options": (f"postgresql://app:5432?max_size={SECRET}&x@db.example/shop", "%3F"),
    "#": (f"postgresql://app:x#{SECRET}@db.example/shop", "%2F, %3F or %23"),
    "%": (f"postgresql://app:x%{SECRET}@db.example/shop", "has to be written %25"),
    "[": (f"postgresql://app:x[{SECRET}@db.example/shop", "has to be percent-encoded"),
    "fragment": (f"{PG}#{SECRET}", "it has a '#'. In the password it has to be written %23"),
    "port": ("postgresql://db.example:99999/shop", "the port is not a number up to 65535"),
    "port in words": ("postgresql://db.example:five/shop", "the port is not a number up to 65535"),
    "port in the query": (f"{PG}?port=99999", "port='99999' in the DSN is not a number"),
    "port in the query in words": (f"{PG}?port={SECRET}@", "port=... in the DSN is not a number"),
    "host in the query": ("postgresql:///shop?host=db:99999", "the port is not a number"),
    "ports": (f"{PG}?port=1,2", "it has 2 ports for 1 host(s): give one for each, or one for all"),
}


@pytest.mark.parametrize("door", [poolkit.create_pool, drivers.asyncpg.create_pool])
@pytest.mark.parametrize("name", ADDRESSES)
def test_address_that_would_be_misread_is_refused(name: str, door: Any) -> None:
    """With what has to be written, and nothing of it quoted."""
    url, words = ADDRESSES[name]
    assert words in refused(lambda: door(url))


# -- the query -----------------------------------------------------------------------------------

_POOL_WORDS = {
    "maxsize": "'maxsize' ?: did you mean max_size?",
    "max-size": "'max-size' ?: did you mean max_size?",
    "MAX_SIZE": "'MAX_SIZE' ?: did you mean max_size?",
    "maxSize": "'maxSize' ?: did you mean max_size?",
    "max_sise": "'max_sise' ?: did you mean max_size?",
    "pool_max_size": "'pool_max_size' ?: did you mean max_size?",
    "pool_min_size": "did you mean min_size?",
    "acquire_timout": "did you mean acquire_timeout?",
    "pool_size": "'pool_size' ?: it is a word of other pools or clients: write max_size",
    "poolsize": "write max_size",
    "maxPoolSize": "write max_size",
    "connection_limit": "write max_size",
    "pool_max_conns": "write max_size",
    "max_connections": "write max_size",
    "max_conections": "write max_size",
    "minPoolSize": "write min_size",
    "pool_timeout": "write acquire_timeout, in seconds",
    "pool_recycle": "write max_lifetime, in seconds",
    "conn_max_age": "write max_lifetime, in seconds",
    "pool_max_conn_lifetime": "write max_lifetime, in seconds",
    "max_inactive_connection_lifetime": "write max_idle_time, in seconds",
    "idleTimeoutMillis": "write max_idle_time, in seconds",
    "pool_pre_ping": "write ping_after, in seconds (0 pings before every use)",
    "pool_health_check_period": "write ping_every, in seconds",
    "max_queries": "write max_uses",
    "connectionTimeoutMillis": "write connect_timeout, in seconds, for one connect",
    "init": "give on_connect=, as a keyword",
    "setup": "give on_acquire=, as a keyword",
    "echo": "leave it out, it is a setting of SQLAlchemy's engine",
    "poolclass": "leave it out, poolkit is the pool",
}
_PG_WORDS = {
    "ssl=true": "'ssl' in the DSN: it is a word of other clients: write sslmode=require",
    "SSL=true": "write sslmode=require",
    "ssl=0": "write sslmode=disable",
    "ssl=verify-full": "write sslmode=verify-full",
    "sslMode=require": "did you mean sslmode?",
    "ssl_mode=require": "did you mean sslmode?",
    "usessl=1": "write sslmode=require, or sslmode=verify-full to check the certificate",
    "sslaccept=strict": "write sslmode=require, or sslmode=verify-full",
    "pgbouncer=true": "write pooler=transaction (or session)",
    "prepareThreshold=0": "write pooler=transaction (or session)",
    "default_query_exec_mode=simple_protocol": "write pooler=transaction (or session)",
    "schema=public": "write search_path",
    "currentSchema=public": "write search_path",
    "searchPath=public": "write search_path",
    "command_timeout=5": "give connect_kwargs={'command_timeout': ...}",
    "query_timeout=5": "give connect_kwargs={'command_timeout': ...}",
    "statement_cache_size=0": "give connect_kwargs={'statement_cache_size': ...}",
    "statement-cache-capacity=0": "give connect_kwargs={'statement_cache_size': ...}",
    "prepared_statement_cache_size=0": "connect_args={'prepared_statement_cache_size': ...}",
    "max_cacheable_statement_size=0": "give connect_kwargs={'max_cacheable_statement_size': ...}",
    "server_settings=x": "give connect_kwargs={'server_settings': ...}",
    "connect_kwargs=x": "connect_kwargs cannot be given in a URL: give it as a keyword",
    "timeout=5": "write acquire_timeout, connect_timeout, ping_timeout, reset_timeout or close_t",
    "socketTimeout=5": "write tcp_timeout, in seconds",
    "keepalives_idle=5": "write tcp_timeout, in seconds",
    "channel_binding=require": "leave it out",
    "gssencmode=disable": "leave it out",
    "sslcrldir=/crl": "leave it out",
    "oauth_client_secret=s": "leave it out",
    "sslcertmode=disable": "leave it out",
    "min_protocol_version=3.2": "leave it out",
    "ApplicationName=x": "write application_name",
    "fallback_application_name=x": "write application_name",
    "targetServerType=primary": "write target_session_attrs",
    "readOnly=true": "write default_transaction_read_only=on",
    "direct_tls=true": "write sslnegotiation=direct",
    "charset=utf8": "leave it out, text is UTF-8",
    "journal_mode=WAL": "leave it out, it is a setting of SQLite's drivers",
    f"pasword={SECRET}": "'pasword' in the DSN: did you mean password?",
    f"pass={SECRET}": "write password",
    "username=app": "write user",
    "sslmode=requird": "sslmode='requird' in the DSN: did you mean require? It is one of disable, "
    "allow, prefer, require, verify-ca, verify-full",
    "sslmode=": "sslmode in the DSN is empty: it is one of disable, allow",
    "sslmode=require%20": "sslmode='require ' in the DSN: did you mean require?",
    f"sslmode={SECRET}%40": "sslmode=... in the DSN: it is one of disable",
    "target_session_attrs=master": "it is one of any, primary, standby, prefer-standby",
    "gsslib=mit": "gsslib='mit' in the DSN: it is one of gssapi, sspi",
    "sslnegotiation=tls": "it is one of postgres, direct",
    "ssl_min_protocol_version=1.2": "it is one of TLSv1, TLSv1.1, TLSv1.2, TLSv1.3",
    "sslmode=require&sslmode=disable": "'sslmode' stands twice in the database URL: give it once",
    "host=a&host=b": "give it once, with commas between several",
    "pooler=transaction&pooler=session": "'pooler' stands twice",
    "pooler=": "pooler in the URL is empty: give it a value, or leave it out",
    "pooler=pgbouncer": "pooler='pgbouncer': give 'transaction', 'session' or None",
    "reset=ful": "reset='ful': give 'full', 'full+prepared', 'auto', 'transaction', 'none'",
    "tcp_timeout=a": "tcp_timeout='a' in the URL is not a number of seconds: for no limit write none",
    "sslmode": "has the form name=value&name=value",
    "=5": "has the form name=value&name=value",
}
_LITE_WORDS = {
    "timeout=5": "write busy_timeout, in seconds",
    "check_same_thread=false": "leave it out, the driver sees to its threads",
    "isolation_level=none": "leave it out, connections are in autocommit; pool.transaction()",
    "_fk=1": "write foreign_keys",
    "_journal_mode=WAL": "did you mean journal_mode?",
    "_busy_timeout=5000": "did you mean busy_timeout?",
    "jornal_mode=WAL": "unknown option 'jornal_mode'; did you mean journal_mode? Known: ",
    "pragma=x": "give on_connect=, as a keyword, which can execute any PRAGMA",
    "reset=full": "leave it out, it is a setting of PostgreSQL's driver",
    f"key={SECRET}": "leave it out, encrypted databases are not served",
    "charset=utf8": "leave it out, text is UTF-8",
    "readonly=1": "write mode=ro",
    "mode=r": "mode='r' in the URL: it is one of ro, rw, rwc, memory",
    "mode=": "mode in the URL is empty: it is one of ro, rw, rwc, memory",
    "mode=RO": "mode='RO' in the URL: did you mean ro? It is one of",
    "cache=shard": "cache='shard' in the URL: did you mean shared? It is one of shared, private",
    "immutable=2": "it is one of 1, 0, on, off, yes, no, true, false",
    "journal_mode=wall": "journal_mode='wall': give one of WAL, DELETE",
    "foreign_keys=maybe": "foreign_keys='maybe' in the URL: write on or off",
    "busy_timeout=soon": "busy_timeout='soon' in the URL is not a number of seconds",
    "cached_statements=": "cached_statements in the URL is empty: give it a value",
    "detect_types=x": "detect_types='x' in the URL is not a whole number",
    "row_factory=Row": "row_factory cannot be given in a URL: give it as a keyword",
    "mode=ro&mode=rw": "'mode' stands twice in the database URL: give it once",
    "nonsense=1": "unknown option 'nonsense'. Known: acquire_timeout, ",
}
_VALUES = {
    "max_size=": "max_size in the URL is empty: give it a value, or leave it out",
    "name=": "name in the URL is empty: give it a value, or leave it out",
    "max_size=many": "max_size='many' in the URL is not a whole number",
    "max_size=1_0": "max_size='1_0' in the URL is not a whole number",
    "max_size=٣": "max_size=... in the URL is not a whole number",
    f"max_size={SECRET}%40": "max_size=... in the URL is not a whole number",
    "max_size=5.0": "max_size='5.0' in the URL is not a whole number",
    "acquire_timeout=inf": "acquire_timeout='inf' in the URL is not a number of seconds",
    "acquire_timeout=5s": "acquire_timeout='5s' in the URL is not a number of seconds",
    "max_size=5&max_size=6": "'max_size' stands twice in the database URL: give it once",
    "max_size=5&max%5Fsize=6": "'max_size' stands twice in the database URL: give it once",
    "on_connect=f": "on_connect cannot be given in a URL: give it as a keyword",
    "shedding=x": "shedding cannot be given in a URL: give it as a keyword",
    "deadlock=maybe": "deadlock='maybe' is unknown: give 'raise', 'warn' or 'off'",
    "max_size=0": "poolkit has no unlimited pool",
}
QUERIES = {
    **{
        (PG, f"{name}=5"): words.replace(" ?:", " in the DSN:")
        for name, words in _POOL_WORDS.items()
    },
    **{(LITE, f"{name}=5"): words.rpartition("?: ")[2] for name, words in _POOL_WORDS.items()},
    **{(PG, query): words for query, words in _PG_WORDS.items()},
    **{(LITE, query): words for query, words in _LITE_WORDS.items()},
    **{(base, query): words for base in (PG, LITE) for query, words in _VALUES.items()},
}


@pytest.mark.parametrize("number", range(len(QUERIES)))
def test_word_of_others_and_value_that_is_none_are_refused(number: int) -> None:
    """At both doors, when the pool is made, with what to write here."""
    (base, query), words = list(QUERIES.items())[number]
    own = drivers.asyncpg.create_pool if base == PG else drivers.aiosqlite.create_pool
    for door in (poolkit.create_pool, own):
        make = functools.partial(door, f"{base}?{query}")
        assert words in refused(make), query


TAKEN = {
    f"{PG}?myapp.tenant=5&application_name=a%40b&search_path=shop&options=-cjit%3Doff&TimeZone=UTC": 10,
    f"{PG}?max_size=3&connect_timeout=2&max_overflow=1&acquire_timeout=none&pooler=session": 3,
    f"{PG}?MyApp.Max-Size=3": 10,
    f"{PG}?options=-c search_path='a b'": 10,
    f"{PG}?sslmode=verify_full&target_session_attrs=prefer-standby&sslnegotiation=postgres": 10,
    f"{PG}?user=app%40tenant&max%5Fsize=4": 4,
    "postgresql://one,two:6000/shop?port=1,2": 10,
    f"postgresql://app%40tenant:%25%2F%3F%23%40:{SECRET}@db.example/shop": 10,
    f"{LITE}?max_size=1&mode=ro&immutable=TRUE&busy_timeout=.5&foreign_keys=OFF": 1,
    "sqlite:////srv/100%.db?max_size=2": 2,
}


@pytest.mark.parametrize("number", range(len(TAKEN)))
def test_query_that_is_right_is_taken(number: int) -> None:
    """At both doors; whatever else there is in a query goes to the server."""
    url, size = list(TAKEN.items())[number]
    own = drivers.asyncpg.create_pool if "postgres" in url else drivers.aiosqlite.create_pool
    for door in (poolkit.create_pool, own):
        assert door(url).stats().max_size == size
        assert door(url, max_size=7).stats().max_size == 7


def test_choices_are_those_of_asyncpg() -> None:
    """None of them is refused here, and none is taken that asyncpg does not know."""
    attributes = {"any", *(each.value for each in connect_utils.SessionAttribute)}
    assert set(CHOICES["target_session_attrs"]) == attributes
    modes = {mode.name.replace("_", "-") for mode in connect_utils.SSLMode}
    assert set(CHOICES["sslmode"]) == modes
    assert set(CHOICES["sslnegotiation"]) == {each.value for each in connect_utils.SSLNegotiation}
    for name in ("ssl_min_protocol_version", "ssl_max_protocol_version"):
        for version in CHOICES[name]:
            vars(connect_utils)["_parse_tls_version"](version)


def test_every_setting_that_the_server_takes_is_taken(postgres: Server) -> None:
    """No setting of a session is held for a slip or for another client's word.

    All but ``tcp_user_timeout``: in a URL it is libpq's, for the client's end.
    """
    rows = postgres.query(
        "SELECT name FROM pg_settings WHERE context NOT IN ('internal', 'postmaster', 'sighup')"
    )
    names = {name for (name,) in rows} - {"tcp_user_timeout"}
    assert len(names) > 100
    for name in sorted(names):
        for spelt in (name, name.upper()):
            drivers.asyncpg.create_pool(f"{PG}?{spelt}=1")


# -- what the server refuses ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "server", "hint"),
    [
        ("lock_timout=1", 'parameter "lock_timout"', "; did you mean lock_timeout"),
        ("nonsense=x", 'parameter "nonsense"', "goes to the server, as a setting of the session)"),
        ("work_mem=much", 'parameter "work_mem"', "'work_mem' stands in the URL"),
        ("shared_buffers=1", 'parameter "shared_buffers"', "'shared_buffers' stands in the URL"),
    ],
)
def test_refusal_of_the_server_says_which_parameter_of_the_url(
    postgres: Server, query: str, server: str, hint: str
) -> None:
    """In the server's own error, which is the cause."""

    async def main() -> None:
        pool = poolkit.create_pool(postgres.dsn() + ("&" if "?" in postgres.dsn() else "?") + query)
        with pytest.raises(poolkit.ConnectFailed) as caught:
            await pool.open()
        cause = caught.value.__cause__
        assert isinstance(cause, asyncpg.PostgresError)
        for text in (str(cause), str(caught.value)):
            assert server in text
            assert hint in text

    asyncio.run(main())


def test_refusal_of_the_server_names_settings_given_as_keywords(postgres: Server) -> None:
    """They are not the URL's."""

    async def main() -> None:
        pool = drivers.asyncpg.create_pool(
            postgres.dsn(), connect_kwargs={"server_settings": {"nonsense": "x"}}
        )
        with pytest.raises(poolkit.ConnectFailed, match=r"stands in connect_kwargs\['server_sett"):
            await pool.open()

    asyncio.run(main())


def test_refusal_of_a_pooler_names_the_parameter(pgbouncer: StartPgBouncer) -> None:
    """PgBouncer has a code for all, and says which parameter at the end."""

    async def main() -> None:
        pool = poolkit.create_pool(f"{pgbouncer().dsn()}?lock_timout=1&pooler=session")
        with pytest.raises(poolkit.ConnectFailed, match="'lock_timout' stands in the URL"):
            await pool.open()

    asyncio.run(main())


def test_other_refusal_of_the_server_is_left_as_it_is(postgres: Server) -> None:
    """A missing database has nothing to do with the query."""

    async def main() -> None:
        dsn = postgres.dsn("nowhere", application_name="x")
        with pytest.raises(poolkit.ConnectFailed) as caught:
            await poolkit.create_pool(dsn).open()
        assert str(caught.value.__cause__) == 'database "nowhere" does not exist'

    asyncio.run(main())


# -- both doors take the same words --------------------------------------------------------------


async def reset(conn: asyncpg.Connection) -> None:
    """Do nothing."""


@pytest.mark.parametrize("door", [poolkit.create_pool, drivers.asyncpg.create_pool])
def test_settings_of_asyncpg_are_taken_at_both_doors(door: Any) -> None:
    """They come before what the URL says."""
    pool = door(
        f"{PG}?pooler=session&reset=none&max_size=3",
        pooler="transaction",
        reset=reset,
        ssl="require",
        tcp_timeout=None,
        connect_kwargs={"command_timeout": 5},
        min_size=2,
    )
    settings = pool._driver.settings
    assert (settings.pooler, settings.reset, settings.ssl) == ("transaction", reset, "require")
    assert settings.tcp_timeout is None
    assert pool._driver._arguments["command_timeout"] == 5
    assert pool._driver._arguments["ssl"] == "require"
    assert (pool.stats().max_size, pool._state.options.min_size) == (3, 2)


@pytest.mark.parametrize("own", [drivers.aiosqlite.create_pool, drivers.sqlite.create_pool])
def test_settings_of_sqlite_are_taken_at_both_doors(own: Any) -> None:
    """They come before what the URL says."""
    scheme = "sqlite" if own is drivers.aiosqlite.create_pool else "sqlite+threads"
    for door in (poolkit.create_pool, own):
        url = f"{scheme}:///app.db?foreign_keys=off&busy_timeout=3"
        pool: Any = door(url, busy_timeout=4.0, row_factory=dict, journal_mode=None)
        settings = pool._driver.settings
        assert (settings.foreign_keys, settings.busy_timeout) == (False, 4.0)
        assert (settings.row_factory, settings.journal_mode) == (dict, None)


KEYWORDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "pool's": (PG, {"max_sise": 3}, "unknown option 'max_sise'; did you mean max_size? Known: "),
    "driver's": (PG, {"poler": "session"}, "unknown option 'poler'; did you mean pooler? Known: "),
    "driver's of SQLite": (LITE, {"busy_timout": 3}, "did you mean busy_timeout? Known: "),
    "less alike": (LITE, {"max_waiters": 3}, "'max_waiters'; did you mean max_waiting? Known: "),
    "less alike to several": (
        LITE,
        {"retry_backoff": 3},
        "'retry_backoff'; did you mean backoff_min or backoff_max? Known: ",
    ),
    "others'": (
        PG,
        {"pool_size": 3},
        "'pool_size': it is a word of other pools or clients: write m",
    ),
    "others' of SQLite": (LITE, {"isolation_level": None}, "connections are in autocommit"),
    "another driver's": (LITE, {"reset": "full"}, "it is a setting of PostgreSQL's driver"),
    "another driver's of SQLite": (
        PG,
        {"foreign_keys": True},
        "it is a setting of SQLite's drivers",
    ),
    "asyncpg's": (PG, {"password": SECRET}, "give connect_kwargs={'password': ...}"),
    "DSN's": (PG, {"sslmode": "require"}, "'sslmode' is a part of the DSN"),
    "session's": (
        PG,
        {"search_path": "x"},
        "connect_kwargs={'server_settings': {'search_path': ...}}",
    ),
    "timeout": (PG, {"timeout": 3}, "write acquire_timeout, connect_timeout"),
    "nonsense": (PG, {"nonsense": SECRET}, "unknown option 'nonsense'. Known: acquire_timeout, "),
    "nonsense for SQLite": (LITE, {"nonsense": SECRET}, "unknown option 'nonsense'. Known: "),
    "wrong value": (PG, {"reset": "ful"}, "reset='ful': give 'full'"),
    "wrong value of SQLite": (LITE, {"journal_mode": "wall"}, "journal_mode='wall': give one of"),
    "wrong switch of SQLite": (LITE, {"foreign_keys": "off"}, "='off': give True, False or None"),
    "wrong number of SQLite": (LITE, {"iter_chunk_size": 0}, "=0 is not a whole number from 1 up"),
    "wrong factory of SQLite": (LITE, {"row_factory": "Row"}, "row_factory='Row' is not callable"),
    "first argument": (PG, {"url": PG}, "give it as the first argument"),
    "loop": (PG, {"loop": None}, "leave it out"),
    "wrong ssl": (PG, {"ssl": "requird"}, "ssl is 'requird': give an ssl.SSLContext, True, False"),
    "wrong kind of ssl": (PG, {"ssl": {}}, "ssl is a dict: give an ssl.SSLContext"),
    "ssl twice": (PG, {"ssl": True, "connect_kwargs": {"ssl": True}}, "ssl is given twice"),
    "secret in connect_kwargs": (PG, {"connect_kwargs": {"pasword": SECRET}}, "mean password"),
}


@pytest.mark.parametrize("name", KEYWORDS)
def test_keyword_that_nobody_knows_is_refused_at_both_doors(name: str) -> None:
    """With what it may mean, among the pool's words and this driver's."""
    url, options, words = KEYWORDS[name]
    own = drivers.asyncpg.create_pool if url == PG else drivers.aiosqlite.create_pool
    doors: tuple[Any, ...] = (poolkit.create_pool, own)
    messages = {refused(functools.partial(door, url, **options)) for door in doors}
    assert len(messages) == 1
    assert words in messages.pop()


def test_ssl_is_what_asyncpg_gets(postgres: Server) -> None:
    """The server has no TLS: to require it fails; not to comes before the DSN."""

    async def main(door: Any) -> None:
        with pytest.raises(poolkit.ConnectFailed, match="TLS"):
            await door(postgres.dsn(), ssl="require", min_size=1).open()
        async with door(postgres.dsn(sslmode="require"), ssl=False) as pool, pool.acquire() as conn:
            assert await conn.fetchval("SELECT 1") == 1

    for door in (poolkit.create_pool, drivers.asyncpg.create_pool):
        asyncio.run(main(door))


DRIVERS = '''
from tests.fakes import FakeDriver


def simple(url):
    """The form of the how-to."""
    driver = FakeDriver()
    driver.name = url
    return driver


def choosy(url, *, color="red", tcp_timeout=None):
    """Takes settings by name."""
    return simple(f"{url} {color} {tcp_timeout}")


def lavish(url, **settings):
    """Takes whatever comes."""
    return simple(f"{url} {settings}")


class Made(FakeDriver):
    """A class that is its own function."""

    def __init__(self, url, color="red"):
        super().__init__()
        self.name = f"{url} {color}"
'''


@pytest.fixture
def installed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install drivers of somebody else's, as packages are."""
    (tmp_path / "their_drivers.py").write_text(DRIVERS)
    info = tmp_path / "their_drivers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-drivers\nVersion: 1.0\n")
    names = ("simple", "choosy", "lavish", "made=Made")
    entries = [
        f"{name.partition('=')[0]} = their_drivers:{name.rpartition('=')[2]}" for name in names
    ]
    (info / "entry_points.txt").write_text("\n".join(["[poolkit.drivers]", *entries]))
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("installed")
def test_driver_of_somebody_else_gets_the_settings_that_it_takes() -> None:
    """A function of the URL alone goes on working; the query is its own but for the pool's options."""
    make: Any = poolkit.create_pool
    assert (
        make("simple://h/x?max_size=3&other=1&maxsize=2#z").name
        == "simple://h/x?other=1&maxsize=2#z"
    )
    assert make("SIMPLE://h", min_size=2).name == "simple://h"
    assert make("choosy://h", color="blue").name == "choosy://h blue None"
    assert (
        make("lavish://h?max_size=3", color="blue", max_size=4).name
        == "lavish://h {'color': 'blue'}"
    )
    assert make("made://h", color="blue").name == "made://h blue"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        ("simple://h", {"color": 1}, "unknown option 'color'. Known: acquire_timeout, "),
        ("simple://h", {"url": 1}, "unknown option 'url'"),
        ("choosy://h", {"colour": 1}, "unknown option 'colour'; did you mean color? Known: "),
        ("choosy://h", {"max_sise": 1}, "did you mean max_size?"),
        ("choosy://h", {"pool_size": 1}, "write max_size"),
        ("made://h", {"colour": 1}, "did you mean color?"),
        ("made://h", {"url": 1}, "unknown option 'url'"),
        ("lavish://h", {"url": 1}, "unknown option 'url'"),
    ],
)
def test_settings_that_somebody_elses_driver_does_not_take_are_refused(
    url: str, options: dict[str, Any], words: str
) -> None:
    """By poolkit, which reads in the signature what there is."""
    assert words in refused(lambda: poolkit.create_pool(url, **options))


# -- secrets -------------------------------------------------------------------------------------

_HIDDEN = f"file:app.db?mode=r&key={SECRET}"
SECRETS: dict[str, tuple[Callable[[], object], str]] = {
    "PostgreSQL's URL for a filename": (
        lambda: drivers.sqlite.create_pool(PG),
        "this URL is no SQLite database's: give it to poolkit.create_pool()",
    ),
    "the same for aiosqlite": (lambda: drivers.aiosqlite.create_pool(PG), "no SQLite database's"),
    "another driver's URL": (
        lambda: drivers.sqlite.create_pool("sqlite+aiosqlite:///app.db"),
        "this URL is another driver's",
    ),
    "one slash for a filename": (
        lambda: drivers.sqlite.create_pool(f"postgresql:/app:{SECRET}@db"),
        "this is no filename but a URL",
    ),
    "libpq's for a filename": (
        lambda: drivers.aiosqlite.create_pool(f"host=db password={SECRET}"),
        "this is no filename but a URL",
    ),
    "no scheme for a filename": (
        lambda: drivers.aiosqlite.create_pool(f"app:{SECRET}@db.example/shop"),
        "as a pathlib.Path, if it has ':' and '@'",
    ),
    "URL for a driver": (
        lambda: drivers.sqlite.ThreadsDriver(PG),
        "this is no filename but a URL",
    ),
    "None for a filename": (lambda: drivers.sqlite.create_pool(None), "DATABASE_URL"),  # type: ignore[arg-type]
    "bytes for a filename": (lambda: drivers.sqlite.create_pool(PG.encode()), "decode() it"),  # type: ignore[arg-type]
    "URI with a key": (lambda: drivers.sqlite.create_pool(_HIDDEN), "mode='r' in the URL"),
    "URI with an option": (
        lambda: drivers.sqlite.create_pool(f"file:app.db?max_size=3&key={SECRET}"),
        "max_size in a file: URI, where SQLite passes over it: give it as a keyword",
    ),
    "URI with a bracket": (
        lambda: drivers.sqlite.create_pool(f"file://[{SECRET}"),
        "this URI has a bracket in it",
    ),
    "SQLite's URL for asyncpg": (
        lambda: drivers.asyncpg.create_pool(LITE),
        "it begins with postgresql://, postgres:// or postgresql+asyncpg://",
    ),
    "MySQL's URL for asyncpg": (
        lambda: drivers.asyncpg.create_pool(PG.replace("postgresql", "mysql")),
        "it begins with postgresql://",
    ),
    "pool's option for a driver": (
        lambda: drivers.asyncpg.AsyncpgDriver(f"{PG}?max_size=3"),
        "max_size in the DSN of a driver",
    ),
    "pool's option for from_url": (
        lambda: drivers.asyncpg.from_url(f"{PG}?max_size=3"),
        "max_size is an option of the pool, and not of its driver",
    ),
    "pool's option for from_url of SQLite": (
        lambda: drivers.sqlite.from_url(LITE, max_size=3),  # type: ignore[call-arg]
        "max_size is an option of the pool, and not of its driver",
    ),
    "URL for a lifespan": (
        lambda: poolkit.fastapi.lifespan(PG),  # type: ignore[arg-type]
        "lifespan() was given a str for ",
    ),
    "URL for an engine": (
        lambda: poolkit.sqlalchemy.create_async_engine(PG),  # type: ignore[arg-type]
        "create_async_engine() was given a str",
    ),
}


@pytest.mark.parametrize("name", SECRETS)
def test_url_at_the_wrong_door_is_not_quoted(name: str) -> None:
    """Nor what a library has said about it."""
    make, words = SECRETS[name]
    assert words in refused(make)


@pytest.mark.parametrize("dsn", [f"postgresql://app:x{c}{SECRET}@db.example/x" for c in "/[\uff0f"])
def test_dsn_that_asyncpg_cannot_read_is_not_quoted_by_compat(dsn: str) -> None:
    """Its own error is one of Python's, with a part of it."""

    async def main() -> None:
        async with compat.create_pool(dsn, min_size=1):
            pass

    assert "malformed DSN" in refused(lambda: asyncio.run(main()))


def test_nothing_prints_the_password(caplog: pytest.LogCaptureFixture) -> None:
    """Neither pools nor drivers nor settings, nor what they are made of."""
    arguments: Any = {"password": SECRET, "server_settings": {"a.token": SECRET}}
    for url in (PG, f"{PG}?password={SECRET}&sslpassword={SECRET}&a.token={SECRET}"):
        for pool in (
            poolkit.create_pool(url, connect_kwargs=arguments),
            drivers.asyncpg.create_pool(url, connect_kwargs=arguments),
            compat.create_pool(url, password=SECRET),
        ):
            driver: Any = pool._driver
            for each in (
                pool,
                driver,
                driver.settings,
                pool.name,
                pool.stats(),
                pool._state.options,
            ):
                assert SECRET not in f"{each!r} {each}"
    lite: Any = drivers.sqlite.create_pool(f"file:app.db?key={SECRET}")
    for each in (lite, lite._driver, lite._driver._database, lite.name):
        assert SECRET not in f"{each!r} {each}"
    assert SECRET not in caplog.text
