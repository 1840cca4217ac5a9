"""What the endpoints share: the service, the settings, and the limits on concurrent transfers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import anyio
from fastapi import Depends, Path, Request

from api.auth import Caller, caller, in_loop
from api.rates import Rates
from api.settings import ApiSettings
from api.transfers import Shares
from api.watching import Streams, Watcher
from jobs.audit import Audit
from jobs.keys import Keys
from jobs.service import Service
from jobs.settings import Settings
from jobs.tenants import DEFAULT


@dataclass(frozen=True, kw_only=True)
class Context:
    """Made when the app starts; the same for every request, but for whom the service acts."""

    service: Service
    keys: Keys
    rates: Rates
    audit: Audit
    settings: Settings
    api: ApiSettings
    uploads: anyio.CapacityLimiter
    shares: Shares
    downloads: anyio.CapacityLimiter
    watcher: Watcher
    streams: Streams


def context(request: Request) -> Context:
    """Return what the running app was started with; its service acts for the caller's tenant."""
    found: Context = request.app.state.context
    tenant = caller(request).tenant
    return found if tenant == DEFAULT else replace(found, service=found.service.of(tenant))


def service(request: Request) -> Service:
    """Return the use cases, as the caller's tenant."""
    return context(request).service


def whole(request: Request) -> Service:
    """Return the service for calls that are nobody's in particular, such as readiness."""
    found: Context = request.app.state.context
    return found.service


WithContext = Annotated[Context, Depends(in_loop(context))]
WithService = Annotated[Service, Depends(in_loop(service))]
WholeService = Annotated[Service, Depends(in_loop(whole))]
WithCaller = Annotated[Caller, Depends(in_loop(caller))]
JobId = Annotated[str, Path(description="Id of a job.", examples=["job_01JD3Z8Q9W3V6Y6T0B1C2D3E4F"])]
