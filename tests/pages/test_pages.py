"""The web pages over real HTTP: what they show, what they refuse, and that nothing sent becomes markup."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import given as drawn
from hypothesis import strategies as st

from api.pages_fields import given, whole
from api.pages_recipe import form_of_schema
from api.sniff import formats
from pages.report import STATIC
from pruning_core.recipe import Recipe, catalogue
from tests.api.finished_job import accept, queued_job
from tests.api.live_api import Api, zip_bytes
from tests.pages.documents import HOSTILE
from tests.pages.test_report import Outline


@pytest.fixture
def http(running_api: Api) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running_api.url, timeout=20, headers={"Accept": "text/html"}) as client:
        yield client


def page(response: httpx.Response, status: int = 200) -> Outline:
    """Assert that this is a sound page with the policy of ours; return it."""
    assert response.status_code == status, response.text[:2000]
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert response.headers["cache-control"] == "private, no-store"
    shown = Outline(response.text)
    for tag, attributes in shown.tags:
        assert "style" not in attributes, "the policy forbids it"
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("href", "src", "action", "formaction"):
            assert re.match(r"(/|#|data:,$)", attributes.get(name) or "#"), (tag, attributes)
    ids = [attributes["id"] for _, attributes in shown.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    labelled = {attributes["for"] for tag, attributes in shown.tags if tag == "label"}
    for tag, attributes in shown.tags:
        if tag in {"select", "textarea"} or (tag == "input" and attributes.get("type") != "hidden"):
            assert attributes["id"] in labelled, attributes
    return shown


def fields(shown: Outline) -> dict[str, dict[str, str | None]]:
    return {str(a["name"]): a for tag, a in shown.tags if tag in {"input", "select", "textarea"} and a.get("name")}


def test_the_root_sends_a_browser_to_the_pages_and_nobody_else(http: httpx.Client) -> None:
    sent = http.get("/")
    assert (sent.status_code, sent.headers["location"]) == (303, "/ui")
    for accept_ in ("*/*", "application/json", ""):
        plain = http.get("/", headers={"Accept": accept_})
        assert plain.status_code == 200
        assert "/jobs/{id}/cancel" in plain.text
        assert plain.headers["vary"] == "Accept"


def test_jobs_are_listed_filtered_and_paged(http: httpx.Client, jobs: dict[str, str]) -> None:
    shown = page(http.get("/ui"))
    for job in jobs.values():
        assert job in shown.text
    assert "<script>alert(1)</script>" in shown.text, "as text"
    only = page(http.get("/ui", params={"state": "cancelled"})).text
    assert jobs["cancelled"] in only
    assert jobs["queued"] not in only
    assert jobs["one"] in page(http.get("/ui", params={"label": f"x={HOSTILE[:200]}"})).text
    page(http.get("/ui", params={"state": "nonsense"}), 422)
    page(http.get("/ui", params={"label": "nonsense"}), 422)
    page(http.get("/ui", params={"cursor": "nonsense"}), 422)


@pytest.mark.parametrize("name", ["one", "several", "old", "queued", "cancelled", "failed"])
def test_a_job_in_every_state(http: httpx.Client, jobs: dict[str, str], name: str) -> None:
    shown = page(http.get(f"/ui/jobs/{jobs[name]}"))
    links = [attributes.get("href") for _, attributes in shown.tags]
    actions = [attributes.get("action") for _, attributes in shown.tags]
    assert (f"/ui/jobs/{jobs[name]}/cancel" in actions) == (name == "queued")
    assert (f"/jobs/{jobs[name]}/report" in links) == (name in {"one", "several", "old"})
    if name == "several":
        assert f"/jobs/{jobs[name]}/model?sparsity=0.5" in links
        assert "All models" in [attributes.get("aria-label") for _, attributes in shown.tags]
    if name == "queued":
        live = dict(next(a for _, a in shown.tags if a.get("id") == "live"))
        assert live["data-events"] == f"/jobs/{jobs[name]}/events"
        assert '<noscript><meta http-equiv="refresh"' in http.get(f"/ui/jobs/{jobs[name]}").text
    if name == "failed":
        assert "onerror=alert(2)" in shown.text
    if name == "old":
        assert "cannot show" in shown.text


def test_the_report_comes_to_a_browser_as_a_file_too(http: httpx.Client, jobs: dict[str, str]) -> None:
    stored = http.get(f"/ui/jobs/{jobs['several']}/report.json")
    assert stored.json()["pruning"]["seed"] == 7
    assert "attachment" in stored.headers["content-disposition"]
    plain = http.get(f"/ui/jobs/{jobs['several']}/report.md")
    assert plain.text.startswith("# Pruning report: net.v2.pt2")


def test_cancel_from_the_page(http: httpx.Client) -> None:
    job = queued_job(http)["id"]
    done = http.post(f"/ui/jobs/{job}/cancel")
    assert (done.status_code, done.headers["location"]) == (303, f"/ui/jobs/{job}")
    assert http.get(f"/jobs/{job}").json()["state"] == "cancelled"
    foreign = http.post(f"/ui/jobs/{job}/cancel", headers={"Origin": "http://evil.example"})
    assert foreign.status_code == 403


def leaves(schema: Any, definitions: dict[str, Any], name: str = "") -> Iterator[tuple[str, str]]:
    """Every property of a recipe that is no object itself, under the name its field should have; its description."""
    forms = [definitions[f["$ref"].rpartition("/")[2]] if "$ref" in f else f for f in schema.get("anyOf", [schema])]
    tagged = schema.get("discriminator", {}).get("mapping", {})
    for tag, reference in tagged.items():
        for key, inner in definitions[reference.rpartition("/")[2]]["properties"].items():
            if key != "type":
                yield from leaves(inner, definitions, f"{name}.{tag}.{key}")
    for form in forms:
        for key, inner in form.get("properties", {}).items():
            yield from leaves(inner, definitions, f"{name}.{key}".removeprefix("."))
    if tagged or any(form.get("type") not in ("object", "null") for form in forms):
        yield name, schema.get("description", "")


def test_every_property_of_a_recipe_has_a_field(http: httpx.Client) -> None:
    shown = page(http.get("/ui/new"))
    known, schema = fields(shown), Recipe.model_json_schema()
    wanted = dict(leaves(schema, schema["$defs"]))
    assert {"seed", "preprocess.resize", "select.sparsity", "select.sparsity.precision", "select.pattern.n:m.n"} <= set(
        wanted
    )
    for part in ("select", "refine"):
        wanted[part] = wanted.pop(f"{part}.algorithm") and ""
    for name, description in wanted.items():
        assert name in known, name
        assert description in shown.text
    for name, entry in catalogue().items():
        assert entry["summary"] in shown.text
        for option, described in entry["options"].get("properties", {}).items():
            field = known[f"{entry['part']}.{name}.{option}"]
            help_ = next(a for _, a in shown.tags if a.get("id") == str(field["aria-describedby"]).split()[0])
            assert help_
            assert described["description"] in shown.text


def test_a_new_property_has_a_field_and_comes_back() -> None:
    schema = Recipe.model_json_schema()
    number = {"type": "integer", "minimum": 1, "default": 3, "description": "Of the moon."}
    schema["properties"]["phase"] = number
    schema["properties"]["moon"] = {"anyOf": [{"$ref": "#/$defs/Moon"}, {"type": "null"}], "default": None}
    schema["$defs"]["Moon"] = {"type": "object", "title": "Moon", "description": "It.", "properties": {"size": number}}
    schema["$defs"]["Select"]["properties"]["slope"] = {"enum": ["up", "down"], "default": "up"}
    form = form_of_schema(schema, catalogue())
    assert "phase" in [option.name for option in form.rest.options]
    (moon,) = (group for group in form.rest.groups if group.name == "moon")
    assert [(option.name, option.help, option.hint) for option in moon.options] == [
        ("moon.size", "Of the moon.", "a whole number, ≥ 1; default: 3")
    ]
    (slope,) = (option for option in form.parts["select"].options if option.name == "select.slope")
    assert slope.choices == ("up", "down")
    typed = {"phase": "4", "moon.size": "5", "seed": ""}
    assert given(whole(schema, schema["$defs"]), "", typed) == {"phase": 4, "moon": {"size": 5}}


def test_what_may_be_sent_is_what_the_api_says(http: httpx.Client) -> None:
    shown = page(http.get("/ui/new")).text
    for kind in ("model", "dataset", "mask"):
        assert formats(kind)[1:] in shown  # type: ignore[arg-type]


def uploaded(http: httpx.Client, role: str, query: str = "") -> httpx.Response:
    name = "masks.safetensors" if role == "masks" else f"{role}.npz" if role != "model" else "net.pt2"
    return http.post(f"/ui/uploads/{role}?{query}", files={"file": (name, zip_bytes(60))})


@pytest.fixture
def files(http: httpx.Client, running_api: Api) -> dict[str, str]:
    """A model that has been inspected, and data, uploaded from the page without script."""
    first = uploaded(http, "model")
    assert first.status_code == 303
    second = uploaded(http, "calibration", first.headers["location"].partition("?")[2])
    query = httpx.URL(second.headers["location"]).params
    inspection = {
        "format": "pt2",
        "parameters": 100,
        "layers": [{"name": "fc", "weight": "fc.weight", "kind": "linear", "shape": [10, 10], "weights": 100}],
        "unprunable": {},
        "inputs": [],
        "batch": None,
    }
    accept(running_api.service, query["model"], inspection)
    shown = page(http.get(second.headers["location"]))
    assert "net.pt2" in shown.text
    chosen = [attributes.get("value") for tag, attributes in shown.tags if tag == "option" and "selected" in attributes]
    assert {query["model"], query["calibration"]} <= set(chosen)
    return {"model": query["model"], "calibration": query["calibration"]}


def test_upload_and_submit_without_script(http: httpx.Client, files: dict[str, str]) -> None:
    wanted = {
        **files,
        "select": "chita",
        "select.sparsity": "0.5, 0.9",
        "select.pattern": "unstructured",
        "select.pattern.unstructured.scope": "layer",
        "select.pattern.n:m.n": "2",
        "select.chita.stages": "3",
        "select.chita.ridge": "auto",
        "select.chita.first_order": "false",
        "select.obs.stages": "99",
        "refine": "snows",
        "refine.snows.window": "2",
        "select.layers.exclude": "head*, fc2",
        "preprocess.resize": "18, 20",
        "preprocess.mean": "0.5",
        "preprocess.channels": "l",
        "seed": "7",
        "labels": "team=vision\nrun = 3",
        "once": "abc" * 5,
    }
    sent = http.post("/ui/jobs", data=wanted)
    assert sent.status_code == 303, sent.text
    again = http.post("/ui/jobs", data=wanted)
    assert again.headers["location"] == sent.headers["location"], "sent twice, made once"
    job = http.get(sent.headers["location"].removeprefix("/ui")).json()
    assert job["recipe"] == {
        "select": {
            "algorithm": "chita",
            "stages": 3,
            "ridge": "auto",
            "first_order": False,
            "sparsity": [0.5, 0.9],
            "pattern": {"type": "unstructured", "scope": "layer"},
            "layers": {"exclude": ["head*", "fc2"]},
        },
        "refine": {"algorithm": "snows", "window": 2},
        "preprocess": {"resize": [18, 20], "mean": [0.5], "channels": "l"},
        "seed": 7,
    }
    assert job["labels"] == {"team": "vision", "run": "3"}


@pytest.mark.parametrize(
    ("typed", "field"),
    [
        ({"select.sparsity": "1.5"}, "select.sparsity"),
        ({"select.sparsity": ""}, "select.sparsity"),
        ({"select.sparsity": "lots"}, "select.sparsity"),
        ({"select.sparsity": "", "select.sparsity.max_accuracy_drop": "7"}, "select.sparsity.max_accuracy_drop"),
        ({"select.sparsity.max_accuracy_drop": "0.1"}, "select.sparsity"),
        ({"select.sparsity": "", "select.pattern": "n:m", "select.pattern.n:m.n": "9"}, "select.pattern.n:m.m"),
        ({"select.pattern": "block", "select.pattern.block.shape": "4"}, "select.pattern.block.shape"),
        ({"select.pattern": "odd"}, "select.pattern"),
        ({"select": "chita", "select.chita.block_size": "0"}, "select.chita.block_size"),
        ({"select": "chita", "select.chita.structure": "odd"}, "select.chita.structure"),
        ({"refine": "snows", "refine.snows.batch": "x"}, "refine.snows.batch"),
        ({"select": "nothing"}, "select"),
        ({"seed": "-1"}, "seed"),
        ({"labels": "no equals sign"}, "labels"),
        ({"labels": "a b=c"}, "labels"),
        ({"preprocess.interpolation": "odd"}, "preprocess.interpolation"),
        ({"preprocess.crop": "9000"}, "preprocess.crop"),
        ({"preprocess.resize": "10", "preprocess.crop": "20"}, "preprocess.resize"),
        ({"select.layers.include": "[1]"}, "select.layers.include"),
        ({"model": ""}, "model"),
        ({"calibration": "dst_01ARZ3NDEKTSV4RRFFQ69G5FAV"}, "calibration"),
        ({"select.pattern": "mask", "select.sparsity": ""}, "masks"),
    ],
)
def test_what_is_wrong_stands_beside_its_field(
    http: httpx.Client, files: dict[str, str], typed: dict[str, str], field: str
) -> None:
    for path in ("/ui/jobs", "/ui/plan"):
        if path == "/ui/plan" and field == "calibration":
            continue
        shown = page(answer := http.post(path, data={**files, "select.sparsity": "0.9", **typed}), answer.status_code)
        assert 400 <= answer.status_code < 500
        wrong = {name for name, attributes in fields(shown).items() if attributes.get("aria-invalid") == "true"}
        assert wrong == {field}
        described = str(fields(shown)[field]["aria-describedby"]).split()
        assert f"{field}-error" in described
        assert f"#{field}" in [attributes.get("href") for _, attributes in shown.tags]
        for name, value in typed.items():
            if name in fields(shown) and "value" in fields(shown)[name]:
                assert fields(shown)[name]["value"] == value, "what was typed is still there"


def test_the_plan_before_the_job(http: httpx.Client, files: dict[str, str]) -> None:
    shown = page(http.post("/ui/plan", data={**files, "select.sparsity": "0.9"}))
    assert "1 of 1 layers take part" in shown.text
    assert "90.0 %" in shown.text


@pytest.mark.parametrize("role", ["model", "calibration", "nonsense"])
def test_uploads_that_are_refused(http: httpx.Client, role: str) -> None:
    status = 422 if role == "nonsense" else 415
    page(http.post(f"/ui/uploads/{role}", files={"file": ("x.bin", b"no known format")}), status)


def test_static_files_are_small_and_cached(http: httpx.Client) -> None:
    for path in STATIC.iterdir():
        got = http.get(f"/ui/static/{path.name}")
        assert got.content == path.read_bytes()
        assert http.get(f"/ui/static/{path.name}", headers={"If-None-Match": got.headers["etag"]}).status_code == 304
    assert len((STATIC / "pages.js").read_text().splitlines()) < 300
    assert http.get("/ui/static/pages.js?name=../report.py").text == (STATIC / "pages.js").read_text()
    for missing in ("/ui/static/", "/ui/static/report.py", "/ui/static/..%2freport.py"):
        assert http.get(missing).status_code == 404


TEXT = st.text(max_size=60) | st.sampled_from(
    ["", "0", "job_", HOSTILE, "-1", "9" * 30, "\ud800".encode("utf-8", "replace").decode()]
)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@drawn(text=TEXT, name=st.sampled_from(["cursor", "state", "label", "model", "calibration", "next"]))
def test_no_path_or_query_is_too_odd(http: httpx.Client, text: str, name: str) -> None:
    for path in ("/ui", "/ui/new"):
        assert http.get(path, params={name: text}).status_code < 500
    quoted = quote(text, safe="") or "x"
    for path in (f"/ui/jobs/{quoted}", f"/ui/{quoted}", f"/ui/jobs/{quoted}/report.md"):
        assert http.get(path).status_code < 500, path
    for path in (f"/ui/jobs/{quoted}/cancel", f"/ui/uploads/{quoted}"):
        assert http.post(path).status_code < 500


FIELDS = ("model", "calibration", "masks", "select", "refine", "select.sparsity", "select.sparsity.precision")
MORE = (
    "select.pattern",
    "select.pattern.n:m.n",
    "select.pattern.block.shape",
    "select.layers.include",
    "seed",
    "labels",
)
MORE += ("once", "preprocess.resize", "preprocess.mean", "select.chita.ridge", "select.best.of")


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@drawn(
    form=st.dictionaries(
        st.sampled_from(FIELDS + MORE), TEXT | st.sampled_from(["chita", "snows", "n:m", "block", "1e999", "[1, {}]"])
    )
)
def test_no_form_is_too_odd(http: httpx.Client, form: dict[str, str]) -> None:
    for path in ("/ui/jobs", "/ui/plan"):
        assert http.post(path, data=form).status_code < 500
    assert http.post("/ui/plan", content=b"a=%ff%fe&b", headers={"Content-Type": "text/plain"}).status_code < 500
