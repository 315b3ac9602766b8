"""The task of a pool that fetches the next credential ahead of time."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio

from poolkit._shell.log import say
from poolkit._shell.runtime import is_cancellation
from poolkit._shell.upkeep import PERIOD
from poolkit._text import told

if TYPE_CHECKING:
    from collections.abc import Callable

    from poolkit._credentials import Credential, Credentials


async def keep_fresh(
    credentials: Credentials,
    pool: str,
    limit: float | None,
    renew: Callable[[float], None],
    report: Callable[[str, BaseException], None],
    is_ending: Callable[[], bool],
) -> None:
    """Look every second, for ever, whether another credential is to be fetched.

    It may be a connect that fetches it. ``limit`` is that of a fetch for which the user has set
    none. ``renew`` is called when the login is another one than before, if the user wants
    connections to be replaced then; ``report`` with what the user's function raises that is no
    error. A cancellation is that of this task only if the pool ``is_ending``.
    """
    used: Credential | None = None  # and not the login: logs may show what is in this frame
    has_warned = False
    while True:
        await anyio.sleep(PERIOD)
        try:
            await credentials.refresh(limit)
            if has_warned and not credentials.is_failing:
                has_warned = False
                text = "pool %r: credentials can be fetched again"
                say(logging.INFO, "credentials_fetched", text, pool, pool=pool)
        except Exception as error:
            if not has_warned:
                has_warned = True
                _, left = credentials.held() or (None, 0.0)
                text = "pool %r: %s; the old ones are used for %.0f s more"
                words = pool, told(error), max(0.0, left)
                say(logging.WARNING, "credentials_failed", text, *words, pool=pool)
        except BaseException as error:
            if is_cancellation(error) and is_ending():
                raise
            report("credentials", error)
        if (held := credentials.held()) is not None:
            before, used = used or held[0], held[0]
            if before.login != used.login and credentials.renew_over is not None:
                renew(credentials.renew_over)
