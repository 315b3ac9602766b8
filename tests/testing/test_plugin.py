"""The fixtures of `poolkit.testing.pytest`, in a test run of their own."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

from tests.conftest import ROOT

if TYPE_CHECKING:
    from pathlib import Path

FIXTURES = """
import pytest
import poolkit

pytest_plugins = ["poolkit.testing.pytest"]

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
"""

PROGRAM = """
import pytest
import poolkit

pytestmark = pytest.mark.anyio

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

#: What the blocks of the pages have around them.
IMPORTS = """
import os
import httpx
import pytest
from poolkit.testing import rollback
"""


def run(folder: Path, **files: str) -> str:
    """Return what pytest says of these tests, beside the fixtures."""
    for name, text in {"conftest": FIXTURES, **files}.items():
        (folder / f"{name}.py").write_text(text)
    without = ["-p", "no:cacheprovider", "-p", "no:langsmith_plugin"]  # seconds of imports
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *without],
        cwd=folder,
        env={**os.environ, "TEST_DATABASE_URL": "sqlite:///items.db"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


def blocks(page: str) -> list[str]:
    """Return the code of a page."""
    text = (ROOT / "docs" / "howto" / page).read_text("utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_fixtures_do_what_they_say(tmp_path: Path) -> None:
    """Rows are rolled back, and who forgets to give back has an error at the test's end."""
    said = run(tmp_path, test_it=PROGRAM)
    assert "3 passed, 1 error" in said, said
    assert "ERROR test_it.py::test_not_at_rest - AssertionError: pool 'fake'" in said


def test_tests_on_the_pages_pass(tmp_path: Path) -> None:
    """Those that need fixtures."""
    (program,) = (block for block in blocks("test.md") if "rolled_back, at_rest" in block)
    application, *others = blocks("test-your-app.md")
    (client,) = (block for block in others if "async def client(" in block)
    with contextlib.closing(sqlite3.connect(tmp_path / "items.db")) as conn:
        conn.execute("CREATE TABLE item (name TEXT NOT NULL)")
        said = run(
            tmp_path,
            test_program=IMPORTS + program,
            test_app=application + IMPORTS + client,
        )
        assert "2 passed" in said, said
        assert conn.execute("SELECT * FROM item").fetchall() == []
