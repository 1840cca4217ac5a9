"""Is it alive, is it ready."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response

from api.documents import Answer
from api.problems import MEDIA_TYPE
from api.services import WholeService
from jobs.errors import Unavailable

router = APIRouter(tags=["health"])


class Alive(Answer):
    """The api process answers."""

    status: Literal["ok"] = "ok"


class Ready(Answer):
    """Every part answers."""

    status: Literal["ready"] = "ready"
    checks: dict[str, bool]


@router.get("/healthz", summary="Liveness", operation_id="healthz")
async def healthz() -> Alive:
    """Answers as long as the process does; looks at nothing else."""
    return Alive()


@router.get(
    "/readyz",
    summary="Readiness",
    operation_id="readyz",
    responses={
        503: {
            "description": "A part does not answer; `checks` says which.",
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
    },
)
def readyz(service: WholeService, response: Response) -> Ready:
    """Asks the bucket, Redis, and whether a live worker serves each queue."""
    response.headers["Cache-Control"] = "no-store"
    checks = service.ready()
    missing = sorted(name for name, answers in checks.items() if not answers)
    if missing:
        raise Unavailable(
            f"Not ready: no answer from {', '.join(missing)}.",
            expected="an answer from every part",
            received=", ".join(f"no {name}" for name in missing),
            advice="Jobs and uploads are kept while a worker is missing; the operator's log says why it is.",
            checks=checks,
        )
    return Ready(checks=checks)
