"""Tries, at import and with small applications, what `poolkit.fastapi._framework` builds upon.

One warning names all that is not as expected.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
from typing import TYPE_CHECKING, Any, Final

import fastapi
import starlette
from fastapi import APIRouter, Depends, FastAPI
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket, WebSocketState

from poolkit._shell.log import say
from poolkit.fastapi import _framework as framework

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.types import Scope


class _SeenError(Exception):
    """Carries what a request looks like out of it."""


async def _endpoint(_: int) -> None:
    """Serve nothing."""


@contextlib.asynccontextmanager
async def _life(_: Any) -> AsyncIterator[None]:
    yield


async def _see(http: HTTPConnection) -> None:
    raise _SeenError(http)


def _request() -> HTTPConnection | None:
    """Return a request on its way to a mounted application's router, or None."""
    router, inner, outer = APIRouter(), FastAPI(openapi_url=None), FastAPI(openapi_url=None)
    router.add_api_route("/{_}", _endpoint, dependencies=[Depends(_see)])
    inner.include_router(router, prefix="/router")
    outer.mount("/mount", inner)
    try:
        _serve(outer, "/mount/router/1", lambda _: None)
    except _SeenError as seen:
        http: HTTPConnection = seen.args[0]
        return http
    except Exception:
        return None
    return None


def _has_function_stack() -> bool:
    """Tell whether what is pushed there is done after the endpoint, and before the response.

    And whether FastAPI can be asked for what overrides a dependency.
    """
    app, done = FastAPI(openapi_url=None), list[str]()

    async def root() -> str:
        return "root"

    async def override() -> str:
        return "override"

    async def push(http: HTTPConnection) -> None:
        overrides = framework.overrides_of(http.scope)
        if root in overrides:
            found, solved = await framework.solve(http, root, None)
            done.append(found)
            assert await framework.solve(http, root, solved) == (found, solved)
        stack = framework.function_stack(http.scope)
        stack.push(lambda *_: done.append("exit"))
        stack.push_async_exit(leave)

    async def leave(*_: object) -> None:
        done.append("asynchronous exit")

    async def endpoint() -> None:
        done.append("endpoint")

    app.dependency_overrides[root] = override
    app.add_api_route("/", endpoint, dependencies=[Depends(push)])
    try:
        _serve(app, "/", lambda message: done.append(message["type"]))
    except Exception:
        return False
    wanted = ["override", "endpoint", "asynchronous exit", "exit", "http.response.start"]
    return done[: len(wanted)] == wanted


def _serve(app: Any, path: str, send_on: Callable[[Any], object]) -> None:
    """Serve a request without an event loop, as far as nothing is waited for."""
    scope: Scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": b"",
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "scheme": "http",
        "http_version": "1.1",
        "asgi": {"version": "3.0"},
        "server": None,
        "client": None,
    }

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        send_on(message)

    served: Any = app(scope, receive, send)
    try:
        served.send(None)
    except StopIteration:
        pass
    finally:
        served.close()


#: Whether `function_stack`, `overrides_of` and `solve` do what they say.
HAS_FUNCTION_STACK: Final = contextvars.Context().run(_has_function_stack)


def _missing() -> list[str]:
    """Return what is not as expected, and what follows from that."""
    http = contextvars.Context().run(_request)
    scope: Scope = {} if http is None else http.scope
    app: Any = FastAPI(openapi_url=None)
    app.include_router(APIRouter(lifespan=_life))
    websocket = WebSocket({"type": "websocket"}, None, None)  # type: ignore[arg-type]
    found = {
        "the path of a route (routes are named by their functions)": (
            (framework.path_of(scope) or "").endswith("/router/{_}")
        ),
        "the mounts of an application (where one is mounted is not told)": (
            framework.mounted_at(scope) == "/mount"
        ),
        "the endpoint of a route (leases have no line of the program)": (
            framework.endpoint_of(scope) is _endpoint
        ),
        "the dependencies of a route (endpoints that are generators fail only when they run)": (
            _see in framework.dependencies_of(framework.route_of(scope))
        ),
        "the exit stack of the function scope (each dependency costs a request three times as "
        "much)": HAS_FUNCTION_STACK,
        "the middleware of an application (one that is mounted in a mounted one, and has no pool "
        "of its own, is served from the outermost's)": (
            hasattr(app, "middleware_stack") and hasattr(app, "user_middleware")
        ),
        "the inside of a router (streaming_transaction is refused)": (
            hasattr(app.router, "middleware_stack")
        ),
        "the lifespan of an application (one that is mounted, and whose own has not run, is served "
        "from the pools around it)": _life in framework.lifespans_of(app),
        "the state of a WebSocket (each disconnect rolls back)": (
            getattr(websocket, "application_state", None) is WebSocketState.CONNECTING
        ),
    }
    return [name for name, is_there in found.items() if not is_there]


def look() -> None:
    """Warn of what is not as expected, all of it at once."""
    missing = _missing()
    if missing:
        say(
            logging.WARNING,
            "unknown_version",
            "fastapi %s with starlette %s does not have, where poolkit knows it: %s. poolkit does "
            "without; look for a newer poolkit, or take an older fastapi",
            fastapi.__version__,
            starlette.__version__,
            "; ".join(missing),
        )


look()
