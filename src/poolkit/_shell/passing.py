"""Whether what a connect has failed with may pass by itself, where the driver does not say.

A server that restarts refuses, hangs up, does not answer, or has no socket file and no address for
a while: all of that is an `OSError`. So callers wait for it, and are told of the rest.
"""

from __future__ import annotations

import errno
import sys
from typing import TYPE_CHECKING, Any, Final

from poolkit._shell.runtime import timeouts

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Errors of the system's that somebody has to mend: an address that cannot be one, for example.
_LASTING: Final = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR),
        *(errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.ENOTSOCK),
        *(errno.EAFNOSUPPORT, errno.EPROTOTYPE, errno.EPROTONOSUPPORT),
    }
)
#: Kinds of `OSError` that are somebody's mistake.
_MISTAKES: Final = (
    *(ValueError, TypeError),
    *(PermissionError, IsADirectoryError, NotADirectoryError),
)
#: How many errors inside of one are looked at.
_PARTS: Final = 100


def may_pass(error: BaseException) -> bool:
    """Tell whether a failed connect may succeed later: one of its parts may pass.

    Parts are the error itself, the members of groups, and what each was made from, or raised while
    that was being handled: many libraries say an error of the system's in one of their own. A
    certificate that is refused is refused again, whatever happened at other addresses.
    """
    parts = list(_parts(error))
    return not any(map(_is_certificate, parts)) and any(map(_passes, parts))


def _passes(error: BaseException) -> bool:
    if isinstance(error, (*timeouts(), *_of("socket", "gaierror", "herror"))):
        return True
    if not isinstance(error, OSError) or isinstance(error, _MISTAKES):
        return False
    if isinstance(error, _of("ssl", "SSLError")):
        return isinstance(error, _of("ssl", "SSLEOFError", "SSLZeroReturnError", "SSLSyscallError"))
    if error.errno is None:  # "all attempts have failed" says nothing of its own
        return isinstance(error, ConnectionError) or not _made_from(error)
    if error.errno == errno.ENOENT:  # of a socket, or of a file that was to be opened
        return error.filename is None
    return error.errno not in _LASTING


def _is_certificate(error: BaseException) -> bool:
    return isinstance(error, _of("ssl", "SSLCertVerificationError"))


def _of(module: str, *names: str) -> tuple[type[BaseException], ...]:
    """Return classes of a module; none if it is not loaded, and hence has raised nothing."""
    loaded: Any = sys.modules.get(module)
    return () if loaded is None else tuple(getattr(loaded, name) for name in names)


def _made_from(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    if isinstance(error, BaseExceptionGroup):
        found.extend(error.exceptions)
    origin = error.__context__ if error.__cause__ is None else error.__cause__
    if origin is not None:
        found.append(origin)
    return found


def _parts(error: BaseException) -> Iterator[BaseException]:
    pending, seen = [error], {id(error)}
    while pending:
        yield (part := pending.pop())
        for found in _made_from(part):
            if id(found) not in seen and len(seen) < _PARTS:
                seen.add(id(found))
                pending.append(found)
