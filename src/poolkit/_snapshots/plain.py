"""A pool's numbers as plain data, which JSON can have."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poolkit._shell.pool import Pool


def numbers_of(pool: Pool[Any]) -> dict[str, Any]:
    """Return a pool's ``name``, and all of its ``stats``, ``size`` included, as plain data."""
    stats = pool.stats()
    return {"name": pool.name, "stats": {"size": stats.size, **plain(stats)}}


def plain(value: Any) -> Any:
    """Return a value as numbers, texts, lists and dicts. Of anything else there is the class.

    Numbers that JSON has not (infinity) become None.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, (bytes, bytearray, type)):
        return [plain(each) for each in value]
    return getattr(value, "__qualname__", None) or type(value).__qualname__
