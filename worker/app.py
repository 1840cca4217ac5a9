"""The worker's Celery app: ``celery -A worker.app worker -Q jobs`` (or ``-Q inspections``)."""

from __future__ import annotations

from jobs.queue import celery_app
from jobs.service import Service
from jobs.settings import Settings
from worker.lifecycle import Lifecycle
from worker.tasks import register

settings = Settings()
lifecycle = Lifecycle(settings)
lifecycle.connect()
app = celery_app(settings)
register(app, Service(settings), lifecycle.stopping)
