"""``GET /metrics``: what all processes counted, and how things stand at this moment, as Prometheus reads it."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from api.auth import ADMIN
from api.openapi import version
from api.services import WholeService

router = APIRouter(tags=["health"])


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    description="Of the whole service, whichever front end answers: scrape one address, not each process. Counters "
    "begin at zero again when Redis was wiped.",
    operation_id="metrics",
    response_class=Response,
    responses={
        200: {
            "description": "The text format, or OpenMetrics where `Accept` asks for it.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        }
    },
    openapi_extra={**ADMIN},
)
def metrics(request: Request, service: WholeService) -> Response:
    """Collect and write."""
    from api.exposition import exposition

    text, media_type = exposition(service, version(), request.headers.get("accept", ""))
    return Response(text, media_type=media_type, headers={"Cache-Control": "no-store"})
