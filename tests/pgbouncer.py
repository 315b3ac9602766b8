"""PgBouncer in front of a PostgreSQL of the tests.

    pgbouncer       starts one; a test may start several, stop them and kill them

    def test_it(pgbouncer: StartPgBouncer) -> None:
        bouncer = pgbouncer(pool_mode="transaction", default_pool_size=3)

POOLKIT_TEST_PGBOUNCER_BIN says which program to take, or `none`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.postgres import Postgres, Program, need
from tests.proxy import HOST

StartPgBouncer = Callable[..., "PgBouncer"]
"""What the fixture gives."""

REMEDY = "apt-get install pgbouncer (as root: make test-tools)"


def find_pgbouncer() -> Path:
    """Return the program to use."""
    forced = os.environ.get("POOLKIT_TEST_PGBOUNCER_BIN", "")
    if forced == "none":
        need("PgBouncer", "POOLKIT_TEST_PGBOUNCER_BIN=none", REMEDY)
    # Debian puts it where only root's PATH leads.
    places = os.pathsep.join(
        [os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/opt/homebrew/bin"]
    )
    found = shutil.which(forced or "pgbouncer", path=places)
    if found is None:
        need("PgBouncer", f"no {forced or 'pgbouncer'} on PATH or in /usr/sbin", REMEDY)
    return Path(found)


class PgBouncer(Program):
    """A PgBouncer of our own. It is up as soon as it listens, whether its server is or not.

    With `auth_type="any"` every user is let in, and is the superuser behind it; with "trust" only the
    superuser is let in.
    """

    def __init__(
        self,
        program: Path,
        server: Postgres,
        *,
        pool_mode: Literal["transaction", "session"] = "transaction",
        default_pool_size: int = 3,
        auth_type: Literal["any", "trust"] = "any",
        **settings: str | float,
    ) -> None:
        super().__init__("pgbouncer")
        self.program = program
        self.server = server
        self._settings = {
            "listen_addr": HOST,
            "unix_socket_dir": "",
            "auth_type": auth_type,
            "auth_file": self.folder.path / "users",
            "admin_users": server.user,
            "pool_mode": pool_mode,
            "default_pool_size": default_pool_size,
            **settings,
        }

    def start(self) -> None:
        """Start it, unless it runs, and wait until it listens."""
        if self.is_running():
            return
        server, folder = self.server, self.folder.path
        password = server.password or ""
        target = f"host={server.host} port={server.port} user={server.user}"
        if password:
            target += f" password={password}"
        (folder / "users").write_text(f'"{server.user}" "{password}"\n')
        settings = {**self._settings, "listen_port": self.port}
        lines = (f"{name} = {value}\n" for name, value in settings.items())
        (folder / "ini").write_text(f"[databases]\n* = {target}\n[pgbouncer]\n{''.join(lines)}")
        self.folder.give()
        self._launch(self.program, folder / "ini")
        self._wait_until(self._listens, 10)

    def stop(self) -> None:
        """End it without waiting for clients, and wait for the end."""
        while self.is_running():
            self.signal(signal.SIGTERM)  # from 1.23 on it waits for clients, unless told twice
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.wait_ended(0.2)

    def dsn(self, database: str = "postgres", *, user: str | None = None) -> str:
        """Return the DSN of a database of the server, through here; `pgbouncer` is the console."""
        return f"postgresql://{user or self.server.user}@{self.host}:{self.port}/{database}"

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), timeout=1):
            return self.is_running()
        return False


@pytest.fixture
def pgbouncer(request: pytest.FixtureRequest) -> Iterator[StartPgBouncer]:
    """Return what starts a PgBouncer with these options, and ends it with the test.

    It is in front of the shared server, unless another is given.
    """
    program = find_pgbouncer()
    with contextlib.ExitStack() as stack:

        def start(server: Postgres | None = None, **options: Any) -> PgBouncer:
            behind = server or request.getfixturevalue("postgres")
            bouncer = PgBouncer(program, behind, **options)
            stack.callback(bouncer.close)
            bouncer.start()
            return bouncer

        yield start
