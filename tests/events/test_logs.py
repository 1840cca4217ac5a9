"""Logs: one JSON object a line, one request id from the request to the pruning process, and no secret."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobs import logs
from tests.worker import hostile
from worker import sandbox


@contextmanager
def logged(form: logs.Format) -> Iterator[io.StringIO]:
    """Have everything logged into a text, as `configure` does for a process."""
    root = logging.getLogger()
    handlers, level, out = root.handlers[:], root.level, io.StringIO()
    try:
        logs.configure(form, "INFO", out)
        yield out
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = handlers
        root.setLevel(level)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_pairs_become_fields_and_ids_come_along() -> None:
    log = logging.getLogger("test.logs")
    with logged("json") as out:
        with logs.bound(request_id="r-1", attempt=None), logs.bound(item="job_1"):
            log.info("ran item=%s attempt=%d took=%.2f event=%s", "job_2", 3, 1.5, "x")
        log.warning("sandbox: %s", "a=1\nb")
        log.info("no pairs")
        try:
            raise ValueError("a\nb")
        except ValueError:
            log.exception("failed what=%s", Path("/x"))
    ran, sandboxed, plain, failed = lines(out.getvalue())
    assert ran.pop("time").endswith("Z")
    expected = {"event": "ran", "item": "job_2", "attempt": 3, "took": 1.5, "event_": "x", "request_id": "r-1"}
    assert ran == {"level": "info", "logger": "test.logs", **expected}
    assert (sandboxed["level"], sandboxed["event"]) == ("warning", "sandbox: a=1\nb")
    assert "request_id" not in plain
    assert (failed["event"], failed["what"]) == ("failed", "/x")
    assert "ValueError: a\nb" in failed["exception"]


def test_what_a_user_sent_cannot_begin_a_line_of_text() -> None:
    with logged("text") as out, logs.bound(request_id="r-1"):
        logging.getLogger("test.logs").info("request path=%s", "/x\n2026-01-01 ERROR forged\x1b[2J")
    (line,) = out.getvalue().splitlines()
    assert "\\n2026" in line
    assert "\x1b" not in line
    assert line.endswith("request_id=r-1")


@pytest.mark.parametrize("given", [None, "", " a", "a b", "a\nb", "é", "x" * 129, "-a", '"'])
def test_an_id_that_could_do_harm_is_replaced(given: str | None) -> None:
    assert logs.request_id(given).startswith("req_")


def test_the_answer_has_the_id(http: httpx.Client) -> None:
    assert http.get("/healthz", headers={"X-Request-Id": "ci-17"}).headers["x-request-id"] == "ci-17"
    made = [http.get(path).headers["x-request-id"] for path in ("/healthz", "/nothing", "/jobs/job_x")]
    assert len(set(made)) == 3
    refused = http.post("/jobs", json={}, headers={"X-Request-Id": "a b", "Origin": "http://evil.example"})
    assert (refused.status_code, refused.headers["x-request-id"][:4]) == (403, "req_")


def test_what_the_process_said_last_is_logged_with_its_ids(tmp_path: Path) -> None:
    limits = sandbox.Limits(memory_bytes=2**31, cpu_seconds=60, file_bytes=2**20, wall_seconds=60)
    with logged("json") as out, logs.bound(request_id="run-43", item="job_1", attempt=2):
        result = sandbox.run(
            "defect",
            tmp_path,
            logs.origin(),
            limits=limits,
            on_progress=lambda _: None,
            stop=lambda: None,
            module=hostile.__name__,
        )
    assert result.status == "died"
    (line,) = [line for line in lines(out.getvalue()) if line["event"] == "sandbox ended"]
    assert (line["request_id"], line["item"], line["attempt"], line["level"]) == ("run-43", "job_1", 2, "warning")
    # The process knew the id itself.
    assert line["stderr"].startswith("request_id=run-43\n")
    assert "Traceback" in line["stderr"]
