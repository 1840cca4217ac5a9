"""The worker's Celery app: ``celery -A worker.app worker -Q jobs`` (or ``-Q inspections``)."""

from __future__ import annotations

from celery import signals

from jobs import logs
from jobs.queue import celery_app
from jobs.service import Service
from jobs.settings import Settings
from worker.lifecycle import Lifecycle
from worker.tasks import register

settings = Settings()
lifecycle = Lifecycle(settings)
lifecycle.connect()
# With a receiver for this signal Celery leaves logging alone.
signals.setup_logging.connect(lambda **_: logs.configure(settings.log_format, settings.log_level), weak=False)
app = celery_app(settings)
register(app, Service(settings), lifecycle.stopping)
