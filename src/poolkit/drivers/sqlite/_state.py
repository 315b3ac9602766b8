"""What a lease sets on a connection of SQLite's, and how a reset undoes it.

- What SQLite does not tell (functions, collations, callbacks, limits) is noted by the methods that
  set it. A reset sets it back to what was noted when `Session.remember` was called.
- What SQLite does tell (pragmas, attached databases, temporary objects) is compared with what it
  was before the lease; see `poolkit.drivers.sqlite._comparison`.
- What can be neither read nor undone costs the connection: the reset raises. A private memory
  database would be lost with its connection, so there it is refused at once.
"""

from __future__ import annotations

import sqlite3
import string
import weakref
from typing import TYPE_CHECKING, Any, Final

from poolkit.drivers.sqlite._callbacks import CALLBACKS, OFF
from poolkit.drivers.sqlite._comparison import Comparison
from poolkit.drivers.sqlite._facts import differences, restore

if TYPE_CHECKING:
    from collections.abc import Hashable

#: Python 3.12 has it; sqlite3.LEGACY_TRANSACTION_CONTROL is how it is before it is set.
_autocommit: Final[Any] = vars(sqlite3.Connection).get("autocommit")
_LEGACY: Final = -1
#: SQLite does not distinguish upper and lower case of ASCII letters in names.
_FOLD: Final = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def _folded(name: str) -> str:
    return str(name).translate(_FOLD)


class Session(Comparison):
    """SQLite's connection; it can return to what it was when `remember` was called."""

    # Of sqlite3's; type checkers want them declared where they are assigned.
    row_factory: Any
    text_factory: Any
    isolation_level: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._blobs: list[weakref.ref[sqlite3.Blob]] = []
        self._base_attributes = self._attributes()

    def _attributes(self) -> tuple[object, ...]:
        return self.row_factory, self.text_factory, self.isolation_level

    def remember(self) -> None:
        """Have resets return to what the connection is like now; callable from any thread."""
        self._base_attributes = self._attributes()
        self.remember_settings()

    # -- noting what is set ----------------------------------------------------------------------

    def _set(self, key: Hashable, method: str, *args: Any, **kwargs: Any) -> Any:
        self.compare_at_reset()
        result = getattr(sqlite3.Connection, method)(self, *args, **kwargs)
        self._calls[key] = (method, args, kwargs)
        return result

    def _set_function(self, method: str, name: str, *args: Any, **kwargs: Any) -> None:
        key = ("function", _folded(name), args[0])
        if key not in self._base_calls and self._hides(*key):
            self.cannot_undo(f"a function {name}() that there was already was replaced")
        self._set(key, method, name, *args, **kwargs)

    def _hides(self, kind: str, name: str, arguments: int) -> bool:
        """Tell whether a function of this name would be lost for good if the new one is removed.

        Such are SQLite's own functions, those of extensions, and one for any number of arguments.
        """
        with self._asking_sqlite() as rows:
            try:
                sql = "SELECT narg, builtin FROM pragma_function_list WHERE name=?"
                found = rows(sql, (name,))
            except sqlite3.Error:  # a library without that pragma
                return True
        return any(
            built_in or number in (arguments, -1)
            for number, built_in in found
            if (kind, name, number) not in self._calls or (kind, name, number) in self._base_calls
        )

    # The signatures are those of `sqlite3.Connection`.

    def create_function(
        self, name: str, narg: int, func: Any, *, deterministic: bool = False
    ) -> None:
        """Register a function, until the end of the lease."""
        self._set_function("create_function", name, narg, func, deterministic=deterministic)

    def create_aggregate(self, name: str, n_arg: int, aggregate_class: Any) -> None:
        """Register an aggregate function, until the end of the lease."""
        self._set_function("create_aggregate", name, n_arg, aggregate_class)

    def create_window_function(self, name: str, num_params: int, aggregate_class: Any, /) -> None:
        """Register a window function, until the end of the lease."""
        self._set_function("create_window_function", name, num_params, aggregate_class)

    def create_collation(self, name: str, callback: Any, /) -> None:
        """Register a collation, until the end of the lease."""
        key = ("collation", _folded(name))
        if key not in self._base_calls and key[1] in ("binary", "nocase", "rtrim"):
            self.cannot_undo(f"SQLite's own collation {name} was replaced")
        self._set(key, "create_collation", name, callback)

    def set_authorizer(self, authorizer_callback: Any) -> None:
        """Set the callback that allows or denies statements, until the end of the lease."""
        self.compare_at_reset()
        self.put_authorizer(authorizer_callback)
        self._calls["set_authorizer",] = ("set_authorizer", (authorizer_callback,), {})

    def set_progress_handler(self, progress_handler: Any, n: int) -> None:
        """Set the callback that is called while statements run, until the end of the lease."""
        self.compare_at_reset()
        self.put_progress_handler(progress_handler, n)
        self._calls["set_progress_handler",] = ("set_progress_handler", (progress_handler, n), {})

    def set_trace_callback(self, trace_callback: Any) -> None:
        """Set the callback that is told each statement, until the end of the lease."""
        self._set(("set_trace_callback",), "set_trace_callback", trace_callback)

    def setlimit(self, category: int, limit: int, /) -> int:
        """Set a limit, until the end of the lease; return what it was."""
        self.compare_at_reset()
        before = super().setlimit(category, limit)
        key = ("limit", category)
        self._base_calls.setdefault(key, ("setlimit", (category, before), {}))
        self._calls[key] = ("setlimit", (category, limit), {})
        return before

    if _autocommit is not None:

        @property
        def autocommit(self) -> int:
            """Whether statements begin transactions; set until the end of the lease."""
            value: int = _autocommit.__get__(self)
            return value

        @autocommit.setter
        def autocommit(self, val: int) -> None:
            self.compare_at_reset()
            before = self.autocommit
            try:
                _autocommit.__set__(self, val)
            except BaseException:  # sqlite3 sets it even if the COMMIT has failed
                _autocommit.__set__(self, before)
                raise
            self._base_calls.setdefault(("autocommit",), ("autocommit", (before,), {}))
            self._calls["autocommit",] = ("autocommit", (val,), {})

    if hasattr(sqlite3.Connection, "setconfig"):  # Python 3.12

        def setconfig(self, op: int, enable: bool = True, /) -> Any:  # noqa: FBT001, FBT002
            """Set an option, until the end of the lease."""
            key = ("config", op)
            before = self.getconfig(op)
            result = self._set(key, "setconfig", op, enable)
            self._base_calls.setdefault(key, ("setconfig", (op, before), {}))
            return result

    if hasattr(sqlite3.Connection, "enable_load_extension"):  # as Python was built

        def enable_load_extension(self, enable: bool, /) -> None:  # noqa: FBT001
            """Allow extensions to be loaded, until the end of the lease."""
            self._set(("enable_load_extension",), "enable_load_extension", enable)

        def load_extension(self, name: str, /, **entrypoint: Any) -> None:
            """Load an extension, which costs the connection at the end of the lease."""
            self.cannot_undo("an extension was loaded")
            super().load_extension(name, **entrypoint)

    if hasattr(sqlite3.Connection, "deserialize"):

        def deserialize(self, data: Any, /, *, name: str = "main") -> None:
            """Replace a database, which costs the connection at the end of the lease."""
            self.cannot_undo("a database was replaced with deserialize()")
            super().deserialize(data, name=name)

    def blobopen(self, *args: Any, **kwargs: Any) -> sqlite3.Blob:
        """Open a blob, until the end of the lease."""
        blob = super().blobopen(*args, **kwargs)
        self._blobs.append(weakref.ref(blob))
        return blob

    # -- undoing ---------------------------------------------------------------------------------

    def is_always_in_transaction(self) -> bool:
        """Tell whether autocommit was turned off; callable from any thread."""
        call = self._calls.get(("autocommit",))
        return call is not None and call[1][0] is False

    def switch_autocommit(self, *, off: bool) -> None:
        """Set ``autocommit`` to its default for a reset, and back to what it was.

        With autocommit=True rollback() silently does nothing.
        """
        call = self._calls.get(("autocommit",))
        if call is not None:
            _autocommit.__set__(self, _LEGACY if off else call[1][0])

    def close_blobs(self) -> None:
        """Close the blobs that are left open: to SQLite each is a statement that runs."""
        blobs, self._blobs = self._blobs, []
        for reference in blobs:
            if (blob := reference()) is not None:
                blob.close()

    def is_as_remembered(self) -> bool:
        """Tell, without asking SQLite, if there is nothing to undo; callable from any thread."""
        return (
            not self._must_compare
            and (self._base_changes is None or self._base_changes == self.total_changes)
            and self._attributes() == self._base_attributes
        )

    def undo(self) -> None:
        """Return to what was remembered. Callbacks must be muted, and no statement may run.

        Raises `sqlite3.OperationalError` if something cannot be undone.
        """
        self._restore_attributes()
        if self.is_as_remembered():
            return
        if self._not_undoable is not None:
            raise sqlite3.OperationalError(f"{self._not_undoable}, which costs the connection")
        then = self._baseline
        if then is None:
            raise sqlite3.OperationalError(
                "cannot be undone: what the connection was like before the lease could not be read"
            )
        for key, call in self._calls.items():
            if self._base_calls.get(key) is not call:
                self._set_back(key)
        self._calls = dict(self._base_calls)
        self._register_like_again()
        now = self._facts()
        if now != then:
            with self._asking_sqlite() as rows:
                restore(rows, now, then)
            self._register_like_again()
            now = self._facts()
        if now != then:
            raise sqlite3.OperationalError(f"cannot be undone: {differences(now, then)}")
        self._base_changes = self.total_changes if then.private else None
        self._must_compare = False

    def _restore_attributes(self) -> None:
        then: Any = self._base_attributes
        self.row_factory, self.text_factory = then[:2]
        if self.isolation_level != then[2]:  # assigning None commits
            self.isolation_level = then[2]

    def _register_like_again(self) -> None:
        """Register the functions like() and glob() of ``on_connect`` again.

        `PRAGMA case_sensitive_like` replaces them with SQLite's.
        """
        key: Any
        for key in self._base_calls:
            if key[:2] in (("function", "like"), ("function", "glob")):
                self._set_back(key)

    def _set_back(self, key: Any) -> None:
        """Set what a lease has set by a method to what it was set to before, or remove it."""
        call = self._base_calls.get(key)
        kind = key[0]
        if call is not None:
            method, args, kwargs = call
            if method not in (*CALLBACKS, "autocommit"):  # these are set at the end of the reset
                getattr(sqlite3.Connection, method)(self, *args, **kwargs)
        elif kind == "function":
            # This method removes functions of all sorts.
            super().create_window_function(key[1], key[2], None)
        elif kind == "collation":
            super().create_collation(key[1], None)
        elif kind in CALLBACKS:
            self._put(kind, *OFF[kind])
        else:
            getattr(sqlite3.Connection, kind)(self, *OFF[kind])
