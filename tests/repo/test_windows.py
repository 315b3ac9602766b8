"""What Windows lacks is not touched by importing what works there, nor on the way to SQLite.

Its tests run there too (`.github/workflows/ci.yml`); here each of those names is taken away first.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

#: A program that takes away what Windows lacks; it has `os`, `signal`, `socket` and `sys`.
TAKE_AWAY = """
for module in ("fcntl", "grp", "pwd", "resource", "termios", "tty", "uvloop"):
    sys.modules[module] = None  # importing it fails
for name in [name for name in dir(os) if name in {
    "chown", "fchmod", "fchown", "fork", "forkpty", "geteuid", "getegid", "getgid", "getloadavg",
    "getpgid", "getsid", "getuid", "killpg", "lchown", "mkfifo", "nice", "openpty", "register_at_fork",
    "sched_getaffinity", "setsid", "sysconf", "uname", "wait", "wait3", "wait4",
}]:
    delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGALRM", "pthread_kill", "alarm"):
    delattr(signal, name)
for name in ("AF_UNIX", "CMSG_LEN", "SCM_RIGHTS"):
    if hasattr(socket, name):
        delattr(socket, name)
"""

_WITHOUT = """
import asyncio, importlib.metadata, logging, os, pathlib, random, shutil, signal, socket, sys, tempfile
import anyio, anyio._backends._asyncio, sqlite3, aiosqlite
import fastapi, opentelemetry.metrics, opentelemetry.trace, prometheus_client

runner = asyncio.Runner()
runner.get_loop()  # which needs some of them, and is another one there
{take_away}
sys.platform = "win32"

import poolkit, poolkit.testing
import poolkit.dashboard, poolkit.fastapi, poolkit.otel, poolkit.prometheus
import poolkit.drivers.aiosqlite, poolkit.drivers.sqlite, poolkit.drivers.stream


async def main():
    async with poolkit.create_pool({url!r}, max_size=2) as pool:
        async with pool.transaction() as c:
            await c.execute("CREATE TABLE item (name TEXT)")
            await c.execute("INSERT INTO item VALUES ('spade')")
        async with pool.acquire() as c:
            async with c.execute("SELECT name FROM item") as cursor:
                print(*await cursor.fetchone())
        assert pool.stats().leased == 0
    repr(pool), pool.leases(), poolkit.advise


runner.run(main())
runner.close()
"""


@pytest.mark.parametrize("scheme", ["sqlite", "sqlite+threads"])
def test_sqlite_needs_no_name_that_windows_lacks(scheme: str, tmp_path: Path) -> None:
    """A pool is made, used and closed without modules and names of POSIX."""
    url = f"{scheme}:///{tmp_path / 'shop.db'}"
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            _WITHOUT.replace("{take_away}", TAKE_AWAY).replace("{url!r}", repr(url)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (said.stdout, said.returncode) == ("spade\n", 0), said.stderr
