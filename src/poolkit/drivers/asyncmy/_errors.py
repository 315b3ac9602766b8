"""What an error of asyncmy says about its connection, about the others and about connecting."""

from __future__ import annotations

import ssl
from typing import Any, Final

from asyncmy.errors import InterfaceError, InternalError, MySQLError, OperationalError

from poolkit import PoolConfigError, Verdict

# -- connecting ----------------------------------------------------------------------------------

#: Raised again until somebody changes the configuration, here or on the server.
_FATAL: Final = frozenset(
    {1044, 1045, 1049, 1698}  # access denied; no such database
    | {1129, 1130}  # the host is blocked, or not allowed
    | {1064, 1115, 1193, 1227, 1231, 1273}  # sql_mode, init_command or charset
    | {1251, 1275, 1524, 2049, 2059, 2061}  # how to authenticate
    | {1820, 1862, 3118, 3159, 4151}  # expired, locked, or without TLS
    | {1047}  # no COM_RESET_CONNECTION
)
_PASSING: Final = frozenset(
    {1040, 1041, 1135, 1203, 1226}  # too many connections, of all or of the user
    | {1053, 1077, 1078, 1079}  # shutting down
    | {1152, 1158, 1159, 1160, 1161, 1184, 1927}  # the network; killed
    | {1205, 1290, 1317, 1836}  # init_command waits, was interrupted, or writes to a replica
    | {2002, 2005, 2006, 2012, 2013, 2055, 4031}  # the client's own words for a lost connection
    | {9001, 9002}  # ProxySQL finds no server
)
_CANNOT_CONNECT: Final = 2003


def of_connecting(error: BaseException) -> Verdict | None:
    """Classify what a connect has raised."""
    if isinstance(error, (PoolConfigError, TypeError, ValueError)):
        return Verdict.FATAL
    if not isinstance(error, MySQLError):
        return None
    code = _code(error)
    if code == _CANNOT_CONNECT:  # it has what the system said for its cause
        return Verdict.FATAL if isinstance(error.__cause__, ssl.SSLError) else Verdict.TRANSIENT
    if code in _PASSING:
        return Verdict.TRANSIENT
    return Verdict.FATAL if code in _FATAL else None


# -- using ---------------------------------------------------------------------------------------

#: The server has ended this session alone: it was killed, idle for too long, or sent too much.
_SESSION_ONLY: Final = frozenset({1153, 1927, 4031})
#: The server is ending.
_ENDING: Final = frozenset({1053, 1077, 1078, 1079})
#: The answer is no answer to what was asked.
_OUT_OF_STEP: Final = frozenset({2014, 2027})
#: A deadlock; a row that has changed since it was read: the server has rolled back.
_CONFLICTS: Final = frozenset({1213, 1020})
#: A lock that was not had in time: only the statement was undone. If the transaction has ended all
#: the same, the statement may have committed it first, as ALTER TABLE does.
_LOCKED: Final = 1205
#: The session has ended, or the client found it gone.
_ENDED: Final = frozenset({1053, 1077, 1078, 1079, 1927, 2006, 2013, 4031})
_READ_ONLY: Final = frozenset({1290, 1836})


def is_read_only(error: BaseException) -> bool:
    """Tell whether the server takes no writes, rather than this transaction or this user."""
    code = _code(error)
    text = str(error).replace("_", "-")
    return code in _READ_ONLY and "read-only" in text


def may_repeat(error: BaseException, *, has_ended: bool) -> bool:
    """Tell whether what an error has ended may succeed if it is done again.

    ``has_ended``: the server says that the transaction has ended.
    """
    if not isinstance(error, MySQLError):
        return False
    code = _code(error)
    return code in _CONFLICTS or code in _ENDED or (code == _LOCKED and not has_ended)


def has_ended_session(error: BaseException) -> bool:
    """Tell whether an error says that the session is gone, or what was behind a proxy."""
    return isinstance(error, MySQLError) and _code(error) in _ENDED


def of_lease(error: BaseException, *, closed: bool) -> Verdict:
    """Classify an error that was raised in a lease; it may be of another database."""
    if not isinstance(error, MySQLError):
        return Verdict.OK
    code = _code(error)
    if code in _ENDING:
        return Verdict.SERVER_GONE
    if code in _SESSION_ONLY and (closed or code != 1153):  # noqa: PLR2004  # too large a packet
        return Verdict.DEAD
    if closed:
        return Verdict.SERVER_GONE if isinstance(error, OperationalError) else Verdict.DEAD
    if code in _OUT_OF_STEP or (isinstance(error, InternalError) and code is None):
        return Verdict.SUSPECT
    return Verdict.SUSPECT if isinstance(error, InterfaceError) else Verdict.OK


def _code(error: Any) -> int | None:
    code = error.args[0] if error.args else None
    return code if isinstance(code, int) else None
