"""Every route of the OpenAPI document, also those that come later: no key, a small key, another tenant's id."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from api.app import create_app
from api.auth import OPEN, SCOPE
from api.settings import ApiSettings
from jobs.keys import SCOPES, includes
from tests.access.conftest import Calling
from tests.api.live_api import Api, problem, zip_bytes

DOCUMENT = create_app(api_settings=ApiSettings(keys="required")).openapi()
OPERATIONS = [(verb, path) for path, operations in DOCUMENT["paths"].items() for verb in operations]
GUARDED = [(verb, path) for verb, path in OPERATIONS if path not in OPEN]
#: Here {id} is what a new upload is called.
NAMING = {("put", f"/{kind}s/{{id}}") for kind in ("model", "dataset", "mask")}
OF_ITEMS = [(verb, path) for verb, path in GUARDED if "{" in path and (verb, path) not in NAMING]
LISTS = [path for verb, path in GUARDED if verb == "get" and "{" not in path]
NOBODYS = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


def ids(operations: list[tuple[str, str]]) -> list[str]:
    return [f"{verb} {path}" for verb, path in operations]


def uploaded(client: httpx.Client, kind: str) -> str:
    response = client.put(f"/{kind}s", content=zip_bytes(30) if kind != "mask" else MASK)
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


def job(client: httpx.Client) -> str:
    body = {
        "model": uploaded(client, "model"),
        "calibration": uploaded(client, "dataset"),
        "recipe": {"select": {"algorithm": "magnitude", "sparsity": 0.5}},
    }
    return str(client.post("/jobs", json=body).json()["id"])


MASK = (8).to_bytes(8, "little") + b"{}      "
#: The first part of a path -> makes something that its {id} may name, and returns the id.
MAKERS: dict[str, Callable[[httpx.Client], str]] = {
    "models": lambda client: uploaded(client, "model"),
    "datasets": lambda client: uploaded(client, "dataset"),
    "masks": lambda client: uploaded(client, "mask"),
    "uploads": lambda client: str(client.post("/uploads", json={"kind": "model", "size": 30}).json()["id"]),
    "jobs": job,
    "webhooks": lambda client: str(client.post("/webhooks", json={"url": "https://203.0.113.1.invalid/"}).json()["id"]),
    "keys": lambda client: str(client.post("/keys", json={"name": "k", "scope": "read"}).json()["id"]),
}


def call(client: httpx.Client, verb: str, path: str, item: str = NOBODYS) -> httpx.Response:
    content = DOCUMENT["paths"][path][verb].get("requestBody", {}).get("content", {})
    more: dict[str, Any] = {}
    if "application/json" in content:
        schema = content["application/json"]["schema"]
        named = DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        more["json"] = named["examples"][0]
    elif content:
        more["content"] = zip_bytes(30)
    request = client.build_request(verb, path.replace("{id}", item), **more)
    answer = client.send(request, stream=True)
    if "event-stream" not in answer.headers.get("content-type", ""):
        answer.read()
    answer.close()
    return answer


@pytest.mark.parametrize(("verb", "path"), GUARDED, ids=ids(GUARDED))
def test_without_a_valid_key_nothing_is_told(guarded: Api, verb: str, path: str) -> None:
    with httpx.Client(base_url=guarded.url) as nobody:
        refused = call(nobody, verb, path)
        problem(refused, 401, "unauthenticated")
        assert refused.headers["www-authenticate"] == 'Bearer realm="pruning-service"'
        nobody.headers["Authorization"] = f"Bearer prk_{NOBODYS}_{'0' * 64}"
        refused = call(nobody, verb, path)
        problem(refused, 401, "unauthenticated")
        assert 'error="invalid_token"' in refused.headers["www-authenticate"]


@pytest.mark.parametrize("path", sorted(OPEN))
def test_what_is_open(guarded: Api, path: str) -> None:
    assert httpx.get(guarded.url + path).status_code in ({200, 503} if path == "/readyz" else {200})


@pytest.mark.parametrize(("verb", "path"), GUARDED, ids=ids(GUARDED))
def test_a_key_does_what_its_scope_says(client_of: Calling, verb: str, path: str) -> None:
    scope = DOCUMENT["paths"][path][verb][SCOPE]
    assert DOCUMENT["paths"][path][verb]["security"] == [{"key": [scope]}]
    assert scope != "read" or verb == "get" or path == "/plans", "what changes something needs more than read"
    for own in SCOPES:
        answer = call(client_of("scopes", own), verb, path)
        if includes(own, scope):
            assert answer.status_code not in {401, 403}, answer.text
        else:
            document = problem(answer, 403, "insufficient-scope")
            assert (document["expected"], document["received"]) == (scope, own)
            assert f'error="insufficient_scope", scope="{scope}"' in answer.headers["www-authenticate"]


@pytest.mark.parametrize(("verb", "path"), OF_ITEMS, ids=ids(OF_ITEMS))
def test_an_id_of_another_tenant_is_unknown(client_of: Calling, verb: str, path: str) -> None:
    kind = path.split("/")[1]
    assert kind in MAKERS, f"say in MAKERS how to make what {path} names"
    owner, other = client_of("red", "admin"), client_of("blue", "admin")
    item = MAKERS[kind](owner)
    nobodys = item[: item.index("_") + 1] + NOBODYS
    foreign, unknown = call(other, verb, path, item), call(other, verb, path, nobodys)
    problem(foreign, 404, "not-found")
    assert foreign.text.replace(item, nobodys) == unknown.text, "it cannot be told from one that never was"
    assert call(owner, verb, path, item).status_code not in {401, 403, 404}, "the owner sees it"


def test_what_is_for_administrators() -> None:
    for path, operations in DOCUMENT["paths"].items():
        if path.startswith(("/keys", "/audit", "/metrics")):
            assert {operation[SCOPE] for operation in operations.values()} == {"admin"}, path


@pytest.mark.parametrize("path", LISTS)
def test_lists_show_nothing_of_another_tenant(client_of: Calling, path: str) -> None:
    owner, other = client_of("red", "admin"), client_of("blue", "admin")
    made = [make(owner) for make in MAKERS.values()]
    shown = other.get(path)
    assert shown.status_code == 200, shown.text
    assert not [item for item in made if item in shown.text]


def test_uploads_of_another_tenant_cannot_be_used(client_of: Calling) -> None:
    red, blue = client_of("red"), client_of("blue")
    recipe = {"select": {"algorithm": "magnitude", "sparsity": 0.5}}
    model, data = uploaded(blue, "model"), uploaded(red, "dataset")
    for path in ("/jobs", "/plans"):
        body = {"model": model, "calibration": data, "recipe": recipe}
        document = problem(red.post(path, json=body), 404, "not-found")
        assert document["field"] == "model"
