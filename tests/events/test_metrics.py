"""Metrics, traces and logs of one real job, from the request to its outcome, through real processes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from jobs.holder import Holder
from jobs.metrics import METRICS, STAGES, Metrics
from jobs.service import Service
from jobs.settings import Settings
from jobs.stages import Stages
from tests.api.live_api import Api, api
from tests.events.playing import Turn, queued_job
from tests.events.test_logs import lines
from tests.jobs.cluster import Cluster, eventually
from tests.jobs.inputs import digits, mlpnet

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "kept-out-of-logs"


@dataclass(frozen=True)
class Span:
    name: str
    trace: str
    id: str
    parent: str
    part: str
    about: dict[str, Any]


class Collector:
    """Takes traces over OTLP/HTTP, as a collector does."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.take(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def take(self, body: bytes) -> None:
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            part = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
            for scope in resource.scope_spans:
                for span in scope.spans:
                    about = {a.key: a.value.string_value or a.value.int_value for a in span.attributes}
                    ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
                    self.spans.append(Span(span.name, *ids, part, about))


@contextmanager
def collector() -> Iterator[Collector]:
    started = Collector()
    thread = threading.Thread(target=started.server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield started
    finally:
        started.server.shutdown()
        thread.join()
        started.server.server_close()


@dataclass(frozen=True)
class Seen:
    """What one job left behind."""

    api: Api
    http: httpx.Client
    job: str
    body: dict[str, Any]
    spans: list[Span]


@pytest.fixture(scope="module")
def seen(running: Cluster) -> Iterator[Seen]:
    url = running.environment["PRUNING_REDIS_URL"][:-1] + "6"
    environment = {**running.environment, "PRUNING_REDIS_URL": url, "PRUNING_S3_BUCKET": "metrics"}
    with collector() as there:
        environment |= {"PRUNING_TRACES": "true", "PRUNING_LOG_FORMAT": "json"}
        where = f"http://127.0.0.1:{there.server.server_address[1]}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", where)
            with (
                api(environment, running.folder) as started,
                running.worker("counted", **environment),
                httpx.Client(base_url=started.url, timeout=100) as http,
            ):
                eventually(lambda: http.get("/readyz").status_code == 200, 40, "it is ready")
                model = http.put("/models/net.safetensors/", content=mlpnet()).json()["id"]
                data = http.put("/datasets/d.npz", content=digits(60)).json()["id"]
                recipe = {"select": {"algorithm": "magnitude", "sparsity": 0.5}}
                headers = {"Prefer": "wait=60", "X-Request-Id": "run-42", "traceparent": f"00-{TRACE}-{PARENT}-01"}
                body = {"model": model, "calibration": data, "recipe": recipe}
                job = http.post(f"/jobs?token={SECRET}", json=body, headers=headers).json()
                assert job["state"] == "succeeded", job
                assert http.get("/no/such/path").status_code == 404
                eventually(lambda: value(http, "pruning_attempts_total", queue="jobs", result="succeed"), 20, "counted")
                about = lambda: [span for span in there.spans if span.trace == TRACE]  # noqa: E731
                eventually(lambda: {"POST /jobs", "attempt job"} <= {span.name for span in about()}, 20, "traced")
                yield Seen(started, http, job["id"], body, about())


def value(http: httpx.Client, name: str, **labels: str) -> float:
    """Return what one series has, 0 if it is not there."""
    text = http.get("/metrics").text
    samples = [sample for family in read_text(text) for sample in family.samples]
    found = [s.value for s in samples if s.name == name and s.labels == labels]
    assert len(found) <= 1, (name, labels)
    return found[0] if found else 0.0


def test_a_job_is_counted(seen: Seen) -> None:
    http = seen.http
    assert value(http, "pruning_items_ended_total", kind="job", state="succeeded") == 1
    assert value(http, "pruning_items_ended_total", kind="model", state="ready") == 1
    assert value(http, "pruning_attempts_total", queue="jobs", result="succeed") == 1
    assert value(http, "pruning_job_seconds_count", state="succeeded") == 1
    assert 0 < value(http, "pruning_job_wait_seconds_sum") < value(http, "pruning_job_seconds_sum", state="succeeded")
    for stage in ("fetch", "start", "store", "publish"):
        assert value(http, "pruning_stage_seconds_count", stage=stage) >= 1, stage
    assert value(http, "pruning_stage_seconds_count", stage="other") == 0
    sizes = len(mlpnet()) + len(digits(60))
    assert value(http, "pruning_worker_bytes_total", direction="fetched") >= sizes
    assert value(http, "pruning_worker_bytes_total", direction="stored") > len(mlpnet())
    assert value(http, "pruning_http_bytes_total", direction="received") >= sizes
    assert value(http, "pruning_http_requests_total", method="POST", route="/jobs", status="202") == 1
    assert value(http, "pruning_http_requests_total", method="PUT", route="/models/{id}", status="201") == 1
    assert value(http, "pruning_http_requests_total", method="GET", route="unmatched", status="404") == 1
    # What waits because the client prefers it says nothing of the service's speed.
    assert value(http, "pruning_http_request_seconds_count", method="POST", route="/jobs") == 0
    assert value(http, "pruning_http_request_seconds_count", method="PUT", route="/models/{id}") == 1
    assert value(http, "pruning_reconciler_ticks_total", result="done") > 0
    for gauge in ("pruning_queue_length", "pruning_queue_oldest_seconds", "pruning_running"):
        assert value(http, gauge, queue="jobs") == 0
    assert value(http, "pruning_workers", queue="jobs") == 1
    assert value(http, "pruning_worker_disk_free_bytes", queue="jobs") > 0
    assert value(http, "pruning_part_up", part="bucket") == value(http, "pruning_part_up", part="redis") == 1


def test_both_formats_are_read_by_the_library(seen: Seen) -> None:
    text = seen.http.get("/metrics")
    assert text.headers["content-type"].startswith("text/plain; version=")
    opened = seen.http.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert opened.headers["content-type"].startswith("application/openmetrics-text")
    for families in (list(read_text(text.text)), list(read_openmetrics(opened.text))):
        assert {family.name for family in families} >= {name.removesuffix("_total") for name in METRICS}
        for family in families:
            assert family.documentation
            for sample in family.samples:
                # No label holds an id, a tenant, or what a user typed.
                assert not any(text.startswith(("job_", "mdl_", "dst_", "req_")) for text in sample.labels.values())


def test_one_trace_leads_from_the_request_to_the_outcome(seen: Seen) -> None:
    by_name = {span.name: span for span in seen.spans}
    request, attempt = by_name["POST /jobs"], by_name["attempt job"]
    assert (request.part, request.parent, attempt.part) == ("pruning-api", PARENT, "pruning-worker")
    assert request.about["http.route"] == "/jobs"
    assert attempt.parent == request.id
    assert (attempt.about["item"], attempt.about["result"], attempt.about["attempt"]) == (seen.job, "succeed", 1)
    stages = {span.name: span for span in seen.spans if span.parent == attempt.id}
    ours = {"fetch", "start", "store", "publish"}
    assert ours < stages.keys() <= STAGES, "and at least one that the process told of"


def test_one_id_leads_from_the_request_to_the_worker(seen: Seen, running: Cluster) -> None:
    from_api, from_worker = seen.api.log.read_text(), running.log("counted")
    (request,) = [line for line in lines(from_api) if line.get("request_id") == "run-42"]
    assert (request["event"], request["method"], request["path"], request["status"]) == (
        "request",
        "POST",
        "/jobs",
        202,
    )
    about = [line for line in lines(from_worker) if line.get("request_id") == "run-42"]
    assert {"begin", "ran"} <= {line["event"] for line in about}
    for line in about:
        assert (line["item"], line["attempt"], line["worker"]) == (seen.job, 1, "counted@test")
        assert {"time", "level", "logger"} <= line.keys()
    # The trace is named too, so that one leads to the other.
    assert {line["trace_id"] for line in (request, *about)} == {TRACE}
    record = seen.api.service.bucket.get_json(f"jobs/{seen.job}/request.json")
    assert record is not None
    assert record["request_id"] == "run-42"
    for hidden in (SECRET, running.keys.redis_password, running.keys.s3_secret_key):
        assert hidden not in from_api + from_worker


def test_counts_survive_the_front_end_and_not_a_wipe(seen: Seen, tmp_path: Path) -> None:
    assert value(seen.http, "pruning_items_ended_total", kind="job", state="succeeded") == 1
    with api(seen.api.environment, tmp_path, traces="false") as second, httpx.Client(base_url=second.url) as http:
        eventually(lambda: http.get("/models").status_code == 200, 20, "it answers")
        assert value(http, "pruning_items_ended_total", kind="job", state="succeeded") == 1
    seen.api.service.clock.redis.flushdb()
    assert value(seen.http, "pruning_items_ended_total", kind="job", state="succeeded") == 0
    assert seen.http.post("/jobs", json=seen.body, headers={"Prefer": "wait=60"}).json()["state"] == "succeeded"
    again = lambda: value(seen.http, "pruning_items_ended_total", kind="job", state="succeeded") == 1  # noqa: E731
    eventually(again, 20, "it counts again")


def test_what_is_waiting_and_running_is_shown(http: httpx.Client, running: Cluster) -> None:
    before = value(http, "pruning_queue_length", queue="jobs")
    turn = Turn(running.service, queued_job(http)["id"])
    queued_job(http)
    assert value(http, "pruning_queue_length", queue="jobs") == before + 1
    assert value(http, "pruning_running", queue="jobs") == 1
    assert value(http, "pruning_queue_oldest_seconds", queue="jobs") > 0
    before = value(http, "pruning_failures_total", kind="job", problem="diverged")
    turn.fail()
    running.service.clock.metrics.flush()
    assert value(http, "pruning_failures_total", kind="job", problem="diverged") == before + 1


def test_a_lost_lease_is_counted_once(http: httpx.Client, running: Cluster) -> None:
    job, clock = queued_job(http)["id"], running.service.clock
    token = clock.claim(job)
    assert token is not None
    with Holder(running.service.ledger, job, token) as holder:
        clock.redis.set(f"pruning:lease:{job}", "another's")
        eventually(lambda: holder.reason == "lost", 10, "it is lost")
        holder.beat()
    clock.metrics.flush()
    assert value(http, "pruning_lease_losses_total", kind="job") == 1
    clock.redis.delete(f"pruning:lease:{job}")


def test_nothing_is_lost_while_redis_is_away(running: Cluster) -> None:
    away = Service(Settings(redis_url="redis://127.0.0.1:1/0", redis_timeout=0.1))
    away.clock.metrics.add("pruning_requeued_total", 2, kind="job")
    away.clock.metrics.flush()
    away.clock.metrics.observe("pruning_stage_seconds", 1e9, stage="select")
    stages = Stages(away.clock.metrics)
    stages.enter("job_01 <- made up")  # what a pruning process calls its stages is not to be trusted
    stages.end()
    away.clock.metrics._redis = running.service.clock.redis
    before = series(running.service.clock.metrics)
    away.clock.metrics.flush()
    after = series(running.service.clock.metrics)
    assert after["pruning_requeued_total", ("job",)] - before.get(("pruning_requeued_total", ("job",)), 0) == 2
    assert ("pruning_stage_seconds", ("other",)) in after
    away.close()


def series(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    return {(name, labels): s.value for name, found in metrics.read().items() for labels, s in found.items()}


def test_without_the_option_nothing_of_it_is_imported() -> None:
    program = (
        "import sys, api.app, worker.app; from jobs import tracing; tracing.configure(False, 'api')\n"
        "with tracing.span('x') as span: assert span is None and tracing.current() is None\n"
        # redis-py imports some of the SDK by itself where it finds it.
        "assert not {'opentelemetry.sdk.trace.export', 'opentelemetry.exporter'} & sys.modules.keys(), 'imported'"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
