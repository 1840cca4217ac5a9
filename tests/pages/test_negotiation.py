"""``GET /jobs/{id}/report`` by ``Accept``: each form with its own ETag, and never the wrong one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from api.negotiation import preferred
from api.renderings import FORMS
from tests.api.finished_job import finish, queued_job
from tests.api.live_api import Api, problem
from tests.pages.documents import document

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


@pytest.fixture
def http(running_api: Api) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running_api.url, timeout=20) as client:
        yield client


def finished(api: Api, folder: Path, report: bytes, filename: str = "net.pt2") -> str:
    files = {name: folder / name for name in ("report", "model", "masks")}
    for path in files.values():
        path.write_bytes(report)
    with httpx.Client(base_url=api.url, timeout=20) as client:
        job = queued_job(client, filename)["id"]
    finish(api.service, job, files.pop("report"), {0.9: files})
    return f"/jobs/{job}/report"


@pytest.fixture(scope="module")
def report(running_api: Api, tmp_path_factory: pytest.TempPathFactory) -> str:
    return finished(running_api, tmp_path_factory.mktemp("report"), json.dumps(document()).encode())


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (None, "application/json"),
        ("", "application/json"),
        ("*/*", "application/json"),
        ("nonsense", "application/json"),
        (BROWSER, "text/html"),
        ("text/markdown", "text/markdown"),
        ("text/*", "text/html"),
        ("text/*, application/json;q=0.9", "text/html"),
        ("text/html;q=0.5, text/markdown;q=0.6", "text/markdown"),
        ("application/json;q=0, */*", "text/html"),
        ("TEXT/HTML;charset=utf-8;Q=0.9", "text/html"),
        ("text/html;q=0", None),
        ("image/png", None),
        ("application/json;q=0.000", None),
    ],
)
def test_the_form_that_is_liked_best(accept: str | None, form: str | None) -> None:
    assert preferred(accept, FORMS) == form


def test_each_form_comes_with_its_own_etag(http: httpx.Client, report: str) -> None:
    http.headers.pop("accept")
    seen = {}
    for accept, form in ((BROWSER, "text/html"), ("text/markdown", "text/markdown"), ("", "application/json")):
        got = http.get(report, headers={"Accept": accept} if accept else {})
        assert got.status_code == 200
        assert got.headers["content-type"].startswith(form)
        assert got.headers["vary"] == "Accept"
        seen[form] = etag = got.headers["etag"]
        again = http.get(report, headers={"Accept": form, "If-None-Match": etag})
        assert again.status_code == 304
        assert (again.headers["etag"], again.headers["vary"]) == (etag, "Accept")
        head = http.head(report, headers={"Accept": form})
        assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", etag)
    assert len(set(seen.values())) == 3
    cross = http.get(report, headers={"Accept": "text/html", "If-None-Match": seen["application/json"]})
    assert cross.status_code == 200, "another form's tag says nothing of this one"


def test_the_page_may_load_nothing(http: httpx.Client, report: str) -> None:
    got = http.get(report, headers={"Accept": "text/html"})
    assert got.headers["content-security-policy"].startswith(
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    )
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["content-disposition"] == 'inline; filename="net-report.html"'
    assert "Pruning report: net.pt2" in got.text


def test_forms_that_there_are_not(http: httpx.Client, report: str) -> None:
    refused = problem(http.get(report, headers={"Accept": "application/pdf"}), 406, "not-acceptable")
    assert refused["expected"] == list(FORMS)


def test_what_cannot_be_shown_can_still_be_had(running_api: Api, http: httpx.Client, tmp_path: Path) -> None:
    broken = finished(running_api, tmp_path, b'{"pruning": {}}')
    for form in FORMS[1:]:
        problem(http.get(broken, headers={"Accept": form}), 406, "unrenderable-report")
    assert http.get(broken).json() == {"pruning": {}}


def test_problems_are_the_same_in_every_form(http: httpx.Client) -> None:
    queued = queued_job(http)["id"]
    for form in FORMS:
        problem(http.get(f"/jobs/{queued}/report", headers={"Accept": form}), 409, "not-ready")
        problem(http.get("/jobs/job_x/report", headers={"Accept": form}), 404, "not-found")
