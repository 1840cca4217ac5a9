"""Each limit ends a job as `failed`, at the first attempt, with a problem that names the limit and the way out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.jobs.cluster import Cluster, cluster
from tests.jobs.inputs import digits, mlpnet

#: Long enough for every limit to be met in the middle of it.
LONG = {"select": {"algorithm": "gradual", "sparsity": [0.5, 0.6, 0.7, 0.8, 0.9]}}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("limits")) as servers:
        yield servers


@pytest.fixture(scope="module")
def job(running: Cluster) -> dict[str, Any]:
    model = running.service.create_upload("model", iter([mlpnet()]), filename="mlpnet.safetensors")
    # 78 MB once it is inflated
    dataset = running.service.create_upload("dataset", iter([digits(25_000)]), filename="digits.npz")
    return {"model": model.id, "calibration": dataset.id, "validation": None, "recipe": LONG}


@pytest.mark.parametrize(
    ("variable", "value", "limit", "words"),
    [
        ("PRUNING_JOB_MEMORY_BYTES", 256 * 2**20, "memory_bytes", "more memory than its limit of 268,435,456 bytes"),
        ("PRUNING_JOB_CPU_SECONDS", 1, "cpu_seconds", "more CPU time than its limit of 1 seconds"),
        ("PRUNING_JOB_FILE_BYTES", 20_000, "file_bytes", "to write a file larger than its limit of 20,000 bytes"),
        ("PRUNING_JOB_WALL_SECONDS", 1.0, "wall_seconds", "longer than its limit of 1.0 seconds"),
    ],
)
def test_a_limit_is_named(
    running: Cluster, job: dict[str, Any], variable: str, value: float, limit: str, words: str
) -> None:
    with running.worker(limit, queues="jobs", **{variable: str(value)}):
        view = running.wait(running.service.create_job(**job)[0].id)
    assert (view.state, view.attempt) == ("failed", 1), view
    assert view.error is not None
    assert view.error["type"].endswith(":limit-exceeded")
    assert (view.error["limit"], view.error["value"]) == (limit, value)
    assert words in view.error["detail"]
    assert view.error["advice"]
