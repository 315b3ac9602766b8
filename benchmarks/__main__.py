"""The command line: ``python -m benchmarks [--quick] [NAME ...]``."""

from __future__ import annotations

import argparse
import gc
import importlib
import time
from pathlib import Path

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
    print(f"{machine.sentence()}\n", flush=True)
    tables: list[Table] = []
    for name in chosen:
        module = importlib.import_module(f"benchmarks.{NAMES[name]}")
        if given.list:
            print(f"{name:14}{(module.__doc__ or '').splitlines()[0]}")
            continue
        begin = time.monotonic()
        for table in module.run(quick=given.quick):
            print(f"{table.text()}\n", flush=True)
            table.write(given.results)
            tables.append(table)
        gc.collect()
        print(f"({name}: {time.monotonic() - begin:.0f} s)\n", flush=True)
    if given.page is not None:
        page.fill(given.page, tables)
    missed = [f"{table.name}: {t}" for table in tables for t in table.targets if not t.is_met]
    if missed:
        print("Targets missed:", *missed, sep="\n  ")


if __name__ == "__main__":
    main()
