"""The two kinds of tasks that do jobs: a worker, which does many, and one that does one reset."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poolkit._core.slot import NEVER

if TYPE_CHECKING:
    from poolkit._core.slot import Job, Slot
    from poolkit._shell.runtime import Runtime


class Worker:
    """A parked task, or one at work."""

    __slots__ = ("calm", "job", "limit_at", "parking", "scope", "slot", "task")

    def __init__(self, job: tuple[Job, Slot]) -> None:
        self.job: tuple[Job, Slot] | None = job
        self.slot = job[1]  # of the job at hand
        self.parking: Any = None
        # Made in its task, from where it can be cancelled.
        self.task: Any = None
        self.scope: Any = None
        self.calm: Any = None  # inside of that one: where who ignores it is left alone
        self.limit_at = NEVER  # when its job is to be cancelled

    @property
    def is_cancelled(self) -> bool:
        """Whether its job was cancelled."""
        return bool(self.scope.cancel_called)

    def cancel(self, runtime: Runtime) -> None:
        """Cancel its job."""
        runtime.cancel(self.task, self.scope, self.calm)

    def is_late(self, error: BaseException) -> bool:
        """Tell whether its job was cancelled, and has ended with this error for that."""
        return self.is_cancelled and not isinstance(error, Exception)


class Once:
    """A task for one job. It has no cancel scope: that would cost more than twice the task."""

    __slots__ = ("has_begun", "is_cancelled", "limit_at", "slot", "task")

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.task: Any = None
        self.limit_at = NEVER
        self.has_begun = False
        self.is_cancelled = False

    def cancel(self, _: Runtime) -> None:
        """Cancel its job, once."""
        self.is_cancelled = True
        self.task.cancel()

    def is_late(self, error: BaseException) -> bool:
        """Tell whether its job was cancelled, and has ended with this error for that."""
        return self.is_cancelled and not isinstance(error, Exception)
