"""Look for what `make test` has missed, for as long as asked: `make soak MINUTES=60`.

First the tests that explore, in rounds; then three programs that share nothing with them, each for
as many minutes: random operations on asyncio, the same on trio, and money on real SQLite files.
What fails says how to bring it back.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import importlib
import itertools
import logging
import os
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import poolkit
from scripts.soak import rounds
from scripts.soak.model import RUDE, World

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

PARTS = {"asyncio": "on_asyncio", "trio": "on_trio", "money": "money"}
HUNG = 120.0
HEART = str(Path(poolkit.__file__).parent / "_")


class Listener(logging.Handler):
    """Has the pool's warnings among what happened."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.WARNING)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        try:
            text = record.getMessage()
            if record.exc_info:
                text += f" ({record.exc_info[0]})"
        except Exception:
            text = f"{record.msg} (cannot be shown)"
        self._world.note(f"log: {text}")


@contextlib.contextmanager
def collecting(world: World) -> Iterator[None]:
    """Leave it little to look at, and in every second run have it strike at any line of poolkit."""

    def strike(_: object, event: str, __: object) -> Any:
        if event == "line" and world.chance(0.003):
            gc.collect()
        return strike

    thresholds = gc.get_threshold()
    gc.freeze()
    if "collect" in world.rude and world.chance(0.5):
        sys.settrace(lambda frame, *_: strike if HEART in frame.f_code.co_filename else None)
    try:
        yield
    finally:
        sys.settrace(None)
        gc.unfreeze()
        gc.set_threshold(*thresholds)


def run_seed(part: str, seed: int, steps: int, without: Collection[str]) -> bool:
    """Run one seed of one part; tell whether nothing was found."""
    program = importlib.import_module(f"scripts.soak.{PARTS[part]}")
    world = World(seed, without)
    listener = Listener(world)
    logger = logging.getLogger("poolkit")
    logger.addHandler(listener)
    logger.propagate = False
    watchdog = threading.Timer(HUNG, bark, [part, world, steps, without])
    watchdog.daemon = True
    watchdog.start()
    hook = sys.unraisablehook
    sys.unraisablehook = lambda what: world.fail(what.exc_value or RuntimeError(what.err_msg))
    try:
        with warnings.catch_warnings(), collecting(world):
            warnings.simplefilter("ignore", ResourceWarning)
            program.run(world, steps)
            gc.collect()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        world.fail(world.failure or error)
    finally:
        watchdog.cancel()
        sys.unraisablehook = hook
        logger.removeHandler(listener)
    if world.failure is not None:
        explain(part, world, steps, without)
    return world.failure is None


def explain(part: str, world: World, steps: int, without: Collection[str]) -> None:
    """Print what happened last, what went wrong, and how to bring it back."""
    print(*world.history, sep="\n")
    if world.failure is not None:
        try:
            traceback.print_exception(world.failure, file=sys.stdout)
        except Exception:
            print(f"a {type(world.failure)} that cannot be shown")
    again = f"--only {part} --seed {world.seed} --steps {steps}"
    again += f" --without {','.join(without)}" if without else ""
    print(f"== found something; again: {sys.executable} -m scripts.soak {again}", flush=True)


def bark(part: str, world: World, steps: int, without: Collection[str]) -> None:
    """End the program: something hangs."""
    world.note(f"HANGS for {HUNG} s")
    for line in world.everybody():
        world.note(line)
    explain(part, world, steps, without)
    faulthandler.dump_traceback(sys.stdout)
    sys.stdout.flush()
    os._exit(1)


def run_for(part: str, minutes: float, first: int, steps: int, without: Collection[str]) -> bool:
    """Run one seed after the other until the time is over, or one finds something."""
    print(f"== {part}: for {minutes:g} minutes, seeds from {first}", flush=True)
    end = time.monotonic() + minutes * 60
    for seed in itertools.count(first):
        if time.monotonic() >= end:
            print(f"== {part}: {seed - first} seeds, and nothing found", flush=True)
            break
        if not run_seed(part, seed, steps, without):
            return False
    return True


def main() -> int:
    """Run all parts, or the one that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m scripts.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for each part")
    parser.add_argument("--only", choices=["rounds", *PARTS])
    parser.add_argument("--seed", type=int, help="run this one only (with --only)")
    parser.add_argument("--first", type=int, default=int(time.time()), help="begin with this seed")
    parser.add_argument("--steps", type=int, default=300, help="of each seed")
    rude = "; ".join(f"{name}: {what}" for name, what in RUDE.items())
    parser.add_argument("--without", default="", help=f"leave out, separated by commas ({rude})")
    args = parser.parse_args()
    without = [name for name in args.without.split(",") if name]
    if unknown := set(without) - {*RUDE, "all"}:
        parser.error(f"unknown: {unknown}")
    without = list(RUDE) if "all" in without else without
    if args.seed is not None:
        if args.only not in PARTS:
            parser.error(f"--seed is of one program: add --only {' or '.join(PARTS)}")
        return 0 if run_seed(args.only, args.seed, args.steps, without) else 1
    if args.only in (None, "rounds") and (code := rounds.run(args.minutes, args.first)):
        return code
    parts = [part for part in PARTS if args.only in (None, part)]
    return 0 if all(run_for(p, args.minutes, args.first, args.steps, without) for p in parts) else 1


if __name__ == "__main__":
    sys.exit(main())
