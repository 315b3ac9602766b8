"""The code in README.md and docs/ is run as tests, each page in an empty folder.

And how many processes share out the tests, for ``pytest -n auto``.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from typing import TYPE_CHECKING, Any, cast
from unittest import SkipTest

import pytest
from sybil import Example, Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

if TYPE_CHECKING:
    from types import ModuleType


@pytest.hookimpl(optionalhook=True)  # xdist's
def pytest_xdist_auto_num_workers() -> int:
    """Return a few: each has servers of its own, and waits for them half of the time."""
    return min(4, 1 + (os.cpu_count() or 1))


class _Page:
    """A page as a module: libraries look for the names in annotations there."""


def _enter_empty_folder(namespace: dict[str, Any]) -> None:
    namespace["__name__"] = "page"
    sys.modules["page"] = page = cast("ModuleType", _Page())
    page.__dict__ = namespace
    namespace["_run"] = set()  # where the blocks begin that have been run in this folder
    namespace["_back"] = os.getcwd()  # noqa: PTH109  # for chdir below
    namespace["_folder"] = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    os.chdir(namespace["_folder"].name)


def _leave(namespace: dict[str, Any]) -> None:
    del sys.modules["page"]
    os.chdir(namespace["_back"])
    namespace["_folder"].cleanup()


@pytest.hookimpl(trylast=True)  # in the page's folder
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Run what stands above a block and was not asked for, or is another process's."""
    example = getattr(item, "example", None)
    if not isinstance(example, Example):
        return
    have_run = example.namespace["_run"]
    for above in example.document.examples():
        if above.region.start < example.region.start and above.region.start not in have_run:
            have_run.add(above.region.start)
            with contextlib.suppress(SkipTest):
                above.evaluate()
    have_run.add(example.region.start)


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["*.md"],
    setup=_enter_empty_folder,
    teardown=_leave,
).pytest()
