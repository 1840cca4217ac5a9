"""The life of a worker process: signs of life, the reconciler, and a stop that hands the running job back.

The main process tells its pool children to stop through a pipe: it closes its end, and they read the end of file.
That also works when a signal reaches only the main process, as from ``docker stop``.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

from celery import signals

from jobs import tracing
from jobs.clock import Down
from jobs.service import Service
from jobs.settings import Settings
from jobs.workers import report
from worker import sandbox
from worker.scratch import sweep

logger = logging.getLogger(__name__)


class Lifecycle:
    """What a worker does beside its tasks. Made once, before the pool forks."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._read_end, self._write_end = -1, -1
        self._terminated = threading.Event()
        self._busy = False
        self._ended = threading.Event()

    def connect(self) -> None:
        """Have Celery call this object's methods."""
        signals.worker_init.connect(self._init, weak=False)
        signals.worker_ready.connect(self._ready, weak=False)
        signals.worker_shutting_down.connect(self._shutting_down, weak=False)
        signals.worker_shutdown.connect(self._shutdown, weak=False)
        signals.worker_process_init.connect(self._child_init, weak=False)
        signals.task_prerun.connect(self._prerun, weak=False)
        signals.task_postrun.connect(self._postrun, weak=False)

    def stopping(self) -> bool:
        """Return whether this worker was told to stop (asked in a pool child)."""
        if self._terminated.is_set():
            return True
        return self._read_end >= 0 and bool(select.select([self._read_end], [], [], 0)[0])

    # -- main process ----------------------------------------------------------------------------------------------

    def _init(self, **_: Any) -> None:
        self._read_end, self._write_end = os.pipe()
        removed = sweep(self._settings.work_dir)
        if removed:
            logger.info("removed scratch folders of dead processes count=%d", removed)

    def _ready(self, sender: Any, **_: Any) -> None:
        queues = list(sender.app.amqp.queues.consume_from)
        about = (str(sender.hostname), queues)
        threading.Thread(target=self._keep, args=about, name="keeper", daemon=True).start()

    def _shutting_down(self, **_: Any) -> None:
        self._ended.set()
        if self._write_end >= 0:
            os.close(self._write_end)
            self._write_end = -1

    def _shutdown(self, **_: Any) -> None:
        self._ended.set()

    def _keep(self, name: str, queues: list[str]) -> None:
        service = Service(self._settings)
        sender = service.sender()
        sender.start()
        pause = min(self._settings.heartbeat_seconds, self._settings.reconcile_seconds)
        while not self._ended.wait(pause):
            try:
                with suppress(Down):
                    report(service.clock, name, queues, self._settings.work_dir)
                service.reconcile()
            except Exception:
                # A defect here must not silently end the recovery of jobs.
                logger.exception("the keeper failed; it goes on")
        sender.stop(self._settings.shutdown_seconds / 2)
        service.close()

    # -- pool child ------------------------------------------------------------------------------------------------

    def _child_init(self, **_: Any) -> None:
        if self._write_end >= 0:
            os.close(self._write_end)
            self._write_end = -1
        # Celery has the kernel kill this child when its parent dies, so a killed worker leaves no orphan; the
        # parent may have died before that was set.
        if os.getppid() == 1 and os.getpid() != 1 and self._read_end >= 0 and self.stopping():
            os._exit(1)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        tracing.configure(self._settings.traces, "worker")
        sandbox.warm()

    def _prerun(self, **_: Any) -> None:
        self._busy = True

    def _postrun(self, **_: Any) -> None:
        self._busy = False

    def _on_sigterm(self, _number: int, _frame: FrameType | None) -> None:
        # Where a signal goes to the whole group: hand the job back rather than die with it.
        if not self._busy:
            os._exit(0)
        self._terminated.set()
