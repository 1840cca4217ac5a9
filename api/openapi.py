"""The OpenAPI document, and a page that shows it without loading anything from elsewhere."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.responses import HTMLResponse, RedirectResponse, Response

from api.auth import OPEN, SCOPE, scope_of
from api.docs_page import page
from api.documents import Job, JobRequest, Upload
from api.errors import InsufficientScope, RateLimited, Unauthenticated
from api.keys import KeyRequest
from api.negotiation import names
from api.parts import CompleteRequest, Parts, PartsRequest, PartUrls, UrlsRequest
from api.plans import PlanRequest
from api.problems import MEDIA_TYPE, SCHEMA, responses
from api.recipe_schema import recipe_schema
from api.webhooks import WebhookRequest
from pruning_core.report import Report

router = APIRouter(include_in_schema=False)

_REF = "#/components/schemas/{model}"
_UNEXPECTED = {
    "description": "A problem of another kind, such as `unknown-host`, `foreign-origin` or `internal`.",
    "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
}


@cache
def version() -> str:
    """Return the version of this package."""
    try:
        return installed("pruning-service")
    except PackageNotFoundError:
        return "0"


def install(app: FastAPI, *, keys: bool) -> None:
    """Let the app describe itself with what FastAPI cannot see: problems, recipe, report, keys.

    Args:
        app: The app.
        keys: Whether calls need a key; the scopes are shown in any case.
    """

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(
                get_openapi(
                    title=app.title,
                    version=app.version,
                    description=app.description,
                    license_info=app.license_info,
                    routes=app.routes,
                )
            )
            _secure(app.openapi_schema, keys)
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]


@router.get("/docs", response_class=HTMLResponse)
def docs(request: Request) -> HTMLResponse:
    """Show every call on one page of plain HTML."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    return HTMLResponse(page(request.app.openapi()), headers={"Content-Security-Policy": policy})


@router.get("/", response_class=Response)
def root(request: Request) -> Response:
    """Send a browser to the pages; who does not ask for HTML gets what is shown at /docs."""
    if names(request.headers.get("accept"), "text/html"):
        return RedirectResponse("/ui", 303, headers={"Vary": "Accept"})
    shown = docs(request)
    shown.headers["Vary"] = "Accept"
    return shown


def _complete(document: dict[str, Any]) -> dict[str, Any]:
    schemas = document["components"]["schemas"]
    # FastAPI documents its own error body, which is never sent here.
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    schemas["Problem"] = SCHEMA
    _add(schemas, "Recipe", recipe_schema())
    _add(schemas, "Report", Report.model_json_schema())
    # FastAPI leaves out every null, also those of examples.
    for answer in (Upload, Job, Parts, PartUrls):
        _add(schemas, answer.__name__, answer.model_json_schema(mode="serialization"))
    _add(schemas, "JobRequest", JobRequest.model_json_schema())
    for parts_request in (PartsRequest, UrlsRequest, CompleteRequest):
        _add(schemas, parts_request.__name__, parts_request.model_json_schema())
    _add(schemas, "PlanRequest", PlanRequest.model_json_schema())
    _add(schemas, "KeyRequest", KeyRequest.model_json_schema())
    _add(schemas, "WebhookRequest", WebhookRequest.model_json_schema())
    for request in ("JobRequest", "PlanRequest"):
        schemas[request]["properties"]["recipe"] = {"$ref": _REF.format(model="Recipe")}
    for operations in document["paths"].values():
        for operation in operations.values():
            invalid = operation["responses"].get("422", {}).get("content", {})
            if "application/json" in invalid:
                del operation["responses"]["422"]
            operation["responses"]["default"] = _UNEXPECTED
    return document


def _secure(document: dict[str, Any], keys: bool) -> None:
    """Say of each call which scope it needs, and how it is refused without."""
    document["components"]["securitySchemes"] = {
        "key": {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "prk_<id>_<secret>",
            "description": "An API key. Needed where the service runs with PRUNING_API_KEYS=required; without, it "
            "answers its own machine only, and needs none. Scopes: read, write, admin; each includes those before it.",
        }
    }
    for path, operations in document["paths"].items():
        for verb, operation in operations.items():
            if path in OPEN:
                operation["security"] = []
                continue
            scope = operation.setdefault(SCOPE, scope_of(verb))
            if keys:
                operation["security"] = [{"key": [scope]}]
            for status, described in responses(Unauthenticated, InsufficientScope, RateLimited).items():
                operation["responses"].setdefault(str(status), described)


def _add(schemas: dict[str, Any], name: str, schema: dict[str, Any]) -> None:
    """Put a schema and what it defines among the components."""
    moved: dict[str, Any] = _moved(schema)
    schemas |= moved.pop("$defs", {})
    schemas[name] = moved


def _moved(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _REF.format(model=item.rpartition("/")[2])
            if key == "$ref" and item.startswith("#/$defs/")
            else _moved(item)
            for key, item in value.items()
        }
    return [_moved(item) for item in value] if isinstance(value, list) else value
