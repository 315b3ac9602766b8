"""`create_pool`: makes a pool from a database URL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poolkit._errors import PoolConfigError
from poolkit._options import NAMES, parse_options, unknown_option
from poolkit._shell.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from ssl import SSLContext

    from typing_extensions import Unpack

    from poolkit._driver import Driver
    from poolkit._options import PoolOptions
    from poolkit._url import URL
    from poolkit.drivers._postgresql.settings import CommonSettings
    from poolkit.drivers.asyncpg._settings import Level
    from poolkit.drivers.sqlite._settings import SettingsDict as SQLiteSettings
    from poolkit.drivers.stream._settings import SettingsDict as StreamSettings

    class CreateOptions(PoolOptions, CommonSettings, SQLiteSettings, StreamSettings, total=False):
        """The pool's options, and the settings of the drivers that come with poolkit."""

        # Of asyncpg's and psycopg's, each of which has connections of its own.
        reset: Level | Callable[[Any], Awaitable[object]]
        ssl: bool | str | SSLContext | None
        prepare_threshold: int | None
        connection_class: type[Any]


def create_pool(url: URL, /, **options: Unpack[CreateOptions]) -> Pool[Any]:
    """Return a pool for a database URL, with the driver that serves the URL's scheme.

    The options are those of the pool (`Options`) and those of the driver's own ``create_pool``.
    Options that are not objects may stand in the URL's query as well (``?max_size=5``); a keyword
    wins. Everything else in the query goes to the database.

    Args:
        url: a string; a URL object of pydantic's, SQLAlchemy's or Starlette's; a ``SecretStr``; a
            `pathlib.Path` of a SQLite file.
        options: the pool's and the driver's.

    Raises `PoolConfigError` if ``url`` is not a URL, if the scheme or an option is unknown, or if
    the library is missing. No message repeats the URL.
    """
    from poolkit import _url as urls  # noqa: PLC0415  # a twentieth of this package's import

    scheme, rest = urls.split_scheme(urls.text_of(url))
    address, parts, end = urls.split_query(rest)
    ours = [part for part in parts if urls.name_of(part) in NAMES]
    if any("@" in part for part in ours):
        raise PoolConfigError(
            "there is an '@' in an option of the database URL, where it has to be written %40; and "
            "a '?' in the user or the password has to be written %3F"
        )
    query = "&".join(part for part in parts if part not in ours)
    settings = {name: value for name, value in options.items() if name not in NAMES}
    # The driver gets its part as it was written, and checks it. It comes first: an error may show
    # an option's value only when the address is known to be complete.
    driver = _load_driver(f"{scheme}://{address}{query and '?'}{query}{end}", scheme, settings)
    given = parse_options(urls.pairs_of(ours))
    given.update((name, value) for name, value in options.items() if name in NAMES)
    return Pool(driver, **given)


def _load_driver(url: str, scheme: str, settings: Mapping[str, Any]) -> Driver[Any]:
    """Return the driver that serves the URL's scheme, found by entry point (``poolkit.drivers``).

    Its function is called with the URL, and with the settings if there are any.
    """
    from importlib import metadata  # noqa: PLC0415  # a quarter of what importing poolkit would cost

    found = {entry.name: entry for entry in metadata.entry_points(group="poolkit.drivers")}
    if scheme not in found:
        from poolkit._url import unknown_scheme  # noqa: PLC0415

        raise PoolConfigError(unknown_scheme(scheme, found))
    from_url: Callable[..., Driver[Any]] = found[scheme].load()
    if not settings:
        return from_url(url)
    _check_settings(from_url, settings)
    return from_url(url, **settings)


def _check_settings(from_url: Callable[..., object], settings: Mapping[str, Any]) -> None:
    """Refuse settings that a driver's function does not take; one that takes all checks itself."""
    import inspect  # noqa: PLC0415  # for settings alone

    try:
        signature = inspect.signature(from_url)
    except ValueError:  # it is not written in Python: calling it tells what it does not take
        return
    try:
        signature.bind("", **settings)
    except TypeError:
        others = list(signature.parameters.values())[1:]
        kinds = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
        taken = {each.name for each in others if each.kind in kinds}
        for name in settings:
            if name not in taken:
                raise PoolConfigError(unknown_option(name, NAMES | taken)) from None
        raise
