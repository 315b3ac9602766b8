"""The driver in `examples/custom_driver`, a package of its own that poolkit finds by entry point."""

from __future__ import annotations

import contextlib
import importlib
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest

import poolkit
from poolkit import PoolConfigError
from poolkit.testing import Probe, check_driver, check_pool
from tests.conftest import BACKENDS, ROOT
from tests.effort import SHARE
from tests.proxy import HOST

EXAMPLE = ROOT / "examples" / "custom_driver"
TASKS = max(200, round(2000 * SHARE))


def install(package: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a package importable, and its entry points known, as an installer does."""
    project = tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    info = folder / f"{project['name']}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: 1.0\n")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.syspath_prepend(str(package / "src"))


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the example installed."""
    install(EXAMPLE, tmp_path, monkeypatch)


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[tuple[Any, int]]:
    """Run the example's server; given are the server and its port."""
    server = importlib.import_module("kvline.server").Server()
    listener = await anyio.create_tcp_listener(local_host=HOST)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, server.serve)
        yield server, listener.extra(anyio.abc.SocketAttribute.local_port)
        group.cancel_scope.cancel()


def test_driver_is_one_module_of_forty_lines() -> None:
    """As the page says."""
    text = (EXAMPLE / "src" / "kvline" / "driver.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    assert "40 lines" in (EXAMPLE / "README.md").read_text(encoding="utf-8")
    assert "poolkit._" not in text


def test_url_that_the_driver_does_not_take_is_refused() -> None:
    """By name, as those of poolkit's own drivers are."""
    assert poolkit.create_pool("kvline://db.example").name == "db.example:7379"
    with pytest.raises(PoolConfigError, match="did you mean max_size"):
        poolkit.create_pool("kvline://db.example?maxsize=5")
    with pytest.raises(PoolConfigError, match=r"did you mean kvline\?"):
        poolkit.create_pool("kvlines://db.example")


@pytest.mark.parametrize("anyio_backend", BACKENDS, indirect=True)
async def test_driver_of_the_example_keeps_every_line() -> None:
    """On the example's server, which is asked how many connections there are."""
    driver = importlib.import_module("kvline.driver")
    async with serving() as (server, port):

        async def count() -> int:
            await anyio.wait_all_tasks_blocked()
            return int(server.sessions)

        async def is_spoiled(c: Any) -> bool:
            return bool(await c.ask("which") != "default")

        probe: Probe[Any] = Probe(
            operate=lambda c: c.ask("wait"),
            spoil=lambda c: c.ask("use mine"),
            is_spoiled=is_spoiled,
            count=count,
        )
        report = await check_driver(driver.from_url(f"kvline://{HOST}:{port}"), probe)
        assert "close ends the connection on the server" in report.checked
        assert "reset undoes what the last user has left behind" in report.checked
        assert (
            "reset returns only if the connection is idle, after an operation was cancelled"
            in report.checked
        )


@pytest.mark.parametrize("anyio_backend", BACKENDS, indirect=True)
async def test_storm_leaves_nothing_behind() -> None:
    """Many tasks, of which many are cancelled: each has a session of its own, and gets its answers."""
    random = Random(6)
    served = 0
    async with serving() as (server, port):
        pool = poolkit.create_pool(f"kvline://{HOST}:{port}", max_size=8, acquire_timeout=None)

        async def use(number: int) -> None:
            nonlocal served
            in_line, held = (random.randrange(40) if random.random() < 0.2 else None for _ in "12")
            async with anyio.create_task_group() as group:
                scope = group.cancel_scope
                group.start_soon(cancel_after, scope, in_line)
                async with pool.acquire() as conn:
                    group.start_soon(cancel_after, scope, held)
                    assert await conn.ask("which") == "default"
                    await conn.ask(f"use {number}")
                    await conn.ask(f"set key {number}")
                    assert await conn.ask("which") == await conn.ask("get key") == str(number)
                    served += 1
                scope.cancel()

        async with pool:
            async with anyio.create_task_group() as group:
                for number in range(TASKS):
                    group.start_soon(use, number)
            assert TASKS // 2 < served < TASKS
            assert pool.stats().retired["broken"]
            await check_pool(pool)
            with anyio.fail_after(20):  # for the server to see who has hung up
                while server.sessions != pool.stats().size:  # noqa: ASYNC110
                    await anyio.sleep(0.001)


async def cancel_after(scope: anyio.CancelScope, turns: int | None) -> None:
    """Cancel a task after some turns of the loop, if it is to be cancelled."""
    if turns is not None:
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        scope.cancel()
