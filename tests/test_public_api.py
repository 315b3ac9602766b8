"""The public surface is a tested fact."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
import typing
from pathlib import Path

import poolkit
from poolkit import Options, PoolOptions


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
    page = (Path(__file__).resolve().parents[1] / "docs" / "reference" / "options.md").read_text()
    for field in dataclasses.fields(Options):
        assert f"| `{field.name}` | `{field.default}` |" in page, field.name


def test_every_error_is_in_the_reference() -> None:
    """By its name."""
    page = (Path(__file__).resolve().parents[1] / "docs" / "reference" / "errors.md").read_text()
    for name in poolkit.__all__:
        thing = getattr(poolkit, name)
        if isinstance(thing, type) and issubclass(thing, Exception):
            assert f"`{name}`" in page or name == "PoolError"
