"""Change the core, the shell and the view in small ways, one at a time, and see that a test fails.

    make mutants                                  all of them, hours
    make mutants ARGS='_core/state --sample 100'       a hundred of one file, chosen by --seed
    make mutants ARGS='--again'                   what survived last time, after writing tests

A mutant is run in a child of a process that has imported pytest and the libraries already, against
the quick tests first and then, if it survives, against the slow ones. What is not changed: texts of
errors and logs, annotations, `__slots__`, and `assert`, which is for what cannot happen.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import hypothesis
import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT: Final = Path(__file__).resolve().parent.parent
RESULTS: Final = ROOT / "var" / "mutants.json"
#: Files of ``src/poolkit``.
CORE: Final = tuple(
    f"_core/{name}"
    for name in (
        "state",
        "lifecycle",
        "trust",
        "placement",
        "tally",
        "slots",
        "line",
        "supply",
        "fitness",
    )
)
#: What acquires and takes back, opens and closes.
POOL: Final = tuple(f"_shell/{name}" for name in ("pool", "life", "events", "returning"))
LEASE: Final = tuple(
    f"_shell/{name}" for name in ("lease", "view", "view_class", "methods", "operations")
)
#: Who is told, and of whom, and of what place.
TOLD: Final = tuple(f"_shell/{name}" for name in ("observe", "labels", "callsite"))
FILES: Final = (*CORE, *POOL, *LEASE, *TOLD)


def _tests(folder: str, *names: str) -> list[str]:
    return [f"tests/{folder}/test_{name}.py" for name in names]


def _others(folder: str, *names: str) -> list[str]:
    paths = (ROOT / "tests" / folder).glob("test_*.py")
    return _tests(folder, *sorted({path.stem.removeprefix("test_") for path in paths} - {*names}))


_EXPLORING: Final = ("cancel_sweep", "schedules", "gates", "days", "bad_days")
_SHELL: Final = ("acquire", "life", "details")
_VIEW: Final = ("view", "view_details", "corners")
_NAMED: Final = ("observers", "labels", "closing", "leaks", "words")
#: Of a test that runs on each event loop, the plain one; and those that make a loop themselves.
_HERE: Final = ["-k", "not uvloop and not trio"]
_ELSEWHERE: Final = ["-k", "uvloop or trio"]
_REST: Final = [*_others("pool", *_EXPLORING, *_SHELL, *_VIEW), "tests/test_create.py"]
_ALL: Final = [*_tests("pool", *_SHELL, *_VIEW), *_REST]
_STORMS: Final = _tests("pool", "cancel_sweep", "schedules")
_LONG: Final = _tests("pool", "gates", "days")
_KIT: Final = ["tests/testing", "-k", "not asyncpg"]
_OF_POOLS: Final = [
    [*_tests("pool", *_SHELL), *_HERE],
    [*_tests("pool", *_VIEW), *_HERE],
    [*_REST, *_HERE],
]
_OF_THE_TOLD: Final = [[*_tests("pool", *_NAMED), *_HERE], [*_ALL, *_HERE]]
_OF_LEASES: Final = [
    [*_tests("pool", *_VIEW), *_HERE],
    [*_tests("pool", *_SHELL), *_HERE],
    [*_REST, *_HERE],
]
#: The tests in the order in which they are asked; the first that fails ends the mutant.
QUICK: Final = {
    **{key: [_others("state", "model", "state_machine"), [*_ALL, *_HERE]] for key in CORE},
    **dict.fromkeys(POOL, _OF_POOLS),
    **dict.fromkeys(LEASE, _OF_LEASES),
    **dict.fromkeys(TOLD, _OF_THE_TOLD),
}
_MODEL: Final = _tests("state", "model", "state_machine")
SLOW: Final = {
    **{key: [_MODEL, [*_ALL, *_ELSEWHERE], _STORMS, _LONG] for key in CORE},
    **{key: [[*_ALL, *_ELSEWHERE], _STORMS, _LONG, _KIT] for key in POOL},
    **{key: [[*_ALL, *_ELSEWHERE], _STORMS, _KIT] for key in (*LEASE, *TOLD)},
}
#: Imported once, before the first fork; nothing of poolkit's.
LIBRARIES: Final = (
    "anyio",
    "anyio._backends._asyncio",
    "anyio._backends._trio",
    "anyio.pytest_plugin",
    "asyncio",
    "hypothesis.stateful",
    "hypothesis.extra.pytestplugin",
    "pytest_timeout",
    "trio.testing",
    "sybil",
    "logging.config",
    "fastapi",
    "uvloop",
)


# -- making mutants ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change: these bytes of a file, replaced."""

    file: str
    line: int
    start: int
    end: int
    new: str
    what: str
    nth: int = 0
    """Which it is of several in the file that read the same."""

    def source(self) -> bytes:
        """Return the changed file, each line where it was."""
        old = path_of(self.file).read_bytes()
        gone = old[self.start : self.end].count(b"\n") - self.new.count("\n")
        return old[: self.start] + self.new.encode() + b"\\\n" * gone + old[self.end :]

    def __str__(self) -> str:
        return f"{self.file}.py:{self.line}: {self.what}"


def path_of(file: str) -> Path:
    """Return where a file of the heart is."""
    return ROOT / "src" / "poolkit" / f"{file}.py"


_EDGES: Final = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">"}
_OPPOSITES: Final = {
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
    ast.Lt: ">=",
    ast.LtE: ">",
    ast.Gt: "<=",
    ast.GtE: "<",
}
_ARITHMETIC: Final = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.Pow: "*"}
_NAMES: Final = {"min": "max", "max": "min", "any": "all", "all": "any"}
_DELETED: Final = (ast.Assign, ast.AugAssign, ast.Delete, ast.Raise, ast.Return, ast.Expr)


class Maker(ast.NodeVisitor):
    """Find everything in a file that can be changed."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.bytes = path_of(file).read_bytes()
        self.text = self.bytes.decode()
        self.lines = [0]
        for line in self.bytes.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))
        self.found: list[Mutant] = []
        self.inside = 0  # how many functions deep
        self.asked: set[ast.AST] = set()  # conditions that are taken both ways already

    def all(self) -> list[Mutant]:
        """Return the mutants, in the order of the file."""
        self.visit(ast.parse(self.text))
        return sorted(self.found, key=lambda mutant: (mutant.start, mutant.end, mutant.new))

    def span(self, node: Any) -> tuple[int, int]:
        """Return where a node is, in bytes."""
        start = self.lines[node.lineno - 1] + node.col_offset
        return start, self.lines[node.end_lineno - 1] + node.end_col_offset

    def change(self, node: Any, new: str) -> None:
        """Note one mutant."""
        start, end = self.span(node)
        what = f"{self.shown(node)}  ->  {new}"
        self.found.append(Mutant(self.file, node.lineno, start, end, new, what))

    def shown(self, node: Any) -> str:
        """Return a node in one line."""
        start, end = self.span(node)
        return " ".join(self.bytes[start:end].decode().split())

    def between(self, left: Any, right: Any, node: Any, old: str, new: str) -> None:
        """Change the operator between two operands."""
        begin, end = self.span(left)[1], self.span(right)[0]
        gap = self.bytes[begin:end].decode()
        place = begin + gap.index(old)
        start, stop = place, place + len(old)
        what = f"{self.shown(node)}  ->  {new}"
        self.found.append(Mutant(self.file, node.lineno, start, stop, new, what))

    # -- statements

    def generic_visit(self, node: ast.AST) -> None:
        """Delete statements; leave out what is not to be changed."""
        if isinstance(node, ast.Raise):
            self.change(node, "pass")
            return  # the text of the error
        if self.inside and isinstance(node, _DELETED) and not _is_text(node):
            self.change(node, "pass")
        if isinstance(node, (ast.Break, ast.Continue)):
            self.change(node, "pass")
        super().generic_visit(node)

    def visit_FunctionDef(self, node: Any) -> None:
        """Visit the defaults and the body, and no annotation."""
        self.inside += 1
        last = node.body[-1]
        if isinstance(last, ast.Return) and ast.unparse(last) in ("return", "return None"):
            node.body.pop()  # the same without it
        for part in [*node.args.defaults, *filter(None, node.args.kw_defaults), *node.body]:
            self.visit(part)
        self.inside -= 1

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815  # the name is ast's

    def visit_Lambda(self, node: ast.Lambda) -> None:
        """Visit what it returns."""
        self.visit(node.body)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """Visit the value, and not the annotation."""
        if node.value is not None:
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        """Leave names of slots alone."""
        if not (isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__slots__"):
            self.generic_visit(node)

    def visit_If(self, node: Any) -> None:
        """Take the one way always, and the other."""
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        self.asked.add(node.test)
        self.change(node.test, "True")
        self.change(node.test, "False")
        self.generic_visit(node)

    visit_IfExp = visit_If  # noqa: N815  # likewise

    def visit_While(self, node: ast.While) -> None:
        """Never begin."""
        self.asked.add(node.test)
        self.change(node.test, "False")
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        """Leave out the condition."""
        for test in node.ifs:
            self.change(test, "True")
        self.generic_visit(node)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        """Do not catch cancellation."""
        if isinstance(node.type, ast.Name) and node.type.id == "BaseException":
            self.change(node.type, "Exception")
        for part in node.body:
            self.visit(part)

    def visit_Assert(self, node: ast.Assert) -> None:
        """Leave it: it is for what cannot happen."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Leave texts alone."""

    # -- expressions

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        """Leave out each operand in turn."""
        self.asked.update(node.values)
        for operand in node.values:
            self.change(operand, "True" if isinstance(node.op, ast.And) else "False")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        """Move the edge, and turn the comparison round."""
        left = node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            old = _sign(op)
            if type(op) in _EDGES:
                self.between(left, right, node, old, _EDGES[type(op)])
            if node not in self.asked:
                self.between(left, right, node, old, _OPPOSITES[type(op)])
            left = right
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        """Put another operator."""
        if type(node.op) in _ARITHMETIC:
            self.between(node.left, node.right, node, _sign(node.op), _ARITHMETIC[type(node.op)])
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """Put another operator; or leave it out."""
        if type(node.op) in _ARITHMETIC and not isinstance(node.value, ast.Constant):
            old, new = _sign(node.op) + "=", _ARITHMETIC[type(node.op)] + "="
            self.between(node.target, node.value, node, old, new)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        """Leave out `not` and the minus."""
        start, _ = self.span(node)
        sign = "not " if isinstance(node.op, ast.Not) else "-"
        if node not in self.asked:
            place = start, start + len(sign)
            what = f"{self.shown(node)}  ->  without {sign.strip()}"
            self.found.append(Mutant(self.file, node.lineno, *place, "", what))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        """Take the other of two functions; leave texts for logs alone."""
        name = node.func
        if isinstance(name, ast.Name) and name.id in _NAMES:
            self.change(name, _NAMES[name.id])
        if "logger." in (ast.get_source_segment(self.text, name) or ""):
            return
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        """Change numbers, truth, and words that decide."""
        value = node.value
        if isinstance(value, bool):
            self.change(node, str(not value))
        elif isinstance(value, (int, float)):
            self.change(node, repr(value + 1))
        elif isinstance(value, str) and self.inside and value:
            self.change(node, repr(f"{value}X"))


def _is_text(node: ast.AST) -> bool:
    """Tell whether a statement is a docstring, or a return of nothing at the end."""
    return isinstance(node, ast.Expr) and isinstance(node.value, (ast.Constant, ast.Yield))


def _sign(op: ast.AST) -> str:
    """Return how an operator is written."""
    kind: Any = op
    if isinstance(op, ast.cmpop):
        text = ast.unparse(ast.Compare(ast.Name("a"), [kind], [ast.Name("b")]))
    else:
        text = ast.unparse(ast.BinOp(ast.Name("a"), kind, ast.Name("b")))
    return text[2:-2]


def make(file: str) -> list[Mutant]:
    """Return all mutants of a file that compile; docstrings are none."""
    docs = set()
    for node in ast.walk(ast.parse(path_of(file).read_text())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            docs.add(node.lineno)
    mutants = []
    seen: Counter[str] = Counter()
    for mutant in dict.fromkeys(Maker(file).all()):
        if mutant.line in docs:
            continue
        try:
            compile(mutant.source(), file, "exec")
        except SyntaxError:  # a name that is `nonlocal` further down is no more
            continue
        mutants.append(dataclasses.replace(mutant, nth=seen[mutant.what]))
        seen[mutant.what] += 1
    return mutants


# -- running them --------------------------------------------------------------------------------


class Loader(importlib.machinery.SourceFileLoader):
    """Load a file from other source."""

    changed: bytes

    def get_code(self, *_: Any) -> Any:
        """Compile what is to be run in its place."""
        return compile(self.changed, self.path, "exec", dont_inherit=True)


class Finder(importlib.abc.MetaPathFinder):
    """Find one file of the heart, and change it."""

    def __init__(self, mutant: Mutant) -> None:
        self.name = f"poolkit.{mutant.file.replace('/', '.')}"
        self.loader = Loader(self.name, str(path_of(mutant.file)))
        self.loader.changed = mutant.source()

    def find_spec(self, fullname: str, *_: Any) -> Any:
        """Answer for that name only."""
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(
            fullname, self.loader.path, loader=self.loader
        )


def survives(mutant: Mutant | None, tests: Sequence[str], limit: float, each: int) -> bool:
    """Run tests against a mutant, or against what it is made from, in a child."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(_run(mutant, tests, each))
        except BaseException:  # also what the mutant does on import
            os._exit(99)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def _run(mutant: Mutant | None, tests: Sequence[str], each: int) -> int:
    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    if mutant is not None:
        sys.meta_path.insert(0, Finder(mutant))
    plain = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutants", database=None, phases=plain, derandomize=True)
    hypothesis.settings.load_profile("mutants")
    found = [t for t in tests if not t.startswith("tests/") or (ROOT / t).exists()]
    if "-k" in found:
        found[found.index("-k") + 1] = f"not planted and ({found[found.index('-k') + 1]})"
    else:
        found += ["-k", "not planted"]
    options = ["-q", "-x", f"--timeout={each}", "-p", "no:cacheprovider"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    return int(pytest.main([*options, *found]))


def score(
    mutants: list[Mutant], stages: dict[str, list[list[str]]], each: int, say: str
) -> list[Mutant]:
    """Run mutants through stages of tests, ``each`` of which ends in so many seconds."""
    limits: dict[str, float] = {}
    for stage in [stage for file in {m.file for m in mutants} for stage in stages[file]]:
        begin = time.monotonic()
        if str(stage) not in limits and not survives(None, stage, 600, each):
            raise SystemExit(f"these tests fail without any change: {stage}")
        limits.setdefault(str(stage), 10 + 4 * (time.monotonic() - begin))
    left = []
    begin = time.monotonic()
    for number, mutant in enumerate(mutants, 1):
        if all(survives(mutant, stage, limits[str(stage)], each) for stage in stages[mutant.file]):
            left.append(mutant)
            print(f"survives {say}: {mutant}", flush=True)
        if number % 50 == 0:
            took = time.monotonic() - begin
            print(f"  {number} of {len(mutants)} in {took:.0f} s, {len(left)} left", flush=True)
    return left


def main() -> None:
    """Make them, run them, say which survive, and keep that for another look."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", nargs="*", default=FILES)
    parser.add_argument("--sample", type=int, help="so many of each file")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="leave the slow tests out")
    parser.add_argument("--again", action="store_true", help="only what survived last time")
    parser.add_argument("--list", action="store_true", help="show them, and run nothing")
    given = parser.parse_args()
    os.chdir(ROOT)
    mutants = []
    for file in given.files:
        made = make(file)
        print(f"{file}: {len(made)} mutants")
        if given.sample and given.sample < len(made):
            made = random.Random(given.seed).sample(made, given.sample)
        mutants += sorted(made, key=lambda m: m.start)
    if given.again:
        kept = {tuple(entry) for entry in json.loads(RESULTS.read_text())}
        mutants = [m for m in mutants if (m.file, m.what, m.nth) in kept]
    if given.list:
        print(*mutants, sep="\n")
        return
    sys.path.insert(0, str(ROOT))
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    left = score(mutants, QUICK, 5, "the quick tests")
    if left and not given.quick:
        left = score(left, SLOW, 60, "all tests")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps([(m.file, m.what, m.nth) for m in left], indent=1))
    for file in given.files:
        of = [m for m in mutants if m.file == file]
        bad = [m for m in left if m.file == file]
        if of:
            rate = 100 * (1 - len(bad) / len(of))
            print(f"{file}: {len(of) - len(bad)} of {len(of)} found, {rate:.1f} %")


if __name__ == "__main__":
    main()
