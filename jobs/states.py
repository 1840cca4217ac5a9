"""The states of jobs and uploads, and the only moves between them."""

from __future__ import annotations

from typing import Literal

from jobs.ids import UPLOAD_KINDS, Kind
from pruning_core.errors import PruningError

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
UploadState = Literal["inspecting", "ready", "rejected"]
State = Literal["queued", "running", "succeeded", "failed", "cancelled", "inspecting", "ready", "rejected"]
Event = Literal[
    "start",  # a worker claimed it
    "requeue",  # the worker died, or gave it back
    "succeed",
    "fail",
    "cancel",
]

_JOB: dict[tuple[State, Event], State] = {
    ("queued", "start"): "running",
    ("queued", "fail"): "failed",  # all attempts were lost
    ("queued", "cancel"): "cancelled",
    ("running", "requeue"): "queued",
    ("running", "succeed"): "succeeded",
    ("running", "fail"): "failed",
    ("running", "cancel"): "cancelled",
}
# An upload is inspecting from its first moment, also while it waits for a worker or for another attempt.
_UPLOAD: dict[tuple[State, Event], State] = {
    ("inspecting", "start"): "inspecting",
    ("inspecting", "requeue"): "inspecting",
    ("inspecting", "succeed"): "ready",
    ("inspecting", "fail"): "rejected",
}
_MOVES: dict[Kind, dict[tuple[State, Event], State]] = {"job": _JOB, **dict.fromkeys(UPLOAD_KINDS, _UPLOAD)}
_FIRST: dict[Kind, State] = {"job": "queued", **dict.fromkeys(UPLOAD_KINDS, "inspecting")}

ENDED: frozenset[str] = frozenset({"succeeded", "failed", "cancelled", "ready", "rejected"})


class IllegalMove(PruningError):  # noqa: N818
    """An item cannot go from this state through this event."""

    slug = "illegal-move"
    title = "Illegal state change"
    status = 409


def first(kind: Kind) -> State:
    """Return the state in which an item of this kind begins."""
    return _FIRST[kind]


def after(kind: Kind, state: State, event: Event) -> State:
    """Return the state that follows.

    >>> after("job", "queued", "start")
    'running'

    Raises:
        IllegalMove: There is no such move; an ended item never moves again.
    """
    try:
        return _MOVES[kind][state, event]
    except KeyError:
        allowed = sorted(move for at, move in _MOVES[kind] if at == state)
        raise IllegalMove(f"A {kind} that is {state!r} cannot {event}.", expected=allowed, received=event) from None
