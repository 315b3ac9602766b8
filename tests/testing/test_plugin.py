"""The fixtures of `poolkit.testing.pytest`, in a test run of their own."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import pytest
import poolkit
from poolkit.testing import FakeDriver

pytest_plugins = ["poolkit.testing.pytest"]
pytestmark = pytest.mark.anyio

@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.fixture
async def pool(anyio_backend, tmp_path):
    async with poolkit.create_pool(f"sqlite:///{tmp_path}/test.db") as pool:
        async with pool.acquire() as conn:
            await conn.execute("CREATE TABLE t (x)")
        yield pool
        async with pool.acquire() as conn:
            assert await conn.execute_fetchall("SELECT * FROM t") == []

async def test_rolled_back(pool, rolled_back):
    test_pool = await rolled_back(pool)
    async with test_pool.acquire() as conn:
        await conn.execute("INSERT INTO t VALUES (1)")
    async with test_pool.acquire() as conn:
        assert await conn.execute_fetchall("SELECT * FROM t") == [(1,)]

async def test_fake_driver_at_rest(fake_driver, at_rest):
    pool = at_rest(await poolkit.Pool(fake_driver).open())
    async with pool.acquire() as conn:
        await conn.query()

kept = []

async def test_not_at_rest(fake_driver, at_rest):
    pool = at_rest(await poolkit.Pool(fake_driver).open())
    kept.append(await pool.acquire())
"""


def test_fixtures_do_what_they_say(tmp_path: Path) -> None:
    """Rows are rolled back, and who forgets to give back has an error at the test's end."""
    (tmp_path / "test_it.py").write_text(PROGRAM)
    without = ["-p", "no:cacheprovider", "-p", "no:langsmith_plugin"]  # seconds of imports
    command = [sys.executable, "-m", "pytest", "-q", *without, "test_it.py"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert "3 passed, 1 error" in done.stdout, done.stdout + done.stderr
    assert "ERROR test_it.py::test_not_at_rest - AssertionError: pool 'fake'" in done.stdout
