"""Statements of a lease: what they have done to prepared statements, and to the transaction.

asyncpg caches the statements that it prepares, by names that begin with ``__asyncpg_``. A lease may
name statements of its own, and may PREPARE, DEALLOCATE or DISCARD by SQL, so the texts of its
statements are read here.

`Statements` is a part of the class that `poolkit.drivers.asyncpg._connection.pooled` makes.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, Final

from poolkit.drivers._postgresql.sql import chains, goes_on
from poolkit.drivers.asyncpg import _unwrapped as unwrapped
from poolkit.drivers.asyncpg._base import DottedNames
from poolkit.drivers.asyncpg._rechecked import readable_twice, recheck_when_run

if TYPE_CHECKING:
    import weakref

    from poolkit.drivers.asyncpg._codecs import LibraryCodecs
    from poolkit.drivers.asyncpg._parts import Parts
    from poolkit.drivers.asyncpg._transaction import Transaction

#: asyncpg's own statements about types.
_INTROSPECTION: Final = unwrapped.introspection_queries()
#: The server's answers when it has dropped all prepared statements.
_DROPPED_ALL: Final = frozenset({"DISCARD ALL", "DEALLOCATE ALL"})
#: First characters of DEALLOCATE, DISCARD, DO, PREPARE, and of a text that begins with a comment, a
#: space or an empty statement. Other texts need not be read.
_FIRST_CHARACTERS: Final = frozenset("dDpP;/- \t\r\n")
#: The server's answers after which the text of the statement is read.
ANSWERS: Final = _DROPPED_ALL | {
    *("BEGIN", "COMMIT", "DEALLOCATE", "PREPARE", "ROLLBACK", "START TRANSACTION")
}
#: What stands between two words. Comments have a limit, or long texts would take long to read.
_GAP: Final = r"(?:\s|--[^\n]{0,200}+\n|/\*.{0,200}?\*/)"
#: Finds statements about prepared statements. One found in a comment or a string costs a longer
#: reset, and no more.
_find: Final = re.compile(
    rf"\b(?:(?P<prepares>prepare{_GAP}++(?!transaction\b|all\b))"
    rf"|(?P<drops_ours>discard{_GAP}++all\b"
    rf'|deallocate{_GAP}++(?:prepare{_GAP}++)?(?:all\b|"?__asyncpg_))'
    r"|deallocate\b)",
    re.IGNORECASE | re.DOTALL,
).finditer


class Statements(unwrapped.Mixin):  # type: ignore[misc]
    """The prepared statements of a connection of asyncpg, from lease to lease."""

    if not TYPE_CHECKING:  # its attributes are in slots of the class that is made
        __slots__ = ()

    _block: Transaction | None
    _block_was_replaced: bool
    _dotted_names: DottedNames | None
    _epoch: int
    _last_status: object
    _libraries: weakref.WeakSet[LibraryCodecs]
    _may_have_deallocated: bool
    _may_have_dropped_ours: bool
    _may_have_prepared: bool
    _named_statements: list[Any]
    _parts: Parts

    # -- the names in them, while the session is being set up ------------------------------------

    def collect_names(self) -> None:
        """Collect the names with a dot in all statements from now on; see `collected_names`."""
        if self._dotted_names is None:
            self._dotted_names = DottedNames(_INTROSPECTION)
            self.add_query_logger(self._dotted_names)

    def collected_names(self) -> list[str]:
        """Stop collecting names, and return them.

        Raises `PoolConfigError` if there are too many.
        """
        collected = self.stop_collecting_names()
        return [] if collected is None else collected.all_names()

    def stop_collecting_names(self) -> DottedNames | None:
        """Stop collecting names; return what has collected them."""
        collected, self._dotted_names = self._dotted_names, None
        if collected is not None:
            self.remove_query_logger(collected)
        return collected

    # asyncpg's query loggers are not told of the following.

    async def _executemany(self, *args: Any, **kwargs: Any) -> Any:
        if self._dotted_names is not None:
            args = tuple(map(readable_twice, args))
        return await super()._executemany(*args, **kwargs)

    async def _copy_out(self, *args: Any, **kwargs: Any) -> Any:
        if self._dotted_names is not None:
            self._dotted_names.read(args[:1])
        return await super()._copy_out(*args, **kwargs)

    async def _prepare(self, *args: Any, name: Any = None, **kwargs: Any) -> Any:
        if self._dotted_names is not None:
            self._dotted_names.read(*args[:1])
        statement = await super()._prepare(*args, name=name, **kwargs)
        if isinstance(name, str):
            self._named_statements.append(statement._state)
        return recheck_when_run(self, statement)

    # -- what they do to prepared statements, and to the transaction -----------------------------

    def _get_statement(self, *args: Any, **kwargs: Any) -> Any:
        """Name a cursor's statement only where asyncpg has a cache; asyncpg would in any case.

        Behind a pooler a named statement stays in a session that is no longer ours, and the next
        process to use that name there would fail.
        """
        named = kwargs.get("named")
        self.about_to_run(*args[:1], named=named)
        if named is True:
            kwargs["named"] = self._parts.is_caching
        return super()._get_statement(*args, **kwargs)

    def about_to_run(self, query: object = None, *, named: object = None) -> None:
        """Note what a statement may do to prepared statements, and to the block's transaction.

        Raises `TransactionEnded` if that transaction has ended.
        """
        if self._block is not None:
            self._block.check()
            # A statement without a name is executed next; if that fails, the transaction ends.
            if named is None and isinstance(query, str):
                self._block_was_replaced |= chains(query)
        if isinstance(query, str) and query[:1] in _FIRST_CHARACTERS:
            self._read(query)

    def prepared_was_executed(self, lease: int, statement: str) -> None:
        """Note what a statement, prepared before, has done to the block's transaction."""
        if lease == self._pool_release_ctr and self._block is not None:
            self._block_was_replaced |= chains(statement)

    def was_executed(self, query: str, status: str) -> None:
        """Note what a text may have done that `execute` has sent; ``status``: the answer to it."""
        self._last_status = status
        self._may_have_dropped_ours |= status in _DROPPED_ALL
        self._may_have_prepared |= status == "PREPARE"
        self._read(query)
        if self._block is not None and not self.is_closed() and self.is_in_transaction():
            strings = getattr(self.get_settings(), "standard_conforming_strings", "on")
            self._block_was_replaced |= goes_on(query, is_standard=strings == "on")

    def _read(self, query: str) -> None:
        for match in _find(query):
            if match["drops_ours"]:
                self._may_have_dropped_ours = True
            elif match["prepares"]:
                self._may_have_prepared = True
            else:
                self._may_have_deallocated = True

    def prepare_anew(self) -> None:
        """Have asyncpg forget its statements, since the server has dropped them."""
        self._may_have_dropped_ours = False
        self._epoch += 1
        self._named_statements.clear()
        if not self._parts.has_statements:
            self.mark_unfit("a lease has ended statements of asyncpg's")
            return
        self._mark_stmts_as_closed()
        for library in self._libraries:
            for state in library.statements.iter_statements():
                state.mark_closed()


@functools.lru_cache(maxsize=16)
def reading_in_public_methods(kind: Any) -> Any:
    """Return the subclass that reads texts in asyncpg's public methods.

    For an asyncpg without the undocumented methods of `Statements`.
    """

    def reading(name: str) -> Any:
        def call(self: Any, query: Any, *args: Any, **kwargs: Any) -> Any:
            self.about_to_run(query)
            return getattr(super(made, self), name)(query, *args, **kwargs)

        return functools.wraps(getattr(kind, name))(call)

    async def prepare(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.about_to_run(*args[:1], named=False)
        if "Connection._prepare" in self._parts.missing:
            self.mark_unfit("a lease has prepared a statement")
        return await super(made, self).prepare(*args, **kwargs)

    names = ("cursor", "executemany", "fetch", "fetchmany", "fetchrow", "fetchval")
    methods = {name: reading(name) for name in names if hasattr(kind, name)}
    made: Any = type(kind.__name__, (kind,), {"__slots__": (), "prepare": prepare, **methods})
    return made
