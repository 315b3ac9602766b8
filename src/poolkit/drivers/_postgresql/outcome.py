"""What an error says of the transaction that it has ended: conflict, or loss, or neither.

A COMMIT may have taken effect although it has raised. Only an answer of the server's says that it
has not, on a session that goes on.
"""

from __future__ import annotations

from typing import Final

#: A serialization failure, and a deadlock: the server has rolled back.
_CONFLICTS: Final = frozenset({"40001", "40P01"})
#: The session has ended: shut down, crashed, dropped, or idle for too long; or the client found it
#: gone. What was not committed is rolled back.
_ENDED: Final = frozenset(
    {"57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "25P04", "08003", "08006"}
)
#: "Transaction resolution unknown", "statement completion unknown", and all that is about the
#: connection.
_UNKNOWN: Final = frozenset({"08007", "40003"}) | _ENDED
#: Classes of codes that are about the connection, or the system: a pooler (pgcat) says 58000 when
#: it has lost the server, and keeps the client.
_UNKNOWN_CLASSES: Final = ("08", "58")
#: In the dict of an error that says nothing of the COMMIT before it.
UNANSWERED: Final = "_poolkit_unanswered"


def may_repeat(error: BaseException, *, has_ended: bool = False) -> bool:
    """Tell whether what an error has ended may succeed if it is done again.

    ``has_ended``: in a block, that its transaction has ended on a session that goes on. A statement
    has done that, such as a text with a COMMIT in it, and not the error.
    Not for a COMMIT of which ``is_unknown`` is true.
    """
    code = getattr(error, "sqlstate", None)
    return not has_ended and (code in _CONFLICTS or code in _ENDED)


def is_unknown(error: BaseException, *, closed: bool, unsent: bool = False) -> bool:
    """Tell whether a COMMIT that has raised this may have taken effect.

    ``unsent``: the error is the client's own, which has sent nothing when it has raised it.
    """
    for one in (error, error.__cause__):  # it may have been restated
        if one is not None and UNANSWERED in one.__dict__:
            return True
    if unsent:
        return False
    code = getattr(error, "sqlstate", None)
    is_answer = code and code not in _UNKNOWN and not code.startswith(_UNKNOWN_CLASSES)
    return closed or not is_answer
