"""The command line: ``python -m benchmarks [--quick] [NAME ...]``."""

from __future__ import annotations

import argparse
import gc
import importlib
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from benchmarks import machine, page
from benchmarks.table import Table

#: What there is, in the order in which it is run: what takes no noise first.
NAMES = {
    "overload": "overload",
    "spike": "spike",
    "outage": "outage",
    "cancel_storm": "cancel_storm",
    "A": "uncontended",
    "B": "contended",
    "F": "scale",
    "H": "importing",
    "C": "postgresql",
    "J": "over_psycopg",
    "K": "over_redis",
    "L": "over_stream",
    "M": "over_asyncmy",
    "D": "sqlite",
    "G": "recovery",
    "I": "sqlalchemy_session",
    "E": "web",
}
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run what is asked for, print it, and write it down."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller numbers")
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--page", type=Path, help="fill the tables of this Markdown page in")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where JSON and SVG go")
    given = parser.parse_args()
    chosen = [name for name in NAMES if name in (given.names or NAMES)]
    if unknown := set(given.names) - set(NAMES):
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if given.list:
        for name in chosen:
            print(f"{name:14}{(_module(name).__doc__ or '').splitlines()[0]}")
        return
    print(f"{machine.sentence()}\n", flush=True)
    missed: list[str] = []
    failed: list[str] = []
    for name in chosen:
        begin, used = time.monotonic(), time.process_time()
        tables: list[Table] = []
        try:
            for table in _module(name).run(quick=given.quick):
                print(f"{table.text()}\n", flush=True)
                table.write(given.results)
                tables.append(table)
        except Exception:  # the others are measured all the same
            traceback.print_exc()
            failed.append(name)
        if given.page is not None:
            whole = chosen == list(NAMES) and name == chosen[-1] and not failed
            without = page.fill(given.page, tables, is_whole=whole)
            failed += [f"{mark}, which has no mark in {given.page}" for mark in without]
        missed += [f"{table.name}: {t}" for table in tables for t in table.targets if not t.is_met]
        gc.collect()
        took, used = time.monotonic() - begin, time.process_time() - used
        print(f"({name}: {took:.0f} s, of which {used:.0f} s of CPU time)\n", flush=True)
    if missed:
        print("Targets missed:", *missed, sep="\n  ")
    if failed:
        sys.exit(f"Failed: {'; '.join(failed)}")


def _module(name: str) -> Any:
    return importlib.import_module(f"benchmarks.{NAMES[name]}")


if __name__ == "__main__":
    main()
