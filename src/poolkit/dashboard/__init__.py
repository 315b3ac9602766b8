"""Look at it: a live page of the pools inside the application, and their part in each response.

The page is mounted by ``poolkit.fastapi.router(dashboard=True, dependencies=[...])``; the header is
`ServerTiming`'s. While neither is in use, nothing here is imported and no pool does anything more.
"""

from poolkit.dashboard._timing import ServerTiming

__all__ = ["ServerTiming"]
