"""Connecting fails, with a reason: password, database, TLS, name, or somebody else at the port.

Each time the pool has connections first, which are then really ended, as they are in a deployment
where something was changed.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from asyncpg import exceptions as pg

from poolkit import ConnectFailed
from tests.faults.harness import PgPool, Run, create, fault, have_all, terminate, until
from tests.postgres import Postgres, Server, need


@pytest.fixture
def anyio_backend() -> Any:
    """Run on asyncio's own loop: uvloop has its own way to look up names."""
    return ("asyncio", {"use_uvloop": False})


_FAILS_WAITERS = "fails all waiters at once, and newcomers; tries again, after pauses that double"


async def _is_told(run: Run, pool: PgPool, cause: type[BaseException]) -> None:
    """Check that callers are told at once, again and again, without the driver's being asked."""
    with run.sees(ConnectFailed, cause=cause):
        async with pool.acquire(timeout=5.0):
            pass
    assert isinstance(await run.waits(pool, 1.0), ConnectFailed)


# -- password and database -----------------------------------------------------------------------


@fault(
    name="wrong password (SCRAM)",
    sees="`acquire`, `pool.open()`: `ConnectFailed` (cause: `InvalidPasswordError`) at once, with "
    "no password in it",
    pool=_FAILS_WAITERS,
    hits="backend pid",
    bound=3.0,
)
async def test_wrong_password_is_told_at_once(
    run: Run, own_postgres: Server, role: None, caplog: pytest.LogCaptureFixture
) -> None:
    """When it is right again, so is the pool."""
    dsn = own_postgres.dsn(user="app", password="hunter2")
    async with create(dsn) as pool:
        victims = await have_all(pool)
        own_postgres.query("ALTER ROLE app PASSWORD 'changed'")
        run.hits_backend(own_postgres, *victims)
        terminate(own_postgres, *victims)
        await until(lambda: pool.stats().idle == 0)
        await _is_told(run, pool, pg.InvalidPasswordError)
        for attempt in (pool.acquire().__aenter__(), create(dsn).open()):
            with pytest.raises(ConnectFailed) as caught:
                await attempt
            assert "hunter2" not in f"{caught.value!r} {caught.value.__cause__!r} {caplog.text}"
        own_postgres.query("ALTER ROLE app PASSWORD 'hunter2'")
        run.over()
        await run.recovered(pool, own_postgres, gone=tuple(victims), patient=True)


@pytest.fixture
def role(own_postgres: Server) -> Iterator[None]:
    """Have a user ``app`` who needs a password."""
    own_postgres.query("CREATE ROLE needs_password")
    own_postgres.query("CREATE ROLE app LOGIN PASSWORD 'hunter2' IN ROLE needs_password")
    yield
    own_postgres.query("DROP ROLE app, needs_password")


@fault(
    name="no such database (dropped)",
    sees="`acquire`: `ConnectFailed` (cause: `InvalidCatalogNameError`) at once",
    pool=_FAILS_WAITERS,
    hits="backend pid",
    bound=3.0,
)
async def test_missing_database_is_told_at_once(
    run: Run, own_postgres: Server, own_database: str
) -> None:
    """When it is there again, so is the pool."""
    name = own_database.rpartition("/")[2]
    async with create(own_database) as pool:
        victims = await have_all(pool)
        run.hits_backend(own_postgres, *victims)
        own_postgres.drop_database(name)
        await until(lambda: pool.stats().idle == 0)
        await _is_told(run, pool, pg.InvalidCatalogNameError)
        own_postgres.query(f"CREATE DATABASE {name} TEMPLATE template0")
        run.over()
        await run.recovered(pool, own_postgres, gone=tuple(victims), patient=True)


# -- TLS -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def openssl() -> str:
    """Return the program that makes certificates."""
    found = shutil.which("openssl")
    if found is None:
        need("certificates", "there is no openssl", "apt-get install openssl")
    return found


def _certify(server: Server, openssl: str, name: str) -> dict[str, Path]:
    """Make a certificate for the server, which signs itself; return the settings for it."""
    made = {"ssl_cert_file": "pem", "ssl_key_file": "key"}
    paths = {setting: server.folder.path / f"{name}.{end}" for setting, end in made.items()}
    subprocess.run(
        [
            *(openssl, "req", "-new", "-x509", "-days", "2", "-nodes", "-newkey", "rsa:2048"),
            *("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", paths["ssl_key_file"], "-out", paths["ssl_cert_file"]),
        ],
        check=True,
        capture_output=True,
    )
    for path in paths.values():
        path.chmod(0o600)
    server.folder.give()
    return paths


@fault(
    name="server without TLS, `sslmode=require`",
    sees="`acquire`: `ConnectFailed` (cause: `ConnectionError`, rejected SSL upgrade) at once",
    pool=_FAILS_WAITERS,
    hits="backend pid",
    bound=3.0,
)
async def test_tls_refused_is_told_at_once(
    run: Run, own_postgres: Server, own_database: str, openssl: str
) -> None:
    """Nothing is sent in the clear instead."""
    own_postgres.configure(ssl="on", **_texts(_certify(own_postgres, openssl, "server")))
    async with create(f"{own_database}?sslmode=require") as pool:
        victims = await have_all(pool)
        own_postgres.configure(ssl="off")
        run.hits_backend(own_postgres, *victims)
        terminate(own_postgres, *victims)
        await until(lambda: pool.stats().idle == 0)
        await _is_told(run, pool, ConnectionError)
        own_postgres.configure(ssl="on")
        run.over()
        await run.recovered(pool, own_postgres, gone=tuple(victims), patient=True)


@fault(
    name="certificate that is not trusted, `sslmode=verify-full`",
    sees="`acquire`: `ConnectFailed` (cause: `SSLCertVerificationError`) at once",
    pool=_FAILS_WAITERS,
    hits="backend pid",
    bound=3.0,
)
async def test_untrusted_certificate_is_told_at_once(
    run: Run, own_postgres: Server, own_database: str, openssl: str
) -> None:
    """Though it is an OSError, it does not pass by itself."""
    trusted = _certify(own_postgres, openssl, "trusted")
    other = _certify(own_postgres, openssl, "other")
    own_postgres.configure(ssl="on", **_texts(trusted))
    dsn = f"{own_database}?sslmode=verify-full&sslrootcert={trusted['ssl_cert_file']}"
    async with create(dsn) as pool:
        victims = await have_all(pool)
        own_postgres.configure(**_texts(other))
        run.hits_backend(own_postgres, *victims)
        terminate(own_postgres, *victims)
        await until(lambda: pool.stats().idle == 0)
        await _is_told(run, pool, ssl.SSLCertVerificationError)
        own_postgres.configure(**_texts(trusted))
        run.over()
        await run.recovered(pool, own_postgres, gone=tuple(victims), patient=True)


def _texts(paths: dict[str, Path]) -> dict[str, str]:
    return {name: str(path) for name, path in paths.items()}


# -- the address ---------------------------------------------------------------------------------


@fault(
    name="host name that does not resolve",
    sees="`acquire`: waits, or `PoolTimeout` (cause: `gaierror`) at its deadline",
    pool="one attempt to connect at a time, after pauses that double",
    hits="backend pid",
    bound=3.0,
)
async def test_name_that_does_not_resolve_is_waited_out(
    run: Run, postgres: Postgres, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system is asked at every attempt; until it knows the name, this is an outage."""
    name = "database.poolkit.invalid."
    resolves = True
    ask_system = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        known = postgres.host if resolves and host == name else host
        return ask_system(known, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    async with create(database.replace(postgres.host, name, 1)) as pool:
        victims = await have_all(pool)
        resolves = False
        run.hits_backend(postgres, *victims)
        terminate(postgres, *victims)
        await until(lambda: pool.stats().idle == 0)
        patient = asyncio.create_task(run.waits(pool, 10.0))
        await run.waits_in_vain(pool, 1.0, socket.gaierror)
        resolves = True
        run.over()
        assert await patient is None
        await run.recovered(pool, postgres, gone=tuple(victims))


@fault(
    name="something else than PostgreSQL at the port",
    sees="`acquire`: `ConnectFailed` (cause: `ConnectionError`: it has no TLS, or is no "
    "PostgreSQL) at once",
    pool=_FAILS_WAITERS,
    hits="port",
    bound=3.0,
)
async def test_something_else_at_the_port_is_told_at_once(
    run: Run, own_postgres: Server, own_database: str
) -> None:
    """Here it is a web server, at the port of a PostgreSQL that was stopped."""
    async with create(own_database, min_size=0) as pool:
        own_postgres.stop()
        async with _web_server(own_postgres.port):
            run.hits_port(own_postgres.port)
            await _is_told(run, pool, ConnectionError)
        own_postgres.start()
        run.over()
        await run.recovered(pool, own_postgres, patient=True)


@contextlib.asynccontextmanager
async def _web_server(port: int) -> AsyncIterator[None]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", port):
        yield
