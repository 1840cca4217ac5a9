"""The threads that make the bucket when there is none, and run reconciler and sweeper for as long as the api lives."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from jobs.errors import Unavailable
from jobs.service import Service

log = logging.getLogger("api")

_RETRY_SECONDS = 0.5
#: How often it is asked whether a round of the sweeper is due; the last one may have been another process's.
_SWEEP_LOOK_SECONDS = 60.0


class Upkeep:
    """Starts with the app and ends with it."""

    def __init__(self, service: Service, *, first: Callable[[], None] = lambda: None) -> None:
        """Make the threads.

        Args:
            service: Whose bucket and reconciler.
            first: Called once, when the bucket is there.
        """
        self._service, self._first = service, first
        self._sender = service.sender()
        self._stop = threading.Event()
        # A round of the sweeper may take minutes; recovery of jobs does not wait for it.
        self._threads = [
            threading.Thread(target=self._run, name="upkeep", daemon=True),
            threading.Thread(target=self._sweep, name="sweeper", daemon=True),
        ]

    def start(self) -> None:
        """Start; returns at once, also while the bucket's server is not up yet."""
        for thread in self._threads:
            thread.start()
        self._sender.start()

    def stop(self, seconds: float) -> None:
        """Let the current round end."""
        self._stop.set()
        self._service.sweeper.stop()
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
        self._sender.stop(seconds)

    def _run(self) -> None:
        self._make_bucket()
        with suppress(Unavailable):
            self._first()
        while not self._stop.wait(self._service.settings.reconcile_seconds):
            try:
                self._service.reconcile()
            except Exception:
                # A round that fails must not end all rounds: jobs would wait for ever.
                log.exception("reconcile failed")

    def _sweep(self) -> None:
        settings = self._service.settings
        while not self._stop.wait(min(settings.sweep_seconds, _SWEEP_LOOK_SECONDS)):
            try:
                self._service.sweeper.tick()
            except Exception:
                log.exception("sweep failed")

    def _make_bucket(self) -> None:
        told = False
        while not self._stop.is_set():
            try:
                self._service.bucket.ensure()
            except Unavailable as error:
                if not told:
                    log.warning("waiting for the bucket: %s", error.detail)
                told = True
                self._stop.wait(_RETRY_SECONDS)
            else:
                return
