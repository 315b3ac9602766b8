"""The end of a lease, however it comes: given back, closed, dropped, or lost with its connection.

Giving back never awaits, hence cannot be interrupted.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from poolkit._core.slot import NEVER, UNDONE
from poolkit._driver import C
from poolkit._shell import messages
from poolkit._shell.callsite import indented, stack_shown
from poolkit._shell.events import Events
from poolkit._shell.log import warn
from poolkit._shell.loop import BETWEEN

if TYPE_CHECKING:
    from poolkit._core.slot import Reason, Slot
    from poolkit._shell.lease import Closed, Lease, Over


class Returning(Events[C]):
    """How a pool takes back what it has leased."""

    def _ends_with(self, lease: Lease[C], over: Closed) -> bool:
        """End a lease if its holder has ended the connection; say whether. From any thread."""
        slot: Any = lease._slot
        if lease._release_count != slot.release_count or not self._is_dead(slot.connection):
            return False
        slot.reason = "broken"  # but not lost
        give_back = functools.partial(self._end_lease, lease, over, None)
        if self._runtime.where() in (self._runtime.home, BETWEEN):
            give_back()
        else:
            self._post(give_back)
        return True

    def _end_lease(  # noqa: PLR0912, PLR0915  # the hot path
        self, lease: Lease[C], over: Over, error: BaseException | None
    ) -> None:
        """End a lease, unless it has ended. Never awaits, hence cannot be interrupted."""
        state = self._state
        slot: Any = lease._slot
        runtime = self._runtime
        where = runtime.where()
        here = where is runtime.home
        if self._inbox and here:
            self._drain()
        if lease._release_count != slot.release_count:
            return
        lease._over = over
        if not here and where is not BETWEEN:
            # A block that is closed by the garbage collector, in whatever thread.
            self._dropped(slot, slot.release_count)
            return
        slot.release_count += 1
        if self._amid or not here:  # closed by the collector, in the middle of a line of ours
            self._post(functools.partial(self._take_back, slot, slot.release_count, error))
            self._note_released(slot)
            return
        left, is_told = slot.leases_left, slot.tells_release
        self._amid = True
        try:
            if not (slot.touched or state.queue or is_told or state.asks_on_return):
                now = runtime.now()
                if now < slot.retire_at:
                    # `PoolState.release`, the edge leased -> idle, written out.
                    state.uses.recent.append(now - slot.leased_at)
                    slot.used_at = now
                    del state.leased[slot]
                    slot.state = "idle"
                    state.idle.append(slot)
                    return
            if is_told:
                state.to_tell.append(("released", slot.label, runtime.now() - slot.leased_at))
                slot.tells_release = False
            if not slot.touched and not (state.queue and self._is_dead(slot.connection)):
                if not (state.release(slot, runtime.now()) or state.to_tell):
                    return
            else:
                self._take_back(slot, slot.release_count, error)
            while state.to_wake:  # `_wake`, written out
                runtime.unpark(state.to_wake[0].parking)
                state.to_wake.popleft()
        except BaseException:  # a RecursionError: there is no stack left to call anything with
            if slot.leases_left == left:  # it has not gone to the next one
                self._inbox.append(
                    functools.partial(self._take_back, slot, slot.release_count, error)
                )
            raise
        finally:
            self._amid = False
        if state.to_start and slot.state == "recycling" and (life := self._life) is not None:
            is_begun = False
            try:
                is_begun = life.workers.reset_at_once(slot)
            finally:
                # It may have run out of stack when it had ended already, and left notes.
                if not is_begun or life.watchers or state.to_wake or self._inbox:
                    self._carry_out()
        if state.to_start or state.to_terminate or state.to_tell or state.line.shedder:
            self._carry_out()

    def _take_back(self, slot: Slot, turn: int, error: BaseException | None) -> None:
        """Tell the state how a lease has left its connection, unless that was taken away."""
        if slot.release_count != turn or slot.state != "leased":
            return
        state = self._state
        now = self._runtime.now()
        slot.block = None
        if error is not None and not isinstance(error, Exception):
            slot.cancelled = bool(slot.touched)
        if not slot.touched and not (state.queue and self._is_dead(slot.connection)):
            state.release(slot, now)
        elif (reason := self._why_not_again(slot, error, now)) is not None:
            if slot.closing:
                state.release_closing(slot, now)
            else:
                state.release_broken(slot, now, reason)
        else:
            is_in_doubt = slot.busy or slot.cancelled or slot.has_derived
            is_undone = slot.touched == UNDONE
            if not is_in_doubt and (is_undone or self._hooks.is_clean(slot.connection)):
                state.release(slot, now)
            elif state.queue and self._can_hand_on(slot):
                state.release_unreset(slot, now)
            else:
                state.release_dirty(slot, now)

    def _can_hand_on(self, slot: Slot) -> bool:
        """Tell whether a connection may go to a waiter now, and be reset later."""
        if slot.busy or slot.cancelled:
            return False
        return self._hooks.can_hand_on(slot.connection)

    def _why_not_again(self, slot: Slot, error: BaseException | None, now: float) -> Reason | None:
        """Return why a used connection must go, or None; renew or suspect the others."""
        # A reason means that a cursor which is still alive could read the next user's session.
        reason = self._hooks.revoke(slot.connection, derived=slot.has_derived)
        if error is not None:
            self._hooks.heed(slot, error, passed=True)
            if slot.reason == "rejected":  # it needs no reset any more
                reason = reason or "rejected"
        if slot.verdicts and self._state.learn(slot, now):
            return "broken"
        if self._is_dead(slot.connection):
            return "broken"
        if slot.attributes is not None and not self._hooks.restore(slot):
            return "broken"
        if self._hooks.is_used_up(slot.connection):
            slot.reason, slot.retire_at, slot.expires_at = "used_up", -NEVER, -NEVER
        return reason

    # -- not by the holder -----------------------------------------------------------------------

    def _dropped(self, slot: Slot, turn: int) -> None:
        """Note that a view was collected without a release; may be called from anywhere."""
        self._post(functools.partial(self._reclaim, slot, turn))

    def _reclaim(self, slot: Slot, turn: int) -> None:
        if slot.release_count != turn or slot.state != "leased":
            return
        holder = slot.holder
        assert holder is not None
        self._state.learn(slot, self._runtime.now())
        slot.reason = "broken"  # but not lost
        self._end_lost(slot)  # terminated: nobody knows what was going on with it
        self._hooks.tell(
            warn,
            f"pool {self.name!r}: a connection was never released; acquired at "
            f"{messages.place_of(holder)}{indented(stack_shown(holder.stack))}",
            self.name,
        )

    def _found_dead(self, slot: Slot, error: BaseException | None = None) -> None:
        """Note that a connection has died, from anywhere; or what its user's error says of it."""
        if error is None:
            self._post(functools.partial(self._note_dead, slot, slot.release_count))
        elif slot.state == "leased":
            self._hooks.heed(slot, error)
            slot.touched = slot.touched or bool(slot.verdicts)

    def _note_dead(self, slot: Slot, release_count: int) -> None:
        self._state.found_dead(slot, self._runtime.now())
        # One with which nothing was done may be on its way to its holder, who is to find out.
        is_in_use = slot.state == "leased" and slot.touched
        if is_in_use and slot.release_count == release_count and self._hooks.ends_lost_leases:
            self._end_lost(slot)

    def _end_lost(self, slot: Slot) -> None:
        """End a lease whose connection goes although its holder has not given it back.

        If the stack runs out meanwhile, all of this is done again: so the count comes last.
        """
        self._note_released(slot)
        self._state.release_broken(slot, self._runtime.now())
        slot.release_count += 1
        self._leaks.forget(slot)

    def _end_leases(self) -> None:
        """Say that the leases end which have not been given back, just before they do."""
        self._leaks.forget_leases()
        for slot in self._state.leased:
            self._note_released(slot)
