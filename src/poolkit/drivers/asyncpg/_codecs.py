"""The type codecs of one connection: which are its own, and which a lease has set.

asyncpg can set one and remove one, and tells nobody which there are. But it looks up each type
whose codec it is about to change. So changes are noted, and those of a lease are undone, and may be
made again, without asking the server.

A library over the pool may want codecs of its own in its leases, and nowhere else: those are a
*guise*. Statements keep the codecs with which they were prepared, so a guise has its own.
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
    """One that was made to the codecs of a connection."""

    oid: int
    name: str
    schema: str
    #: Makes it in asyncpg's settings; None: nobody knows what was done, or if it was.
    again: Callable[[Any], None] | None = None
    #: Whether it takes the place of what was there.
    replaces: bool = False


class Guise:
    """What the leases of one library have of their own on a connection."""

    def __init__(self, codecs: Sequence[Change], statements: Any, epoch: int) -> None:
        self.codecs = tuple(codecs)
        #: asyncpg's cache of statements that is not in use: the guise's, or while it is on the
        #: connection's own.
        self.statements = statements
        #: The connection's, when the library last knew which statements the server has.
        self.epoch = epoch


class Codecs:
    """What was changed since the connection was set up, and how it was set up."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        #: The last types with parts that asyncpg has looked up.
        self.parts: Any = ()
        #: All that the server has told of types: asyncpg forgets it with each change.
        self.told: dict[int, Any] = {}
        #: Whether all of the connection's own are known.
        self.is_complete = True
        #: Whether the connection's own are not to be had again.
        self.are_lost = False
        self._own: dict[int, list[Change]] = {}

    def begins(self, oid: int, name: str, schema: str) -> None:
        """Note that the codec of a type is about to be changed."""
        self.changes.append(Change(oid, name, schema))

    def set_python(
        self,
        *,
        encoder: Any,
        decoder: Any,
        format: str = "text",  # noqa: A002  # asyncpg's
        **_: Any,
    ) -> None:
        """Note what `set_type_codec` has done."""
        change = self.changes[-1]
        parts = self.parts if any(part["oid"] == change.oid for part in self.parts) else ()
        kind = "composite" if parts else "scalar"
        of_type = change.oid, change.name, change.schema
        change.replaces = True
        change.again = lambda settings: settings.add_python_codec(
            *of_type, list(parts), kind, encoder, decoder, format
        )

    def set_builtin(self, *, codec_name: Any, format: str | None = None, **_: Any) -> None:  # noqa: A002
        """Note what `set_builtin_type_codec` has done: it leaves one of another format."""
        change = self.changes[-1]
        of_type = change.oid, change.name, change.schema
        change.again = lambda settings: settings.set_builtin_type_codec(
            *of_type, "scalar", codec_name, format
        )

    def removed(self) -> None:
        """Note what `reset_type_codec` has done."""
        change = self.changes[-1]
        change.replaces = True
        change.again = lambda _: None

    def take_as_own(self) -> None:
        """Take what was changed by now for the connection's own."""
        for change in self.changes:
            if change.replaces:
                self._own[change.oid] = []
            self._own.setdefault(change.oid, []).append(change)
            self.is_complete &= change.again is not None
        self.changes.clear()

    def undo(self, settings: Any) -> None:
        """Undo what was changed since."""
        self.are_lost |= not self.is_complete
        changed = {change.oid: change for change in self.changes}
        self.changes.clear()
        for oid, change in changed.items():
            settings.remove_python_codec(oid, change.name, change.schema)
            for own in self._own.get(oid, ()):
                if own.again is not None:
                    own.again(settings)
        self.tell_again(settings)

    def all_or_own(self) -> tuple[Change, ...]:
        """Return the changes, which are to be repeated; none if one is not known.

        Then all are the connection's own.
        """
        changes = tuple(self.changes)
        if all(change.again is not None for change in changes):
            return changes
        self.take_as_own()
        return ()

    def repeat(self, changes: Sequence[Change], settings: Any) -> None:
        """Make changes that were undone once more, until they are undone again."""
        for change in changes:
            if change.replaces:
                settings.remove_python_codec(change.oid, change.name, change.schema)
            if change.again is not None:
                change.again(settings)
        self.changes += changes
        self.tell_again(settings)

    def note_types(self, types: Sequence[Any]) -> None:
        """Note what the server has told."""
        self.parts = types
        self.told.update((of_type["oid"], of_type) for of_type in types)

    def tell_again(self, settings: Any) -> None:
        """Tell asyncpg what it has forgotten of types."""
        if not self.told:
            return
        # For what it cannot make of it now, asyncpg will ask the server.
        with contextlib.suppress(pg.InternalClientError, pg.UnsupportedClientFeatureError):
            settings.register_data_types(self.told.values())
