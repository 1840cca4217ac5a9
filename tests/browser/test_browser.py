"""What a person does, in a real browser with the whole service behind it."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from jobs.keys import Keys
from tests.api.live_api import Api
from tests.service.live import eventually


def upload(tab: Page, role: str, file: Path) -> None:
    tab.set_input_files(f"#file-{role}", file)
    tab.locator(f'form[data-role="{role}"]').get_by_role("button", name="Upload").click()


def ready(live: str, kind: str, id: str) -> bool:
    return bool(httpx.get(f"{live}/{kind}/{id}").json()["state"] == "ready")


def has_no_sideways_scroll(tab: Page) -> bool:
    return bool(tab.evaluate("document.documentElement.scrollWidth <= innerWidth"))


@pytest.mark.timeout(180)
def test_upload_plan_submit_watch_download(live: str, digits: Path, tab: Page, tmp_path: Path) -> None:
    tab.goto(live)
    expect(tab).to_have_title(re.compile("^Jobs"))
    tab.get_by_role("navigation", name="Main").get_by_role("link", name="New job").click()
    # an error first: the service's words, beside the file
    wrong = tmp_path / "wrong.pt2"
    wrong.write_bytes(b"this is no model")
    upload(tab, "model", wrong)
    expect(tab.locator('form[data-role="model"] .result')).to_contain_text("format")
    upload(tab, "model", digits / "digits.pt2")
    expect(tab.locator('form[data-role="model"] .result')).to_contain_text("digits.pt2 is there")
    for role in ("calibration", "validation"):
        upload(tab, role, digits / f"{role}.npz")
        expect(tab.locator(f'form[data-role="{role}"] .result')).to_contain_text("is there")
    model = tab.locator("#model").input_value()
    assert tab.locator("#calibration").input_value()
    # only the options of what is chosen are shown
    tab.locator("#select").select_option("obd")
    expect(tab.get_by_text("Options of obd").first).to_be_visible()
    expect(tab.get_by_text("Options of chita").first).to_be_hidden()
    sparsity = tab.locator('[id="select.sparsity"]')
    sparsity.fill("1.5")
    tab.get_by_role("button", name="Start the job").click()
    expect(tab.locator("#errors")).to_be_focused()
    expect(sparsity).to_have_attribute("aria-invalid", "true")
    expect(tab.locator('[id="select.sparsity-error"]')).to_contain_text("less than 1")
    sparsity.fill("0.5, 0.9")
    tab.get_by_text("Options of obd").first.click()
    tab.locator('[id="select.obd.samples"]').fill("60")
    eventually(lambda: ready(live, "models", model), 60, "the model is inspected")
    tab.get_by_role("button", name="Look at the plan first").click()
    expect(tab.locator("#plan")).to_contain_text("5 of 5 layers take part")
    tab.get_by_role("button", name="Start the job").click()
    tab.wait_for_url(re.compile(r"/ui/jobs/job_"))
    # it moves by itself to its end: no reload by us
    expect(tab.locator(".heading .state")).to_have_text("succeeded", timeout=90_000)
    expect(tab.get_by_role("img", name="Accuracy against sparsity")).to_be_visible()
    expect(tab.locator("h2", has_text="90.0 % sparsity")).to_be_visible()
    with tab.expect_download() as download:
        tab.get_by_role("link", name="model, 90.0 % sparsity").click()
    with tab.expect_download() as json_report:
        tab.get_by_role("link", name="report.json").click()
    report = httpx.Response(200, content=json_report.value.path().read_bytes()).json()
    assert download.value.suggested_filename == "digits-pruned-0.9.pt2"
    assert download.value.path().stat().st_size == report["files"][1]["size_bytes"]
    for width, scheme in ((1100, "light"), (360, "dark")):
        tab.set_viewport_size({"width": width, "height": 800})
        tab.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        assert has_no_sideways_scroll(tab)
    tab.get_by_role("link", name="Report to read").click()
    expect(tab.get_by_role("heading", name="Pruning report: digits.pt2")).to_be_visible()
    assert has_no_sideways_scroll(tab)


@pytest.mark.timeout(180)
def test_cancel_and_failure_with_the_keyboard_alone(live: str, digits: Path, tab: Page) -> None:
    with httpx.Client(base_url=live, timeout=30) as client:
        model = client.put("/models/net.pt2", content=(digits / "digits.pt2").read_bytes()).json()["id"]
        data = client.put("/datasets/data.npz", content=(digits / "calibration.npz").read_bytes()).json()["id"]
        body = {"model": model, "calibration": data, "recipe": {"select": {"algorithm": "gradual", "sparsity": 0.98}}}
        job = client.post("/jobs", json=body).json()["id"]
    tab.goto(f"{live}/ui/jobs/{job}")
    tab.keyboard.press("Tab")
    expect(tab.get_by_role("link", name="Skip to the content")).to_be_focused()
    tab.keyboard.press("Enter")
    cancel = tab.get_by_role("button", name="Cancel this job")
    for _ in range(5):
        tab.keyboard.press("Tab")
        if cancel.evaluate("button => button === document.activeElement"):
            break
    expect(cancel).to_be_focused()
    outline = cancel.evaluate("button => getComputedStyle(button).outlineStyle")
    assert outline != "none", "where the focus is can be seen"
    tab.keyboard.press("Enter")
    expect(tab.locator(".heading .state")).to_have_text("cancelled", timeout=60_000)
    # the form by keyboard: choose, type, send; then the job fails, and the page says why
    tab.goto(f"{live}/ui/new?model={model}&calibration={data}")
    tab.locator("#select").focus()
    tab.keyboard.type("magnitude")
    for _ in range(20):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.id") == "select.sparsity":
            break
    tab.keyboard.type("0.5")
    tab.locator("summary", has_text="Layers").focus()
    tab.keyboard.press("Enter")
    for _ in range(6):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.id") == "select.layers.include":
            break
    tab.keyboard.type("nowhere.*")
    tab.keyboard.press("Enter")
    tab.wait_for_url(re.compile(r"/ui/jobs/job_"))
    expect(tab.locator(".heading .state")).to_have_text("failed", timeout=60_000)
    expect(tab.locator(".problem")).to_contain_text("leaves no layer to prune")


def test_sign_in_and_out(guarded: Api, keys: Keys, tab: Page) -> None:
    _, token = keys.create("red", "browser", "write", by="test")
    tab.goto(f"{guarded.url}/ui/new")
    expect(tab.get_by_role("heading", name="Sign in")).to_be_visible()
    expect(tab.get_by_label("API key")).to_be_focused()
    tab.keyboard.type("prk_wrong")
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("alert")).to_contain_text("opens nothing")
    tab.get_by_label("API key").fill(token)
    tab.get_by_role("button", name="Sign in").click()
    tab.wait_for_url(f"{guarded.url}/ui/new")
    assert tab.evaluate("document.cookie") == "", "no script reads the key"
    assert token not in tab.url
    tab.get_by_role("button", name="Sign out").click()
    tab.wait_for_url(f"{guarded.url}/ui/sign-in")
    tab.goto(f"{guarded.url}/ui")
    expect(tab.get_by_role("heading", name="Sign in")).to_be_visible()
