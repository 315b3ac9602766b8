"""What a transaction is given for one request: settings and a role, fixed or from a dependency.

A dependency that gives them is one of FastAPI's: it may depend on what it likes, such as the user
who is logged in, and stands in ``app.dependency_overrides``. It has run before a connection is
acquired.
"""

# No `from __future__ import annotations`: FastAPI reads the annotations of dependencies.

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, TypeAlias, TypeVar

from fastapi import Depends
from starlette.requests import HTTPConnection

from poolkit._errors import PoolConfigError
from poolkit.drivers._postgresql.begin import checked

F = TypeVar("F", bound=Callable[..., Any])

#: The settings of a transaction, by their names: the same for two that are the same.
Key: TypeAlias = tuple[tuple[str, Any], ...]

#: Settings that may come from a dependency.
_MAY_DEPEND: Final = ("settings", "role")


@dataclasses.dataclass(frozen=True)
class _Fixed:
    """Settings with their values, which cannot be changed any more."""

    #: Name, type and value: for 1 and True are the same to Python, and not to the server.
    items: tuple[tuple[str, type, Any], ...]

    def __repr__(self) -> str:
        return repr(self.values())

    def values(self) -> dict[str, Any]:
        return {name: value for name, _, value in self.items}


def key(settings: dict[str, Any]) -> Key:
    """Return settings as a key. Raises `PoolConfigError` for fixed ones that cannot be."""
    found = {name: value for name, value in settings.items() if value is not None}
    fixed = {
        name: found[name] for name in _MAY_DEPEND if name in found and not callable(found[name])
    }
    checked(**{name: fixed.get(name) for name in _MAY_DEPEND})
    if "settings" in fixed:
        items = fixed["settings"].items()
        found["settings"] = _Fixed(tuple((name, type(value), value) for name, value in items))
    return tuple(sorted(found.items()))


def needing(call: F, settings: Key, **others: Any) -> F:
    """Have FastAPI give a dependency the request, others, and what its settings depend on."""
    needs = {"http": HTTPConnection, **others}
    for name, value in settings:
        if name in _MAY_DEPEND and callable(value):
            needs[name] = Annotated[Any, Depends(_of_request(value))]
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=need)
            for name, need in needs.items()
        ]
    )
    return call


def _of_request(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a dependency; one of a single parameter without a type is given the request.

    FastAPI would take it for a part of the query.
    """
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except (TypeError, ValueError):
        return call
    if len(parameters) != 1:
        return call
    (only,) = parameters
    is_positional = only.kind in (only.POSITIONAL_ONLY, only.POSITIONAL_OR_KEYWORD)
    if not is_positional or only.annotation is not only.empty or only.default is not only.empty:
        return call

    async def given(http: HTTPConnection) -> Any:
        found = call(http)
        return await found if inspect.isawaitable(found) else found

    return given


def resolve(settings: Key, given: Mapping[str, Any], label: str) -> dict[str, Any]:
    """Return the settings for a request, with what dependencies have given.

    Raises `PoolConfigError` if one has given None: without its settings, a transaction might see
    more than with them.
    """
    found = dict(settings)
    for name, value in given.items():
        if value is None:
            raise PoolConfigError(
                f"{label}: what {name}= depends on has given None. Raise an HTTPException there if "
                "the request may do nothing, or depend on a transaction without it"
            )
        found[name] = value
    if isinstance(found.get("settings"), _Fixed):
        found["settings"] = found["settings"].values()
    return found
