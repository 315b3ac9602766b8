"""The type codecs of one connection: which are its own, and which a lease has set.

asyncpg can set one and remove one, and tells nobody which there are. But it looks up each type
whose codec it is about to change. So changes are noted, and those of a lease are undone without
asking the server.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclasses.dataclass
class _Change:
    oid: int
    name: str
    schema: str
    #: Makes it in asyncpg's settings; None: nobody knows what was done, or if it was.
    again: Callable[[Any], None] | None = None
    #: Whether it takes the place of what was there.
    replaces: bool = False


class Codecs:
    """What was changed since the connection was set up, and how it was set up."""

    def __init__(self) -> None:
        self.changes: list[_Change] = []
        #: The last types with parts that asyncpg has looked up.
        self.parts: Any = ()
        #: Whether all of the connection's own are known.
        self.is_complete = True
        #: Whether the connection's own are not to be had again.
        self.are_lost = False
        self._own: dict[int, list[_Change]] = {}

    def begins(self, oid: int, name: str, schema: str) -> None:
        """Note that the codec of a type is about to be changed."""
        self.changes.append(_Change(oid, name, schema))

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
