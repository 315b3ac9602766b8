"""What other pools and clients call things, and what is written here instead.

Names are compared without case and separators: ``pool_size``, ``poolSize`` and ``Pool Size`` are
one word. The drivers add words of their own libraries.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

#: How alike two names are, from 0 to 1, of which one may be a slip for the other.
ALIKE: Final = 0.84
_MORE_ALIKE: Final = 0.9
#: What may be shown of a name or a value in a URL: nothing that could be a part of a password.
_NAME: Final = re.compile(r"[A-Za-z_][\w.\- ]{0,39}", re.ASCII)
_VALUE: Final = re.compile(r"[\w.+\-;=, ]{0,24}", re.ASCII)


def bare(name: str) -> str:
    """Return a name without its case and separators."""
    return re.sub(r"[\W_]", "", name.lower())


def words(advice: Mapping[str, str]) -> dict[str, str]:
    """Return the advice for each word, of words (space between them) for each advice."""
    return {word: what for what, listed in advice.items() for word in listed.split()}


#: Words for what is a pool's to decide.
POOL: Final = words(
    {
        "write max_size": (
            "poolsize maxpoolsize maximumpoolsize poolmax poolmaximum max pool maximum "
            "maxconnections maxconnection maxconns maxconn poolmaxconns poolmaxconn "
            "poolmaxconnections connectionlimit connlimit poollimit maxopenconns "
            "maxopenconnections maxactive maxtotal poolmaxactive numconnections"
        ),
        "write min_size": (
            "minpoolsize minimumpoolsize poolmin poolminimum min minimum "
            "minconnections minconns minconn poolminconns poolminconnections initsize initialsize"
        ),
        "write min_idle, or min_size for how many are open in all": (
            "minimumidle minidleconns poolminidleconns minspare spares spareswanted"
        ),
        "write acquire_timeout, in seconds": (
            "pooltimeout acquiretimeoutmillis acquiretimeoutms checkouttimeout waittimeout "
            "poolacquiretimeout poolwaittimeout waitqueuetimeout waitqueuetimeoutms maxwait "
            "maxwaitmillis poolcheckouttimeout queuetimeout"
        ),
        "write connect_timeout, in seconds, for one connect, acquire_timeout for one acquire": (
            "connectiontimeout connectiontimeoutmillis connectiontimeoutms connecttimeoutms "
            "connecttimeoutmillis connecttimeoutsec logintimeout conntimeout"
        ),
        "write acquire_timeout, connect_timeout, ping_timeout, reset_timeout or close_timeout": (
            "timeout timeoutms"
        ),
        "write max_lifetime, in seconds": (
            "poolrecycle recycle connmaxage maxconnlifetime poolmaxconnlifetime connectionlifetime "
            "maxconnectionlifetime maxconnectionage maxage connmaxlifetime maxlifetimeseconds "
            "maxlifetimems poolmaxlifetime lifetime"
        ),
        "write max_idle_time, in seconds": (
            "idletimeout idletimeoutmillis idletimeoutms maxinactiveconnectionlifetime maxidle "
            "poolmaxconnidletime maxconnidletime connectionidlelifetime connmaxidletime "
            "poolidletimeout maxidletimems maxidletimeout"
        ),
        "write ping_after, in seconds (0 pings before every use)": (
            "poolpreping preping connhealthchecks testonborrow validationquery connectiontestquery"
        ),
        "write ping_every, in seconds": (
            "poolhealthcheckperiod healthcheckperiod keepalivetime idlecheckinterval"
        ),
        "write max_uses": "maxqueries maxusage maxrequests",
        "write max_waiting": "maxqueue queuelimit maxqueuesize waitqueuesize maxwaitqueue",
        "write wait_notice, in seconds": "querywaitnotify waitnotify slowacquirethreshold",
        "write leak_after, in seconds": "leakdetectionthreshold leaktimeout",
        "give it as the first argument": "dsn url dburl databaseurl connectionstring conninfo",
        "write name": "poolname",
        "give on_connect=, as a keyword": (
            "init configure afterconnect connectioninitsql initsql initcommand"
        ),
        "give on_acquire=, as a keyword": "setup",
        "leave it out, connections used last are taken first": "pooluselifo uselifo lifo",
        "leave it out, poolkit is the pool": "poolclass pooling nullpool poolresetonreturn",
        "leave it out, it is a setting of SQLAlchemy's engine": (
            "echo echopool future executemanymode poolloggingname logginname"
        ),
        "leave it out": "poolmaxconnlifetimejitter reconnecttimeout numworkers atomicrequests",
    }
)


def near(name: str, known: Iterable[str], alike: float = ALIKE) -> list[str]:
    """Return the names that may be meant by another one, the likeliest first."""
    import difflib  # noqa: PLC0415  # for this alone

    wanted = bare(name)
    forms = {wanted, wanted.removeprefix("poolkit"), wanted.removeprefix("pool")}
    names = {bare(each): each for each in sorted(known)}
    if same := [names[form] for form in sorted(forms) if form in names]:
        return same
    return [names[each] for each in difflib.get_close_matches(wanted, names, 3, alike)]


def advice(name: str, known: Iterable[str], more: Mapping[str, str]) -> str | None:
    """Return what to write in place of a name that others have for something, or a slip for one.

    None if it is neither.
    """
    wanted = bare(name)
    elsewhere = {**POOL, **more}
    if wanted not in elsewhere:
        if found := near(name, known, 1.0):
            return f"did you mean {found[0]}?"
        if not (found := near(name, elsewhere, _MORE_ALIKE)):
            found = near(name, known)
            return f"did you mean {' or '.join(found)}?" if found else None
        wanted = found[0]
    return f"it is a word of other pools or clients: {elsewhere[wanted]}"


def name_shown(name: str) -> str:
    """Return the name of a parameter of a URL, unless it may be a part of a password."""
    return repr(name) if _NAME.fullmatch(name) else "'...'"


def value_shown(text: str) -> str:
    """Return the value of an option in a URL, unless it may be a part of a password."""
    return repr(text) if _VALUE.fullmatch(text) else "..."
