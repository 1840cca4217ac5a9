"""What the caller's tenant uses, beside its limits."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import Field

from api.documents import Answer
from api.problems import responses
from api.services import WithService
from jobs.errors import Unavailable
from jobs.quotas import Limits

router = APIRouter(tags=["keys"])


class Used(Answer):
    """What a tenant uses of each quota."""

    stored_bytes: int = Field(description="Of uploads and results; each upload counts, also where two are the same.")
    open_jobs: int = Field(description="Queued or running.")
    jobs_per_day: int = Field(description="Made since midnight UTC; counted where there is a limit.")
    pruning_seconds_per_month: float = Field(description="Of jobs that ended in this calendar month (UTC).")


class Usage(Answer):
    """Limits of a tenant, and what it uses of them."""

    tenant: str
    limits: Limits
    used: Used


@router.get("/usage", summary="What your tenant uses", operation_id="usage", responses=responses(Unavailable))
def usage(service: WithService) -> Usage:
    """Count what is used; right also after a crash or a wiped Redis, to a few seconds."""
    quotas, tenant = service.quotas, service.tenant
    return Usage(tenant=tenant, limits=quotas.limits(tenant), used=Used.model_validate(quotas.used(tenant)))
