"""The user's callbacks on SQLite's connection, muted while the driver asks SQLite something."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from poolkit.drivers.sqlite._facts import Rows

#: A method of `sqlite3.Connection`, and what it was called with.
MethodCall = tuple[str, tuple[Any, ...], dict[str, Any]]

#: The methods that set callbacks which would see, or could stop, the driver's own statements.
CALLBACKS: Final = ("set_authorizer", "set_progress_handler", "set_trace_callback")
#: What these methods are called with to turn off what they have turned on.
OFF: Final[dict[str, tuple[Any, ...]]] = {
    "set_authorizer": (None,),
    "set_progress_handler": (None, 0),
    "set_trace_callback": (None,),
    "enable_load_extension": (False,),
}


def _text(text: bytes) -> str:
    return text.decode(errors="surrogateescape")  # what users store as text need not be UTF-8


class Callbacks(sqlite3.Connection):
    """SQLite's connection; the driver can turn the user's callbacks off and on again."""

    text_factory: Any  # of sqlite3's; type checkers want it declared where it is assigned

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: What the user has set by methods: the last call of each, by what it has set.
        self._calls: dict[Hashable, MethodCall] = {}

    # The driver has an authorizer and a progress handler of its own, which call the user's. Its
    # classes override these two methods, which note nothing.

    def put_authorizer(self, callback: Any) -> None:
        """Have SQLite ask an authorizer; None: ask none."""
        super().set_authorizer(callback)

    def put_progress_handler(self, handler: Any, steps: int) -> None:
        """Have SQLite call a progress handler; None: call none."""
        super().set_progress_handler(handler, steps)

    def _put(self, method: str, *args: Any) -> None:
        if method == "set_trace_callback":
            super().set_trace_callback(*args)
        else:
            getattr(self, method.replace("set_", "put_"))(*args)

    def mute_callbacks(self) -> None:
        """Turn the user's callbacks off."""
        for method in CALLBACKS:
            if (method,) in self._calls:
                self._put(method, *OFF[method])

    def unmute_callbacks(self) -> None:
        """Turn the user's callbacks on again."""
        for method in CALLBACKS:
            if (call := self._calls.get((method,))) is not None:
                self._put(method, *call[1])

    def trace(self, *, on: bool) -> None:
        """Turn the user's trace callback on or off, if there is one."""
        call = self._calls.get(("set_trace_callback",))
        if call is not None:
            super().set_trace_callback(call[1][0] if on else None)

    @contextlib.contextmanager
    def _asking_sqlite(self) -> Iterator[Rows]:
        """Yield a function that executes a statement of the driver's and returns its rows.

        The user's callbacks, and the factories of rows and text, have no part in it.
        """
        self.mute_callbacks()
        text_factory, self.text_factory = self.text_factory, _text
        cursor = sqlite3.Connection.cursor(self, sqlite3.Cursor)
        cursor.row_factory = None
        try:
            yield lambda *statement: cursor.execute(*statement).fetchall()
        finally:
            cursor.close()
            self.text_factory = text_factory
            self.unmute_callbacks()
