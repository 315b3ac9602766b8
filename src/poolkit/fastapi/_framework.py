"""All that is touched of FastAPI and Starlette without being documented there.

`poolkit.fastapi._look` tries it once. What is not as expected is done without: nothing here raises
for what is missing.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import traceback
import types
import weakref
from typing import TYPE_CHECKING, Any, Final

import fastapi
from fastapi import APIRouter, Depends
from fastapi.dependencies import utils as solving
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from starlette.requests import HTTPConnection
from starlette.routing import Host, Mount
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from starlette.types import Scope


# -- of a request --------------------------------------------------------------------------------


def route_of(scope: Scope) -> Any:
    """Return the route that serves a request, or None."""
    return scope.get("route")


def endpoint_of(scope: Scope) -> Any:
    """Return the endpoint that serves a request, or None."""
    return scope.get("endpoint")


def path_of(scope: Scope) -> str | None:
    """Return the path of a request's route as the program has it: no part of it is a client's.

    With the prefixes of routers and mounts. What is mounted where nobody knows is after ``/...``.
    """
    route, context = route_of(scope), _context_of(scope)
    for one in (context, getattr(context, "starlette_route", None), route):
        path = getattr(one, "path_format", None) or getattr(one, "path", None)
        if path and isinstance(path, str):
            return f"{mounted_at(scope)}{path}"
    return None


def _context_of(scope: Scope) -> Any:
    """Return what is known of the router that has included a route, or None.

    From FastAPI 0.137 on a route does not know the prefix that its router was included with.
    """
    included = scope.get("fastapi")
    if not isinstance(included, dict):
        return None
    route, context = route_of(scope), included.get("effective_route_context")
    if route is getattr(context, "starlette_route", None):
        return context
    # Else it is of an application around this one.
    return context if route is getattr(context, "original_route", route) else None


def methods_of(route: Any) -> Iterable[str]:
    """Return the methods that a route is for; none, if it is for any."""
    return getattr(route, "methods", None) or ()


def is_routed(scope: Scope) -> bool:
    """Tell whether the router has chosen the endpoint of a request."""
    route = route_of(scope)
    if route is not None:
        return not isinstance(route, (Mount, Host)) and endpoint_of(scope) is not None
    return hasattr(endpoint_of(scope), "__qualname__")  # and not an application that is mounted


def mounted_at(scope: Scope) -> str:
    """Return where the application that serves a request is mounted: the paths of its mounts."""
    root = scope.get("root_path", "")
    proxy = scope.get("app_root_path", root)  # what a proxy has cut off is no part of the route
    mounted = root.removeprefix(proxy)
    if not mounted:
        return ""
    try:
        return _mounts_of(scope, scope["path"].removeprefix(proxy), mounted)
    except Exception:  # something is not where it was
        return "/..."


#: The ways to an application that were found, the latest first: there are as many as its mounts.
_ways: Final[weakref.WeakKeyDictionary[Any, list[tuple[weakref.ref[Mount], ...]]]] = (
    weakref.WeakKeyDictionary()
)
_MANY: Final = 16


def _mounts_of(scope: Scope, path: str, mounted: str) -> str:
    """Return the paths of the mounts that a request has come through.

    ``path`` is what is left of the request's, ``mounted`` the part of it that they have matched.
    """
    known = _ways.setdefault(scope["app"], [])
    for way in known:
        rest, left = path, mounted
        for mount in way:
            rest, left = _through(mount(), rest, left) or ("", "/")
        if not left:
            return "".join(_path_of_mount(mount()) for mount in way)
    routes = getattr(scope.get("router"), "routes", ())  # of the application around all others
    found = _find_mounts(routes, path, mounted)
    if found is None:
        return "/..."
    known[:] = [tuple(map(weakref.ref, found)), *known[: _MANY - 1]]
    return "".join(map(_path_of_mount, found))


def _path_of_mount(mount: Any) -> str:
    path: str = mount.path_format
    return path.removesuffix("/{path}")


def _find_mounts(routes: Iterable[Any], path: str, mounted: str) -> list[Any] | None:
    """Return the mounts that a request has come through, the outermost first; None if unknown."""
    for mount in _mounts_in(routes):
        through = _through(mount, path, mounted)
        if through is not None:
            more = _find_mounts(_routes_in(mount.app), *through) if through[1] else []
            if more is not None:
                return [mount, *more]
    return None


def _through(mount: Any, path: str, mounted: str) -> tuple[str, str] | None:
    """Return what a mount leaves of the path, and of what is matched; None: it does not match."""
    found = None if mount is None else mount.path_regex.match(path)
    if found is None:
        return None
    rest = f"/{found['path']}"
    taken = path[: -len(rest)]
    return (rest, mounted[len(taken) :]) if mounted.startswith(taken) else None


def _mounts_in(routes: Iterable[Any]) -> Iterator[Any]:
    """Return the mounts among routes, those of included routers with their prefixes."""
    for route in routes:
        if isinstance(route, Mount):
            yield route
        elif isinstance(route, Host):
            yield from _mounts_in(route.routes)
        elif hasattr(route, "effective_route_contexts"):  # a router, from FastAPI 0.137 on
            contexts = route.effective_route_contexts()
            yield from _mounts_in(getattr(one, "starlette_route", None) for one in contexts)


#: Middleware around one application, at most.
_LAYERS: Final = 50


def _routes_in(app: Any) -> Iterable[Any]:
    """Return the routes of an application, also if there is middleware around it."""
    for _ in range(_LAYERS):
        if hasattr(app, "routes"):
            routes: Iterable[Any] = app.routes
            return routes
        app = getattr(app, "app", None)
    return ()


def dependencies_of(route: Any) -> Iterable[Any]:
    """Return what a route's endpoint itself depends on, and not only a dependency."""
    dependant = getattr(route, "dependant", None)
    return [getattr(one, "call", None) for one in getattr(dependant, "dependencies", None) or ()]


#: From 0.134 on FastAPI streams what endpoints yield, also where a decorator says it wraps one.
_STREAMS: Final = tuple(map(int, fastapi.__version__.split(".")[:2])) >= (0, 134)


def is_generator(endpoint: Any) -> bool:
    """Tell whether what runs is a generator, whose body begins after the endpoint was called."""
    try:
        return _is_generator(endpoint)
    except TypeError:  # it cannot be a key
        return _is_generator.__wrapped__(endpoint)


@functools.lru_cache(maxsize=1000)
def _is_generator(endpoint: Any) -> bool:
    kinds = [endpoint, inspect.unwrap(endpoint)] if _STREAMS else [endpoint]
    while isinstance(kinds[-1], functools.partial):
        kinds.append(inspect.unwrap(kinds[-1].func) if _STREAMS else kinds[-1].func)
    kinds += [getattr(type(kind), "__call__", None) for kind in kinds]  # noqa: B004  # of an object
    return any(inspect.isgeneratorfunction(one) or inspect.isasyncgenfunction(one) for one in kinds)


def function_stack(scope: Scope) -> contextlib.AsyncExitStack:
    """Return the stack that FastAPI ends when the endpoint of a request has returned."""
    stack: contextlib.AsyncExitStack = scope["fastapi_function_astack"]
    return stack


def comes_next(stack: contextlib.AsyncExitStack, exit_: object) -> bool:
    """Tell whether an exit is the next one of a stack; False if the stack does not show it."""
    try:
        return bool(stack._exit_callbacks[-1][1] == exit_)  # type: ignore[attr-defined]
    except (AttributeError, LookupError, TypeError):
        return False


def request_stack(scope: Scope) -> object:
    """Return the stack that FastAPI ends after the response to a request; None if there is none."""
    return scope.get("fastapi_inner_astack")


def overrides_of(scope: Scope) -> Any:
    """Return the `dependency_overrides` that FastAPI looks into for a request, or None."""
    return getattr(_overriding(scope), "dependency_overrides", None)


def _overriding(scope: Scope) -> Any:
    """Return the application whose `dependency_overrides` hold."""
    context = _context_of(scope)
    if context is not None:
        return getattr(context, "dependency_overrides_provider", None)
    return getattr(route_of(scope), "dependency_overrides_provider", None)


async def solve(http: Any, dependency: Callable[..., Any], solved_before: Any) -> tuple[Any, Any]:
    """Return what FastAPI gives for a dependency, or for what overrides it; and all solved so far.

    Headers and tasks in the background that it would add to the response are lost.
    """
    scope, needs = http.scope, Depends(dependency)

    def depending(found: Any = needs) -> None:
        """Depend on it."""

    path = getattr(route_of(scope), "path_format", "")
    solved = await solving.solve_dependencies(
        request=http,
        dependant=solving.get_dependant(path=path, call=depending),
        dependency_overrides_provider=_overriding(scope),
        dependency_cache=solved_before,
        async_exit_stack=function_stack(scope),
        embed_body_fields=False,
    )
    if solved.errors:
        kind = WebSocketRequestValidationError if scope["type"] == "websocket" else None
        raise (kind or RequestValidationError)(solved.errors)
    return solved.values["found"], solved.dependency_cache


# -- of an application ---------------------------------------------------------------------------


def add_middleware(app: Any, kind: Callable[[Any], Any]) -> None:
    """Put middleware around all of an application, unless it is there; also if it has started."""
    if any(getattr(one, "cls", None) is kind for one in getattr(app, "user_middleware", ())):
        return
    stack = getattr(app, "middleware_stack", None)
    with contextlib.suppress(Exception):  # no application of Starlette's
        if stack is None:
            app.add_middleware(kind)
        elif type(stack) is not kind:
            app.middleware_stack = kind(stack)


def put_around_router(router: Any, kind: Callable[[Any], Any]) -> None:
    """Put something between a router and the middleware around it, unless it is there."""
    inner = getattr(router, "middleware_stack", None)
    if inner is not None and type(inner) is not kind:
        router.middleware_stack = kind(inner)


def routers_in(app: Any) -> Iterator[Any]:
    """Return the router of an application, and all that are mounted in it, behind any middleware.

    They are applications' own, and those of routes that are mounted together.
    """
    for _ in range(_LAYERS):
        router = getattr(app, "router", app)
        if hasattr(router, "routes"):
            yield router
            for mount in _mounts_in(router.routes):
                yield from routers_in(mount.app)
            return
        app = getattr(app, "app", None)


def lifespans_of(app: Any) -> Iterator[Any]:
    """Return the lifespan of an application, and those of its routers."""
    rest = [getattr(getattr(app, "router", None), "lifespan_context", None)]
    while rest:
        one = rest.pop()
        if not isinstance(one, types.FunctionType):
            continue
        yield one
        if one.__module__ == APIRouter.__module__:  # what makes one of two
            cells = inspect.unwrap(one).__closure__ or ()
            with contextlib.suppress(ValueError):  # nothing is in it
                rest += [cell.cell_contents for cell in cells]


# -- of a WebSocket ------------------------------------------------------------------------------


def has_closed(http: HTTPConnection, error: BaseException) -> bool:
    """Tell whether an error is nothing but the end of a WebSocket that its handler has closed."""
    if isinstance(error, BaseExceptionGroup):
        return all(has_closed(http, one) for one in error.exceptions)
    return (
        isinstance(error, WebSocketDisconnect)
        and getattr(http, "application_state", None) is WebSocketState.DISCONNECTED
        # A message that cannot be sent ends in the same state, whose error comes of an `OSError`.
        and (not isinstance(error.__context__, OSError) or _was_closing(error))
    )


def _was_closing(error: BaseException) -> bool:
    """Tell whether an error was raised in the handler's own close: the client was faster."""
    close = WebSocket.close.__code__
    return any(frame.f_code is close for frame, _ in traceback.walk_tb(error.__traceback__))
