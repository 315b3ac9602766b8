"""Settings and URLs of streams: what is refused, and what the message says."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import anyio
import pytest

import poolkit
from poolkit import ConnectFailed, Pool, PoolConfigError
from poolkit.drivers.stream import create_pool, create_unix_pool, from_url
from tests.conftest import BACKENDS, ROOT
from tests.drivers.stream_help import ask, serving
from tests.drivers.test_custom_driver import install
from tests.proxy import free_port


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this tree's entry points known, whatever was installed."""
    install(ROOT, tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"host": ""}, "host"),
        ({"port": 0}, "port=0 is no whole number from 1"),
        ({"port": None}, "create_unix_pool"),
        ({"port": "80"}, "port='80'"),
        ({"tls": "yes"}, "tls='yes'"),
        ({"server_name": "db.example"}, "tls=True"),
        ({"ping": b"ping"}, "tuple of two bytes"),
        ({"ping": (b"ping", b"")}, "tuple of two bytes"),
        ({"ping": (b"ping", b"pong"), "one_way": True}, "no answer"),
        ({"one_way": 1}, "one_way=1"),
        ({"max_sise": 1}, "did you mean max_size"),
        ({"pings": 1}, "did you mean ping"),
    ],
)
def test_setting_that_cannot_work_is_refused(given: dict[str, Any], complaint: str) -> None:
    """When the pool is made."""
    with pytest.raises(PoolConfigError, match=complaint):
        create_pool(**{"host": "db.example", "port": 7, **given})


def test_tls_on_a_unix_socket_needs_the_name_in_the_certificate() -> None:
    """There is no host to check."""
    with pytest.raises(PoolConfigError, match="server_name"):
        create_unix_pool("/run/x.sock", tls=True)
    assert create_unix_pool(Path("/run/x.sock"), tls=True, server_name="x").name == "/run/x.sock"


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("tcp://db.example", "host:port"),
        ("tcp://:7", "host:port"),
        ("tcp://db.example:7/path", "no path"),
        ("tcp://me:s3cret@db.example:7", "no user"),
        ("tcp://db.example:7?server_name=x", "tls=True"),
        ("tcp://db.example:7?servername=x", "did you mean server_name"),
        ("unix://run/app.sock", "unix:///run/app.sock"),
        ("unix:///", "unix:///run/app.sock"),
        ("http://db.example:7", "begin with tcp:// or tls:// or unix://"),
    ],
)
def test_url_that_names_no_server_is_refused(url: str, complaint: str) -> None:
    """Without quoting it."""
    with pytest.raises(PoolConfigError, match=complaint) as caught:
        from_url(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.usefixtures("installed")
def test_streams_are_found_by_url() -> None:
    """Of three schemes; a keyword wins."""
    assert poolkit.create_pool("tcp://[::1]:7?max_size=3").name == "::1:7"
    assert poolkit.create_pool("unix:///run/app%20x.sock").name == "/run/app x.sock"
    pool = poolkit.create_pool("tls://db.example:7?server_name=x", max_size=2, server_name="y")
    assert pool.stats().max_size == 2
    with pytest.raises(PoolConfigError, match="write tcp://"):
        poolkit.create_pool("tls://db.example:7", tls=False)


@pytest.mark.parametrize("anyio_backend", BACKENDS, indirect=True)
async def test_host_with_several_addresses_is_reached_by_the_one_that_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the first refuses."""
    async with serving("tcp", tmp_path) as served:
        host, port = served.place
        real = anyio.getaddrinfo

        async def several(*args: Any, **options: Any) -> Any:
            found = await real(host, port, **options)
            return [(*found[0][:4], (host, free_port())), *found]

        monkeypatch.setattr("anyio.getaddrinfo", several)
        async with create_pool("several.example", 7) as pool, pool.acquire() as stream:
            assert await ask(stream, "say one") == "one"


@pytest.mark.parametrize("anyio_backend", BACKENDS, indirect=True)
async def test_certificate_that_is_not_trusted_fails_at_once(tmp_path: Path) -> None:
    """Somebody has to mend it."""
    async with serving("tls", tmp_path) as served:
        host, port = served.place
        assert port is not None
        with pytest.raises(ConnectFailed) as caught:
            await create_pool(host, port, tls=True, server_name="localhost").open()
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)


@pytest.mark.parametrize("anyio_backend", BACKENDS, indirect=True)
async def test_server_that_is_away_is_waited_for(tmp_path: Path) -> None:
    """It may be restarting."""
    pool: Pool[Any] = create_unix_pool(tmp_path / "sock", min_size=0, backoff_min=0.01)
    async with pool, anyio.create_task_group() as group:

        async def use() -> None:
            async with pool.acquire() as stream:
                assert await ask(stream, "say one") == "one"
            done.set()

        done = anyio.Event()
        group.start_soon(use)
        await anyio.wait_all_tasks_blocked()
        async with serving("unix", tmp_path):
            await done.wait()
