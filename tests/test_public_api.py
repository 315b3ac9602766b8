"""The public surface is a tested fact."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
import typing
from pathlib import Path

import poolkit
from poolkit import Options, PoolOptions
from poolkit._core.slot import Reason
from poolkit._shell.observe import EVENTS
from poolkit.testing import FakeDriver

REFERENCE = Path(__file__).resolve().parents[1] / "docs" / "reference"


def test_all_is_sorted_and_real() -> None:
    """Every name in `__all__` is there, documented, and in order."""
    assert poolkit.__all__ == sorted(poolkit.__all__)
    assert set(dir(poolkit)) == {*poolkit.__all__, *poolkit._PARTS}
    for name in poolkit.__all__:
        assert inspect.getdoc(getattr(poolkit, name)), name


def test_errors_call_themselves_by_their_public_names() -> None:
    """A traceback shows what to import."""
    for name in poolkit.__all__:
        thing = getattr(poolkit, name)
        if isinstance(thing, type) and issubclass(thing, Exception):
            assert thing.__module__ == "poolkit"
            assert issubclass(thing, poolkit.PoolError)


def test_import_brings_no_driver_and_no_framework() -> None:
    """`import poolkit` costs little more than `import anyio`."""
    program = (
        "import sys, anyio, anyio.lowlevel; theirs = set(sys.modules); import poolkit;"
        "heavy = {'aiosqlite', 'sqlite3', 'asyncpg', 'psycopg', 'fastapi', 'starlette', 'trio', 'pydantic'};"
        "heavy |= {'asyncio', 'urllib.parse'};"
        "print(sorted(heavy & (set(sys.modules) - theirs)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_parts_are_imported_when_first_used() -> None:
    """After a plain `import poolkit`, and an unknown one is an AttributeError."""
    program = (
        "import poolkit; poolkit.fastapi.connection; poolkit.drivers.aiosqlite.create_pool;"
        "poolkit.drivers.sqlite.create_pool; print(hasattr(poolkit, 'nonsense'),"
        "hasattr(poolkit.drivers, 'nonsense'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False False"


def test_typed_keywords_are_the_options() -> None:
    """What type checkers allow and what the pool takes is the same, with the same types."""
    fields = {field.name: field.type for field in dataclasses.fields(Options)}
    keywords = PoolOptions.__annotations__
    assert list(keywords) == list(fields)
    for name, kind in keywords.items():
        assert isinstance(kind, typing.ForwardRef)
        assert kind.__forward_arg__ == fields[name]


def test_every_option_is_documented_where_it_is_declared() -> None:
    """One docstring for each."""
    source = inspect.getsource(Options)
    for field in dataclasses.fields(Options):
        declaration = source.index(f"    {field.name}: ")
        following = source[declaration:].split("\n", 2)[1]
        assert following.strip().startswith('"""'), field.name


def test_every_option_is_in_the_reference_with_its_default() -> None:
    """The page cannot fall behind the code."""
    page = (REFERENCE / "options.md").read_text()
    for field in dataclasses.fields(Options):
        assert f"| `{field.name}` | `{field.default}` |" in page, field.name
    rows = re.findall(r"^\| `(\w+)` \| `", page, re.MULTILINE)
    assert sorted(rows) == sorted(field.name for field in dataclasses.fields(Options))


def test_groups_of_options_name_options_once() -> None:
    """The essential and the frequent ones; the others are rare."""
    page = (REFERENCE / "options.md").read_text()
    groups = re.findall(
        r"^- \*\*(?:Essential|Frequent)\*\*: (.*?)\. ", page, re.MULTILINE | re.DOTALL
    )
    named = [name for group in groups for name in re.findall(r"`(\w+)`", group)]
    assert len(groups) == 2
    assert len(named) == len(set(named))
    assert set(named) < {field.name for field in dataclasses.fields(Options)}


def test_every_error_is_in_the_reference() -> None:
    """In a row of the table, and no other is."""
    page = (REFERENCE / "errors.md").read_text()
    things = {name: getattr(poolkit, name) for name in poolkit.__all__}
    errors = {name for name, thing in things.items() if inspect.isclass(thing)}
    errors = {name for name in errors if issubclass(things[name], Exception)}
    assert set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE)) == errors - {"PoolError"}


def test_every_error_has_a_remedy() -> None:
    """Beside when it is raised."""
    page = (REFERENCE / "errors.md").read_text()
    rows = re.findall(r"^\| `\w+`.*$", page, re.MULTILINE)
    for row in rows:
        _, _, when, remedy, _ = map(str.strip, row.split("|"))
        assert when and remedy, row


def test_every_reason_of_a_retirement_is_in_the_glossary() -> None:
    """And no other is."""
    page = (REFERENCE.parent / "glossary.md").read_text()
    (counted,) = re.findall(r"`stats\(\)\.retired` counts the reasons: (.*?)\n- ", page, re.DOTALL)
    words = re.sub(r"\(.*?\)", "", counted, flags=re.DOTALL)
    assert set(re.findall(r"`(\w+)`", words)) == {*typing.get_args(Reason)}


def _public_modules() -> set[str]:
    """Return poolkit's modules without an underscore that have names of their own."""
    found = {
        "poolkit",
        *(each.name for each in pkgutil.walk_packages(poolkit.__path__, "poolkit.")),
    }
    # What only leads to the modules inside.
    return {name for name in found if "._" not in name} - {"poolkit.drivers", "poolkit.compat"}


def _documented() -> dict[str, set[str]]:
    """Return the modules that the pages of names have, each with the names that are there."""
    shown: dict[str, set[str]] = {}
    pages = "\n".join(page.read_text() for page in sorted((REFERENCE / "api").glob("*.md")))
    for block in re.findall(r"^\.\. .*?(?=^\.\. |^```)", pages, re.MULTILINE | re.DOTALL):
        kind, name = re.findall(r"^\.\. (?:auto|py:)(\w+):: (\S+)", block)[0]
        if kind != "module":
            module, _, name = name.rpartition(".")
            module = module or re.findall(r":module: (\S+)", block)[0]
            shown.setdefault(module, set()).add(name)
            continue
        names = shown.setdefault(name, set())
        if ":members:" in block:
            left_out = re.findall(r":exclude-members: (.*)", block)
            module = importlib.import_module(name)
            names |= {*module.__all__} - {*", ".join(left_out).split(", ")}
            for each in names:  # Sphinx passes over what has no docstring of its own
                thing = getattr(module, each)
                assert inspect.getdoc(thing) and typing.get_origin(thing) is None, each
    return shown


def test_every_public_name_is_on_a_page_of_its_module() -> None:
    """And nothing else is. A new module has to be added to docs/reference/api."""
    shown = _documented()
    assert {*shown} == _public_modules()
    for module, names in shown.items():
        if module != "poolkit.compat.asyncpg":  # whose names are asyncpg's
            assert names == {*importlib.import_module(module).__all__}, module


def test_every_driver_is_found_by_name_and_by_url() -> None:
    """A new one is in `poolkit.drivers`, among its imports for type checkers, and an entry point."""
    package = ast.parse(inspect.getsource(poolkit.drivers))
    (imported,) = [
        {alias.name for alias in each.names}
        for each in ast.walk(package)
        if isinstance(each, ast.ImportFrom) and each.module == "poolkit.drivers"
    ]
    drivers = {name.rpartition(".")[2] for name in _public_modules() if ".drivers." in name}
    assert {*poolkit.drivers.__all__} == imported == drivers
    project = tomllib.loads((REFERENCE.parents[1] / "pyproject.toml").read_text())["project"]
    places = {*project["entry-points"]["poolkit.drivers"].values()}
    assert places == {f"poolkit.drivers.{name}:from_url" for name in drivers - {"helpers"}}


def test_every_event_of_observers_is_in_the_guide_with_its_values() -> None:
    """In a row of the table, and no other is."""
    page = (REFERENCE.parent / "howto" / "labels-and-observers.md").read_text()
    rows = re.findall(r"^\| `(\w+\(pool.*?\))` \|", page, re.MULTILINE)
    for event in EVENTS:
        _, *given = inspect.signature(getattr(poolkit.Observer, event)).parameters
        assert f"{event}({', '.join(given)})" in rows
    assert len(rows) == len(EVENTS)


def test_every_public_name_is_settled_or_provisional() -> None:
    """The page has each once, and no other."""
    page = (REFERENCE / "provisional.md").read_text()
    settled, provisional = page.split("\n## Provisional\n")
    listed = [
        f"{module}.{name}"
        for module, names in re.findall(r"^\| `([\w.]+)` \| (`.*) \|$", settled, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", names)
    ]
    for names in re.findall(r"^\| (`poolkit.*?) \|", provisional, re.MULTILINE):
        listed += re.findall(r"`([\w.]+)`", names)
    whole = {"poolkit.drivers.helpers"}  # all of whose names are provisional
    modules = {
        name for name in _public_modules() - whole if not name.startswith("poolkit.compat.")
    }  # whose names are asyncpg's
    public = {
        f"{each}.{name}" for each in modules for name in importlib.import_module(each).__all__
    }
    assert sorted(listed) == sorted(public | whole)


def test_every_metric_is_in_the_reference_with_its_type() -> None:
    """And no other is."""
    told = poolkit.prometheus.families([poolkit.prometheus.snapshot(poolkit.Pool(FakeDriver()))])
    metrics = {
        (f"{each.name}_total" if each.type == "counter" else each.name, each.type) for each in told
    }
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \|", (REFERENCE / "metrics.md").read_text(), re.MULTILINE
    )
    assert set(rows) == metrics
