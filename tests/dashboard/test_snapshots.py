"""What the processes of one server leave for each other: written whole, read without the dead."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from poolkit import Pool
from poolkit._snapshots import HOST, Exchange, Folder, numbers_of, plain
from poolkit._snapshots import exchange as exchanges
from poolkit._snapshots.folder import own_name
from poolkit.testing import FakeDriver

POOLS: dict[str, Any] = {"pools": {}}
needs_signals = pytest.mark.skipif(os.name == "nt", reason="who is dead is not told there")


def files(folder: Path) -> list[str]:
    """Return the names of all files in a folder."""
    return [file.name for file in folder.iterdir()]


async def until(is_so: Callable[[], Any]) -> None:
    """Wait for what a thread does."""
    with anyio.fail_after(20):
        while not is_so():  # noqa: ASYNC110  # no event tells
            await anyio.sleep(0.01)


async def until_left(exchange: Exchange, is_so: Callable[[list[Any]], bool]) -> None:
    """Wait for what is found in a folder."""
    with anyio.fail_after(20):
        while not is_so([each.data for each in await exchange.snapshots()]):  # noqa: ASYNC110
            await anyio.sleep(0.01)


def leave(folder: Folder, worker: str, *, age: float = 0.0, data: Any = None) -> None:
    """Leave a snapshot, some time ago."""
    folder.write(worker, data or POOLS)
    file = folder.path / f"{worker}.json"
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, "at": time.time() - age}))


async def test_all_of_the_statistics_are_left_as_plain_data(tmp_path: Path) -> None:
    """Whatever they are: what comes back is what JSON makes of it."""
    folder = Folder(tmp_path / "a" / "b")
    async with Pool(FakeDriver(), min_size=2, max_size=3, name='<b>"\n') as pool, pool.acquire():
        folder.write("host-7-0", {"pools": {"default": numbers_of(pool)}})
        (found,) = folder.read()
        stats = pool.stats()
    assert (found.worker, found.host, found.pid) == ("host-7-0", "host", 7)
    assert found.pools["default"]["name"] == '<b>"\n'
    numbers = found.pools["default"]["stats"]
    assert set(numbers) == {each.name for each in dataclasses.fields(stats)} | {"size"}
    assert (numbers["size"], numbers["leased"], numbers["retired"]) == (2, 1, stats.retired)


def test_what_json_has_not_is_left_as_what_it_is() -> None:
    """Nothing that a pool may have fails."""

    @dataclasses.dataclass
    class Inner:
        bounds: tuple[float, ...]

    given = {
        1: Inner((0.5, float("inf"))),
        "f": len,
        "o": FakeDriver(),
        "n": float("nan"),
        "b": b"x",
    }
    made = plain(given)
    assert made == {
        "1": {"bounds": [0.5, None]},
        "f": "len",
        "o": "FakeDriver",
        "n": None,
        "b": "bytes",
    }
    json.dumps(made, allow_nan=False)


def test_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Who holds what is nobody else's business."""
    folder = Folder(tmp_path / "new")
    folder.write(own_name(0), POOLS)
    if os.name != "nt":
        assert folder.path.stat().st_mode & 0o777 == 0o700
        assert (folder.path / f"{own_name(0)}.json").stat().st_mode & 0o777 == 0o600


@needs_signals
def test_link_in_the_folder_leads_to_no_other_file(tmp_path: Path) -> None:
    """As somebody else may set one who may write there, too."""
    (tmp_path / "precious").write_text("precious")
    folder = Folder(tmp_path / "folder")
    (folder.path / "host-7-0.new").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic link"):
        folder.write("host-7-0", POOLS)
    folder.write("host-7-0", POOLS)  # it is gone
    assert (tmp_path / "precious").read_text() == "precious"


@needs_signals
def test_wish_follows_no_link(tmp_path: Path) -> None:
    """Or it would make a file elsewhere."""
    folder = Folder(tmp_path / "folder")
    (folder.path / "host-7-0.wanted").symlink_to(tmp_path / "made")
    with pytest.raises(OSError, match="symbolic link"):
        folder.want("host-7-0")
    assert not (tmp_path / "made").exists()


@needs_signals
def test_pipe_in_the_folder_holds_up_nobody(tmp_path: Path) -> None:
    """Neither one who reads nor one who writes; and it is no snapshot."""
    folder = Folder(tmp_path)
    for name in ("host-7-0.json", "host-8-0.new"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "host-9-0.json").mkdir()
    assert folder.read() == []
    with pytest.raises(OSError, match="No such device"):
        folder.write("host-8-0", POOLS)
    folder.write("host-8-0", POOLS)


@needs_signals
def test_snapshot_of_the_dead_is_removed_if_the_clock_was_set_back(tmp_path: Path) -> None:
    """Not an hour later; one of another machine, whose clock is ahead, is new."""
    folder = Folder(tmp_path)
    for host in (HOST, "another-host"):
        document = {"at": time.time() + 3600.0, "data": POOLS}
        (tmp_path / f"{host}-999999999-0.json").write_text(json.dumps(document))
    (left,) = folder.read()
    assert (left.host, left.age) == ("another-host", 0.0)
    assert files(tmp_path) == ["another-host-999999999-0.json"]


@needs_signals
def test_snapshots_of_the_dead_are_removed(tmp_path: Path) -> None:
    """By whoever reads; not one just written, which may be another container's."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    folder = Folder(tmp_path)
    dead, just_dead = f"{HOST}-{process.pid}-0", f"{HOST}-{process.pid}-1"
    leave(folder, dead, age=4)
    folder.want(dead)
    leave(folder, just_dead, age=1)
    leave(folder, own_name(0), age=4)
    assert {one.worker for one in folder.read()} == {own_name(0), just_dead}
    assert not [name for name in files(tmp_path) if name.startswith(f"{dead}.")]


def test_snapshots_grow_old_and_are_forgotten(tmp_path: Path) -> None:
    """A process of another host may hang for ten seconds, and is given up after a minute."""
    folder = Folder(tmp_path)
    for age in (5, 20, 70):
        leave(folder, f"other-host.x-{age}-0", age=age)
    assert [(one.pid, one.is_old) for one in folder.read()] == [(5, False), (20, True)]
    assert {one.host for one in folder.read()} == {"other-host.x"}
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", '{"at": 0}', '{"at": "x", "data": {"pools": {}}}', '{"at": 1, "data": 5}',
     '{"at": 1, "data": {"pools": []}}', "[" * 100_000,
     *(f'{{"at": {at}, "data": {{"pools": {{}}}}}}' for at in ("9" * 400, "1e999", "NaN"))],
)  # fmt: skip
def test_files_of_others_are_passed_over(tmp_path: Path, text: str) -> None:
    """Also under a name of ours; and none of them is removed."""
    folder = Folder(tmp_path)
    for name in ("host-7-0.json", "x.json", "a-b-c.json"):
        (tmp_path / name).write_text(text)
    assert folder.read() == []
    assert len(list(tmp_path.iterdir())) == 3


def test_reader_never_meets_half_a_snapshot(tmp_path: Path) -> None:
    """While another thread writes one after the other, of very different lengths."""
    folder, stop = Folder(tmp_path), threading.Event()
    folder.write(own_name(0), POOLS)

    def write() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            folder.write(own_name(0), {"pools": {}, "much": "x" * (n % 2 * 200_000)})

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert [len(folder.read()) for _ in range(300)] == [1] * 300
    finally:
        stop.set()
        writer.join()


def test_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    """What was there before stays."""
    folder = Folder(tmp_path)
    folder.write("host-7-0", POOLS)
    with pytest.raises(TypeError):
        folder.write("host-7-0", {"pools": {}, "odd": object()})
    assert files(tmp_path) == ["host-7-0.json"]
    assert len(folder.read()) == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"], indirect=False)
async def test_processes_find_each_other(tmp_path: Path, anyio_backend: str) -> None:
    """Each sees all, learns that it is wanted, and is gone when it ends."""
    made: list[tuple[str, bool]] = []

    def exchange(name: str) -> Exchange:
        def make(wanted: bool) -> Any:
            made.append((name, wanted))
            return {"pools": {}, "name": name, "all": wanted}

        return Exchange(Folder(tmp_path), make)

    one, other = exchange("one"), exchange("other")
    one.begin()
    one.begin()
    other.begin()
    try:
        wanted = {"one": False, "other": False}
        await until_left(one, lambda left: {e["name"]: e["all"] for e in left} == wanted)
        one.want(other.worker)
        wanted["other"] = True
        await until_left(one, lambda left: {e["name"]: e["all"] for e in left} == wanted)
        other.end()
        await until_left(one, lambda left: [each["name"] for each in left] == ["one"])
    finally:
        one.end()
        other.end()
    assert files(tmp_path) == []
    one.begin()  # as when a server starts once more
    await until_left(one, lambda left: [each["name"] for each in left] == ["one"])
    one.end()


async def test_what_fails_is_logged_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that is away, for a time; and a snapshot that cannot be made."""
    monkeypatch.setattr(exchanges, "EVERY", 0.01)
    caplog.set_level(logging.WARNING, "poolkit")
    calls: list[bool] = []
    folder = Folder(tmp_path / "there")

    def make(wanted: bool) -> Any:
        calls.append(wanted)
        if len(calls) == 1:
            raise ValueError("odd")
        return POOLS

    exchange = Exchange(folder, make)
    folder.path.rmdir()
    exchange.begin()
    try:
        await until(lambda: len(calls) > 5)
        assert exchange.trouble == "FileNotFoundError"
        folder.path.mkdir()
        await until_left(exchange, bool)
        await until(lambda: not exchange.trouble)
    finally:
        exchange.end()
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "ValueError: odd"
    ]


def test_loop_that_ends_without_a_word_leaves_nothing(tmp_path: Path) -> None:
    """And no thread: as an application whose lifespan is not run."""
    exchange = Exchange(Folder(tmp_path), lambda _: POOLS)
    others = set(threading.enumerate())  # servers of other tests have one as well

    async def main() -> None:
        exchange.begin()
        await until(lambda: list(tmp_path.glob("*.json")))

    anyio.run(main)
    end = time.monotonic() + 20
    while list(tmp_path.iterdir()) or any(
        t.name == "poolkit snapshots" for t in set(threading.enumerate()) - others
    ):
        assert time.monotonic() < end
        time.sleep(0.01)


@needs_signals
@pytest.mark.parametrize("ending", ["return", "kill", "fork"])
def test_process_removes_its_snapshot_at_its_end(tmp_path: Path, ending: str) -> None:
    """If it is not killed; and a child that was forked removes nothing of its parent's."""
    program = f"""
import os, sys, anyio
from pathlib import Path
from poolkit._snapshots import HOST, Exchange, Folder
folder = Path({str(tmp_path)!r})
async def main():
    Exchange(Folder(folder), lambda _: {{"pools": {{}}}}).begin()
    while not list(folder.glob("*.json")):
        await anyio.sleep(0.01)
    if {ending!r} == "fork":
        child = os.fork()
        if child == 0:
            import atexit
            atexit._run_exitfuncs()
            os._exit(0)
        os.waitpid(child, 0)
        print(len(list(folder.glob("*.json"))), flush=True)
    if {ending!r} == "kill":
        os.kill(os.getpid(), {int(signal.SIGTERM)})
        await anyio.sleep_forever()
    sys.exit(0)
anyio.run(main)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == (-signal.SIGTERM if ending == "kill" else 0), done.stderr
    assert done.stdout == ("1\n" if ending == "fork" else "")
    assert len(list(tmp_path.glob("*.json"))) == (ending == "kill")
