"""Ids sort by time, carry their kind, and nothing else passes for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import layout
from jobs.ids import KINDS, is_id, kind_of, new_id


def test_sorted_and_distinct() -> None:
    ids = [new_id("job") for _ in range(10_000)]
    assert ids == sorted(set(ids))


@pytest.mark.parametrize("kind", KINDS)
def test_kind(kind) -> None:
    item = new_id(kind)
    assert kind_of(item) == kind
    assert [is_id(other, item) for other in KINDS] == [other == kind for other in KINDS]
    assert layout.request(item) == f"{kind}s/{item}/request.json"


@given(st.text() | st.text().map("job_".__add__) | st.from_regex(r"job_[0-9A-Z]{26}", fullmatch=True))
def test_anything_else_is_no_id(text: str) -> None:
    well_formed = len(text) == 30 and text[4] in "01234567" and not set(text[4:]) & set("ILOU")
    if is_id("job", text):
        assert well_formed
        assert text.isascii()
        assert "/" not in text
    else:
        with pytest.raises(ValueError, match="not an id"):
            kind_of(text)


@pytest.mark.parametrize(
    "text", ["job_" + "0" * 25 + "\n", "job_" + "8" + "0" * 25, "JOB_" + "0" * 26, "job_../../../etc/passwd"]
)
def test_near_misses(text: str) -> None:
    assert not is_id("job", text)
