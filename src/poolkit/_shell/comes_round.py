"""Whether a loop comes round at once when a block in it has ended, read from the bytecode.

A block's exit is called in the same way if the block has come to its end, and if a ``return`` or
``break`` leaves it and the loop. In the second case what was undone would not be done again, and
nobody would know. Only the instructions after the call tell the two apart.

What is not understood is no proof: another version of Python, or a caller that is not compiled to
bytecode.
"""

from __future__ import annotations

import dis
import itertools
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import types

    from poolkit._shell.callsite import Place

#: What awaits what the call has returned, up to the `POP_TOP` that drops the result.
_AWAITS: Final = frozenset(
    {"CACHE", "CALL", "GET_AWAITABLE", "LOAD_CONST", "SEND", "YIELD_VALUE", "RESUME", "END_SEND"}
    | {"JUMP_BACKWARD_NO_INTERRUPT", "EXTENDED_ARG"}
)
_NOTHING: Final = frozenset({"CACHE", "NOP", "EXTENDED_ARG", "NOT_TAKEN"})
_JUMPS: Final = frozenset({"JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT"})
#: More than there are on the way.
_MANY: Final = 50


def comes_round(code: types.CodeType, lasti: int, loop: Place) -> bool:
    """Tell whether an ``async for`` is asked for its next value after an ``async with`` has ended.

    ``lasti``: where the exit of the block is called. ``loop``: where the value was asked for: in
    the same function by the same loop, or in another one, which may have handed it on.
    """
    steps = {step.offset: step for step in dis.get_instructions(code)}
    after = dict(itertools.pairwise(steps))
    at: int | None = lasti
    has_awaited = False
    for _ in range(_MANY):
        step = steps.get(at) if at is not None else None
        if at is None or step is None:
            return False
        if not has_awaited:
            has_awaited = step.opname == "POP_TOP"
            if not (has_awaited or step.opname in _AWAITS):
                return False
        elif step.opname == "GET_ANEXT":
            return code is not loop[0] or at == loop[1]
        elif step.opname in _JUMPS:
            at = step.argval
            continue
        elif step.opname not in _NOTHING:
            return False
        at = after.get(at)
    return False
