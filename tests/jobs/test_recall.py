"""What is kept in memory: never what was deleted, never more than the bound, and nothing that workers decide by."""

from __future__ import annotations

import pytest

from jobs import layout, recall
from jobs.service import Service


@pytest.fixture
def upload(service: Service) -> str:
    return service.create_upload("mask", iter([b"x"])).id


def count_reads(service: Service, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read: list[str] = []
    original = service.bucket.get_json

    def counting(key: str) -> object:
        read.append(key)
        return original(key)

    monkeypatch.setattr(service.bucket, "get_json", counting)
    return read


def end(service: Service, item: str) -> None:
    service.bucket.write_once(layout.outcome(item), {"state": "rejected", "problem": {"detail": "no"}})


def test_what_has_ended_is_read_once(service: Service, upload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    end(service, upload)
    first = service.get_upload(upload)
    read = count_reads(service, monkeypatch)
    assert service.get_upload(upload) == first
    assert read == []


def test_what_is_open_is_looked_at_again(service: Service, upload: str) -> None:
    view = service.get_upload(upload)
    assert view is not None
    assert view.state == "inspecting"
    end(service, upload)
    view = service.get_upload(upload)
    assert view is not None
    assert view.state == "rejected"


def test_what_another_process_deleted_is_gone_at_once(service: Service, upload: str) -> None:
    end(service, upload)
    other = Service(service.settings)
    assert other.get_upload(upload) is not None
    service.delete_upload(upload)
    assert other.get_upload(upload) is None
    other.close()


def test_without_redis_nothing_is_handed_out(service: Service, upload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    end(service, upload)
    service.get_upload(upload)
    read = count_reads(service, monkeypatch)
    monkeypatch.setattr(service.clock, "deleted", _down)
    assert service.get_upload(upload) is not None
    assert layout.request(upload) in read


def _down(_item: str) -> bool:
    raise recall.Down("no answer")


def test_workers_look_in_the_bucket(service: Service, upload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service.get_upload(upload)
    read = count_reads(service, monkeypatch)
    service.ledger.read(upload)
    assert layout.request(upload) in read


def test_memory_is_bounded(service: Service, upload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "MAX_BYTES", 1500)
    end(service, upload)
    kept = service.ledger.recall
    for item in (upload, *(service.create_upload("mask", iter([b"x"])).id for _ in range(5))):
        service.get_upload(item)
        assert kept._bytes <= 1500
    read = count_reads(service, monkeypatch)
    service.get_upload(upload)
    assert layout.request(upload) in read, "the one used longest ago went"


def test_nothing_is_kept_for_ever(service: Service, upload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    end(service, upload)
    service.get_upload(upload)
    monkeypatch.setattr(recall, "MAX_AGE_SECONDS", 0.0)
    read = count_reads(service, monkeypatch)
    service.get_upload(upload)
    assert layout.request(upload) in read
