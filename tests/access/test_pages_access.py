"""The web pages where keys are required: the way in and out, whose jobs are seen, and what a foreign page can do."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest

from api.auth import OPEN
from api.cookies import NAME
from jobs.keys import Keys
from tests.access.conftest import Calling
from tests.access.test_routes import job
from tests.api.live_api import Api, problem

PAGES = ("/ui", "/ui/new", "/ui/jobs/job_01ARZ3NDEKTSV4RRFFQ69G5FAV", "/ui/jobs/x/report.md", "/ui/nothing/here")
HERE = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def token(keys: Keys) -> str:
    return keys.create("red", "browser", "write", by="test")[1]


@pytest.fixture
def browser(guarded: Api) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=guarded.url, timeout=20, headers={"Accept": "text/html"}) as client:
        yield client


def sign_in(browser: httpx.Client, token: str, following: str = "/ui/new") -> httpx.Response:
    return browser.post("/ui/sign-in", data={"key": token, "next": following})


@pytest.mark.parametrize("path", PAGES)
def test_who_is_not_signed_in_is_sent_to_the_form(browser: httpx.Client, path: str) -> None:
    sent = browser.get(path)
    assert (sent.status_code, sent.headers["location"]) == (303, f"/ui/sign-in?next={path}")
    shown = browser.get(sent.headers["location"])
    assert shown.status_code == 200
    assert f'name="next" value="{path}"' in shown.text


def test_nothing_below_ui_is_open_but_the_way_in_and_style() -> None:
    below = {path for path in OPEN if path.startswith("/ui")}
    assert below == {"/ui/sign-in", "/ui/static/report.css", "/ui/static/pages.css", "/ui/static/pages.js"}


def test_signing_in_and_out(guarded: Api, browser: httpx.Client, token: str) -> None:
    done = sign_in(browser, token)
    assert (done.status_code, done.headers["location"]) == (303, "/ui/new")
    cookie = done.headers["set-cookie"]
    assert re.fullmatch(rf"{NAME}={token}; HttpOnly; Path=/; SameSite=strict", cookie)
    assert "Sign out" in browser.get("/ui").text
    assert browser.get("/jobs").status_code == 200, "the pages' scripts and downloads use the api itself"
    out = browser.post("/ui/sign-out", headers=HERE)
    assert (out.status_code, out.headers["location"]) == (303, "/ui/sign-in")
    assert browser.get("/ui").status_code == 303
    assert token.rpartition("_")[2] not in guarded.log.read_text(), "no key in the log"


def test_over_https_the_cookie_is_for_https_only(guarded: Api, token: str) -> None:
    with httpx.Client(base_url=guarded.url, headers={"X-Forwarded-Proto": "https"}) as client:
        cookie = sign_in(client, token).headers["set-cookie"]
    assert "Secure" in cookie


@pytest.mark.parametrize("wrong", ["", "prk_x", "<script>alert(1)</script>", "x" * 3000])
def test_a_wrong_key_is_refused_in_words(browser: httpx.Client, wrong: str) -> None:
    refused = sign_in(browser, wrong)
    assert refused.status_code == 401
    assert 'role="alert"' in refused.text
    assert "set-cookie" not in refused.headers
    assert wrong not in refused.text or wrong in {"", "prk_x"}


@pytest.mark.parametrize(
    "next_",
    ["https://evil.example/", "//evil.example", "/ui//evil", "/\\evil", "javascript:alert(1)", "/ui/\r\nx: y", "/jobs"],
)
def test_nobody_is_sent_elsewhere(browser: httpx.Client, token: str, next_: str) -> None:
    assert sign_in(browser, token, next_).headers["location"] == "/ui"
    assert 'name="next" value="/ui"' in browser.get("/ui/sign-in", params={"next": next_}).text


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Origin": "{here}"}, True),
    ],
)
def test_a_cookie_changes_something_only_from_our_own_pages(
    guarded: Api, browser: httpx.Client, token: str, headers: dict[str, str], allowed: bool
) -> None:
    assert sign_in(browser, token).status_code == 303
    sent = {name: value.replace("{here}", guarded.url) for name, value in headers.items()}
    for path in ("/jobs/job_x/cancel", "/ui/jobs/job_x/cancel"):
        answer = browser.post(path, headers=sent)
        assert answer.status_code == (404 if allowed else 403)
    if not allowed:
        problem(browser.put("/models", content=b"x", headers=sent), 403, "foreign-origin")
    both = {**sent, "Authorization": f"Bearer {token}"}
    expected = (
        404 if allowed or not ({"cross-site", "same-site", "null"} & set(sent.values()) or "Origin" in sent) else 403
    )
    assert browser.post("/jobs/job_x/cancel", headers=both).status_code == expected, "a program needs no origin"


def test_a_header_goes_before_a_cookie(browser: httpx.Client, token: str) -> None:
    sign_in(browser, token)
    problem(browser.get("/jobs", headers={"Authorization": "Bearer prk_no"}), 401, "unauthenticated")


def test_another_tenants_jobs_are_not_there(browser: httpx.Client, client_of: Calling, token: str) -> None:
    mine, foreign = job(client_of("red")), job(client_of("blue"))
    sign_in(browser, token)
    shown = browser.get("/ui").text
    assert mine in shown
    assert foreign not in shown
    assert browser.get(f"/ui/jobs/{mine}").status_code == 200
    for path in ("", "/report.json", "/report.md"):
        assert browser.get(f"/ui/jobs/{foreign}{path}").status_code == 404
    assert browser.post(f"/ui/jobs/{foreign}/cancel", headers=HERE).status_code == 404
    model = client_of("blue").get(f"/jobs/{foreign}").json()["model"]
    assert f'<option value="{model}"' not in browser.get("/ui/new", params={"model": model}).text
    data = {"model": model, "calibration": model, "select.sparsity": "0.5"}
    refused = browser.post("/ui/jobs", data=data, headers=HERE)
    assert refused.status_code == 404
    assert 'id="model-error"' in refused.text


def test_a_key_that_may_only_look(browser: httpx.Client, keys: Keys, client_of: Calling) -> None:
    mine = job(client_of("red"))
    sign_in(browser, keys.create("red", "viewer", "read", by="test")[1])
    shown = browser.get(f"/ui/jobs/{mine}")
    assert shown.status_code == 200
    assert "Cancel this job" not in shown.text
    refused = browser.post(f"/ui/jobs/{mine}/cancel", headers=HERE)
    assert refused.status_code == 403
    assert refused.headers["content-type"].startswith("text/html")
    assert browser.post("/ui/sign-out", headers=HERE).status_code == 303


def test_a_revoked_key_is_out(browser: httpx.Client, guarded: Api, keys: Keys, client_of: Calling) -> None:
    key, token = keys.create("red", "gone", "write", by="test")
    sign_in(browser, token)
    assert client_of("red", "admin").post(f"/keys/{key.id}/revoke").status_code == 200
    assert browser.get("/ui").headers["location"] == "/ui/sign-in?next=/ui"
