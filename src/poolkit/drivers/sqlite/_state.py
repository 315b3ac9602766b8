"""What a lease sets on a connection of SQLite's, and how a reset undoes it.

- What SQLite tells nobody (functions, collations, callbacks, limits) is noted by the methods that
  set it, and set back to what `Session.remember` has found noted.
- What SQLite does tell (pragmas, attached databases, temporary objects) is compared with what it
  was when nothing could have changed it yet. Both looks cost as much as some statements: they are
  taken only when something else than reading and writing rows was done (see `Session.look`).
- What can be neither read nor undone costs the connection: the reset raises. A private memory
  database would be lost with its connection, so there it is refused at once.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import string
import weakref
from typing import TYPE_CHECKING, Any, Final

from poolkit.drivers.sqlite._facts import Facts, Rows, differences, read_facts, restore

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

#: A method of `sqlite3.Connection`, and what it was called with.
Call = tuple[str, tuple[Any, ...], dict[str, Any]]

#: Statements that change nothing but rows and transactions. SQLite's settings have statements of
#: their own, and sqlite3 refuses a second statement behind one of these. What is in the group may
#: insert rows.
_PLAIN: Final = re.compile(
    r"\s*(?:SELECT|(INSERT|REPLACE|WITH)|UPDATE|DELETE|VALUES"
    r"|BEGIN|COMMIT|END|ROLLBACK|SAVEPOINT|RELEASE)\b",
    re.IGNORECASE,
)

_INSERTS: Final = re.compile(r"\s*(?:INSERT|REPLACE|WITH|--|/\*|;)", re.IGNORECASE)
#: What attaches a memory database that other connections see.
_SHARES: Final = re.compile(r"[?&]cache=shared\b", re.IGNORECASE)
#: The callbacks that see what a reset does, or stop it.
_CALLBACKS: Final = ("set_authorizer", "set_progress_handler", "set_trace_callback")
_OFF: Final[dict[str, tuple[Any, ...]]] = {
    "set_authorizer": (None,),
    "set_progress_handler": (None, 0),
    "set_trace_callback": (None,),
    "enable_load_extension": (False,),
}

#: Python 3.12 has it; sqlite3.LEGACY_TRANSACTION_CONTROL is how it is before it is set.
_autocommit: Final[Any] = vars(sqlite3.Connection).get("autocommit")
_LEGACY: Final = -1


#: SQLite knows a name in both cases, but not beyond ASCII.
_FOLD: Final = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def _folded(name: str) -> str:
    return str(name).translate(_FOLD)


def _text(text: bytes) -> str:
    return text.decode(errors="surrogateescape")  # what users store as text need not be any


class Session(sqlite3.Connection):
    """SQLite's connection; it can return to what it was when `remember` was called."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Counts the leases: what belongs to an earlier one is dead.
        self.lease = 0
        #: The lease that has inserted a row last, if SQLite still knows its id.
        self.inserted_in: int | None = None
        #: Whether its database ends with it: then what cannot be undone is refused.
        self.irreplaceable = False
        self._noted: dict[Hashable, Call] = {}
        self._noted_then: dict[Hashable, Call] = {}
        self._facts_then: Facts | None = None
        #: Whether `_facts_then` has to be had before the next operation.
        self._facts_due = False
        #: Whether the next reset has to compare.
        self._looks = False
        #: What was done that nothing undoes.
        self._lost: str | None = None
        #: Whether there may be other databases than those that are known.
        self._has_attached = False
        #: Whether that is one which other connections see.
        self._shares = False
        #: Memory databases that other connections see, if they have attached them, too.
        self._shared: set[str] = set()
        self._blobs: list[weakref.ref[sqlite3.Blob]] = []
        #: `total_changes`, if a lease may have written to private tables.
        self._changes_then: int | None = None
        self._attributes_then = self._attributes()

    def _attributes(self) -> tuple[object, ...]:
        return self.row_factory, self.text_factory, self.isolation_level

    def remember(self) -> None:
        """Take what the connection is like now for what a reset returns to; in any thread."""
        self._attributes_then = self._attributes()
        self.remember_settings()

    def remember_settings(self) -> None:
        """Do so, but for ``row_factory``, ``text_factory`` and ``isolation_level``."""
        self._noted_then = dict(self._noted)
        self._facts_then, self._facts_due = None, self._looks
        self._looks, self._lost, self._changes_then = False, None, None

    # -- noticing --------------------------------------------------------------------------------

    def look(self) -> None:
        """Have the next reset compare everything; call it before anything else is changed."""
        if not self._looks:
            if self._facts_then is None:
                self.find_facts()
            self._looks = True

    def distrust(self) -> None:
        """Do so before something that may go past the methods here, to those of `sqlite3`."""
        self.look()
        for method in _CALLBACKS:
            self._noted.setdefault((method,), (method, _OFF[method], {}))

    def find_facts(self) -> None:
        """Ask SQLite what the connection is like, for a reset to return to."""
        changes = self.total_changes
        if self._looks or self._changes_then not in (None, changes):
            return  # it has changed since it was tried last
        self._changes_then = changes
        with contextlib.suppress(Exception):  # locked, for example: `undo` fails after a change
            self._facts_then = facts = self._facts()
            self._facts_due = False
            if not facts.private:
                self._changes_then = None

    def see(self, sql: str, parameters: Any = ()) -> bool:
        """Take note of a statement that is about to be executed; tell whether to do so after it."""
        plain = _PLAIN.match(sql)
        if plain is None:
            self.look()
            if "tach" in sql.lower():  # attach, or detach
                self._has_attached = True
                self._shares = _SHARES.search(f"{sql} {parameters}") is not None
        if self._noted and ("enable_load_extension",) in self._noted:
            self._see_extensions(sql)
        if self.inserted_in is not None and self.inserted_in != self.lease:
            self._see_ids(sql)
        return plain is None or plain.lastindex is not None

    def see_script(self, sql: str) -> None:
        """Take note of statements that are about to be executed."""
        self.look()
        self._shares = _SHARES.search(sql) is not None
        if ("enable_load_extension",) in self._noted:
            self._see_extensions(sql)

    def _see_extensions(self, sql: str) -> None:
        if "load_extension" in sql.lower():
            self._lose("an extension was loaded")

    def _see_ids(self, sql: str) -> None:
        if "last_insert_rowid" in sql.lower():
            self.forget_id()

    def take_note(self, cursor: sqlite3.Cursor, sql: str) -> None:
        """Take note of what a statement has done: inserted rows, or attached a database."""
        if (cursor.rowcount or cursor.description) and _INSERTS.match(sql):
            self.inserted_in = self.lease
        if self._has_attached:
            self._has_attached = False
            self.watch_attached()

    def watch_attached(self) -> None:
        """Take note of what was attached just now."""
        if self._shares:
            self._shares = False
            with self._asking() as rows:
                self._shared.add(rows("PRAGMA database_list")[-1][1])

    def _lose(self, what: str) -> None:
        """Note something that nothing undoes, or refuse it."""
        self.look()
        if self.irreplaceable:
            raise sqlite3.NotSupportedError(
                f"{what}: nothing undoes that, and this private memory database would be lost with "
                "its connection, were that replaced. Do it in on_connect, for all leases"
            )
        self._lost = what

    def _set(self, key: Hashable, method: str, *args: Any, **kwargs: Any) -> Any:
        self.look()
        result = getattr(sqlite3.Connection, method)(self, *args, **kwargs)
        self._noted[key] = (method, args, kwargs)
        return result

    def _set_function(self, method: str, name: str, *args: Any, **kwargs: Any) -> None:
        key = ("function", _folded(name), args[0])
        if key not in self._noted_then and self._hides(*key):
            self._lose(f"a function {name}() that there was already was replaced")
        self._set(key, method, name, *args, **kwargs)

    def _hides(self, kind: str, name: str, arguments: int) -> bool:
        """Tell whether to remove a function is to lose another one of that name for good.

        That hides SQLite's own, those of extensions, and what takes any number of arguments.
        """
        with self._asking() as rows:
            try:
                sql = "SELECT narg, builtin FROM pragma_function_list WHERE name=?"
                found = rows(sql, (name,))
            except sqlite3.Error:  # a library without that pragma
                return True
        return any(
            built_in or number in (arguments, -1)
            for number, built_in in found
            if (kind, name, number) not in self._noted or (kind, name, number) in self._noted_then
        )

    # The signatures are the module's.

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
        if key not in self._noted_then and key[1] in ("binary", "nocase", "rtrim"):
            self._lose(f"SQLite's own collation {name} was replaced")
        self._set(key, "create_collation", name, callback)

    def set_authorizer(self, authorizer_callback: Any) -> None:
        """Set who allows statements, until the end of the lease."""
        self.look()
        self.put_authorizer(authorizer_callback)
        self._noted["set_authorizer",] = ("set_authorizer", (authorizer_callback,), {})

    # Both are shared with the driver's own; what these set is not noted.

    def put_authorizer(self, callback: Any) -> None:
        """Have SQLite ask an authorizer, or none."""
        super().set_authorizer(callback)

    def put_progress_handler(self, handler: Any, steps: int) -> None:
        """Have SQLite call a progress handler, or none."""
        super().set_progress_handler(handler, steps)

    def set_progress_handler(self, progress_handler: Any, n: int) -> None:
        """Set what is called while statements run, until the end of the lease."""
        self.look()
        self.put_progress_handler(progress_handler, n)
        self._noted["set_progress_handler",] = ("set_progress_handler", (progress_handler, n), {})

    def set_trace_callback(self, trace_callback: Any) -> None:
        """Set what is told each statement, until the end of the lease."""
        self._set(("set_trace_callback",), "set_trace_callback", trace_callback)

    def setlimit(self, category: int, limit: int, /) -> int:
        """Set a limit, until the end of the lease; return what it was."""
        self.look()
        before = super().setlimit(category, limit)
        key = ("limit", category)
        self._noted_then.setdefault(key, ("setlimit", (category, before), {}))
        self._noted[key] = ("setlimit", (category, limit), {})
        return before

    if _autocommit is not None:

        @property
        def autocommit(self) -> int:
            """Who begins transactions, until the end of the lease."""
            value: int = _autocommit.__get__(self)
            return value

        @autocommit.setter
        def autocommit(self, val: int) -> None:
            self.look()
            before = self.autocommit
            try:
                _autocommit.__set__(self, val)
            except BaseException:  # it is set nevertheless if the COMMIT has failed
                _autocommit.__set__(self, before)
                raise
            self._noted_then.setdefault(("autocommit",), ("autocommit", (before,), {}))
            self._noted["autocommit",] = ("autocommit", (val,), {})

    if hasattr(sqlite3.Connection, "setconfig"):  # Python 3.12

        def setconfig(self, op: int, enable: bool = True, /) -> Any:  # noqa: FBT001, FBT002
            """Set an option, until the end of the lease."""
            key = ("config", op)
            before = self.getconfig(op)
            result = self._set(key, "setconfig", op, enable)
            self._noted_then.setdefault(key, ("setconfig", (op, before), {}))
            return result

    if hasattr(sqlite3.Connection, "enable_load_extension"):  # as Python was built

        def enable_load_extension(self, enable: bool, /) -> None:  # noqa: FBT001
            """Allow extensions to be loaded, until the end of the lease."""
            self._set(("enable_load_extension",), "enable_load_extension", enable)

        def load_extension(self, name: str, /, **entrypoint: Any) -> None:
            """Load an extension, which costs the connection at the end of the lease."""
            self._lose("an extension was loaded")
            super().load_extension(name, **entrypoint)

    if hasattr(sqlite3.Connection, "deserialize"):

        def deserialize(self, data: Any, /, *, name: str = "main") -> None:
            """Replace a database, which costs the connection at the end of the lease."""
            self._lose("a database was replaced with deserialize()")
            super().deserialize(data, name=name)

    def blobopen(self, *args: Any, **kwargs: Any) -> sqlite3.Blob:
        """Open a blob, until the end of the lease."""
        blob = super().blobopen(*args, **kwargs)
        self._blobs.append(weakref.ref(blob))
        return blob

    # -- undoing ---------------------------------------------------------------------------------

    def silence(self) -> None:
        """Take away the callbacks that see what a reset does, or stop it."""
        for method in _CALLBACKS:
            if (method,) in self._noted:
                self._put(method, *_OFF[method])

    def listen(self) -> None:
        """Set the callbacks that there are to be."""
        for method in _CALLBACKS:
            if (call := self._noted.get((method,))) is not None:
                self._put(method, *call[1])

    def _put(self, method: str, *args: Any) -> None:
        if method == "set_trace_callback":
            super().set_trace_callback(*args)
        else:
            getattr(self, method.replace("set_", "put_"))(*args)

    def trace(self, *, on: bool) -> None:
        """Have the user's trace callback be told, or not for a while, if there is one."""
        call = self._noted.get(("set_trace_callback",))
        if call is not None:
            super().set_trace_callback(call[1][0] if on else None)

    def is_always_in_transaction(self) -> bool:
        """Tell whether autocommit was turned off; in any thread."""
        call = self._noted.get(("autocommit",))
        return call is not None and call[1][0] is False

    def switch_autocommit(self, *, off: bool) -> None:
        """Have rollback() roll back: it does nothing at all, without a word, if that is True."""
        call = self._noted.get(("autocommit",))
        if call is not None:
            _autocommit.__set__(self, _LEGACY if off else call[1][0])

    def close_blobs(self) -> None:
        """Close the blobs that are left open: each is a statement that runs."""
        blobs, self._blobs = self._blobs, []
        for reference in blobs:
            if (blob := reference()) is not None:
                blob.close()

    def is_as_remembered(self) -> bool:
        """Tell whether there is nothing to undo; in any thread, without asking SQLite."""
        return (
            not self._looks
            and (self._changes_then is None or self._changes_then == self.total_changes)
            and self._attributes() == self._attributes_then
        )

    def undo(self) -> None:
        """Return to what was remembered; while silent, and no statement runs.

        Raises `sqlite3.OperationalError` if that cannot be done.
        """
        self._put_back_attributes()
        if self.is_as_remembered():
            return
        if self._lost is not None:
            raise sqlite3.OperationalError(f"{self._lost}, which costs the connection")
        then = self._facts_then
        if then is None:
            raise sqlite3.OperationalError("nobody has looked what the connection was like before")
        for key, call in self._noted.items():
            if self._noted_then.get(key) is not call:
                self._put_back(key)
        self._noted = dict(self._noted_then)
        self._put_back_like()
        now = self._facts()
        if now != then:
            with self._asking() as rows:
                restore(rows, now, then)
            self._put_back_like()
            now = self._facts()
        if now != then:
            raise sqlite3.OperationalError(f"cannot be undone: {differences(now, then)}")
        self._changes_then = self.total_changes if then.private else None
        self._looks = False

    def _put_back_attributes(self) -> None:
        then: Any = self._attributes_then
        self.row_factory, self.text_factory = then[:2]
        if self.isolation_level != then[2]:  # to assign None is to commit
            self.isolation_level = then[2]

    def _put_back_like(self) -> None:
        """Register the user's own again: `PRAGMA case_sensitive_like` registers SQLite's."""
        key: Any
        for key in self._noted_then:
            if key[:2] in (("function", "like"), ("function", "glob")):
                self._put_back(key)

    def _put_back(self, key: Any) -> None:
        call = self._noted_then.get(key)
        kind = key[0]
        if call is not None:
            method, args, kwargs = call
            if method not in (*_CALLBACKS, "autocommit"):  # those come last
                getattr(sqlite3.Connection, method)(self, *args, **kwargs)
        elif kind == "function":
            # The one method that removes them, of whichever sort.
            super().create_window_function(key[1], key[2], None)
        elif kind == "collation":
            super().create_collation(key[1], None)
        elif kind in _CALLBACKS:
            self._put(kind, *_OFF[kind])
        else:
            getattr(sqlite3.Connection, kind)(self, *_OFF[kind])

    def is_reading(self) -> bool:
        """Tell whether cursors may have rows left."""
        raise NotImplementedError

    def forget_id(self) -> None:
        """Have last_insert_rowid() return 0, as on a new connection.

        By inserting a row with that id, which nobody will find. To undo that ends what others read.
        """
        if self.inserted_in is None or self.is_reading():
            return
        self.inserted_in = None
        with self._asking() as rows, contextlib.suppress(sqlite3.Error):
            rows("SAVEPOINT poolkit")
            try:
                rows("CREATE TEMP TABLE poolkit (x)")
                rows("INSERT INTO temp.poolkit (rowid) VALUES (0)")
            finally:
                rows("ROLLBACK TO poolkit")
                rows("RELEASE poolkit")

    # -- asking SQLite ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def _asking(self) -> Iterator[Rows]:
        """Ask in a way that nobody is told of, or stops, or understands otherwise."""
        self.silence()
        text_factory, self.text_factory = self.text_factory, _text
        cursor = sqlite3.Connection.cursor(self, sqlite3.Cursor)
        cursor.row_factory = None
        try:
            yield lambda *statement: cursor.execute(*statement).fetchall()
        finally:
            cursor.close()
            self.text_factory = text_factory
            self.listen()

    def _facts(self) -> Facts:
        with self._asking() as rows:
            return read_facts(rows, self._shared, self._facts_then)
