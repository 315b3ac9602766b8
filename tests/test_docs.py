"""What the pages say can be written: every option of a pool exists, and every link leads somewhere."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import asyncpg
import pytest

import poolkit
from poolkit import PoolConfigError
from poolkit._options import NAMES
from poolkit.compat.asyncpg import pool as compat
from poolkit.drivers.asyncmy import _settings as _asyncmy_settings
from poolkit.drivers.asyncmy import _url as _asyncmy_url
from poolkit.drivers.asyncpg import _dsn as _asyncpg_dsn
from poolkit.drivers.asyncpg import _settings as _asyncpg_settings
from poolkit.drivers.psycopg import _settings as _psycopg_settings
from poolkit.drivers.redis import _settings as _redis_settings
from poolkit.drivers.sqlite import _settings as _sqlite_settings
from poolkit.drivers.sqlite import _url as _sqlite_url
from poolkit.drivers.stream import _settings as _stream_settings

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def ids(path: Path) -> str:
    """Return a test's name for a page."""
    return path.relative_to(ROOT).as_posix()


#: Who is called, and what may be given by name.
PARAMETERS: dict[str, frozenset[str]] = {
    "poolkit.create_pool": frozenset(_asyncpg_settings.CreateOptions.__annotations__)
    | frozenset(_psycopg_settings.CreateOptions.__annotations__)
    | frozenset(_sqlite_settings.CreateOptions.__annotations__)
    | frozenset(_stream_settings.CreateOptions.__annotations__),
    "poolkit.Pool": NAMES,
    "poolkit.drivers.asyncpg.create_pool": frozenset(
        _asyncpg_settings.CreateOptions.__annotations__
    ),
    "poolkit.drivers.asyncmy.create_pool": frozenset(
        _asyncmy_settings.CreateOptions.__annotations__
    ),
    "poolkit.drivers.psycopg.create_pool": frozenset(
        _psycopg_settings.CreateOptions.__annotations__
    ),
    "poolkit.drivers.aiosqlite.create_pool": frozenset(
        _sqlite_settings.CreateOptions.__annotations__
    ),
    "poolkit.drivers.redis.create_pool": frozenset(_redis_settings.CreateOptions.__annotations__),
    "poolkit.drivers.stream.create_pool": frozenset(_stream_settings.CreateOptions.__annotations__),
    "asyncpg.create_pool": frozenset(inspect.signature(compat.create_pool).parameters)
    | frozenset(inspect.signature(asyncpg.connect).parameters),
    "pool.acquire": frozenset({"timeout", "label"}),
    "pool.open": frozenset({"wait"}),
    "pool.wait": frozenset({"timeout"}),
    "pool.aclose": frozenset({"grace"}),
    "pool.leases": frozenset({"task"}),
    "pool.resize": frozenset({"min_size", "min_idle", "max_size", "max_overflow"}),
    "pool.renew": frozenset({"over"}),
    "pool.transaction": frozenset(
        {"timeout", "label", "isolation", "readonly", "deferrable", "mode", "settings", "role"}
    ),
    "pool.run": frozenset(
        {"retries", "timeout", "label", "isolation", "readonly", "deferrable", "mode"}
    ),
    "pool.attempts": frozenset(
        {"retries", "timeout", "label", "isolation", "readonly", "deferrable", "mode"}
    ),
    "poolkit.fastapi.router": frozenset(inspect.signature(poolkit.fastapi.router).parameters),
    "poolkit.otel.instrument": frozenset(inspect.signature(poolkit.otel.instrument).parameters),
    "poolkit.CoDel": frozenset(inspect.signature(poolkit.CoDel).parameters),
}
#: By any driver's own name for it.
PARAMETERS["poolkit.drivers.sqlite.create_pool"] = PARAMETERS[
    "poolkit.drivers.aiosqlite.create_pool"
]
PARAMETERS["create_pool"] = frozenset().union(
    *(names for call, names in PARAMETERS.items() if call.endswith("create_pool"))
)
#: Others' words, which a page names to say what to write instead, or where they belong.
OTHERS: dict[str, set[str]] = {
    "docs/explanation/testing.md": {"ONLY", "POOLKIT_TEST_EFFORT", "ARGS"},
    "docs/howto/from-aiosqlitepool.md": {
        *("pool_size", "acquisition_timeout", "idle_timeout", "operation_timeout"),
    },
    "docs/howto/from-databases.md": {"ssl"},
    "docs/howto/from-psycopg-pool.md": {
        *("open", "check", "timeout", "max_idle", "reconnect_timeout", "num_workers"),
        *("close_returns", "kwargs"),
    },
    "docs/howto/mysql.md": {"ssl_ca"},
    "docs/howto/postgresql.md": {"pool_mode", "max_connections"},
    "docs/howto/sqlalchemy.md": {
        *("pool_size", "pool_timeout", "pool_recycle", "pool_pre_ping", "pool_reset_on_return"),
        *("isolation_level", "engine"),
    },
    "docs/howto/sqlite.md": {"autocommit"},
    "docs/reference/faults.md": {"sslmode"},
    "docs/reference/sqlite-state.md": {"cache", "vfs"},
    "docs/reference/urls.md": {"pgbouncer", "prepareThreshold", "ssl", "sslmode"},
}
#: Pages whose tables have what to write, by `poolkit.create_pool`, in their last column.
BY_URL = ["docs/howto/from-databases.md", "docs/howto/from-aiosqlitepool.md"]


#: What a call is made of: a text, a name that is given, a bracket.
_PIECES = re.compile(
    r"""(?P<text>"[^"]*"|'[^']*')|\b(?P<name>\w+)=(?!=)|(?P<in>[(\[{])|(?P<out>[)\]}])"""
)


def calls(text: str) -> Iterator[tuple[str, str]]:
    """Yield what is given by name in the calls in a piece of code: who is called, and the name."""
    text = re.sub(r" # .*", "", text)
    for found in re.finditer(r"(?<![\w.])([A-Za-z_][\w.]*)\(", text):
        depth = 1
        for piece in _PIECES.finditer(text, found.end()):
            if piece["name"] and depth == 1:
                yield found[1], piece["name"]
            depth += bool(piece["in"]) - bool(piece["out"])
            if not depth:
                break


def code(path: Path) -> Iterator[str]:
    """Yield the pieces of code on a page."""
    text = path.read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    yield from blocks
    yield from re.findall(
        r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    )


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_page_names_options_that_there_are(page: Path) -> None:
    """In calls of poolkit's, in its examples, tables and sentences."""
    wrong = [
        (called, name)
        for piece in code(page)
        for called, name in calls(piece)
        if name not in PARAMETERS.get(called, {name})
    ]
    assert wrong == []


def _alone(text: str) -> set[str]:
    """Return the options that stand by themselves, as `max_size=5` does."""
    return set(re.findall(r"`(\w+)=(?!=)[^`(]*`", text))


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_option_that_stands_by_itself_is_one_of_poolkits(page: Path) -> None:
    """Or another's, of which the page says so."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    known = frozenset().union(*PARAMETERS.values(), OTHERS.get(ids(page), ()))
    assert _alone(text) - known == set()


@pytest.mark.parametrize("page", BY_URL)
def test_option_to_write_instead_is_taken_by_the_door_that_the_page_has(page: str) -> None:
    """Which is `poolkit.create_pool`, or a transaction."""
    rows = re.findall(r"^\|.*\| (.*) \|$", (ROOT / page).read_text(), re.MULTILINE)
    assert (
        _alone("\n".join(rows))
        <= PARAMETERS["poolkit.create_pool"] | PARAMETERS["pool.transaction"]
    )


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_urls_on_a_page_are_taken(page: Path) -> None:
    """Each makes a pool, or its query is one that does, unless the page shows that it is refused."""
    urls = [
        found
        for piece in code(page)
        for found in re.findall(
            r"(?:postgres\w*|sqlite)(?:\+\w+)?://[^\s\"'`{}<>|]*",
            re.sub(r"refusal\(.*\)", "", piece),
        )
        if not found.endswith(("...", "//", ":memory:"))
    ]
    queries = [found for piece in code(page) for found in re.findall(r"^\?([\w=&.-]+=\w+)$", piece)]
    others = OTHERS.get(ids(page), set())
    for query in queries:
        if not {name for name, _ in parse_qsl(query)} & others:
            _is_taken(*(f"{url}?{query}" for _, url in DRIVERS.values()))
    for url in urls:
        _is_taken(url)


def _is_taken(*urls: str) -> None:
    """See that one of them makes a pool."""
    errors: list[Any] = []
    for url in urls:
        try:
            poolkit.create_pool(url)
        except PoolConfigError as error:
            errors.append(error)
    assert len(errors) < len(urls), errors


@pytest.mark.parametrize("page", [*PAGES, *sorted(ROOT.glob("[CS]*.md"))], ids=ids)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    """To a file that is there, and to a heading that it has."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in map(_anchor, headings), link


def _anchor(heading: str) -> str:
    """Return what GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


#: The settings of each driver, and a URL of it.
DRIVERS: dict[str, tuple[Any, str]] = {
    "asyncpg": (_asyncpg_settings, "postgresql://db.example/shop"),
    "psycopg": (_psycopg_settings, "postgresql+psycopg://db.example/shop"),
    "asyncmy": (_asyncmy_settings, "mysql://db.example/shop"),
    "aiosqlite": (_sqlite_settings, "sqlite:///shop.db"),
    "sqlite": (_sqlite_settings, "sqlite+threads:///shop.db"),
    "redis": (_redis_settings, "redis://db.example/0"),
    "stream": (_stream_settings, "tls://db.example:7000"),
}


def _settings_on_the_page() -> dict[tuple[str, str], tuple[str, str | None]]:
    """Return the default of each setting of each driver, and how it may stand in a URL, if so."""
    page = (ROOT / "docs" / "reference" / "options.md").read_text()
    table = page.partition("\n## Settings of the drivers\n")[2]
    found = {}
    for row in re.findall(r"^\| `\w+` \|.*$", table, re.MULTILINE):
        name, drivers, default, in_url = row.split(" | ")[:4]
        for driver in drivers.split(", "):
            key = (driver, name.strip("| `"))
            assert key not in found
            shown = re.match(rf"`\?({key[1]}=.+)`", in_url)
            found[key] = default.strip("`").replace('"', "'"), shown and shown[1]
    return found


def _default(driver: str, name: str) -> str:
    """Return a setting's default as it is written."""
    module, url = DRIVERS[driver]
    if not hasattr(module, "Settings"):  # its driver reads a dict
        source = inspect.getsource(type(poolkit.create_pool(url)._driver))
        source += inspect.getsource(getattr(poolkit.drivers, driver).from_url)
        (default,) = re.findall(rf'settings\.get\("{name}"(?:, (.*?))?\)', source)
        return default or "None"
    for field in dataclasses.fields(module.Settings):
        if field.name == name:
            value = getattr(module.Settings(), name)  # which may make another of None
            is_class = isinstance(value, type)
            return f"{value.__module__}.{value.__name__}" if is_class else repr(value)
    raise AssertionError(name)


def test_every_setting_of_a_driver_is_in_the_reference_with_its_default() -> None:
    """And no other is."""
    assert {key: default for key, (default, _) in _settings_on_the_page().items()} == {
        (driver, name): _default(driver, name)
        for driver, (module, _) in DRIVERS.items()
        for name in module.SETTINGS
    }


def test_setting_of_a_driver_is_taken_in_a_url_as_the_reference_says() -> None:
    """By the example that it has; what has none is refused."""
    for (driver, name), (_, shown) in _settings_on_the_page().items():
        url = DRIVERS[driver][1]
        if shown is not None:
            poolkit.create_pool(f"{url}?{shown}")
            continue
        with pytest.raises(PoolConfigError, match=f"'?{name}"):
            poolkit.create_pool(f"{url}?{name}=1")


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ("parameters of libpq and asyncpg", _asyncpg_dsn.PARAMETERS),
        ("arguments of asyncmy", {*_asyncmy_url._IN_URL} - _asyncmy_settings.SETTINGS),
        ("parameters of SQLite's URIs", _sqlite_url._URI_PARAMETERS),
        ("arguments of redis-py", _redis_settings._IN_URL),
    ],
)
def test_every_name_for_a_library_in_a_url_is_in_the_reference(
    row: str, names: Collection[str]
) -> None:
    """In its row of the table, and no other is."""
    page = (ROOT / "docs" / "reference" / "urls.md").read_text()
    (listed,) = re.findall(rf"^\| {row}: (.*?) \|", page, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", listed)) == {*names}


def test_block_of_a_page_can_be_run_alone() -> None:
    """What stands above it is run before: xdist may give that to another process."""
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    listed = subprocess.run(
        [*pytest_, "--collect-only", "README.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    blocks = re.findall(r"^README\.md::.*$", listed.stdout, re.MULTILINE)
    assert len(blocks) > 1
    last = subprocess.run(
        [*pytest_, blocks[-1]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "1 passed" in last.stdout, last.stdout


def test_map_has_every_file_of_the_two_wings() -> None:
    """A file that is added to the core or the shell has its line in the tables of the design."""
    page = (ROOT / "docs" / "explanation" / "design.md").read_text()
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", page, re.MULTILINE))))
    for wing in ("_core", "_shell"):
        files = (ROOT / "src" / "poolkit" / wing).glob("*.py")
        assert {file.stem for file in files} - {"__init__"} - named == set()


def test_code_about_types_is_what_type_checkers_check() -> None:
    """`make check` has them read tests/typing."""
    (block,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/howto/typing.md").read_text(), re.DOTALL
    )
    assert (ROOT / "tests/typing/howto.py").read_text().endswith(f'"""\n\n{block}')
