"""The two Celery tasks: thin supervisors, one sandboxed process each."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from celery import Celery

from jobs.queue import RUN_INSPECTION, RUN_JOB
from jobs.service import Service
from worker import sandbox
from worker.supervisor import Runner, Supervisor


def register(app: Celery, service: Service, stopping: Callable[[], bool], runner: Runner = sandbox.run) -> None:
    """Add the tasks to the app.

    Args:
        app: The Celery app.
        service: Used by pool children only: it has no open connection when they are forked.
        stopping: Whether the worker was told to stop.
        runner: Runs a task in the sandbox.
    """

    def supervise(task: Any, item: str) -> str:
        worker = task.request.hostname or socket.gethostname()
        return Supervisor(service, worker=worker, stopping=stopping, runner=runner).supervise(item)

    @app.task(name=RUN_JOB, bind=True)
    def run_job(task: Any, item: str) -> str:
        """Prune."""
        return supervise(task, item)

    @app.task(name=RUN_INSPECTION, bind=True)
    def run_inspection(task: Any, item: str) -> str:
        """Inspect an upload."""
        return supervise(task, item)
