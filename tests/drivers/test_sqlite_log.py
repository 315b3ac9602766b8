"""What the log says when the file of a SQLite database is gone, and is there again."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from poolkit import ConnectFailed
from poolkit.testing import check_pool
from tests.drivers.sqlite_help import PATIENCE, SQLITE_CASES


@pytest.fixture(params=SQLITE_CASES)
def case(request: pytest.FixtureRequest) -> Any:
    """Each driver, on each event loop that it knows."""
    return request.param


@pytest.fixture
def anyio_backend(case: Any) -> Any:
    """Run on the case's event loop."""
    return case[1]


def move(path: Path, to: Path) -> None:
    """Move a file; the connections that have it open keep it."""
    path.replace(to)


@pytest.mark.skipif(sys.platform == "win32", reason="a file that is open cannot be moved there")
async def test_file_that_is_gone_for_a_while_is_two_lines(
    case: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """However many callers ask for it meanwhile."""
    caplog.set_level(logging.DEBUG, "poolkit")
    path, away = tmp_path / "app.db", tmp_path / "away.db"

    def events() -> list[tuple[str, str]]:
        found: list[Any] = [one for one in caplog.records if one.levelno >= logging.INFO]
        return [(record.levelname, record.poolkit_event) for record in found]

    options = {"journal_mode": "DELETE", "ping_after": 0, "max_size": 3, "name": "shop"}
    async with case[0].create_pool(path, **options) as pool:
        async with pool.acquire() as conn:
            await conn.execute("CREATE TABLE t (x)")
        await check_pool(pool)  # whoever waits for a reset is not pinged
        move(path, away)
        for _ in range(10):
            with pytest.raises(ConnectFailed):
                await pool.acquire()
        assert events() == [("WARNING", "outage_began")]
        move(away, path)
        with anyio.fail_after(PATIENCE):
            while len(events()) < 2:  # noqa: ASYNC110  # no event tells
                await anyio.sleep(0.01)
        async with pool.acquire() as conn:
            await conn.execute("SELECT * FROM t")
    assert events() == [("WARNING", "outage_began"), ("INFO", "outage_ended")]
    began, ended = (one.getMessage() for one in caplog.records if one.levelno >= logging.INFO)
    assert "does not exist any more" in began
    assert "ConnectFailed" in ended
