"""The dashboard, the alerts and the operations page speak of what there is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from api.settings import ApiSettings
from jobs import workers
from jobs.ids import new_ulid
from jobs.metrics import METRICS
from jobs.queue import QUEUES
from jobs.service import Service
from jobs.settings import Settings
from tests.api.finished_job import RECIPE
from tests.api.live_api import Api
from tests.events.playing import Turn, end
from tests.jobs.cluster import Cluster

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "operations.md").read_text("utf-8")
ALERTS = [
    rule for group in yaml.safe_load((DOCS / "prometheus-alerts.yml").read_text())["groups"] for rule in group["rules"]
]
DASHBOARD = json.loads((DOCS / "grafana-dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [
    *(rule["expr"] for rule in ALERTS),
    *(target["expr"].replace("$__rate_interval", "5m") for panel in PANELS for target in panel["targets"]),
    *(
        text.replace("\\|", "|")
        for text in re.findall(r"^\|[^|]*\| `((?:[^`])+)` \|", PAGE, re.MULTILINE)
        if text.startswith(("absent", "min", "max", "sum"))
    ),
]
_SUFFIXES = {"counter": [""], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}


@cache
def parts(expression: str) -> list[Any]:
    """Every node of a query."""
    return list(_nodes(promql_parser.parse(expression)))


def _nodes(node: Any) -> Iterator[Any]:
    yield node
    for name in ("lhs", "rhs", "expr", "args", "vector_selector", "param"):
        below = getattr(node, name, None)
        for child in below if isinstance(below, list) else [below]:
            if type(child).__module__.startswith("promql") or type(child).__name__.endswith(
                ("Expr", "Selector", "Call")
            ):
                yield from _nodes(child)


def selectors(expression: str) -> list[Any]:
    return [node for node in parts(expression) if type(node).__name__ == "VectorSelector"]


@pytest.fixture(scope="module")
def exposed(running: Cluster, api: Api, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The name of each sample that /metrics can show -> its labels, read from /metrics itself."""
    workers.report(running.service.clock, "one@here", QUEUES, tmp_path_factory.mktemp("work"))
    text = httpx.get(f"{api.url}/metrics").text
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        name = family.name + ("_total" if family.type == "counter" else "")
        labels = set(METRICS[name].labels) if name in METRICS else set()
        for suffix in _SUFFIXES[family.type]:
            found[name + suffix] = labels | ({"le"} if suffix == "_bucket" else set())
        for sample in family.samples:
            found[sample.name] |= sample.labels.keys()
    return found


def test_every_query_is_one_and_asks_for_what_is_there(exposed: dict[str, set[str]]) -> None:
    assert len(EXPRESSIONS) > 40
    for expression in EXPRESSIONS:
        asked = selectors(expression)
        assert asked, expression
        for selector in asked:
            assert selector.name in exposed, (selector.name, expression)
            matched = {matcher.name for matcher in getattr(selector.matchers, "matchers", selector.matchers)}
            assert matched <= exposed[selector.name], (matched, expression)
        for node in parts(expression):
            kept = set(getattr(getattr(node, "modifier", None), "labels", None) or ())
            assert all(kept <= exposed[selector.name] for selector in asked), (kept, expression)


def test_every_metric_is_on_the_dashboard(exposed: dict[str, set[str]]) -> None:
    shown = {selector.name for panel in PANELS for target in panel["targets"] for selector in asked_by(target)}
    unshown = {name for name in exposed if name not in shown and not name.endswith(("_sum", "_count", "_bucket"))}
    assert unshown <= {"pruning_build_info"}


def asked_by(target: dict[str, Any]) -> list[Any]:
    return selectors(target["expr"].replace("$__rate_interval", "5m"))


def test_the_dashboard_can_be_imported() -> None:
    assert DASHBOARD["uid"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    (source,) = DASHBOARD["templating"]["list"]
    assert {panel["datasource"]["uid"] for panel in PANELS} == {"${" + source["name"] + "}"}


def test_every_alert_says_what_to_do() -> None:
    headings = {
        re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", PAGE, re.MULTILINE)
    }
    for rule in ALERTS:
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["summary"]
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert page == "operations.md"
        assert anchor in headings, anchor
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)


def test_every_setting_is_on_the_page() -> None:
    there = set(re.findall(r"`(PRUNING_[A-Z0-9_]+)[`=]", PAGE))
    shared = {f"PRUNING_{name.upper()}" for name in Settings.model_fields}
    own = {f"PRUNING_API_{name.upper()}" for name in ApiSettings.model_fields}
    assert shared | own <= there, sorted((shared | own) - there)
    assert there <= shared | own, sorted(there - shared - own)


def test_a_restored_bucket_and_an_empty_redis_are_the_whole_service(running: Cluster, tmp_path: Path) -> None:
    """What the page says of restoring: objects into another bucket, Redis empty, start."""
    url = running.environment["PRUNING_REDIS_URL"][:-1]
    names = [f"restore-{new_ulid().lower()}" for _ in range(2)]
    before, after = (
        Service(running.settings.model_copy(update={"redis_url": f"{url}{9 + n}", "s3_bucket": name}))
        for n, name in enumerate(names)
    )
    for service in (before, after):
        service.bucket.ensure()
        service.clock.redis.flushdb()
    model, data = (before.create_upload(kind, iter([b"bytes"])).id for kind in ("model", "dataset"))
    ended, running_one, waiting = (before.create_job(model, data, None, RECIPE)[0].id for _ in range(3))
    end(before, ended, tmp_path)
    Turn(before, running_one)
    for key in before.bucket.list(""):
        _, chunks = before.bucket.open(key)
        after.bucket.upload(key, chunks)
    assert after.reconcile().rescanned
    after.clock.redis.delete("pruning:settling")
    states = {job.id: job.state for job in after.list_jobs()[0]}
    assert states == {ended: "succeeded", running_one: "queued", waiting: "queued"}
    assert after.artifact(ended, "model").size == before.artifact(ended, "model").size
    assert set(after.reconcile().enqueued) >= {running_one, waiting}
    for service in (before, after):
        service.close()
