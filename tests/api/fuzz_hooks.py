"""What schemathesis needs to know to get beyond 404: ids that exist. Loaded by it, see test_schema_fuzz.py."""

from __future__ import annotations

import json
import os
import zlib
from typing import Any

import schemathesis

#: First part of a path -> an id of that kind that exists.
SEEDED: dict[str, str] = json.loads(os.environ["FUZZ_SEEDED"])
_FIELDS = {"model": "models", "calibration": "datasets", "validation": "datasets", "masks": "masks"}


@schemathesis.hook
def map_case(context: schemathesis.HookContext, case: schemathesis.Case) -> schemathesis.Case:
    """Put an id that exists in the place of about half of those that do not; what is there is not deleted."""
    kind = case.path.split("/")[1]
    given = (case.path_parameters or {}).get("id")
    if isinstance(given, str) and kind in SEEDED and case.method.upper() != "DELETE" and zlib.crc32(given.encode()) % 2:
        case.path_parameters["id"] = SEEDED[kind]
    if isinstance(case.body, dict) and case.path in ("/jobs", "/plans"):
        case.body = {name: _existing(name, value) for name, value in case.body.items()}
    return case


@schemathesis.hook
def filter_failure(context: schemathesis.HookContext, failure: Any, case: schemathesis.Case, response: Any) -> bool:
    """Accept the one 5xx that is an answer (no worker runs here, says ``/readyz``), and the seeded report."""
    kind = type(failure).__name__
    unready = case.path == "/readyz" and response.status_code == 503 and kind == "ServerError"
    return not unready and not (case.path == "/jobs/{id}/report" and kind == "JsonSchemaError")


def _existing(name: str, value: Any) -> Any:
    return SEEDED[_FIELDS[name]] if name in _FIELDS and isinstance(value, str) else value
