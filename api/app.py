"""Put the front end together. ``uvicorn api.app:app``, or ``python -m api`` with the settings of the environment."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import anyio
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from api import (
    algorithms,
    artifacts,
    audit,
    events,
    health,
    jobs,
    keys,
    metrics,
    openapi,
    pages_jobs,
    pages_new,
    pages_sign_in,
    parts,
    plans,
    problems,
    quotas,
    uploads,
    webhooks,
)
from api.access_log import AccessLog
from api.auth import Authenticate, Authorised
from api.guard import Guard, Linger, PlainPaths
from api.rates import Rates
from api.services import Context
from api.settings import ApiSettings
from api.transfers import Shares
from api.upkeep import Upkeep
from api.watching import Streams, Watcher
from jobs.audit import Audit
from jobs.keys import Keys
from jobs.service import Service
from jobs.settings import Settings

log = logging.getLogger("api")


def create_app(settings: Settings | None = None, api_settings: ApiSettings | None = None) -> FastAPI:
    """Return a new app. Nothing is connected before it starts.

    Args:
        settings: What api and worker share; default: the environment's, read when the app starts.
        api_settings: The front end's own; default: the environment's.
    """
    own = api_settings or ApiSettings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = await run_in_threadpool(Service, settings or Settings())
        watcher = Watcher(service.clock, service.index)
        app.state.context = Context(
            service=service,
            keys=Keys(service.bucket, service.clock),
            rates=Rates(service.settings.redis_url, service.settings.redis_timeout),
            audit=Audit(service.bucket),
            settings=service.settings,
            api=own,
            uploads=anyio.CapacityLimiter(own.max_transfers),
            shares=Shares(own.max_transfers_per_tenant),
            downloads=anyio.CapacityLimiter(own.max_transfers),
            watcher=watcher,
            streams=Streams(own.max_streams, own.max_streams_per_tenant),
        )
        upkeep = Upkeep(service, first=partial(_look_for_keys, app.state.context))
        upkeep.start()
        app.state.context.audit.start()
        watching = asyncio.create_task(watcher.run())
        try:
            yield
        finally:
            watching.cancel()
            await app.state.context.rates.close()
            await run_in_threadpool(app.state.context.audit.stop, own.shutdown_seconds)
            await run_in_threadpool(upkeep.stop, own.shutdown_seconds)
            await run_in_threadpool(service.close)

    app = FastAPI(
        title="pruning-service",
        version=openapi.version(),
        description="Send a trained network, get it back sparse.",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=lifespan,
        # FastAPI's pages load their scripts from a CDN; api.openapi has one that needs none.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Authorised],
    )
    routers = (
        *uploads.routers(),
        *(plans.router, jobs.router, events.router, artifacts.router, webhooks.router),
        *(keys.router, quotas.router, audit.router),
        parts.router,
        *(algorithms.router, health.router, metrics.router, openapi.router),
        # The last has what answers for every other path below /ui.
        *(pages_sign_in.router, pages_new.router, pages_jobs.router),
    )
    for router in routers:
        app.include_router(router)
    problems.install(app, [route for router in routers for route in router.routes])
    openapi.install(app, keys=own.keys_required)
    # The last one added is the outermost.
    app.add_middleware(audit.Auditing)
    app.add_middleware(Authenticate, settings=own)
    app.add_middleware(PlainPaths)
    app.add_middleware(Guard, settings=own)
    app.add_middleware(problems.LastResort)
    app.add_middleware(Linger)
    app.add_middleware(AccessLog)
    return app


def _look_for_keys(context: Context) -> None:
    if context.api.keys_required and not context.keys.any():
        log.warning("keys are required, and there are none yet; make the first: python -m cli.keys create --help")


app = create_app()
