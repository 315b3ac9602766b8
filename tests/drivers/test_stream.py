"""Streams: no byte of one lease reaches the next, whenever it comes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.tls import TLSAttribute

from poolkit import ConnectFailed, NotLeased
from poolkit.drivers.stream import Stream
from poolkit.testing import Probe, check_driver, check_pool
from tests.conftest import BACKENDS
from tests.drivers.stream_help import KINDS, PING, ask, read_line, serving
from tests.effort import SHARE
from tests.fakes import gone, own

on_all = [
    pytest.mark.parametrize("anyio_backend", BACKENDS, indirect=True),
    pytest.mark.parametrize("kind", KINDS),
]
pytestmark = on_all
TASKS = max(200, round(2000 * SHARE))


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what the operating system does, of which no event tells."""
    with anyio.fail_after(20):
        while not condition():  # noqa: ASYNC110
            await anyio.sleep(0.001)


@pytest.mark.parametrize("ping", [None, PING])
async def test_driver_keeps_every_line(kind: str, tmp_path: Path, ping: Any) -> None:
    """With a ping and without one, on a real server."""
    async with serving(kind, tmp_path) as served:

        async def count() -> int:
            await anyio.wait_all_tasks_blocked()
            return len(served.server.sessions)

        async def kill(c: Stream) -> None:
            def is_over() -> bool:
                served.server.kick()  # when it has accepted
                return c.state() == "ended"

            await until(is_over)

        async def spoil(c: Any) -> None:
            await c.send(b"twice spoiled\n")
            await read_line(c)

        async def is_spoiled(c: Any) -> bool:
            served.server.late.set()
            with anyio.move_on_after(0.2):
                return await ask(c, "say fine") != "fine"
            return True

        probe: Probe[Any] = Probe(operate=lambda c: ask(c, "wait"), count=count, kill=kill)
        if ping:
            probe = Probe(
                operate=probe.operate, count=count, kill=kill, spoil=spoil, is_spoiled=is_spoiled
            )
        report = await check_driver(served.driver(ping=ping), probe)
        lines = {
            "terminate ends a pending operation",
            "connect leaves nothing on the server when it is cancelled, at whatever moment",
            "ping raises on a connection that was ended from outside",
            "reset returns only if the connection is idle, after an operation was cancelled",
            "reset returns only if the connection is idle, while an operation is under way",
            "is_dead is True after a close of the connection's own, which ends its lease",
        }
        assert lines <= set(report.checked)


async def test_view_is_a_byte_stream_of_anyio(kind: str, tmp_path: Path) -> None:
    """It is iterated, wrapped and asked for its addresses, and dies with the lease."""
    async with serving(kind, tmp_path) as served, served.pool() as pool:
        async with pool.acquire() as stream:
            assert isinstance(stream, ByteStream)
            assert await BufferedByteReceiveStream(stream).receive_exactly(0) == b""
            await stream.send(b"say one\n")
            async for chunk in stream:
                assert chunk == b"one\n"
                break
            assert stream.extra(SocketAttribute.raw_socket, None) is None
            remote = stream.extra(SocketAttribute.remote_address)
            assert remote == (served.place[0] if kind == "unix" else served.place)
            assert (stream.extra(TLSAttribute.tls_version, None) is None) == (kind != "tls")
        with pytest.raises(NotLeased):
            await stream.receive()
        assert pool.stats().connected == 1
        async with pool.acquire() as again:
            assert await ask(again, "say two") == "two"
        assert pool.stats().connected == 1
        async with pool.acquire() as stream, stream:
            pass
        assert pool.stats().leased == 0
        await check_pool(pool)


async def test_stream_with_unread_bytes_has_no_other_user(kind: str, tmp_path: Path) -> None:
    """Though some of the answer was read."""
    async with serving(kind, tmp_path) as served, served.pool() as pool:
        async with pool.acquire() as stream:
            await stream.send(b"say unread\n")
            assert await stream.receive(1) == b"u"
        async with pool.acquire() as stream:
            assert await ask(stream, "say mine") == "mine"
        assert gone(pool.stats()) == {"broken": 1}


async def test_answer_that_comes_when_the_stream_is_idle_retires_it(
    kind: str, tmp_path: Path
) -> None:
    """Before its next use, as nothing has told at the release that there would be more."""
    async with serving(kind, tmp_path) as served, served.pool() as pool:
        async with pool.acquire() as stream:
            assert await ask(stream, "twice late") == "late"
            same = own(stream)
        assert pool.stats().idle == 1
        served.server.late.set()
        await until(lambda: same.state() == "unread")
        async with pool.acquire() as stream:
            assert own(stream) is not same
            assert await ask(stream, "say mine") == "mine"


async def test_answer_that_comes_before_the_first_operation_is_refused(
    kind: str, tmp_path: Path
) -> None:
    """After the acquire; nobody gets another's answer."""
    async with serving(kind, tmp_path) as served, served.pool() as pool:
        async with pool.acquire() as stream:
            await ask(stream, "twice late")
        with pytest.raises(anyio.BrokenResourceError) as caught:
            async with pool.acquire() as stream:
                served.server.late.set()
                await until(lambda: own(stream).state() == "unread")
                await stream.send(b"say mine\n")
        assert "former user" in str(caught.value.__cause__)
        async with pool.acquire() as stream:
            assert await ask(stream, "say mine") == "mine"


async def test_answer_that_is_outstanding_at_the_release_costs_the_stream(
    kind: str, tmp_path: Path
) -> None:
    """The last thing done was a send. With a ping it is found even after a part was received."""
    async with serving(kind, tmp_path) as served:
        async with served.pool() as pool:
            async with pool.acquire() as stream:
                await stream.send(b"late never\n")
            async with pool.acquire() as stream:
                assert await ask(stream, "say mine") == "mine"
            assert gone(pool.stats()) == {"broken": 1}
        async with served.pool(ping=PING, reset_timeout=None) as pool:
            async with pool.acquire() as stream:
                assert await ask(stream, "twice first") == "first"
            served.server.late.set()
            async with pool.acquire() as stream:
                assert await ask(stream, "say mine") == "mine"
            assert gone(pool.stats()) == {"broken": 1}


@pytest.mark.parametrize("ping", [None, PING])
async def test_half_written_request_costs_the_stream(kind: str, tmp_path: Path, ping: Any) -> None:
    """Its send was cancelled: the next question would be the rest of it."""
    async with serving(kind, tmp_path) as served, served.pool(ping=ping) as pool:
        async with pool.acquire() as stream, anyio.create_task_group() as group:
            await stream.send(b"wait\n")  # so that nobody reads on
            group.start_soon(stream.send, b"x" * 50_000_000)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        async with pool.acquire() as stream:
            assert await ask(stream, "say mine") == "mine"
        assert gone(pool.stats()) == {"broken": 1}


async def test_cancelled_receive_costs_the_stream(kind: str, tmp_path: Path) -> None:
    """The rest of the answer may come later."""
    async with serving(kind, tmp_path) as served, served.pool() as pool:
        async with pool.acquire() as stream:
            await ask(stream, "twice first")
            with anyio.CancelScope() as scope:
                scope.cancel()
                await stream.receive()
        async with pool.acquire() as stream:
            assert await ask(stream, "say mine") == "mine"
        assert gone(pool.stats()) == {"broken": 1}


async def test_error_in_the_block_costs_the_stream_unless_a_ping_proves_it_fit(
    kind: str, tmp_path: Path
) -> None:
    """Without a ping nobody knows whether it came amid an answer."""
    async with serving(kind, tmp_path) as served:
        for ping, connected in ((None, 2), (PING, 1)):
            async with served.pool(ping=ping) as pool:
                with pytest.raises(ZeroDivisionError):
                    async with pool.acquire() as stream:
                        assert await ask(stream, "say one") == "one"
                        raise ZeroDivisionError
                async with pool.acquire() as stream:
                    assert await ask(stream, "say two") == "two"
                assert pool.stats().connected == connected


async def test_one_way_stream_is_used_again_after_a_send(kind: str, tmp_path: Path) -> None:
    """Nothing comes back."""
    async with serving(kind, tmp_path) as served, served.pool(one_way=True) as pool:
        for _ in range(3):
            async with pool.acquire() as stream:
                await stream.send(b"silence\n")
        assert pool.stats().connected == 1
        await until(lambda: len(served.server.questions) == 3)


async def test_server_that_hangs_up_is_noticed_while_the_stream_is_idle(
    kind: str, tmp_path: Path
) -> None:
    """Nobody gets a dead stream, though nothing is pinged."""
    async with serving(kind, tmp_path) as served:
        async with served.pool(ping_after=None, ping_every=None) as pool:
            async with pool.acquire() as stream:
                same = own(stream)
                assert await ask(stream, "say one") == "one"
            served.server.kick()
            await until(lambda: same.state() == "ended")
            async with pool.acquire() as stream:
                assert await ask(stream, "say two") == "two"


async def test_server_that_hangs_up_amid_a_lease_ends_the_stream(kind: str, tmp_path: Path) -> None:
    """After its last bytes; over TLS an end without a farewell is an error, as with anyio."""
    end = anyio.BrokenResourceError if kind == "tls" else anyio.EndOfStream
    async with serving(kind, tmp_path) as served, served.pool() as pool:
        async with pool.acquire() as stream:
            assert await ask(stream, "goodbye one") == "one"
            with pytest.raises(end):
                await stream.receive()
        assert pool.stats().idle == 0
        async with pool.acquire() as stream:
            assert await ask(stream, "say two") == "two"


async def test_greeting_is_for_on_connect(kind: str, tmp_path: Path) -> None:
    """If it leaves anything unread, the connection is refused, and the error says why."""

    async def log_in(stream: Any) -> None:
        assert await ask(stream, "say hello") == "hello"

    async def forget(stream: Any) -> None:
        await stream.send(b"say hello\n")

    async with serving(kind, tmp_path) as served:
        async with served.pool(on_connect=log_in) as pool, pool.acquire() as stream:
            assert await ask(stream, "say one") == "one"
        with pytest.raises(ConnectFailed) as caught:
            await served.pool(on_connect=forget, min_size=1).open()
        assert "nothing was received after the last send" in str(caught.value.__cause__)


async def test_storm_mixes_no_answers(kind: str, tmp_path: Path) -> None:
    """Tasks that are cancelled, forget answers and close: each gets its own, and nothing is lost."""
    random = Random(7)
    served_tasks = 0
    async with serving(kind, tmp_path) as served:
        served.server.late.set()
        pool = served.pool(ping=PING, max_size=8, acquire_timeout=None)

        async def use(number: int) -> None:
            nonlocal served_tasks
            what = random.choice(["cancel", "forget", "close", *["ask"] * 7])
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    async with pool.acquire() as stream:
                        if what == "cancel":
                            group.start_soon(cancel_after, scope, random.randrange(12))
                        for turn in range(3):
                            text = f"{number}.{turn}"
                            assert await ask(stream, f"say {text}") == text
                        if what == "forget":
                            await stream.send(f"twice {number}\n".encode())
                            await stream.receive(random.choice([1, 2, 100]))
                        elif what == "close":
                            await stream.aclose()
                        served_tasks += 1

        async with pool:
            async with anyio.create_task_group() as group:
                for number in range(TASKS):
                    group.start_soon(use, number)
            assert TASKS // 2 < served_tasks < TASKS
            assert gone(pool.stats())["broken"] > 1
            await check_pool(pool)
            await until(lambda: len(served.server.sessions) == pool.stats().size)


async def cancel_after(scope: anyio.CancelScope, turns: int) -> None:
    """Cancel a task after some turns of the loop."""
    for _ in range(turns):
        await anyio.lowlevel.checkpoint()
    scope.cancel()
