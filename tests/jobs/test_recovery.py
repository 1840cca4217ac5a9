"""The ledger and the reconciler: attempts, fencing, and what a wipe leaves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from jobs import layout
from jobs.queue import celery_app
from jobs.service import Service

RECIPE = {"select": {"algorithm": "magnitude", "sparsity": 0.5}}


@pytest.fixture
def job(service: Service) -> str:
    model = service.create_upload("model", iter([b"model"])).id
    data = service.create_upload("dataset", iter([b"data"])).id
    for upload in (model, data):
        finish(service, upload)
    settle(service)
    service.clock.redis.delete("pruning:celery:inspections")
    return service.create_job(model, data, None, RECIPE)[0].id


def settle(service: Service) -> None:
    """Let the reconciler see the bucket, and the grace time after that pass."""
    service.reconcile()
    service.clock.redis.delete("pruning:settling")


def finish(service: Service, item: str) -> None:
    token = service.clock.claim(item)
    assert token is not None
    found = service.ledger.resolve(item, token)
    assert found is not None
    assert service.ledger.publish(found, token, "succeed", attempt=service.ledger.begin(found, token, "w"))
    service.clock.release(item, token)


def die(service: Service, item: str) -> None:
    """Begin an attempt and vanish."""
    token = service.clock.claim(item)
    assert token is not None
    found = service.ledger.resolve(item, token)
    assert found is not None
    service.ledger.begin(found, token, "w")
    service.clock.release(item, token)


def test_attempts_are_counted_and_given_back(service: Service, job: str) -> None:
    die(service, job)
    token = service.clock.claim(job)
    assert token is not None
    found = service.ledger.resolve(job, token)
    assert found is not None
    assert (found.counted, found.state(leased=True), found.state(leased=False)) == (1, "running", "queued")
    attempt = service.ledger.begin(found, token, "w")
    assert attempt.number == 2
    service.ledger.give_back(job, attempt, "shutdown")
    found = service.ledger.read(job)
    assert found is not None
    assert (found.counted, len(found.attempts), found.state(leased=True)) == (1, 2, "queued")


def test_two_workers_never_share_an_attempt(service: Service, job: str) -> None:
    found = service.ledger.read(job)
    assert found is not None
    with ThreadPoolExecutor(4) as threads:
        attempts = list(threads.map(lambda n: service.ledger.begin(found, f"token{n}", "w"), range(4)))
    assert sorted(attempt.number for attempt in attempts) == [1, 2, 3, 4]


def test_outcome_is_written_once(service: Service, job: str) -> None:
    token = service.clock.claim(job)
    assert token is not None
    found = service.ledger.resolve(job, token)
    assert found is not None
    attempt = service.ledger.begin(found, token, "w")
    assert service.ledger.publish(found, token, "succeed", attempt=attempt, result={"n": 1})
    assert not service.ledger.publish(found, token, "fail", attempt=attempt, problem={"detail": "late"})
    assert service.get_job(job).result == {"n": 1}
    assert service.ledger.resolve(job, token) is None


def test_holder_that_lost_its_lease_cannot_publish(service: Service, job: str) -> None:
    slow = service.clock.claim(job)
    assert slow is not None
    found = service.ledger.resolve(job, slow)
    assert found is not None
    attempt = service.ledger.begin(found, slow, "slow")
    service.clock.redis.flushdb()
    assert service.clock.claim(job) is not None
    assert not service.ledger.publish(found, slow, "succeed", attempt=attempt)
    assert service.bucket.get_json(layout.outcome(job)) is None


def test_a_cancel_that_came_first_wins(service: Service, job: str) -> None:
    token = service.clock.claim(job)
    assert token is not None
    found = service.ledger.resolve(job, token)
    assert found is not None
    attempt = service.ledger.begin(found, token, "w")
    assert service.cancel_job(job).state == "running"
    assert service.clock.renew(job, token) == "cancelling"
    assert service.ledger.publish(found, token, "succeed", attempt=attempt, result={"n": 1})
    view = service.get_job(job)
    assert view is not None
    assert (view.state, view.result) == ("cancelled", None)


def test_exhausted_job_fails_with_what_was_seen(service: Service, job: str) -> None:
    die(service, job)
    token = service.clock.claim(job)
    assert token is not None
    found = service.ledger.resolve(job, token)
    assert found is not None
    service.ledger.lost(job, service.ledger.begin(found, token, "w"), {"detail": "killed by SIGKILL"})
    service.clock.release(job, token)
    die(service, job)
    service.clock.redis.flushdb()
    settle(service)
    counts = service.reconcile()
    assert counts.settled == [job]
    view = service.get_job(job)
    assert view is not None
    assert view.state == "failed"
    assert view.error is not None
    seen = [attempt["seen"] for attempt in view.error["attempts"]]
    assert seen[1] == "killed by SIGKILL"
    assert seen[0] == seen[2] == "The worker was lost: it stopped without a word."


def lose_messages(service: Service, item: str) -> None:
    """Drop every message, and the note that one was sent for this item."""
    service.clock.redis.delete(*service.clock.redis.keys("pruning:celery:*"), f"pruning:hint:{item}")


def test_begun_work_goes_before_new_work(service: Service, job: str) -> None:
    lose_messages(service, job)
    service.queue.enqueue("job_" + "0" * 26)
    service.queue.enqueue(job, begun=True)
    assert service.queue.length("jobs") == 2
    assert service.queue.waiting("jobs") == {"job_" + "0" * 26, job}
    received: list[str] = []
    app = celery_app(service.settings)
    with app.connection_for_read() as connection, connection.SimpleQueue(app.amqp.queues["jobs"]) as queue:
        for _ in range(2):
            message = queue.get(timeout=10)
            received.append(message.headers["item"])
            message.ack()
    assert received == [job, "job_" + "0" * 26]


def test_lost_message_is_sent_again_once(service: Service, job: str) -> None:
    lose_messages(service, job)
    assert service.reconcile().enqueued == [job]
    for _ in range(5):
        assert service.reconcile().enqueued == []
        service.clock.unhint(job)  # even when the hint is old, the queue is not flooded
    assert service.queue.length("jobs") == 1


def test_leased_job_is_left_alone(service: Service, job: str) -> None:
    lose_messages(service, job)
    token = service.clock.claim(job)
    assert token is not None
    assert service.reconcile().enqueued == []
    service.clock.release(job, token)
    assert service.reconcile().enqueued == [job]


def test_wiped_redis_is_rebuilt_from_the_bucket(service: Service, job: str) -> None:
    service.clock.redis.flushdb()
    counts = service.reconcile()
    assert counts.rescanned
    assert counts.enqueued == [], "holders of lost leases may speak first"
    assert service.index.open("job") == [job]
    assert service.index.open("model") == [], "what has ended is not open"
    service.clock.redis.delete("pruning:settling")
    counts = service.reconcile()
    assert (counts.rescanned, counts.enqueued) == (False, [job])
    assert len(service.index.newest("dataset", None, 10)) == 1


def test_tick_does_not_read_the_bucket_when_nothing_is_wrong(
    service: Service, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.reconcile()

    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("the bucket was read")

    monkeypatch.setattr(service.bucket, "_pages", forbidden)
    monkeypatch.setattr(service.bucket, "get_json", forbidden)
    monkeypatch.setattr(service.bucket, "head", forbidden)
    counts = service.reconcile()
    assert (counts.elected, counts.open, counts.enqueued) == (True, 1, [])


def test_one_reconciler_at_a_time(service: Service) -> None:
    with service.clock.lock("reconcile", wait=0):
        assert not service.reconcile().elected
    assert service.reconcile().elected


def test_item_that_redis_never_heard_of(service: Service, job: str) -> None:
    """Redis was down when the job came and is back, with all it knew before."""
    service.index.remove(job)
    lose_messages(service, job)
    assert service.reconcile().enqueued == []
    service.reconciler.remember(job)
    assert service.reconcile().enqueued == [job]
    # Should that process have died, the next comparison with the bucket finds it.
    service.index.remove(job)
    lose_messages(service, job)
    service.clock.redis.delete("pruning:scanned")
    counts = service.reconcile()
    assert (counts.rescanned, counts.enqueued) == (True, [job])


def test_deleted_upload_is_dropped(service: Service) -> None:
    upload = service.create_upload("model", iter([b"x"])).id
    settle(service)
    service.bucket.delete_prefix(layout.prefix(upload))
    lose_messages(service, upload)
    assert service.reconcile().settled == [upload]
    assert service.index.open("model") == []
    assert service.reconcile().open == 0
