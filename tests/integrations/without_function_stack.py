"""Hides FastAPI's exit stack of the function scope from poolkit: ``-p tests.integrations.<this>``.

So the dependencies depend on a generator instead, as they do where FastAPI has no such stack.
"""

import contextlib
import sys
from typing import Any

_real: Any = contextlib.AsyncExitStack.__getattribute__


def _look(self: contextlib.AsyncExitStack, name: str) -> Any:
    if name == "push" and sys._getframe(1).f_globals["__name__"] == "poolkit.fastapi._look":
        raise AttributeError(name)
    return _real(self, name)


contextlib.AsyncExitStack.__getattribute__ = _look  # type: ignore[method-assign, assignment]
