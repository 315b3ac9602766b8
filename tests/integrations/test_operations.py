"""What Prometheus and Grafana are given: the alerts come when they should, the panels show something.

Prometheus' own promtool evaluates them, over metrics of the names that poolkit gives.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from poolkit import Pool
from poolkit.prometheus import families, snapshot
from poolkit.testing import FakeDriver
from tests.integrations.test_prometheus import opentelemetrys
from tests.postgres import need

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "operations"
ALERTS = FOLDER / "alerts.yml"
GRAFANA = json.loads((FOLDER / "grafana.json").read_text())
OBSERVE = ROOT / "docs" / "howto" / "observe.md"

MINUTES = 12
#: Samples a minute: as if scraped every 30 s.
RATE = 2

#: The alerts that have come at any time.
CAME = f'count by (alertname) (count_over_time(ALERTS{{alertstate="firing"}}[{MINUTES}m]))'

Change = Callable[[float, Any], None]


def promtool(*args: str | Path) -> str:
    """Run it, and return what it says; it says why if it fails."""
    program = shutil.which("promtool")
    if program is None or os.environ.get("POOLKIT_TEST_PROMTOOL") == "none":
        need(
            "promtool",
            "no promtool on PATH",
            "apt-get install prometheus (as root: make test-tools)",
        )
    done = subprocess.run([program, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# -- what there is to evaluate -------------------------------------------------------------------


def panels() -> dict[str, list[str]]:
    """Return the queries of each panel, without Grafana's variables."""
    return {
        panel["title"]: [
            target["expr"]
            .replace("$__rate_interval", "2m")
            .replace("$pool", "shop|books")
            .replace("$job", ".*")
            for target in panel["targets"]
        ]
        for panel in GRAFANA["panels"]
    }


def queries() -> list[str]:
    """Return the queries that the page about Prometheus shows."""
    rows = re.findall(r"^\| [^|]*\? \| `(.+?)`", OBSERVE.read_text(), re.MULTILINE)
    assert len(rows) > 5
    return rows


def names_in(text: str) -> set[str]:
    """Return the metrics that a text names, and not the labels whose names begin like them."""
    return set(re.findall(r"\b(?:db_client_connection|poolkit)_\w+", text)) - {
        "db_client_connection_pool_name",
        "db_client_connection_state",
    }


# -- metrics, over time --------------------------------------------------------------------------


def healthy(minute: float) -> Any:
    """Return what a pool tells of that has served 600 callers a minute, of whom a few waited."""
    told: Any = snapshot(Pool(FakeDriver(), name="shop", max_size=5))
    told.update(open=True, idle=3, used=2, held={"GET /items": 2}, oldest_lease=0.2)
    callers = int(600 * minute)
    told["wait_time"]["counts"][0] = callers - callers // 200
    told["wait_time"]["counts"][5] = callers // 200
    told["use_time"]["counts"][6] = callers
    told["use_time"]["sum"] = callers * 0.01
    told["create_time"]["counts"][6] = 5 + int(minute / 4)
    return told


def series(*changes: Change, until: float | None = None) -> list[dict[str, str]]:
    """Return the time series of two processes, of which the second one is as changed.

    until: the second one is killed then, and another one takes its place.
    """
    points = [n / RATE for n in range(MINUTES * RATE + 1)]
    found: dict[str, list[str]] = {}
    for n, minute in enumerate(points):
        for worker in ("1", "2", "3"):
            if worker == "3" and (until is None or minute < until):
                continue
            if worker == "2" and until is not None and minute >= until:
                continue
            told = healthy(minute - until if worker == "3" and until else minute)
            if worker == "2":
                for change in changes:
                    change(minute, told)
            for metric in families([told], labels=[{"worker": worker}]):
                for sample in metric.samples:
                    labels = {"job": "shop", "instance": "a", **sample.labels}
                    text = ",".join(f"{key}={json.dumps(each)}" for key, each in labels.items())
                    values = found.setdefault(f"{sample.name}{{{text}}}", ["_"] * len(points))
                    values[n] = str(float(sample.value))
    if until is not None:
        for values in found.values():
            if values[-1] == "_":
                values[values.index("_")] = "stale"
    return [{"series": name, "values": " ".join(values)} for name, values in found.items()]


def evaluate(folder: Path, inputs: list[dict[str, str]], expected: dict[str, Any]) -> None:
    """See that expressions have the values expected at the end: labels and value, each."""
    tests = [
        {
            "expr": expression,
            "eval_time": f"{MINUTES}m",
            "exp_samples": [{"labels": labels, "value": value} for labels, value in samples],
        }
        for expression, samples in expected.items()
    ]
    text = {
        "rule_files": [str(ALERTS)],
        "evaluation_interval": "30s",
        "tests": [{"interval": "30s", "input_series": inputs, "promql_expr_test": tests}],
    }
    file = folder / "test.yml"
    file.write_text(json.dumps(text))  # which YAML has, too
    promtool("test", "rules", file)


# -- the alerts ----------------------------------------------------------------------------------


def full(minute: float, told: Any) -> None:
    """Lease all."""
    told.update(used=5, idle=0, held={"GET /items": 5})


def waiting(minute: float, told: Any) -> None:
    """Have somebody in line."""
    told.update(pending=3, oldest_wait=0.1)


def full_for_a_while(minute: float, told: Any) -> None:
    """Be full for four minutes."""
    if 5 <= minute < 9:
        full(minute, told)
        waiting(minute, told)


def slow(minute: float, told: Any) -> None:
    """Have 5 % of the callers of this process wait for a second or two."""
    callers = int(600 * minute)
    told["wait_time"]["counts"][14] = callers // 20


def timeouts(minute: float, told: Any) -> None:
    """Have callers time out, a few a minute."""
    told["timeouts"] = int(3 * minute)


def one_timeout(minute: float, told: Any) -> None:
    """Have one of them."""
    told["timeouts"] = int(minute >= 9)


def failing(minute: float, told: Any) -> None:
    """Have attempts to connect fail, and others succeed."""
    told["connect_failures"] = int(20 * minute)
    told["create_time"]["counts"][6] = 5 + int(2 * minute)


def down(minute: float, told: Any) -> None:
    """Have none succeed, for three minutes and a half."""
    told["connect_failures"] = int(20 * min(3.5, max(0.0, minute - 4)))
    told["create_time"]["counts"][6] = 5


def refusing(kind: str) -> Change:
    """Refuse some."""

    def change(minute: float, told: Any) -> None:
        told["refused"][kind] = int(5 * minute)

    return change


def deadlock(minute: float, told: Any) -> None:
    """Have one of them, lately."""
    told["refused"]["deadlocked"] = int(minute >= 11)


def held_long(minute: float, told: Any) -> None:
    """Hold a connection all the time."""
    told["oldest_lease"] = minute * 60


def closed(minute: float, told: Any) -> None:
    """Be closed."""
    told.update(open=False, idle=0, used=0, held={})


SCENES: dict[str, tuple[list[Change], set[str]]] = {
    "all is well": ([], set()),
    "full, and nobody waits": ([full], set()),
    "callers wait, though it is not full": ([waiting], set()),
    "full for four minutes": ([full_for_a_while], set()),
    "full, and callers wait": ([full, waiting], {"PoolExhausted"}),
    "callers wait long": ([slow], {"PoolCallersWaitLong"}),
    "timeouts": ([timeouts], {"PoolTimeouts"}),
    "one timeout": ([one_timeout], set()),
    "some connects fail": ([failing], {"PoolConnectsFail"}),
    "none connects": ([down], {"PoolDatabaseDown", "PoolConnectsFail"}),
    "refused because the queue is full": ([refusing("busy")], {"PoolRefuses"}),
    "refused by the policy": ([refusing("shed")], {"PoolRefuses"}),
    "refused as it closes": ([refusing("closed")], set()),
    "one deadlock": ([deadlock], {"PoolDeadlock"}),
    "held for minutes": ([held_long], {"PoolLeaseHeldLong"}),
    "closed": ([closed], {"PoolClosed"}),
}


def test_rules_are_valid() -> None:
    """Expressions, and what the texts are made of."""
    assert "SUCCESS" in promtool("check", "rules", ALERTS)


@pytest.mark.parametrize("scene", SCENES)
def test_alert_comes_when_it_should_and_no_other(tmp_path: Path, scene: str) -> None:
    """Of one process, or of all together, once."""
    changes, alerts = SCENES[scene]
    expected = [(f'{{alertname="{alert}"}}', 1) for alert in sorted(alerts)]
    evaluate(tmp_path, series(*changes), {CAME: expected})


def test_killed_process_is_no_alert(tmp_path: Path) -> None:
    """Its counters vanish and another's begin: rates and sums of rates go on."""
    inputs = series(until=6.0)
    served = "sum(rate(db_client_connection_use_time_seconds_count[2m]))"
    rate = f"max_over_time({served}[{MINUTES - 2}m:30s]) < bool 25"  # 10 of each
    evaluate(tmp_path, inputs, {CAME: [], rate: [("{}", 1)]})


def test_every_alert_is_seen_to_come_and_is_explained() -> None:
    """By a test above, and by a section of the page."""
    names = set(re.findall(r"alert: (\w+)", ALERTS.read_text()))
    assert names == set().union(*(alerts for _, alerts in SCENES.values()))
    sections = re.findall(r"^### (\w+)$", (FOLDER / "prometheus.md").read_text(), re.MULTILINE)
    assert set(sections) == names
    assert len(sections) == len(names)


# -- what is shown -------------------------------------------------------------------------------


def test_every_metric_named_is_one_that_there_is() -> None:
    """By the collector; and those of OpenTelemetry's names by its exporter as well."""
    there = {sample.name for metric in families([healthy(1.0)]) for sample in metric.samples}
    theirs = {sample.name for metric in opentelemetrys() for sample in metric.samples}
    shown = json.dumps(GRAFANA).replace("\\", "")
    texts = [ALERTS.read_text(), shown, *queries()]
    named = set().union(*map(names_in, texts))
    assert named <= there
    assert {name for name in named if name.startswith("db_")} <= theirs
    whole = {re.sub(r"_(bucket|count|sum)$", "", name) for name in named} | named
    families_there = {metric.name for metric in families([healthy(1.0)])}
    unseen = {name for name in families_there if not {name, f"{name}_total"} & whole}
    assert unseen == {"db_client_connection_idle_max", "db_client_connection_idle_min"}


@pytest.mark.parametrize("title", [*panels(), "docs/howto/observe.md"])
def test_query_gives_something(tmp_path: Path, title: str) -> None:
    """Each of a panel, and of the page."""
    found = panels().get(title) or queries()
    assert found
    wrapped = [f"(count({query}) > bool 0) or vector(0)" for query in found]
    evaluate(tmp_path, series(full, waiting), {each: [("{}", 1)] for each in wrapped})


def test_panels_lie_side_by_side() -> None:
    """None covers another, and each has a title and a number of its own."""
    cells = [cell for panel in GRAFANA["panels"] for cell in _cells(panel["gridPos"])]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) == 23
    numbers = [panel["id"] for panel in GRAFANA["panels"]]
    assert len(panels()) == len(numbers) == len(set(numbers))


def _cells(at: dict[str, int]) -> Iterator[tuple[int, int]]:
    for x in range(at["x"], at["x"] + at["w"]):
        for y in range(at["y"], at["y"] + at["h"]):
            yield x, y
