"""What is not documented in FastAPI and Starlette: looked at once, and done without if it is gone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from poolkit.fastapi._routes import label_of
from tests.forked import Forking, forking

ROOT = Path(__file__).resolve().parents[2]

#: Serves a plain endpoint, and one that is a generator, with what is left; prints the labels.
SERVE = """
import logging
logging.basicConfig(format="%(levelname)s %(name)s %(message)s")
import poolkit.fastapi
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from fastapi.testclient import TestClient

def serve(path):
    pool = poolkit.create_pool(f"sqlite:///{path}")
    app, router = FastAPI(lifespan=poolkit.fastapi.lifespan(pool)), APIRouter()

    @router.get("/read")
    async def read(conn=Depends(poolkit.fastapi.transaction)):
        return [pool.leases()[0].label, await conn.execute_fetchall("SELECT 1")]

    @router.websocket("/talk")
    async def talk(websocket: WebSocket, conn=Depends(poolkit.fastapi.connection)):
        await websocket.accept()
        await websocket.send_json(await conn.execute_fetchall("SELECT 1"))
        await websocket.close()

    app.include_router(router, prefix="/items")
    outer = FastAPI(lifespan=app.router.lifespan_context)
    outer.mount("/in", app)
    with TestClient(outer) as client:
        print(client.get("/in/items/read").json())
        with client.websocket_connect("/in/items/talk") as websocket:
            print(websocket.receive_json())
    print(pool.stats().leased)

serve(sys.argv[1])
"""

#: Hides attributes of the framework's classes from poolkit.
HIDE = """
import sys
import fastapi.routing, starlette.applications, starlette.websockets

class Nothing: ...

def hide(kind, *names):
    real, hidden = kind.__getattribute__, kind.__dict__.get("hidden")
    if hidden is not None:
        hidden.update(names)
        return
    kind.hidden = hidden = set(names)

    def look(self, name):
        if name in hidden and sys._getframe(1).f_globals["__name__"].startswith("poolkit."):
            raise AttributeError(name)
        return real(self, name)

    kind.__getattribute__ = look
"""

#: What poolkit does not find, and what the warning says of it.
PARTS = {
    "mounts": (
        "hide(starlette.routing.Mount, 'path_regex')",
        "the mounts of an application (",
    ),
    "path": (
        """
for kind in ("APIRoute", "_EffectiveRouteContext"):
    hide(getattr(fastapi.routing, kind, Nothing), "path_format", "path")
""",
        "the path of a route (",
    ),
    "dependencies": (
        "hide(fastapi.routing.APIRoute, 'dependant')",
        "the dependencies of a route (",
    ),
    "middleware": (
        "hide(starlette.applications.Starlette, 'middleware_stack', 'user_middleware')",
        "the middleware of an application (",
    ),
    "router": (
        "hide(fastapi.routing.APIRouter, 'middleware_stack')",
        "the inside of a router (",
    ),
    "lifespan": (
        "hide(fastapi.routing.APIRouter, 'lifespan_context')",
        "the lifespan of an application (",
    ),
    "stack": (
        "import tests.integrations.without_function_stack",
        "the exit stack of the function scope (",
    ),
    "websocket": (
        "hide(starlette.websockets.WebSocket, 'application_state')",
        "the state of a WebSocket (",
    ),
}


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Forking]:
    """Return an interpreter that has imported FastAPI, but not poolkit."""
    with forking("fastapi.testclient") as interpreter:
        yield interpreter


@pytest.mark.parametrize(
    "hidden",
    [[], ["path"], ["mounts"], ["stack"], list(PARTS)],
    ids=["none", "path", "mounts", "stack", "all"],
)
def test_what_the_framework_does_not_have_is_done_without(
    interpreter: Forking, hidden: list[str], tmp_path: Path
) -> None:
    """One warning names all of it, at import; requests are served all the same."""
    program = "\n".join([HIDE, *(PARTS[name][0] for name in hidden), SERVE])
    done = interpreter.run_text(
        tmp_path, program, str(tmp_path / "test.db"), paths=[ROOT / "src", ROOT]
    )
    label = "GET serve.<locals>.read" if "path" in hidden else "GET /in/items/read"
    if hidden == ["mounts"]:
        label = "GET /.../items/read"
    assert done.out.splitlines() == [f"['{label}', [[1]]]", "[[1]]", "0"], done.err
    warned = [line for line in done.err.splitlines() if line.startswith("WARNING poolkit ")]
    assert len(warned) == bool(hidden)
    for name, (_, said) in PARTS.items():
        assert (name in hidden) == any(said in line for line in warned)


#: Prints what is around the router, before and after somebody wants it.
WANT = """
import asyncio, sys
import poolkit.fastapi
from fastapi import FastAPI

def around(*apps):
    print(*(type(app.router.middleware_stack).__name__ for app in apps))

async def main():
    app, inner, later = FastAPI(), FastAPI(), FastAPI()
    app.mount("/inner", inner)
    life = poolkit.fastapi.lifespan(poolkit.create_pool("sqlite:///" + sys.argv[1]))
    async with life(app):
        around(app, inner)
        poolkit.fastapi.streaming_transaction
        around(app, inner)
        poolkit.fastapi.for_pool("other").streaming_transaction_with(mode="DEFERRED")
        async with life(later):
            around(app, inner, later)

asyncio.run(main())
"""


def test_nothing_is_put_around_routers_unless_somebody_wants_it(
    interpreter: Forking, tmp_path: Path
) -> None:
    """Responses are looked at for `streaming_transaction` only, also by applications that run."""
    done = interpreter.run_text(
        tmp_path, WANT, str(tmp_path / "test.db"), paths=[ROOT / "src", ROOT]
    )
    plain, looking = "method", "_Looking"
    assert done.out.split() == [plain] * 2 + [looking] * 5, done.err


def test_endpoint_that_cannot_be_found_has_no_name() -> None:
    """A scope of nobody's has a label all the same."""
    assert label_of({"type": "http", "method": "GET"}) == "GET ?"
    assert label_of({"type": "websocket"}) == "WS ?"
