"""What is killed, wiped or sent twice changes nothing: every job ends exactly once, with the same bytes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from jobs import layout
from jobs.records import JobView
from tests.jobs.cluster import Cluster, cluster, eventually
from tests.jobs.inputs import digits, mlpnet

#: Nothing is chosen on held-out data: these tests want a job with a middle, not the best model.
QUICK = {"structure": "block", "ridge": 0.01, "swaps": 0}
CHITA = {"select": {"algorithm": "chita", "sparsity": 0.9, **QUICK}}
LEVELS = [n / 10 for n in range(1, 10)]
FRONTIER = {"select": {**CHITA["select"], "sparsity": LEVELS}}
MAGNITUDE = {"select": {"algorithm": "magnitude", "sparsity": 0.8}}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("faults")) as servers:
        yield servers


@pytest.fixture(scope="module")
def uploads(running: Cluster) -> tuple[str, str]:
    model = running.service.create_upload("model", iter([mlpnet()]), filename="mlpnet.safetensors")
    # Enough samples that there is a middle of a job to be killed in.
    dataset = running.service.create_upload("dataset", iter([digits(700)]), filename="digits.npz")
    return model.id, dataset.id


@pytest.fixture(scope="module")
def undisturbed(running: Cluster, uploads: tuple[str, str]) -> dict[str, bytes]:
    """The bytes that undisturbed runs give, by algorithm."""
    running.hand()
    jobs = {recipe["select"]["algorithm"]: submit(running, uploads, recipe) for recipe in (CHITA, MAGNITUDE)}
    for job in jobs.values():
        assert running.wait(job).state == "succeeded"
    return {algorithm: running.model_bytes(job) for algorithm, job in jobs.items()}


def submit(running: Cluster, uploads: tuple[str, str], recipe: dict[str, Any]) -> str:
    return running.service.create_job(*uploads, None, recipe)[0].id


def in_the_middle(view: JobView) -> bool:
    """The pruning process works on the job: it has read its inputs."""
    return view.state == "running" and 0.0 < view.progress < 0.9


def outcome_of(running: Cluster, job: str) -> dict[str, Any]:
    outcome = running.service.bucket.get_json(layout.outcome(job))
    assert outcome is not None
    return outcome


def steps_in_bucket(running: Cluster, job: str) -> list[str]:
    """The finished steps; nanio also lists what it was still writing when the sender died."""
    return [key for key in running.service.bucket.list(layout.checkpoints(job)) if key.endswith(".checkpoint")]


# These two first: no worker is alive yet.


def test_cancel_with_no_worker_alive(running: Cluster, uploads: tuple[str, str]) -> None:
    job = submit(running, uploads, CHITA)
    began = time.monotonic()
    assert running.service.cancel_job(job).state == "cancelled"
    assert time.monotonic() - began < 2
    assert outcome_of(running, job)["state"] == "cancelled"


@pytest.mark.parametrize(
    ("victim", "attempts", "seen"),
    [("sandbox", 3, "SIGKILL"), ("supervisor", 2, "The worker was lost: it stopped without a word.")],
)
def test_poison_job_fails_after_all_attempts(
    running: Cluster, uploads: tuple[str, str], victim: str, attempts: int, seen: str
) -> None:
    """A job that always kills the process that prunes, or the pool child that supervises that."""
    environment = {"POISON": victim, "PRUNING_MAX_ATTEMPTS": str(attempts)}
    with running.worker(f"poisoned-{victim}", app="tests.jobs.poisoned_worker", queues="jobs", **environment):
        job = submit(running, uploads, MAGNITUDE)
        view = running.wait(job)
        assert (view.state, view.attempt) == ("failed", attempts)
        assert view.error is not None
        assert view.error["type"].endswith("attempts-exhausted")
        assert [attempt["attempt"] for attempt in view.error["attempts"]] == list(range(1, attempts + 1))
        assert all(seen in attempt["seen"] for attempt in view.error["attempts"]), view.error
        # It stays that way: nothing takes it up again.
        before = outcome_of(running, job)
        time.sleep(1)
        assert outcome_of(running, job) == before


def test_killed_worker(running: Cluster, uploads: tuple[str, str], undisturbed: dict[str, bytes]) -> None:
    doomed = running.hand()
    job = submit(running, uploads, CHITA)
    running.wait(job, until=in_the_middle)

    family = running.kill(doomed)
    killed = time.monotonic()
    assert len(family) >= 2, "the pool child and the pruning process"
    assert not psutil.wait_procs(family, timeout=5)[1], "orphans are left"
    assert running.service.bucket.get_json(layout.outcome(job)) is None

    running.hand()
    view = running.wait(job, until=lambda view: view.attempt == 2)
    # lease 3 s + tick 0.4 s + the start of a worker and of its pool child
    assert time.monotonic() - killed < 12
    view = running.wait(job)
    assert (view.state, view.attempt) == ("succeeded", 2)
    assert [attempt.released for attempt in view.attempts] == [None, None]
    assert running.model_bytes(job) == undisturbed["chita"]
    assert not list((running.folder / "work").glob("attempt-*")), "scratch folders are left"


def test_killed_worker_costs_one_step_of_a_long_job(running: Cluster, uploads: tuple[str, str]) -> None:
    """The next attempt goes on from the finished levels, and every model has the bytes of an undisturbed run."""
    doomed = running.hand()
    undisturbed, job = (submit(running, uploads, FRONTIER) for _ in range(2))
    assert running.wait(undisturbed).state == "succeeded"

    def carried_steps(job: str) -> list[str]:
        return steps_in_bucket(running, job)

    eventually(lambda: not carried_steps(undisturbed), 10, "steps go with the outcome")
    eventually(lambda: len(carried_steps(job)) >= 2, 60, "steps are carried to the bucket")
    running.kill(doomed)
    assert running.service.bucket.get_json(layout.outcome(job)) is None
    running.wipe_redis()  # and the rest forgets what it knew
    # After that: a request that was complete when its sender died may still have been answered.
    carried = {key: running.service.bucket.head(key) for key in carried_steps(job)}

    running.hand()
    seen: dict[str, Any] = {}
    while running.service.get_job(job).state != "succeeded":
        seen |= {key: running.service.bucket.head(key) for key in carried_steps(job)}
        time.sleep(0.05)
    done_again = [key for key, stored in carried.items() if (seen.get(key) or stored) != stored]
    assert not done_again
    view = running.wait(job)
    assert (view.state, view.attempt, view.result["resumed"]) == ("succeeded", 2, len(carried))
    assert f"resume item={job} checkpoints={len(carried)}" in running.log("hand")
    eventually(lambda: not carried_steps(job), 10, "steps go with the outcome")
    for sparsity in LEVELS:
        assert running.model_bytes(job, sparsity) == running.model_bytes(undisturbed, sparsity), sparsity


def test_redis_wiped_in_the_middle_of_ten_jobs(
    running: Cluster, uploads: tuple[str, str], undisturbed: dict[str, bytes]
) -> None:
    recipes = [CHITA, MAGNITUDE] * 5
    running.hand()
    with running.worker("second"):
        jobs = [submit(running, uploads, recipe) for recipe in recipes]
        running.wait(jobs[1])
        under_way = {"running", "queued"}
        eventually(lambda: under_way <= {running.service.get_job(job).state for job in jobs}, 30, "a job is under way")
        running.wipe_redis(seconds_down=1.0)

        first: dict[str, dict[str, Any]] = {}

        def all_ended() -> bool:
            for job in jobs:
                outcome = running.service.bucket.get_json(layout.outcome(job))
                if outcome is not None:
                    assert first.setdefault(job, outcome) == outcome, "an outcome was written twice"
            return len(first) == len(jobs)

        eventually(all_ended, 100, "all jobs ended")
    for job, recipe in zip(jobs, recipes, strict=True):
        assert outcome_of(running, job) == first[job]
        view = running.service.get_job(job)
        assert view.state == "succeeded", view
        assert sum(attempt.released is None for attempt in view.attempts) == 1, view.attempts
        assert running.model_bytes(job) == undisturbed[recipe["select"]["algorithm"]]
    assert len(running.service.list_jobs(limit=200)[0]) >= len(jobs)


def test_cancel_of_a_running_job(running: Cluster, uploads: tuple[str, str], undisturbed: dict[str, bytes]) -> None:
    running.hand()
    job = submit(running, uploads, CHITA)
    running.wait(job, until=in_the_middle)
    running.service.cancel_job(job)
    assert running.wait(job, seconds=5).state == "cancelled"
    assert "artifacts" not in outcome_of(running, job)


def test_duplicate_delivery(running: Cluster, uploads: tuple[str, str], undisturbed: dict[str, bytes]) -> None:
    running.hand()
    with running.worker("other"):
        job = submit(running, uploads, CHITA)
        for _ in range(3):
            running.service.clock.unhint(job)
            assert running.service.queue.enqueue(job)
        running.wait(job)
        before = outcome_of(running, job)
        eventually(lambda: running.service.queue.length("jobs") == 0, 20, "all duplicates are used up")

        def logs() -> str:
            return running.log("hand") + running.log("other")

        eventually(lambda: logs().count(f"done item={job}") >= 4, 20, "all four deliveries are done")
        assert logs().count(f"begin item={job}") == 1
        assert outcome_of(running, job) == before
        assert running.service.get_job(job).attempt == 1


def test_stopped_worker_hands_its_job_back(
    running: Cluster, uploads: tuple[str, str], undisturbed: dict[str, bytes]
) -> None:
    leaving = running.hand()
    job = submit(running, uploads, CHITA)
    running.wait(job, until=in_the_middle)
    leaving.terminate()
    assert leaving.wait(15) == 0
    view = running.service.get_job(job)
    assert (view.state, view.attempts[0].released) == ("queued", "shutdown")
    running.hand()
    view = running.wait(job)
    assert (view.state, view.attempt) == ("succeeded", 2)
    assert running.model_bytes(job) == undisturbed["chita"]


def test_a_deploy_costs_at_most_one_step_of_a_long_job(running: Cluster, uploads: tuple[str, str]) -> None:
    """SIGTERM: every step that was finished is in the bucket when the worker has gone, and is not done again."""
    leaving = running.hand()
    job = submit(running, uploads, FRONTIER)

    def finished() -> set[str]:
        return {path.name for path in (running.folder / "work").glob("attempt-*/checkpoints/*.checkpoint")}

    eventually(lambda: len(finished()) >= 2, 60, "two steps are finished")
    steps = finished()
    leaving.terminate()
    assert leaving.wait(15) == 0
    assert running.service.get_job(job).attempts[0].released == "shutdown"
    kept = {key.rpartition("/")[2] for key in steps_in_bucket(running, job)}
    assert kept >= steps
    running.hand()
    view = running.wait(job)
    assert (view.state, view.attempt, view.result["resumed"]) == ("succeeded", 2, len(kept))
