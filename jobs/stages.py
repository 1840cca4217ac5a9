"""The stages of one attempt, as they follow each other: how long each took, for metrics and traces."""

from __future__ import annotations

import time
from typing import Any

from jobs import tracing
from jobs.metrics import Metrics, stage_name


class Stages:
    """One stage at a time. Used by one thread."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._stage: str | None = None
        self._began = 0.0
        self._span: Any = None

    def enter(self, stage: str) -> None:
        """Begin a stage, unless it runs already; the one before has ended."""
        stage = stage_name(stage)
        if stage != self._stage:
            self.end()
            self._stage, self._began, self._span = stage, time.monotonic(), tracing.begin(stage)

    def end(self) -> None:
        """End the last stage."""
        if self._stage is not None:
            self._metrics.observe("pruning_stage_seconds", time.monotonic() - self._began, stage=self._stage)
            tracing.end(self._span)
            self._stage = self._span = None
