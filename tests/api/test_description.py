"""The OpenAPI document, the page that shows it, and the catalogue."""

from __future__ import annotations

import re
from typing import Any

import httpx
import jsonschema
import pytest

from api.app import create_app
from api.recipe_schema import recipe_schema
from pruning_core.errors import PROBLEM_TYPE, RecipeError
from pruning_core.recipe import Recipe, catalogue
from tests.api.live_api import Api

VERBS = {"get", "put", "post", "delete"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app().openapi()


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [found for item in value.values() for found in references(item)]
    return [found for item in value for found in references(item)] if isinstance(value, list) else []


def test_every_call_of_the_contract_is_described(document: dict[str, Any]) -> None:
    described = {(verb, path) for path, operations in document["paths"].items() for verb in operations}
    uploads = {
        (verb, f"/{where}{rest}")
        for where in ("models", "datasets", "masks")
        for verb, rest in [
            ("put", ""),
            ("post", ""),
            ("get", ""),
            ("put", "/{id}"),
            ("get", "/{id}"),
            ("delete", "/{id}"),
        ]
    }
    others = {
        ("delete", "/jobs/{id}"),
        ("post", "/jobs"),
        ("get", "/jobs"),
        ("get", "/jobs/{id}"),
        ("post", "/jobs/{id}/cancel"),
    }
    others |= {("get", "/jobs/{id}/events")}
    others |= {(verb, "/webhooks") for verb in ("post", "get")}
    others |= {(verb, "/webhooks/{id}") for verb in ("get", "delete")}
    others |= {("post", f"/webhooks/{{id}}/{name}") for name in ("rotate", "enable", "test")}
    others |= {("get", "/webhooks/{id}/deliveries")}
    others |= {("get", f"/jobs/{{id}}/{name}") for name in ("model", "masks", "compact", "report")}
    others |= {("post", "/plans"), ("get", "/algorithms"), ("get", "/healthz"), ("get", "/readyz"), ("get", "/metrics")}
    others |= {(verb, "/keys") for verb in ("get", "post")} | {("get", "/keys/{id}")}
    others |= {("post", f"/keys/{{id}}/{change}") for change in ("rotate", "revoke")}
    others |= {("get", "/usage"), ("get", "/audit")}
    others |= {("post", "/uploads"), ("get", "/uploads/{id}"), ("delete", "/uploads/{id}")}
    others |= {("post", "/uploads/{id}/urls"), ("post", "/uploads/{id}/complete")}
    assert described == uploads | others


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    for reference in references(document):
        name = reference.removeprefix("#/components/schemas/")
        assert name in document["components"]["schemas"], reference


def test_every_schema_is_one_and_accepts_its_examples(document: dict[str, Any]) -> None:
    for name, schema in document["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        for example in schema.get("examples", ()):
            whole = {**schema, "components": document["components"]}
            jsonschema.Draft202012Validator(whole).validate(example), name


def test_every_problem_is_described_with_an_example(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for verb, operation in operations.items():
            assert verb in VERBS
            assert operation["summary"], path
            for status, response in operation["responses"].items():
                assert response["description"], (path, status)
                if status[0] in "45":
                    (media_type,) = response["content"]
                    assert media_type == "application/problem+json"
                for example in (
                    response.get("content", {}).get("application/problem+json", {}).get("examples", {}).values()
                ):
                    assert example["value"]["type"].startswith(PROBLEM_TYPE)
                    assert str(example["value"]["status"]) == status


def test_parameters_of_a_path_are_those_in_it(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            named = {item["name"] for item in operation.get("parameters", ()) if item["in"] == "path"}
            assert named == set(re.findall(r"{(\w+)}", path))


def test_answers_are_what_the_document_says(document: dict[str, Any], http: httpx.Client) -> None:
    for path in ("/models", "/jobs", "/algorithms", "/healthz"):
        schema = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        whole = {**schema, "components": document["components"]}
        jsonschema.Draft202012Validator(whole).validate(http.get(path).json())


def test_the_docs_page_needs_no_other_server(http: httpx.Client, running_api: Api) -> None:
    for path in ("/docs", "/"):
        response = http.get(path)
        assert response.status_code == 200
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert not re.search(r"(src|href|action)=['\"](?!/openapi\.json|#)", response.text)
        assert "<script" not in response.text
        assert "/jobs/{id}/cancel" in response.text
        assert "chita" in response.text
    assert http.get("/openapi.json").json()["openapi"].startswith("3.1")


def test_the_catalogue_is_shown(http: httpx.Client) -> None:
    shown = http.get("/algorithms").json()
    assert {name: {"patterns": None, **entry} for name, entry in catalogue().items()} == shown["algorithms"]
    assert shown["recipe"]["$schema"].endswith("2020-12/schema")


@pytest.mark.parametrize(
    "recipe",
    [
        {"select": {"algorithm": "chita", "sparsity": 0.9}},
        {"select": {"algorithm": "chita", "sparsity": 0.9, "block_size": 7}, "seed": 3},
        {"select": {"algorithm": "magnitude", "sparsity": 0, "layers": {"exclude": ["fc*"]}}},
        {"select": {"algorithm": "magnitude", "sparsity": 0.5, "pattern": {"type": "unstructured", "scope": "layer"}}},
        {"select": {"algorithm": "magnitude", "sparsity": 1}},
        {"select": {"algorithm": "magnitude", "sparsity": "0.5"}},
        {"select": {"algorithm": "magnitude", "sparsity": 0.5, "block_size": 7}},
        {"select": {"algorithm": "chita", "sparsity": 0.9, "block_size": 0}},
        {"select": {"algorithm": "magic", "sparsity": 0.5}},
        {"select": {"algorithm": "magnitude", "sparsity": 0.5}, "refine": {}},
        {"select": {"algorithm": "magnitude", "sparsity": 0.5}, "refine": None},
        {"select": {"algorithm": "magnitude", "sparsity": 0.5}, "refine": {"algorithm": "magnitude"}},
        {"select": {"algorithm": "magnitude"}},
        {"refine": {"algorithm": "snows"}},
        {"refine": {"algorithm": "snows", "window": -1}},
        {"refine": {"algorithm": "snows"}, "select": {"algorithm": "wanda", "pattern": "2:4"}},
        {"select": {"algorithm": "snows", "sparsity": 0.5}},
        {"select": {"algorithm": "magnitude", "sparsity": None}},
        {"select": None},
        {"select": {"algorithm": "chita", "sparsity": [0.5, 0.9]}},
        {"select": {"algorithm": "chita", "sparsity": []}},
        {"select": {"algorithm": "chita", "sparsity": [0.5, 0.5]}},
        {"select": {"algorithm": "chita", "sparsity": [0.5, 1.0]}},
        {"select": {"algorithm": "chita", "sparsity": [n / 100 for n in range(60)]}},
        {"select": {"algorithm": "chita", "sparsity": {"max_accuracy_drop": 0.01}}},
        {"select": {"algorithm": "chita", "sparsity": {"max_loss_increase": 0.1, "max_sparsity": 0.8}}},
        {"select": {"algorithm": "chita", "sparsity": {"max_loss_increase": 0.1, "max_accuracy_drop": 0.01}}},
        {"select": {"algorithm": "chita", "sparsity": {"max_loss_increase": 0.1, "max_accuracy_drop": None}}},
        {"select": {"algorithm": "chita", "sparsity": {}}},
        {"select": {"algorithm": "magnitude", "pattern": "2:4"}},
        {"select": {"algorithm": "magnitude", "pattern": "2:4", "sparsity": 0.5}},
        {"select": {"algorithm": "magnitude", "pattern": "2:4", "sparsity": [0.5]}},
        {"select": {"algorithm": "magnitude", "pattern": {"type": "n:m", "n": 2, "m": 4}}},
        {"select": {"algorithm": "magnitude", "pattern": {"n": 2, "m": 4}}},
        {"select": {"algorithm": "magnitude", "pattern": {"type": "n:m", "n": 2, "m": 400}}},
        {"select": {"algorithm": "magnitude", "pattern": "4x1", "sparsity": 0.5}},
        {"select": {"algorithm": "magnitude", "pattern": "4x1"}},
        {"select": {"algorithm": "magnitude", "pattern": {"type": "block", "shape": [4, 1]}, "sparsity": [0.5, 0.6]}},
        {"select": {"algorithm": "magnitude", "pattern": {"type": "block", "shape": [4]}, "sparsity": 0.5}},
        {"select": {"algorithm": "magnitude", "pattern": "mask"}},
        {"select": {"algorithm": "magnitude", "pattern": {"type": "mask"}, "sparsity": 0.5}},
        {"select": {"algorithm": "magnitude", "pattern": "rows", "sparsity": 0.5}},
        {"select": {"algorithm": "magnitude", "pattern": {"max_layer_sparsity": 0.9}, "sparsity": 0.5}},
        {"select": {"algorithm": "magnitude", "pattern": 4, "sparsity": 0.5}},
        {"select": {"sparsity": 0.5}},
        {},
        [],
    ],
)
def test_the_published_schema_accepts_what_the_service_accepts(recipe: Any) -> None:
    try:
        Recipe.parse(recipe)
    except RecipeError:
        accepted = False
    else:
        accepted = True
    jsonschema.Draft202012Validator.check_schema(recipe_schema())
    assert jsonschema.Draft202012Validator(recipe_schema()).is_valid(recipe) == accepted
