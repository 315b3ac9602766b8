"""Which route a lease is for, as errors, logs, `Pool.leases` and observers name it.

``GET /items/{id}``: method and template, with the prefixes of routers and mounts. Nothing in it is
a client's, so there are as many as the program has routes.
"""

from __future__ import annotations

import functools
import inspect
import sys
from typing import TYPE_CHECKING, Any, Final

from poolkit._shell import labels
from poolkit.fastapi import _framework as framework

if TYPE_CHECKING:
    from starlette.types import Scope

    from poolkit._shell.callsite import Place

#: An offset in no code: the place is where the function begins.
_BEGINNING: Final = sys.maxsize

#: A route may take whatever method a client makes up.
_METHODS: Final = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"}
)


def label_of(scope: Scope) -> str:
    """Return method and path of a request's route."""
    path = framework.path_of(scope)
    if path is None:
        path = getattr(framework.endpoint_of(scope), "__qualname__", "?")
    return _label(_method_of(scope), path)


@functools.lru_cache(maxsize=1000)
def _label(method: str, path: str) -> str:
    return labels.checked(f"{method} {path}")


def _method_of(scope: Scope) -> str:
    method: str = scope.get("method", "WS")
    if method in _METHODS or "method" not in scope:
        return method
    return method if method in framework.methods_of(framework.route_of(scope)) else "*"


class RouteLabel:
    """The label of a request that its router may still have to find: called when it is needed."""

    __slots__ = ("_label", "_scope")

    def __init__(self, scope: Scope) -> None:
        self._scope: Scope | None = scope
        self._label: str | None = None

    def __call__(self) -> str | None:
        """Return it; None before there is a route."""
        if self._label is None and self._scope is not None and framework.is_routed(self._scope):
            self._label = label_of(self._scope)
        return self._label

    def end(self) -> None:
        """Let go of the request. Contexts outlive it: of tasks, and of the next request."""
        self._scope = None


def beginning_of(endpoint: Any) -> Place:
    """Return the first line of an endpoint: a function, a partial one or an object to call."""
    try:
        return _beginning_of(endpoint)
    except TypeError:  # it cannot be a key
        return _beginning_of.__wrapped__(endpoint)


@functools.lru_cache(maxsize=1000)
def _beginning_of(endpoint: Any) -> Place:
    endpoint = inspect.unwrap(endpoint)
    while isinstance(endpoint, functools.partial):
        endpoint = inspect.unwrap(endpoint.func)
    if not hasattr(endpoint, "__code__"):
        endpoint = getattr(type(endpoint), "__call__", None)  # noqa: B004  # its code is wanted
    return getattr(endpoint, "__code__", beginning_of.__code__), _BEGINNING


def takes(route: object, dependency: object) -> bool:
    """Tell whether a route's endpoint itself depends on it, and not only a dependency."""
    return any(one is dependency for one in framework.dependencies_of(route))
