"""MariaDB for the tests, started from what the system has installed.

    mariadb        the shared server: a test may use it, but neither stop nor reconfigure it
    own_mariadb    a second one, which a test may stop, kill and reconfigure
    mysql          the URL of an empty database on the shared server

Nothing is started unless a test asks for it; it is gone when the tests are, however they end.
POOLKIT_TEST_MARIADB_BIN says which `mariadbd` to take, or `none`.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.postgres import Program, ProgramEnded, demoted, need
from tests.proxy import HOST

#: Who uses the server in the tests, with rights on `poolkit_*` alone; `root` looks from outside.
USER, PASSWORD = "app", "s3cret"
REMEDY = "apt-get install mariadb-server-core (as root: make test-tools)"
OPTIONS = {
    "bind-address": HOST,
    "innodb-buffer-pool-size": "32M",
    "innodb-flush-log-at-trx-commit": "0",
    "innodb-log-file-size": "8M",
    "max-connections": "100",
    "performance-schema": "OFF",
}
#: Where data directories are kept as `mariadb-install-db` has made them, which takes seconds.
TEMPLATES = Path(__file__).resolve().parents[1] / "var"
USERS = f"""
CREATE USER IF NOT EXISTS {USER}@'%' IDENTIFIED BY '{PASSWORD}';
GRANT ALL ON `poolkit\\_%`.* TO {USER}@'%';
"""


def find_programs() -> tuple[Path, Path]:
    """Return `mariadbd`, and what makes a data directory for it."""
    forced = os.environ.get("POOLKIT_TEST_MARIADB_BIN", "")
    if forced == "none":
        need("MariaDB", "POOLKIT_TEST_MARIADB_BIN=none", REMEDY)
    # Debian puts it where only root's PATH leads.
    places = [os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/opt/homebrew/bin"]
    server = shutil.which(forced or "mariadbd", path=os.pathsep.join(places))
    install = shutil.which("mariadb-install-db", path=os.pathsep.join(places))
    if server is None or install is None:
        need("MariaDB", "no mariadbd and mariadb-install-db on PATH or in /usr/sbin", REMEDY)
    return Path(server), Path(install)


class MariaDB(Program):
    """A server of our own, which can be stopped, killed and started with other options."""

    def __init__(self, server: Path, install: Path) -> None:
        super().__init__("mariadb")
        self._server = server
        self._data = self.folder.path / "data"
        self.options: dict[str, str] = {}
        try:
            template = TEMPLATES / f"mariadb-{server.stat().st_mtime_ns:x}"
            if template.exists():
                shutil.copytree(template, self._data)
            else:
                self._create(install)
                made = TEMPLATES / secrets.token_hex(6)
                shutil.copytree(self._data, made)
                try:
                    made.rename(template)
                except OSError:  # another process was faster
                    shutil.rmtree(made)
            (self.folder.path / "users.sql").write_text(USERS)
            self.folder.give()
        except BaseException:
            self.folder.close()
            raise

    def _create(self, install: Path) -> None:
        words = ("--auth-root-authentication-method=normal", "--skip-test-db", "--skip-log-bin")
        tmp = f"--tmpdir={self.folder.path}"  # each server empties its own
        sizes = [f"--{name}={value}" for name, value in OPTIONS.items() if "innodb" in name]
        done = subprocess.run(
            [install, "--no-defaults", f"--datadir={self._data}", tmp, *words, *sizes],
            cwd=self.folder.path,
            capture_output=True,
            text=True,
            check=False,
            **demoted(),
        )
        if done.returncode != 0:
            raise ProgramEnded(done.stdout + done.stderr)

    def start(self) -> None:
        """Start it, unless it runs, and wait until it answers."""
        if self.is_running():
            return
        folder = self.folder.path
        options = {
            **OPTIONS,
            "datadir": self._data,
            "init-file": folder / "users.sql",
            "pid-file": folder / "pid",
            "port": self.port,
            "socket": self.socket,
            "tmpdir": folder,
            **self.options,
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        self._launch(self._server, "--no-defaults", "--skip-log-bin", "--skip-name-resolve", *words)
        self._wait_until(self._answers, 30)

    def stop(self) -> None:
        """Stop it as an administrator does, and wait for the end."""
        self.signal(signal.SIGTERM)
        self.wait_ended()

    def restart(self, **options: str) -> None:
        """Stop it and start it with these options, and no others."""
        self.stop()
        self.options = {name.replace("_", "-"): value for name, value in options.items()}
        self.start()

    @property
    def socket(self) -> Path:
        """The path of its socket of Unix."""
        return self.folder.path / "sock"

    def url(self, database: str = "", **query: object) -> str:
        """Return the URL of a database of it."""
        settings = f"?{urlencode(query)}" if query else ""
        return f"mysql://{USER}:{PASSWORD}@{self.host}:{self.port}/{database}{settings}"

    def query(self, sql: str, *args: object, database: str | None = None) -> list[tuple[Any, ...]]:
        """Execute a statement as root and return its rows."""
        import asyncmy

        async def run() -> list[tuple[Any, ...]]:
            conn = await asyncmy.connect(
                user="root", unix_socket=str(self.socket), database=database, autocommit=True
            )
            try:
                async with conn.cursor() as cursor:
                    await cursor.execute(sql, args or None)
                    return list(await cursor.fetchall()) if cursor.description else []
            finally:
                await conn.ensure_closed()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, run()).result()

    def sessions(self, database: str | None = None) -> dict[int, str]:
        """Return what the sessions of the tests' user are at, by number: texts, or commands."""
        rows = self.query(
            "SELECT ID, COALESCE(INFO, COMMAND) FROM information_schema.PROCESSLIST "
            "WHERE USER = %s AND (%s IS NULL OR DB = %s) AND COMMAND <> 'Killed'",
            *(USER, database, database),
        )
        return {int(number): str(text) for number, text in rows}

    def create_database(self) -> str:
        """Create an empty database and return its name."""
        name = f"poolkit_{secrets.token_hex(6)}"
        self.query(f"CREATE DATABASE {name}")
        return name

    def reset(self) -> None:
        """Let it run with the default options, without clients and databases of a test's."""
        self.signal(signal.SIGCONT)
        if self.options or not self._answers():
            if self.is_running():
                self.kill()
            self.options = {}
        self.start()
        for number in self.sessions():
            self.query(f"KILL {number}")
        for (name,) in self.query("SHOW DATABASES LIKE 'poolkit\\_%'"):
            self.query(f"DROP DATABASE {name}")

    def _answers(self) -> bool:
        import asyncmy

        if not self.is_running():
            return False
        try:
            return bool(self.query("SELECT COUNT(*) FROM mysql.user WHERE user = %s", USER)[0][0])
        except (OSError, asyncmy.MySQLError):
            time.sleep(0.02)
            return False


def _running() -> Iterator[MariaDB]:
    server = MariaDB(*find_programs())
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """Return the server that all tests share: not to be stopped, nor reconfigured."""
    yield from _running()


@pytest.fixture(scope="session")
def _own_mariadb() -> Iterator[MariaDB]:
    yield from _running()


@pytest.fixture
def own_mariadb(_own_mariadb: MariaDB) -> MariaDB:
    """Return a server to be stopped, killed and reconfigured; now it runs as it was made."""
    _own_mariadb.reset()
    return _own_mariadb


@pytest.fixture
def mysql(mariadb: MariaDB) -> Iterator[str]:
    """Return the URL of an empty database on the shared server."""
    name = mariadb.create_database()
    yield mariadb.url(name)
    mariadb.query(f"DROP DATABASE {name}")
