"""The state machines: every pair of state and event is legal or refused, as this table says."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.ids import KINDS, UPLOAD_KINDS
from jobs.states import ENDED, Event, IllegalMove, JobState, UploadState, after, first

JOB = {
    "queued": {"start": "running", "fail": "failed", "cancel": "cancelled"},
    "running": {"requeue": "queued", "succeed": "succeeded", "fail": "failed", "cancel": "cancelled"},
}
UPLOAD = {"inspecting": {"start": "inspecting", "requeue": "inspecting", "succeed": "ready", "fail": "rejected"}}
EVENTS = get_args(Event)
PAIRS = [
    *((kind, s, e, JOB) for kind in ("job",) for s, e in itertools.product(get_args(JobState), EVENTS)),
    *((k, s, e, UPLOAD) for k in UPLOAD_KINDS for s, e in itertools.product(get_args(UploadState), EVENTS)),
]


@pytest.mark.parametrize(("kind", "state", "event", "table"), PAIRS)
def test_every_move(kind, state, event, table) -> None:
    expected = table.get(state, {}).get(event)
    if expected is not None:
        assert after(kind, state, event) == expected
        return
    with pytest.raises(IllegalMove) as caught:
        after(kind, state, event)
    assert caught.value.expected == sorted(table.get(state, {}))


@given(st.sampled_from(KINDS), st.lists(st.sampled_from(EVENTS), max_size=30))
def test_an_ended_item_never_moves(kind, events) -> None:
    state, ends = first(kind), 0
    for event in events:
        try:
            moved = after(kind, state, event)
        except IllegalMove:
            continue
        assert state not in ENDED
        ends += moved in ENDED
        state = moved
    assert ends <= 1
