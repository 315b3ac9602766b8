"""Bugs planted in the shipped code, to see that the tests find them."""

from __future__ import annotations

import inspect
import textwrap
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


def plant(monkeypatch: pytest.MonkeyPatch, owner: Any, method: str, old: str, new: str) -> None:
    """Replace a piece of a method of the shipped code."""
    function: Callable[..., Any] = getattr(owner, method)
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"found {source.count(old)} times: {old}"
    made: dict[str, Any] = {}
    exec(source.replace(old, new), function.__globals__, made)
    monkeypatch.setattr(owner, method, made[method])
