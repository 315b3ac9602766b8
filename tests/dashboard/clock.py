"""A pool's clock, moved by hand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from poolkit import Pool


@contextlib.contextmanager
def clock_of(*pools: Pool[Any]) -> Iterator[list[float]]:
    """Have open pools go by a clock that is moved by hand; the event loop's own goes on."""
    now = [100.0]
    with pytest.MonkeyPatch.context() as patch:
        for pool in pools:
            patch.setattr(pool._runtime, "now", lambda: now[0])
        yield now
