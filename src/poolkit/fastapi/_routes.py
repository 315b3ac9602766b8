"""Which route a lease is for, as errors, logs and `Pool.leases` name it: ``GET /items/{id}``.

A lease knows the code that acquired it, and shows it as ``file:line in name``. So a lease of a
request carries a copy of that code, which is never run, by another name: that of the route.
"""

from __future__ import annotations

import functools
import inspect
import sys
from typing import TYPE_CHECKING, Any, Final

from poolkit.fastapi import _framework as framework

if TYPE_CHECKING:
    import types

    from starlette.types import Scope

#: An offset in no code: the place is where the function begins.
ITS_BEGINNING: Final = sys.maxsize

_MANY: Final = 10_000
_cache: Final[dict[tuple[int, str, str], tuple[types.CodeType, types.CodeType]]] = {}


def label_of(scope: Scope) -> str:
    """Return method and path of a request's route, with the prefixes of routers and mounts."""
    path = framework.path_of(scope)
    if path is None:
        path = getattr(framework.endpoint_of(scope), "__qualname__", "?")
    return f"{scope.get('method', 'WS')} {path}"


def code_of(endpoint: Any) -> types.CodeType:
    """Return the code of an endpoint, be it a function, a partial one or an object to call."""
    endpoint = inspect.unwrap(endpoint)
    while isinstance(endpoint, functools.partial):
        endpoint = inspect.unwrap(endpoint.func)
    if not hasattr(endpoint, "__code__"):
        endpoint = getattr(type(endpoint), "__call__", None)  # noqa: B004  # its code is wanted
    return getattr(endpoint, "__code__", code_of.__code__)


def labelled(code: types.CodeType, label: str, remark: str = "") -> types.CodeType:
    """Return the code by the name of a route: the same file and lines, and a remark for errors."""
    key = id(code), label, remark
    if key not in _cache:
        if len(_cache) >= _MANY:  # somebody makes endpoints all the time
            _cache.clear()
        copy = code.replace(co_name=label, co_qualname=f"{label} ({code.co_qualname}){remark}")
        _cache[key] = code, copy  # the code is kept, and with it its id
    return _cache[key][1]


def takes(route: object, dependency: object) -> bool:
    """Tell whether a route's endpoint itself depends on it, and not only a dependency."""
    return any(one is dependency for one in framework.dependencies_of(route))
