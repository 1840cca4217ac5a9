"""The states a job went through, told by its record alone; so a client that was away misses none."""

from __future__ import annotations

from datetime import datetime

from jobs.records import JobView, View
from jobs.states import ENDED, JobState


class Change(View):
    """One change of state."""

    state: JobState
    at: datetime | None = None
    attempt: int = 0


def changes(view: JobView) -> list[Change]:
    """Return all changes of state so far, oldest first; the last is the state of now.

    The list only grows while a job moves on: the n-th entry stays what it is. (Unless a worker that was taken for dead
    speaks again: then the last entry, ``queued``, goes.)
    """
    found = [Change(state="queued", at=view.created_at)]
    for index, attempt in enumerate(view.attempts):
        found.append(Change(state="running", at=attempt.started_at, attempt=attempt.number))
        is_last = index == len(view.attempts) - 1
        if not is_last or attempt.closed or view.state == "queued":
            found.append(Change(state="queued", at=attempt.ended_at, attempt=attempt.number))
    if view.state in ENDED:
        found.append(Change(state=view.state, at=view.ended_at, attempt=view.attempt))
    return found
