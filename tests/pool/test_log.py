"""What poolkit logs: one logger, fields on every record, and no text of others that forges a line."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import anyio
import pytest

import poolkit
from poolkit import Pool, PoolTimeout, Verdict
from poolkit._shell.log import say, warn
from poolkit._text import Lines
from tests.fakes import Boom, CleanDriver, FakeConnection, FakeDriver, FullDriver
from tests.pool.virtual import RUNNERS

SOURCE = Path(poolkit.__file__).parent
#: A name as an attacker would choose it: a line of its own, a colour, and a text that runs backwards.
EVIL = "x\n2026-01-01 CRITICAL root: all is lost\r\x1b[31m\u202e\u2028y"


def shown(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the lines of a log file with these records."""
    formatter = logging.Formatter("%(levelname)s %(name)s: %(message)s")
    lines: list[str] = []
    for record in caplog.records:
        lines += formatter.format(record).split("\n")
    return lines


def check(caplog: pytest.LogCaptureFixture) -> None:
    """Check that every record has its fields, and that no line or field is another's."""
    for record in caplog.records:
        assert record.name == "poolkit"
        fields = {name: value for name, value in vars(record).items() if "poolkit" in name}
        assert re.fullmatch(r"[a-z_]+", fields["poolkit_event"])
        assert "poolkit_pool" in fields
        for name, value in fields.items():
            assert re.fullmatch(r"poolkit_[a-z_]+", name)
            assert value is None or isinstance(value, (int, float)) or value.isprintable(), name
    lines = shown(caplog)
    assert lines
    for line in lines:
        assert line.isprintable(), line
        assert re.match(r"  |(DEBUG|INFO|WARNING|ERROR) poolkit: ", line), line
        assert "\\\\" not in line, "escaped twice"


def test_there_is_one_logger_and_it_has_no_handler_of_its_own() -> None:
    """Where nothing is configured, nothing is written; who configures decides."""
    program = "import logging, poolkit; print(logging.getLogger('poolkit').handlers)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[<NullHandler (NOTSET)>]"
    users = [
        path.relative_to(SOURCE).as_posix()
        for path in sorted(SOURCE.rglob("*.py"))
        if re.search(r"getLogger|\blogger\.[a-z]+\(", path.read_text())
    ]
    # Programs watch these two for what their libraries' own pools say.
    own = ["compat/asyncpg/_floor.py", "sqlalchemy/_pool.py"]
    assert users == ["_shell/log.py", *own]


@RUNNERS
def test_names_of_others_forge_no_line(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Of the pool, a label, a task, and what a driver or an observer raises."""
    caplog.set_level(logging.DEBUG, "poolkit")

    class Rude(FullDriver):
        """A driver whose methods raise what they must not."""

        name = EVIL

        def is_clean(self, c: FakeConnection) -> bool:
            raise Boom(EVIL)

        async def reset(self, c: FakeConnection, /) -> str | None:
            await super().reset(c)
            return EVIL

    async def hold(pool: Pool[FakeConnection]) -> None:
        name_task()
        with poolkit.labelled(EVIL):
            async with pool.acquire() as conn:
                await conn.query()
                await anyio.sleep(20.0)

    def name_task() -> None:
        with contextlib.suppress(RuntimeError):
            task = asyncio.current_task()
            assert task is not None
            task.set_name(EVIL)

    async def main() -> None:
        driver = Rude()
        driver.verdicts[Boom] = Verdict.OK
        pool = Pool(driver, name=EVIL, max_size=1, leak_after=5.0, acquire_timeout=9.0)
        async with pool, anyio.create_task_group() as group:
            group.start_soon(hold, pool)
            await anyio.sleep(1.0)
            with pytest.raises(PoolTimeout) as caught:
                await pool.acquire()
            said = str(caught.value)
            assert said.isprintable()
            await anyio.sleep(20.0)
            driver.script["reset"] = [Boom(EVIL)]
            driver.script["connect"] = [Boom(EVIL), Boom(EVIL), None]
            async with pool.acquire() as conn:
                await conn.query()
            await anyio.sleep(5.0)
        found = {record.poolkit_event for record in caplog.records}  # type: ignore[attr-defined]
        assert found >= {
            *("call_raised", "connect_failed", "held_long", "came_back", "left_behind"),
            *("long_wait", "outage_began", "recycle_failed"),
        }
        check(caplog)

    run(main)


def test_every_kind_of_value_is_a_safe_field(caplog: pytest.LogCaptureFixture) -> None:
    """Figures stay figures, all else is a text of one line; what is None says so."""
    say(logging.WARNING, "tried", "%s and %r, %d", EVIL, EVIL, 7, pool=EVIL, n=1, x=0.5, of=[EVIL])
    (record,) = caplog.records
    assert vars(record)["poolkit_n"] == 1
    assert vars(record)["poolkit_x"] == 0.5
    assert record.pathname == __file__
    check(caplog)
    caplog.clear()
    say(logging.WARNING, "tried", "%s", Lines("one\n    two"))
    assert shown(caplog) == ["WARNING poolkit: one", "    two"]
    assert vars(caplog.records[0])["poolkit_pool"] is None


def test_traceback_is_indented_and_escaped(caplog: pytest.LogCaptureFixture) -> None:
    """An error's text may have any lines in it."""
    try:
        raise Boom(EVIL)
    except Boom as error:
        say(logging.ERROR, "tried", "it failed", error=error)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is Boom
    assert any(line.startswith("  Traceback") for line in shown(caplog))
    check(caplog)


def test_error_that_is_not_what_it_promises_is_logged_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Python cannot show the traceback of such a `SyntaxError`."""
    error = SyntaxError("odd")
    error.filename, error.lineno, error.text = "a", 1, 5  # type: ignore[assignment]
    say(logging.ERROR, "tried", "it failed", error=error)
    assert shown(caplog)[0] == "ERROR poolkit: it failed"
    check(caplog)


def test_traceback_has_an_end(caplog: pytest.LogCaptureFixture) -> None:
    """However many lines the text of an error has."""
    say(logging.ERROR, "tried", "it failed", error=Boom("line\n" * 100_000))
    lines = shown(caplog)
    assert len(lines) < 2000
    assert "  …" in lines
    check(caplog)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cannot read 'postgresql://me:sesame@db/x'", "cannot read 'postgresql://***@db/x'"),
        ("redis://:sesame@db:1, redis://db:2", "redis://***@db:1, redis://db:2"),
        ("postgresql://me:ses@me@db", "postgresql://***@db"),
        ("postgresql://me:se/sesame@db", "postgresql://***@db"),
        ("host=db password=sesame user=me", "host=db password=*** user=me"),
        ("host=db PassWord = 'my sesame' user=me", "host=db PassWord = *** user=me"),
        ("{'password': 'sesame', 'user': 'me'}", "{'password': ***, 'user': 'me'}"),
        ("https://db/?password=sesame&x=1", "https://db/?password=***&x=1"),
        ("password authentication failed: a@b", "password authentication failed: a@b"),
        ("see https://example.com, or a@b", "see https://example.com, or a@b"),
    ],
)
def test_password_in_an_error_is_not_logged(
    caplog: pytest.LogCaptureFixture, text: str, told: str
) -> None:
    """Libraries quote what they were given; neither the line nor the traceback does."""
    caplog.set_level(logging.DEBUG, "poolkit")

    async def main() -> None:
        driver = CleanDriver(connect=[Boom(text), Boom(text)])
        pool = Pool(driver, name="shop", max_size=1, min_size=0, acquire_timeout=1.0)
        async with pool:
            for _ in range(2):
                with contextlib.suppress(poolkit.PoolError):
                    await pool.acquire()

    asyncio.run(main())
    (began,) = [one for one in caplog.records if vars(one)["poolkit_event"] == "outage_began"]
    assert f": {told}; no connection was lost" in began.getMessage()
    say(logging.ERROR, "tried", "it failed", error=Boom(text))
    lines = shown(caplog)
    assert lines[-1].endswith(f": {told}")
    assert not any("sesame" in line for line in lines)


def test_left_open_pool_is_named_by_a_field(caplog: pytest.LogCaptureFixture) -> None:
    """Also where warnings are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn("pool 'shop' was never closed", "shop")
    assert vars(caplog.records[0])["poolkit_pool"] == "shop"


def test_what_nobody_reads_is_not_made() -> None:
    """The text of an error may cost much."""

    class Dear:
        def __str__(self) -> str:
            raise AssertionError("made")

    say(logging.DEBUG, "tried", "%s", Dear())


def test_handler_or_text_that_raises_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Neither may end a task of the pool's."""

    class Mute:
        def __str__(self) -> str:
            raise ValueError

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ValueError

    say(logging.WARNING, "tried", "%s", Mute())
    handler = Handler()
    logging.getLogger("poolkit").addHandler(handler)
    try:
        say(logging.WARNING, "tried", "text")
    finally:
        logging.getLogger("poolkit").removeHandler(handler)


async def test_handler_that_raises_in_an_outage_ends_no_pool() -> None:
    """Not even with what is no error."""

    class Fatal(BaseException):
        pass

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.levelno)
            raise Fatal

    seen: list[int] = []
    handler = Handler(logging.WARNING)
    logging.getLogger("poolkit").addHandler(handler)
    try:
        driver = CleanDriver()
        pool = await Pool(driver, min_size=0).open()
        driver.script["connect"] = [Boom("down")] * 3
        with pytest.raises(poolkit.ConnectFailed):
            await pool.acquire()
        driver.script["connect"] = None
        async with pool.acquire(timeout=60.0) as conn:
            assert await conn.query() == "row"
        with pytest.raises(Fatal):
            await pool.aclose()
    finally:
        logging.getLogger("poolkit").removeHandler(handler)
    assert seen == [logging.WARNING]


async def test_pool_that_nothing_befalls_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Not at any level."""
    caplog.set_level(logging.DEBUG, "poolkit")
    async with Pool(FakeDriver(), max_size=2) as pool:
        for _ in range(3):
            async with pool.acquire() as conn:
                await conn.query()
    assert not caplog.records
