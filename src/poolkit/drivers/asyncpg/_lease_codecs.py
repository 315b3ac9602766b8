"""Codecs of a lease: a release restores the connection's own, and drops what used others.

`LeaseCodecs` is a part of the class that `poolkit.drivers.asyncpg._connection.pooled` makes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from poolkit.drivers.asyncpg import _unwrapped as unwrapped
from poolkit.drivers.asyncpg._codecs import LibraryCodecs

if TYPE_CHECKING:
    import weakref

    from poolkit.drivers.asyncpg._codecs import Codecs
    from poolkit.drivers.asyncpg._parts import Parts

#: Why a connection is unfit whose codecs poolkit cannot restore.
_UNKNOWN: Final = "poolkit cannot restore its type codecs"


class LeaseCodecs(unwrapped.Mixin):  # type: ignore[misc]
    """The codecs of a connection of asyncpg, from lease to lease."""

    if not TYPE_CHECKING:  # its attributes are in slots of the class that is made
        __slots__ = ()

    _codecs: Codecs
    _dropped_for_codecs: bool
    _epoch: int
    _libraries: weakref.WeakSet[LibraryCodecs]
    _library: LibraryCodecs | None
    _parts: Parts
    _stmt_cache: Any  # asyncpg's

    def codec_changed(
        self, before: int, note: Any, kind: type, name: str, /, **kwargs: Any
    ) -> None:
        """Note what a method has changed; ``before``: the number of changes before it was called.

        asyncpg looks up a type before it changes the codec, which has added a change. A class of
        the user's may have a method of its own with other arguments: then poolkit does not know
        what was changed.
        """
        if len(self._codecs.changes) == before or not self._parts.has_codecs:
            self.mark_unfit("a lease has changed type codecs")
        elif unwrapped.is_asyncpgs(kind, name):
            note(**kwargs)
        self._codecs.register_known_types(self.get_settings())

    async def _introspect_type(self, typename: str, schema: str) -> Any:
        found = await super()._introspect_type(typename, schema)
        self._codecs.change_begins(found["oid"], typename, schema)
        return found

    async def _introspect_types(self, *args: Any, **kwargs: Any) -> Any:
        found = await super()._introspect_types(*args, **kwargs)
        self._codecs.types_looked_up(found[0])
        return found

    def restore_codecs(self) -> None:
        """Return to the connection's own codecs, and to the statements that were prepared for them.

        Statements that were prepared for codecs of the lease's are dropped.
        """
        if self.is_closed() or not (self._codecs.changes or self._library):
            return
        if not self._parts.has_codecs:
            self.mark_unfit(_UNKNOWN)
            return
        changes, library = len(self._codecs.changes), self._library
        if changes:
            self._codecs.undo(self.get_settings())
        self._always_needs_reset |= self._codecs.are_lost
        if library is not None:
            self._library = None
            self._exchange_statements(library)
            if changes == len(library.changes):
                return
            library.epoch = -1  # its statements may have been prepared for codecs of the lease's
        self._drop_local_statement_cache()
        self._dropped_for_codecs = True

    # -- a library over the pool -----------------------------------------------------------------

    def make_library_codecs(self) -> LibraryCodecs:
        """Return the codecs set in this lease as a library's; all else becomes the connection's.

        The library's codecs are not in use afterwards; see `use_library_codecs`.
        """
        self._named_statements.clear()
        self.keep_callbacks()
        if not self._parts.has_statements:
            self.mark_unfit(_UNKNOWN)
            return LibraryCodecs((), None, self._epoch)
        own = self._stmt_cache
        cache = type(own)(
            loop=self._loop,
            max_size=own.get_max_size(),
            on_remove=own._on_remove,
            max_lifetime=own.get_max_lifetime(),
        )
        library = LibraryCodecs(self._codecs.repeatable_or_own(), cache, self._epoch)
        self._library = library
        self._libraries.add(library)
        self.restore_codecs()
        return library

    def use_library_codecs(self, library: LibraryCodecs) -> bool:
        """Use a library's codecs and statements until the end of the lease.

        Return True if the library's statements can still be used.
        """
        if not self._parts.has_codecs:
            self.mark_unfit(_UNKNOWN)
            return False
        # Codecs that on_acquire has set are meant for the library's statements, too.
        is_good = library.epoch == self._epoch and not self._codecs.changes
        self._codecs.repeat(library.changes, self.get_settings())
        self._exchange_statements(library)
        self._library = library
        library.epoch = self._epoch
        return is_good

    def _exchange_statements(self, library: LibraryCodecs) -> None:
        there = self._stmt_cache
        self._stmt_cache, library.statements = library.statements, there

    # -- schema changes: asyncpg has these caches dropped ----------------------------------------

    def _drop_local_statement_cache(self) -> None:
        if not self._lacks("_drop_local_statement_cache"):
            super()._drop_local_statement_cache()
        for library in self._libraries:
            library.statements.clear()

    def _drop_local_type_cache(self) -> None:
        self._codecs.known_types.clear()
        if not self._lacks("_drop_local_type_cache"):
            super()._drop_local_type_cache()

    def _lacks(self, name: str) -> bool:
        return f"Connection.{name}" in self._parts.missing

    def _drop_global_statement_cache(self) -> None:
        for c in self._siblings:
            c._drop_local_statement_cache()

    def _drop_global_type_cache(self) -> None:
        for c in self._siblings:
            if not c.is_closed():
                c._drop_local_type_cache()
