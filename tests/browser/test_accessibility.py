"""The pages are for everybody: WCAG 2 A and AA by axe-core, the keyboard alone, little talk, and no script at all."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.api.finished_job import accept, finish
from tests.api.live_api import Api, zip_bytes
from tests.browser.axe import violations, violations_in_each_look
from tests.pages.documents import document

STOPS = """() => [...document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex='0']")]
    .filter((element) => element.type !== "hidden" && element.checkVisibility() && !element.disabled)
    .map((element) => element.outerHTML.slice(0, 120))"""
FOCUSED = """() => {
    const element = document.activeElement, style = getComputedStyle(element), box = element.getBoundingClientRect();
    const seen = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
    const inside = box.bottom > 0 && box.top < innerHeight && box.width > 1;
    return [element.outerHTML.slice(0, 120), seen, inside];
}"""


def test_no_violation_on_any_page(running_api: Api, guarded: Api, jobs: dict[str, str], tab: Page) -> None:
    """Empty and full lists, forms, jobs in every state, the report as a file, problems, the sign-in."""
    paths = ["/ui", "/ui?state=running", "/ui/new", "/ui/nowhere", f"/jobs/{jobs['several']}/report"]
    paths += [f"/ui/jobs/{jobs[name]}" for name in ("several", "old", "queued", "failed")]
    addresses = [running_api.url + path for path in paths]
    assert violations_in_each_look(tab, *addresses, f"{guarded.url}/ui/sign-in") == []


def test_each_stop_of_the_keyboard_is_seen_and_in_order(running_api: Api, jobs: dict[str, str], tab: Page) -> None:
    for path in ("/ui", "/ui/new", f"/ui/jobs/{jobs['several']}"):
        tab.goto(running_api.url + path)
        wanted = tab.evaluate(STOPS)
        assert "Skip to the content" in wanted[0]
        for stop in wanted:
            tab.keyboard.press("Tab")
            assert tab.evaluate(FOCUSED) == [stop, True, True]


def test_errors_are_announced_and_lead_to_their_fields(running_api: Api, tab: Page) -> None:
    tab.goto(f"{running_api.url}/ui/new")
    tab.get_by_role("button", name="Start the job").click()
    errors = tab.get_by_role("alert")
    expect(errors).to_be_focused()
    expect(tab).to_have_title(re.compile("^Correct: "))
    assert violations(tab) == []
    for link in errors.get_by_role("link").all():
        link.focus()
        tab.keyboard.press("Enter")
        field = tab.locator(":focus")
        expect(field).to_have_attribute("aria-invalid", "true")
        expect(field).to_have_accessible_description(re.compile("choose or upload"))


def test_an_error_in_what_is_folded_is_unfolded(running_api: Api, jobs: dict[str, str], tab: Page) -> None:
    tab.goto(f"{running_api.url}/ui/new")
    tab.locator("#model").select_option(index=1)
    tab.locator("#calibration").select_option(index=1)
    tab.locator('[id="select.sparsity"]').fill("0.5")
    tab.locator("summary", has_text="Preprocess").click()
    tab.locator('[id="preprocess.crop"]').fill("9000")
    tab.get_by_role("button", name="Start the job").click()
    tab.get_by_role("alert").get_by_role("link", name="crop").click()
    expect(tab.locator('[id="preprocess.crop"]')).to_be_focused()


def test_progress_is_shown_often_and_said_seldom(running_api: Api, jobs: dict[str, str], tab: Page) -> None:
    """A hundred steps of two stages: the bar moves with each, a screen reader hears of the stages."""
    told = [("state", {"state": "running", "attempt": 1})]
    for stage in ("gradients", "select"):
        told.append(("stage", {"stage": stage}))
        told += [("progress", {"stage": stage, "progress": i / 100, "eta_seconds": 3}) for i in range(50)]
    body = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in told)
    tab.route("**/events", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    tab.add_init_script("""addEventListener("DOMContentLoaded", () => {
        window.heard = [];
        for (const region of document.querySelectorAll("[aria-live], [role=status], [role=alert]"))
            new MutationObserver(() => window.heard.push(region.textContent)).observe(region, {childList: true});
    })""")
    tab.goto(f"{running_api.url}/ui/jobs/{jobs['queued']}")
    expect(tab.locator("#now")).to_have_text("select, 49 %, about 3 s left.")
    expect(tab.get_by_role("progressbar", name="Progress")).to_have_attribute("value", "0.49")
    assert tab.evaluate("heard.slice(0, 3)") == ["Running, attempt 1.", "Stage gradients", "Stage select"]
    tab.unroute_all(behavior="ignoreErrors")


@pytest.mark.timeout(60)
def test_upload_submit_and_watch_without_javascript(running_api: Api, browser: Browser, tmp_path: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(f"{running_api.url}/ui/new")
    for role, name in (("model", "net.pt2"), ("calibration", "data.npz")):
        (tmp_path / name).write_bytes(zip_bytes(60))
        tab.set_input_files(f"#file-{role}", tmp_path / name)
        tab.locator(f'form[data-role="{role}"]').get_by_role("button", name="Upload").click()
    model = tab.locator("#model").input_value()
    accept(running_api.service, model, {"format": "pt2", "parameters": 100, "layers": [], "unprunable": {}})
    for title in ("Pattern n:m", "Options of chita", "Preprocess"):
        expect(tab.locator("summary", has_text=title)).to_be_visible()
    tab.locator('[id="select.sparsity"]').fill("0.9")
    tab.get_by_role("button", name="Start the job").click()
    expect(tab.locator(".heading .state")).to_have_text("queued")
    report = tmp_path / "report"
    report.write_text(json.dumps(document()), "utf-8")
    job = tab.url.rpartition("/")[2]
    finish(running_api.service, job, report, {0.9: {"model": report, "masks": report}})
    expect(tab.locator(".heading .state")).to_have_text("succeeded", timeout=20_000)  # it loads itself anew
    link = tab.get_by_role("link", name="Pruned model").get_attribute("href")
    assert httpx.get(f"{running_api.url}{link}").content == report.read_bytes()
    context.close()
