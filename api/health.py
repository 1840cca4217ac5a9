"""Is it alive, is it ready."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from pydantic import Field

from api.documents import Answer
from api.problems import MEDIA_TYPE
from api.services import WholeService
from jobs.errors import Unavailable

router = APIRouter(tags=["health"])


class Alive(Answer):
    """The api process answers."""

    status: Literal["ok"] = "ok"


class Part(Answer):
    """One thing that the service needs."""

    ready: bool
    detail: str
    advice: str | None = Field(description="What to do, where it is not ready.")


class Ready(Answer):
    """Every part answers."""

    status: Literal["ready"] = "ready"
    checks: dict[str, bool] = Field(description="The same as `parts`, in short.")
    parts: dict[str, Part] = Field(
        description="`bucket`, `redis`, for each queue a `worker:…` and room on its `disk:…`, and the `clocks`."
    )


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
            "description": "Something is missing; `parts` says what, and what to do.",
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
    },
)
def readyz(service: WholeService, response: Response) -> Ready:
    """Ask the bucket, Redis, the workers of each queue (also for room on their disks), and the clocks."""
    response.headers["Cache-Control"] = "no-store"
    parts = {part.name: Part(ready=part.ready, detail=part.detail, advice=part.advice) for part in service.ready()}
    checks = {name: part.ready for name, part in parts.items()}
    missing = [name for name, part in parts.items() if not part.ready]
    if missing:
        raise Unavailable(
            " ".join([f"Not ready: {', '.join(missing)}.", *(parts[name].detail for name in missing)]),
            expected="an answer from every part",
            received=", ".join(f"no {name}" for name in missing),
            advice=" ".join(parts[name].advice or "" for name in missing).strip(),
            checks=checks,
            parts={name: part.model_dump(exclude_none=True) for name, part in parts.items()},
        )
    return Ready(checks=checks, parts=parts)
