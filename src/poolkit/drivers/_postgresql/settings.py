"""The settings that the drivers of PostgreSQL have in common, and which ones are refused."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict, get_args

from poolkit import PoolConfigError
from poolkit.drivers.helpers import check_seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

Pooler = Literal["transaction", "session"]
#: Levels of resets that leave the session to others.
_LIGHT: Final = ("transaction", "none")
#: Seconds: three keepalive probes, each after one second at least.
_SHORTEST: Final = 3.0


class CommonSettings(TypedDict, total=False):
    """Keywords of each of the drivers; their `Settings` say what each one means."""

    pooler: Pooler | None
    tcp_timeout: float | None
    note_statements: bool
    connect_kwargs: Mapping[str, Any]


def check_common(settings: Any, levels: Sequence[str]) -> bool:
    """Check settings of a driver that knows these levels of resets; set the default of ``reset``.

    Return whether a pooler pools by transaction. Raises `PoolConfigError` for what cannot work.
    """
    if settings.pooler not in (None, *get_args(Pooler)):
        raise PoolConfigError(f"pooler={settings.pooler!r}: give 'transaction', 'session' or None")
    by_transaction = bool(settings.pooler == "transaction")
    if settings.reset is None:
        object.__setattr__(settings, "reset", "transaction" if by_transaction else "full")
    _check_reset(settings.reset, levels)
    if by_transaction and settings.reset in levels and settings.reset not in _LIGHT:
        raise PoolConfigError(
            f"reset={settings.reset!r} behind pooler='transaction' would reset a session that "
            "belongs to others: leave it out, or give 'transaction' or 'none'"
        )
    if settings.note_statements not in (True, False):
        raise PoolConfigError(f"note_statements={settings.note_statements!r}: give True or False")
    check_seconds("tcp_timeout", settings.tcp_timeout)
    if settings.tcp_timeout is not None and settings.tcp_timeout < _SHORTEST:
        raise PoolConfigError(
            f"tcp_timeout={settings.tcp_timeout} is below {_SHORTEST} s, the shortest that systems "
            "can do: give more, or None"
        )
    return by_transaction


def _check_reset(reset: object, levels: Sequence[str]) -> None:
    if isinstance(reset, str) and reset in levels:
        return
    refuse_coroutine("reset", reset)
    if not inspect.iscoroutinefunction(reset) and not inspect.iscoroutinefunction(
        getattr(reset, "__call__", None)  # noqa: B004  # an object with an async __call__
    ):
        known = ", ".join(map(repr, levels))
        raise PoolConfigError(f"reset={reset!r}: give {known}, or an async function")


def refuse_coroutine(name: str, value: object) -> None:
    """Raise `PoolConfigError` for what an async function has returned."""
    if inspect.iscoroutine(value):
        value.close()
        raise PoolConfigError(
            f"{name} is a coroutine, which can be awaited only once: give the async function "
            "itself, without calling it"
        )
