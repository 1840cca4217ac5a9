"""Keys, on a real bucket: what is stored, what opens, rotation, revocation, outages."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from jobs import layout
from jobs.errors import Conflict, NotFound, Unavailable
from jobs.keys import Keys, Scope, Secret, includes
from jobs.service import Service
from pruning_core.errors import InputError


@pytest.fixture
def keys(service: Service) -> Keys:
    return Keys(service.bucket, service.clock)


def fresh(service: Service) -> Keys:
    """Another process: it remembers nothing."""
    return Keys(service.bucket, service.clock)


def test_a_key_opens_and_only_its_digest_is_stored(service: Service, keys: Keys) -> None:
    key, token = keys.create("red", "nightly", "write", by="operator")
    prefix, id, secret = token.split("_")
    assert (prefix, f"key_{id}", len(bytes.fromhex(secret)) * 8) == ("prk", key.id, 256)
    assert fresh(service).remembered(token) is None
    assert fresh(service).check(token) == key
    stored = json.dumps([service.bucket.get_json(name) for name in service.bucket.list("")])
    assert key.id in stored
    assert secret not in stored + repr(key) + str(key)
    assert key.secrets[0].sha256 not in repr(key) + repr(key.secrets)


def test_what_opens_nothing(keys: Keys) -> None:
    key, token = keys.create("red", "k", "read", by="operator")
    other = keys.create("red", "other", "read", by="operator")[1]
    swapped = f"prk_{key.id.removeprefix('key_')}_{other.rpartition('_')[2]}"
    unknown = f"prk_01JD3Z8Q9W3V6Y6T0B1C2D3E4F_{'0' * 64}"
    for wrong in ("", "prk", token[:-1], token + "0", token.upper(), swapped, unknown, "prk_../../x_" + "0" * 64):
        assert keys.check(wrong) is None, wrong
        assert keys.remembered(wrong) is None, wrong


def test_what_was_read_is_trusted_for_a_moment_only(service: Service) -> None:
    keys = Keys(service.bucket, service.clock, trusted_seconds=0.2)
    key, token = keys.create("red", "k", "read", by="operator")
    keys.check(token)
    assert keys.remembered(token) == key
    assert keys.remembered(token[:-1] + ("0" if token[-1] != "0" else "1")) is None
    threading.Event().wait(0.25)
    assert keys.remembered(token) is None


def test_expiry(keys: Keys) -> None:
    with pytest.raises(InputError):
        keys.create("red", "k", "read", by="operator", expires_at=datetime.now(UTC))
    key, token = keys.create("red", "k", "read", by="operator", expires_at=datetime.now(UTC) + timedelta(seconds=0.3))
    assert keys.check(token) == key
    threading.Event().wait(0.35)
    assert keys.remembered(token) is None, "trusting what was read does not prolong a key"
    assert keys.check(token) is None
    assert keys.get("red", key.id).state == "expired"
    with pytest.raises(Conflict):
        keys.rotate("red", key.id, grace=timedelta(0))


def test_rotation(service: Service, keys: Keys) -> None:
    key, old = keys.create("red", "k", "write", by="operator")
    keys.check(old)
    same, new = keys.rotate("red", key.id, grace=timedelta(hours=1))
    assert same.id == key.id
    for asked in (keys, fresh(service)):
        assert asked.check(old)
        assert asked.check(new)
    _, newest = keys.rotate("red", key.id, grace=timedelta(0))
    assert [bool(keys.check(token)) for token in (old, new, newest)] == [False, False, True]
    stored = service.bucket.get_json(layout.key(key.id))
    assert stored is not None
    assert len(stored["secrets"]) == 3
    keys.rotate("red", key.id, grace=timedelta(0))
    stored = service.bucket.get_json(layout.key(key.id))
    assert stored is not None
    assert len(stored["secrets"]) == 2, "those that have ended are not carried on"


def test_rotations_at_once_undo_nothing(service: Service, keys: Keys) -> None:
    key, _ = keys.create("red", "k", "write", by="operator")
    with ThreadPoolExecutor(4) as threads:
        tokens = [
            token
            for _, token in threads.map(
                lambda _: fresh(service).rotate("red", key.id, grace=timedelta(hours=1)), range(4)
            )
        ]
    assert all(fresh(service).check(token) for token in tokens)


def test_revocation_needs_the_bucket_alone_and_stays(service: Service, keys: Keys) -> None:
    key, token = keys.create("red", "k", "write", by="operator")
    elsewhere = fresh(service)
    elsewhere.check(token)
    without_redis = Service(service.settings.model_copy(update={"redis_url": "redis://127.0.0.1:9/0"}))
    try:
        down = Keys(without_redis.bucket, without_redis.clock)
        assert down.check(token)
        with pytest.raises(Unavailable):
            down.rotate("red", key.id, grace=timedelta(0))
        assert down.revoke("red", key.id, by="operator").state == "revoked"
        assert down.remembered(token) is None
    finally:
        without_redis.close()
    assert elsewhere.remembered(token), "another process trusts what it read for a few seconds"
    assert elsewhere.check(token) is None
    first = keys.get("red", key.id).revoked_at
    assert keys.revoke("red", key.id, by="again").revoked_at == first
    with pytest.raises(Conflict):
        keys.rotate("red", key.id, grace=timedelta(0))


def test_keys_of_another_tenant_are_not_there(keys: Keys) -> None:
    key, token = keys.create("red", "k", "admin", by="operator")
    for call in (
        lambda: keys.get("blue", key.id),
        lambda: keys.revoke("blue", key.id, by="x"),
        lambda: keys.rotate("blue", key.id, grace=timedelta(0)),
    ):
        with pytest.raises(NotFound):
            call()
    assert keys.check(token)
    assert keys.page("blue") == []
    assert [found.id for found in keys.page("red")] == [key.id]


def test_pages(keys: Keys) -> None:
    made = [keys.create("red", str(n), "read", by="operator")[0].id for n in range(5)]
    assert [key.id for key in keys.page("red", limit=2)] == made[:2]
    assert [key.id for key in keys.page("red", made[1], 2)] == made[2:4]
    with pytest.raises(InputError):
        keys.page("red", "../")


def test_an_outage_of_the_bucket_is_no_wrong_key(service: Service, keys: Keys) -> None:
    _, token = keys.create("red", "k", "read", by="operator")
    away = Service(service.settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:9"}))
    try:
        with pytest.raises(Unavailable):
            Keys(away.bucket, away.clock).check(token)
    finally:
        away.close()


def test_a_crash_between_name_and_key_shows_nothing(
    service: Service, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = service.bucket.put_json

    def broken(key: str, document: dict[str, object]) -> None:
        if key.startswith("keys/"):
            raise Unavailable("gone")
        put(key, document)

    monkeypatch.setattr(service.bucket, "put_json", broken)
    with pytest.raises(Unavailable):
        keys.create("red", "k", "read", by="operator")
    assert keys.page("red") == []


def test_when_it_was_last_used(keys: Keys) -> None:
    key, token = keys.create("red", "k", "read", by="operator")
    assert keys.last_used([key.id]) == {}
    keys.check(token)
    assert abs(keys.last_used([key.id])[key.id] - datetime.now(UTC)) < timedelta(seconds=5)


@pytest.mark.parametrize(("tenant", "name"), [("Red", "k"), ("", "k"), ("../x", "k"), ("red", ""), ("red", "x" * 101)])
def test_impossible_keys(keys: Keys, tenant: str, name: str) -> None:
    with pytest.raises(InputError):
        keys.create(tenant, name, "read", by="operator")
    assert not keys.any()


def test_scopes_include_the_lower_ones() -> None:
    order: list[Scope] = ["read", "write", "admin"]
    for i, scope in enumerate(order):
        assert [includes(scope, needed) for needed in order] == [j <= i for j in range(3)]


def test_a_secret_is_compared_whole() -> None:
    assert "sha256" not in repr(Secret(sha256="ab" * 32, created_at=datetime.now(UTC)))
