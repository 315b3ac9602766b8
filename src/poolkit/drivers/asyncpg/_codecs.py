"""The type codecs of one connection: which are its own, and which a lease has set.

asyncpg can set a codec and remove one, but cannot list them. It looks up each type whose codec it
is about to change: so each change is noted here. The changes of a lease are undone, and can be made
again, without asking the server.

A library over the pool, such as SQLAlchemy, may want codecs of its own in its leases and in no
others: `LibraryCodecs`. A statement keeps the codecs with which it was prepared, so a library has
its own cache of statements, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

from asyncpg import exceptions as pg

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclasses.dataclass
class Change:
    """A change to the codec of one type."""

    oid: int
    name: str
    schema: str
    #: Makes the change in asyncpg's settings; None: poolkit does not know what was changed, if
    #: anything was.
    apply: Callable[[Any], None] | None = None
    #: Whether the change takes the place of those made to this type before.
    replaces: bool = False


class LibraryCodecs:
    """The codecs that one library over the pool has on a connection, in its own leases."""

    def __init__(self, changes: Sequence[Change], statements: Any, epoch: int) -> None:
        self.changes = tuple(changes)
        #: asyncpg's cache of statements that is not in use: the library's between its leases, the
        #: connection's own during one.
        self.statements = statements
        #: The connection's `_epoch` when the library last used its statements.
        self.epoch = epoch


class Codecs:
    """The codecs that a connection was set up with, and the changes since."""

    def __init__(self) -> None:
        #: The changes of the present lease.
        self.changes: list[Change] = []
        #: The types that asyncpg has looked up last, those with parts among them.
        self.last_types: Any = ()
        #: All that the server has said of types, by their oids: asyncpg forgets it at each change.
        self.known_types: dict[int, Any] = {}
        #: Whether poolkit knows all changes that have set up the connection.
        self.is_complete = True
        #: Whether a lease has changed codecs that poolkit cannot set back.
        self.are_lost = False
        self._own: dict[int, list[Change]] = {}

    def change_begins(self, oid: int, name: str, schema: str) -> None:
        """Note that the codec of a type is about to be changed."""
        self.changes.append(Change(oid, name, schema))

    def python_codec_set(
        self,
        *,
        encoder: Any,
        decoder: Any,
        format: str = "text",  # noqa: A002  # asyncpg's
        **_: Any,
    ) -> None:
        """Note what `set_type_codec` has changed."""
        change = self.changes[-1]
        is_composite = any(part["oid"] == change.oid for part in self.last_types)
        parts = self.last_types if is_composite else ()
        kind = "composite" if parts else "scalar"
        of_type = change.oid, change.name, change.schema
        change.replaces = True
        change.apply = lambda settings: settings.add_python_codec(
            *of_type, list(parts), kind, encoder, decoder, format
        )

    def builtin_codec_set(self, *, codec_name: Any, format: str | None = None, **_: Any) -> None:  # noqa: A002
        """Note what `set_builtin_type_codec` has changed.

        A codec of another format stays beside it.
        """
        change = self.changes[-1]
        of_type = change.oid, change.name, change.schema
        change.apply = lambda settings: settings.set_builtin_type_codec(
            *of_type, "scalar", codec_name, format
        )

    def codec_removed(self) -> None:
        """Note that `reset_type_codec` has removed a codec."""
        change = self.changes[-1]
        change.replaces = True
        change.apply = lambda _: None

    def keep_as_own(self) -> None:
        """Make the present codecs the connection's own, to which `undo` returns."""
        for change in self.changes:
            if change.replaces:
                self._own[change.oid] = []
            self._own.setdefault(change.oid, []).append(change)
            self.is_complete &= change.apply is not None
        self.changes.clear()

    def undo(self, settings: Any) -> None:
        """Return to the connection's own codecs."""
        self.are_lost |= not self.is_complete
        changed = {change.oid: change for change in self.changes}
        self.changes.clear()
        for oid, change in changed.items():
            settings.remove_python_codec(oid, change.name, change.schema)
            for own in self._own.get(oid, ()):
                if own.apply is not None:
                    own.apply(settings)
        self.register_known_types(settings)

    def repeatable_or_own(self) -> tuple[Change, ...]:
        """Return the changes of this lease, if poolkit can repeat all of them.

        Else return none, and make all codecs the connection's own.
        """
        changes = tuple(self.changes)
        if all(change.apply is not None for change in changes):
            return changes
        self.keep_as_own()
        return ()

    def repeat(self, changes: Sequence[Change], settings: Any) -> None:
        """Make changes that were undone once more, until the next `undo`."""
        for change in changes:
            if change.replaces:
                settings.remove_python_codec(change.oid, change.name, change.schema)
            if change.apply is not None:
                change.apply(settings)
        self.changes += changes
        self.register_known_types(settings)

    def types_looked_up(self, types: Sequence[Any]) -> None:
        """Note what the server has said of types."""
        self.last_types = types
        self.known_types.update((of_type["oid"], of_type) for of_type in types)

    def register_known_types(self, settings: Any) -> None:
        """Tell asyncpg again what the server has said of types."""
        if not self.known_types:
            return
        # asyncpg cannot register a type that fits no codec now; it will ask the server for that.
        with contextlib.suppress(pg.InternalClientError, pg.UnsupportedClientFeatureError):
            settings.register_data_types(self.known_types.values())
