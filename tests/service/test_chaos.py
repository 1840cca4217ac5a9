"""A minute of chaos (`tests.chaos`): every kind of fault at least once, and no promise broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.faults import SHORT, WHOLE
from tests.chaos.run import chaos
from tests.chaos.stage import QUICK


@pytest.mark.timeout(300)
def test_no_job_is_lost_ends_twice_or_differs(tmp_path: Path) -> None:
    account = chaos(tmp_path, seed=3, jobs=24, counts=SHORT, settings=QUICK, workers=3, gap=1.7)
    print(account.table())
    assert account.accepted >= 24
    assert {strike.kind for strike in account.strikes} == set(WHOLE) - set(account.skipped)
    assert account.kills >= 9
    assert account.broken() == []
