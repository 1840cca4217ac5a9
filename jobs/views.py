"""From records to what the user sees: the bucket's record, and what Redis knows on top of it."""

from __future__ import annotations

import time
from typing import Any, cast

from jobs.clock import Clock, Down
from jobs.index import Index
from jobs.ledger import Item, Ledger
from jobs.records import InputView, JobView, UploadView
from jobs.states import JobState, UploadState

_LOOKED_AHEAD = 1000


class Views:
    """Makes views. Answers from the bucket alone when Redis is down."""

    def __init__(self, ledger: Ledger, clock: Clock, index: Index) -> None:
        self._ledger, self._clock, self._index = ledger, clock, index

    def job(self, item: Item) -> JobView:
        """Return the view of a job."""
        request, outcome = item.request, item.outcome or {}
        state = cast(JobState, item.state(self._leased(item)))
        current = self._moving(item, state)
        started = outcome.get("started_at") or (item.attempts[-1].started_at if item.attempts else None)
        return JobView.model_validate(
            {
                "id": item.id,
                "state": state,
                "progress": 1.0 if state == "succeeded" else 0.0,
                **current,
                "attempt": max((attempt.number for attempt in item.attempts), default=0),
                "attempts": item.attempts,
                "created_at": request["created_at"],
                "started_at": started,
                "ended_at": outcome.get("ended_at"),
                "model": request["model"],
                "calibration": request["calibration"],
                "validation": request.get("validation"),
                "masks": request.get("masks"),
                "inputs": {
                    field: {name: known[name] for name in InputView.model_fields}
                    for field, known in request.get("inputs", {}).items()
                },
                "recipe": request["recipe"],
                "labels": request.get("labels", {}),
                "error": outcome.get("problem"),
                "result": outcome.get("result"),
            }
        )

    def upload(self, item: Item) -> UploadView:
        """Return the view of an upload."""
        request, outcome = item.request, item.outcome or {}
        return UploadView(
            id=item.id,
            kind=request["kind"],
            state=cast(UploadState, item.state(leased=None)),
            filename=request.get("filename"),
            format_hint=request.get("format_hint"),
            size=request["size"],
            sha256=request["sha256"],
            created_at=request["created_at"],
            problem=outcome.get("problem"),
            inspection=outcome.get("result"),
        )

    def _leased(self, item: Item) -> bool | None:
        if item.outcome is not None:
            return False
        try:
            return bool(self._clock.leased([item.id]))
        except Down:
            return None

    def _moving(self, item: Item, state: JobState) -> dict[str, Any]:
        try:
            if state == "running":
                return moving(self._clock.progress(item.id))
            if state == "queued":
                older = self._index.open("job", before=item.id, limit=_LOOKED_AHEAD)
                beyond = self._index.count_open("job", before=item.id) - len(older)
                return {"queue_position": 1 + len(older) - len(self._clock.leased(older)) + max(beyond, 0)}
        except Down:
            pass
        return {}


def moving(known: dict[str, str]) -> dict[str, Any]:
    """Return what a view shows of a running job's progress in Redis; nothing if there is none."""
    if not {"stage", "fraction", "started"} <= known.keys():
        return {}
    fraction, elapsed = float(known["fraction"]), time.time() - float(known["started"])
    # Too early, the elapsed time says nothing about the rest.
    eta = round(elapsed * (1 - fraction) / fraction, 1) if fraction >= 0.02 else None
    return {"stage": known["stage"], "progress": fraction, "eta_seconds": eta}
