"""When a stream is fit for its next user, asked of the driver itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.conftest import BACKENDS
from tests.drivers.stream_help import KINDS, ask, read_line, serving
from tests.drivers.test_stream import until

pytestmark = [
    pytest.mark.parametrize("anyio_backend", BACKENDS, indirect=True),
    pytest.mark.parametrize("kind", KINDS),
]


async def test_stream_with_an_operation_under_way_is_not_fit(kind: str, tmp_path: Path) -> None:
    """Though nothing else speaks against it."""
    async with serving(kind, tmp_path) as served, anyio.create_task_group() as group:
        driver = served.driver()
        c = await driver.connect()
        assert driver.is_clean(c)
        group.start_soon(c.receive)
        await anyio.wait_all_tasks_blocked()
        assert not driver.is_clean(c)
        with pytest.raises(ConnectionError, match="under way"):
            await driver.reset(c)
        group.cancel_scope.cancel()
    c.terminate()


async def test_unread_bytes_of_the_present_lease_are_no_death(kind: str, tmp_path: Path) -> None:
    """The stream is alive, and not fit; what was looked at is received."""
    async with serving(kind, tmp_path) as served:
        served.server.late.set()
        driver = served.driver()
        c = await driver.connect()
        assert await ask(c, "twice one") == "one"
        await until(lambda: c.state() == "unread")
        assert not driver.is_dead(c)
        assert not driver.is_clean(c)
        with pytest.raises(ConnectionError, match="unread bytes"):
            await driver.reset(c)
        assert await read_line(c) == "one"
        assert driver.is_clean(c)
        driver.terminate(c)


async def test_look_takes_nothing_from_who_waits(kind: str, tmp_path: Path) -> None:
    """When the answer has come, and the one who waits for it has not been woken yet."""
    async with serving(kind, tmp_path) as served:
        c = await served.driver().connect()
        seen: list[str] = []
        answers: list[str] = []

        async def use() -> None:
            answers.append(await ask(c, "late one"))

        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(use)
                await anyio.wait_all_tasks_blocked()
                served.server.answered = lambda: seen.append(c.state())
                served.server.late.set()
        assert answers == ["one"]
        assert len(seen) == 1
        c.terminate()


async def test_stream_whose_sending_half_was_ended_is_not_fit(kind: str, tmp_path: Path) -> None:
    """At once, and not only when the server hangs up; TLS has no halves."""
    async with serving(kind, tmp_path) as served:
        driver = served.driver()
        c = await driver.connect()
        if kind == "tls":
            with pytest.raises(NotImplementedError):
                await c.send_eof()
            assert driver.is_clean(c)
        else:
            await c.send_eof()
            assert not driver.is_clean(c)
        driver.terminate(c)


@pytest.mark.parametrize(
    "ping", [(b"say pang\n", b"pong\n"), (b"say pong more\n", b"pong"), (b"goodbye p\n", b"pong\n")]
)
async def test_other_answer_to_the_ping_fails_the_reset(
    kind: str, tmp_path: Path, ping: Any
) -> None:
    """Of the same length, or a longer one, or none."""
    async with serving(kind, tmp_path) as served:
        driver = served.driver(ping=ping)
        c = await driver.connect()
        with pytest.raises((ConnectionError, anyio.EndOfStream, anyio.BrokenResourceError)):
            await driver.reset(c)
        driver.terminate(c)


async def test_bytes_that_come_after_a_ping_are_nobodys(kind: str, tmp_path: Path) -> None:
    """The connection is taken for dead."""
    async with serving(kind, tmp_path) as served:
        driver = served.driver(ping=(b"twice pong\n", b"pong\n"))
        c = await driver.connect()
        await driver.ping(c)
        assert not driver.is_dead(c)
        served.server.late.set()
        await until(lambda: driver.is_dead(c))
        driver.terminate(c)


async def test_close_says_farewell(kind: str, tmp_path: Path) -> None:
    """So that a server over TLS knows it from a lost connection; a terminated one does not."""
    async with serving(kind, tmp_path, is_strict=True) as served:
        driver = served.driver()
        c = await driver.connect()
        assert await ask(c, "say one") == "one"
        await driver.close(c)
        await until(lambda: served.server.ends == ["IncompleteRead"])
