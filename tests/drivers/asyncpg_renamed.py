"""Copies of the installed asyncpg in which one member has another name: as in a later version."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from typing import Final

#: Of its compiled protocol and settings: poolkit does not find it, while the compiled code does.
_HIDING: Final = """

import sys as _sys

from .protocol import Protocol as _Protocol


class _Settings:
    def __init__(self, settings):
        self._settings = settings

    def __getattr__(self, name):
        if name == HIDDEN:
            raise AttributeError(name)
        return getattr(self._settings, name.removeprefix("renamed_"))


class Protocol(_Protocol):
    def get_settings(self):
        settings = super().get_settings()
        return _Settings(settings) if hasattr(settings, HIDDEN) else settings

    def __getattribute__(self, name):
        if name == HIDDEN:
            asks = _sys._getframe(1).f_globals["__name__"]
            if asks.startswith("poolkit."):
                raise AttributeError(name)
        return super().__getattribute__(name.removeprefix("renamed_"))
"""
#: Of its compiled module.
_LESS: Final = """

import sys as _sys
import types as _types

from asyncpg.protocol import protocol as _there

_sys.modules[_there.__name__] = _less = _types.ModuleType(_there.__name__)
vars(_less).update({name: it for name, it in vars(_there).items() if name != HIDDEN})
"""


def renamed(folder: Path, member: str) -> Path:
    """Return a folder with a copy of asyncpg in which a member has another name.

    ``member``: ``Connection._top_xact``, ``Protocol.close_statement``, ``protocol.NO_TIMEOUT``, ...
    """
    found = importlib.util.find_spec("asyncpg")
    assert found is not None and found.submodule_search_locations
    source = Path(next(iter(found.submodule_search_locations)))
    target = folder / "asyncpg"
    unused = shutil.ignore_patterns("_testbase", "*.pyx", "*.pxd")
    # Links: nothing is compiled that is as it was. What changes is unlinked first, see `_write`.
    shutil.copytree(source, target, ignore=unused, copy_function=_link)
    owner, _, name = member.partition(".")
    if owner == "protocol":
        path = target / "__init__.py"
        _write(path, path.read_text() + _LESS.replace("HIDDEN", repr(name)))
        return folder
    before = {"Protocol": r"(?<=protocol\.)", "ConnectionSettings": r"(?<=\.)"}.get(owner, r"\b")
    for path in target.rglob("*.py"):
        text = path.read_text()
        if (changed := re.sub(rf"{before}{name}\b", f"renamed_{name}", text)) != text:
            _write(path, changed)
    if owner in ("Protocol", "ConnectionSettings"):
        path = target / "protocol" / "__init__.py"
        _write(path, path.read_text() + _HIDING.replace("HIDDEN", repr(name)))
    return folder


def _link(source: str, target: str) -> None:
    Path(target).symlink_to(source)


def _write(path: Path, text: str) -> None:
    path.unlink()  # it is a link to the installed one
    path.write_text(text)
