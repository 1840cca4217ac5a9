"""A worker whose jobs always kill a process: the sandboxed one, or the pool child that supervises it."""

from __future__ import annotations

import os
import signal
from functools import partial
from typing import Any

from jobs.queue import celery_app
from jobs.service import Service
from jobs.settings import Settings
from worker import sandbox
from worker.lifecycle import Lifecycle
from worker.tasks import register


def kill_supervisor(*_: Any, **__: Any) -> sandbox.Result:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


RUNNERS = {"sandbox": partial(sandbox.run, module="tests.jobs.poison"), "supervisor": kill_supervisor}

settings = Settings()
lifecycle = Lifecycle(settings)
lifecycle.connect()
app = celery_app(settings)
register(app, Service(settings), lifecycle.stopping, RUNNERS[os.environ.get("POISON", "sandbox")])
