"""The contract of the bucket, on two S3 servers of different make."""

from __future__ import annotations

import hashlib
import os
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.bucket import Bucket
from jobs.errors import DigestMismatch, NotFound, Unavailable
from jobs.settings import Settings
from jobs.writer import PART_BYTES


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def read(bucket: Bucket, key: str, *span: int | None) -> bytes:
    return b"".join(bucket.open(key, *span)[1])


def test_documents(bucket: Bucket) -> None:
    assert bucket.get_json("a/b.json") is None
    bucket.put_json("a/b.json", {"λ": [1, None]})
    assert bucket.get_json("a/b.json") == {"λ": [1, None]}


def test_write_once_keeps_the_first(bucket: Bucket) -> None:
    assert bucket.write_once("once.json", {"n": 1})
    assert not bucket.write_once("once.json", {"n": 2})
    assert bucket.get_json("once.json") == {"n": 1}


def test_write_once_race_in_one_process_has_one_winner(bucket: Bucket) -> None:
    barrier = threading.Barrier(8)

    def write(n: int) -> bool:
        barrier.wait()
        return bucket.write_once("race.json", {"n": n})

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(write, range(8)))
    assert won.count(True) == 1
    assert bucket.get_json("race.json") == {"n": won.index(True)}


def test_what_a_full_disk_left_of_a_document_is_none_and_may_be_written(bucket: Bucket) -> None:
    # nanio on a full disk keeps the beginning, and answers 500: whoever wrote it was never told that it is there.
    half = b'{"n": 1, "text": "abc'
    bucket.client.put_object(Bucket=bucket.name, Key="once.json", Body=half)
    assert bucket.get_json("once.json") is None
    assert bucket.write_once("once.json", {"n": 2})
    assert not bucket.write_once("once.json", {"n": 3})
    assert bucket.get_json("once.json") == {"n": 2}


@pytest.mark.parametrize("size", [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES + 12345])
def test_stream_of_any_length(bucket: Bucket, size: int, tmp_path: Path) -> None:
    data = os.urandom(size)
    digest = hashlib.sha256(data).hexdigest()
    stored = bucket.upload("file", pieces(data, 100_000))
    assert (stored.size, stored.sha256) == (size, digest)
    found = bucket.head("file")
    assert found is not None
    assert (found.size, found.etag) == (size, stored.etag)
    assert read(bucket, "file") == data
    bucket.download_to("file", tmp_path / "file", digest)
    assert (tmp_path / "file").read_bytes() == data


def test_digest_is_stored_when_known_before(bucket: Bucket) -> None:
    data = os.urandom(PART_BYTES + 1)
    digest = hashlib.sha256(data).hexdigest()
    bucket.upload("file", pieces(data, 2**20), digest.upper())
    found = bucket.head("file")
    assert found is not None
    assert found.sha256 == digest


@pytest.mark.parametrize("size", [10, PART_BYTES + 10])
def test_wrong_digest_leaves_nothing(bucket: Bucket, size: int) -> None:
    with pytest.raises(DigestMismatch) as caught:
        bucket.upload("file", pieces(bytes(size), 2**20), "0" * 64)
    assert caught.value.received == hashlib.sha256(bytes(size)).hexdigest()
    assert bucket.head("file") is None
    assert uploads_left(bucket) == 0


def test_broken_stream_leaves_nothing(bucket: Bucket) -> None:
    def broken() -> Iterator[bytes]:
        yield bytes(PART_BYTES + 1)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        bucket.upload("file", broken())
    assert bucket.head("file") is None
    assert uploads_left(bucket) == 0


def uploads_left(bucket: Bucket) -> int:
    return len(bucket.client.list_multipart_uploads(Bucket=bucket.name).get("Uploads", []))


def test_streaming_takes_constant_memory(bucket: Bucket) -> None:
    bucket.upload("warm", iter([bytes(2 * PART_BYTES)]))
    tracemalloc.start()
    try:
        bucket.upload("file", (bytes(2**20) for _ in range(64)))
        total = sum(len(chunk) for chunk in bucket.open("file")[1])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total == 64 * 2**20
    assert peak < 4 * PART_BYTES


@pytest.mark.parametrize(
    ("start", "end", "expected"), [(0, 0, b"0"), (2, 5, b"2345"), (7, None, b"789"), (8, 9, b"89")]
)
def test_ranges(bucket: Bucket, start: int, end: int | None, expected: bytes) -> None:
    bucket.upload("digits", iter([b"0123456789"]))
    stored, chunks = bucket.open("digits", start, end)
    assert b"".join(chunks) == expected
    assert stored.size == 10


def test_missing_objects(bucket: Bucket, tmp_path: Path) -> None:
    assert bucket.head("nothing") is None
    with pytest.raises(NotFound):
        bucket.open("nothing")
    with pytest.raises(NotFound):
        bucket.download_to("nothing", tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_damaged_download_leaves_no_file(bucket: Bucket, tmp_path: Path) -> None:
    bucket.upload("file", iter([b"abc"]))
    with pytest.raises(DigestMismatch):
        bucket.download_to("file", tmp_path / "file", "0" * 64)
    assert not (tmp_path / "file").exists()


def test_listing(bucket: Bucket) -> None:
    keys = [f"jobs/{name}/{file}" for name in "abc" for file in ("outcome.json", "request.json")]
    for key in keys:
        bucket.put_json(key, {})
    bucket.put_json("models/a/request.json", {})
    assert list(bucket.list("jobs/")) == keys
    assert list(bucket.list("jobs/", after="jobs/a/request.json")) == keys[2:]
    assert list(bucket.list("jobs/", limit=3)) == keys[:3]
    assert list(bucket.children("jobs/")) == ["a", "b", "c"]
    assert bucket.delete_prefix("jobs/b/") == 2
    assert list(bucket.children("jobs/")) == ["a", "c"]


def test_listing_over_several_pages(bucket: Bucket) -> None:
    keys = [f"many/{n:04}/x" for n in range(1003)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda key: bucket.put_json(key, {}), keys))
    assert list(bucket.list("many/")) == keys
    assert list(bucket.children("many/")) == [key.split("/")[1] for key in keys]


def test_links_are_not_stored(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "symbolic").symlink_to(tmp_path / "secret")
    (tmp_path / "hard").hardlink_to(tmp_path / "secret")
    for name in ("symbolic", "hard"):
        with pytest.raises((OSError, ValueError)):
            bucket.upload_file("file", tmp_path / name)
    assert bucket.head("file") is None


def test_server_that_is_down(settings: Settings) -> None:
    bucket = Bucket(settings.model_copy(update={"s3_endpoint": "http://127.0.0.1:9"}))
    for call in (bucket.check, bucket.ensure, lambda: bucket.get_json("a"), lambda: list(bucket.list("a"))):
        with pytest.raises(Unavailable):
            call()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"s3_access_key": None, "s3_secret_key": None}, "no keys"),
        ({"s3_secret_key": "wrong"}, "SignatureDoesNotMatch"),
    ],
)
def test_keys_that_are_missing_or_wrong_are_the_operators_to_set(
    settings: Settings, keys: dict[str, str | None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # else the SDK looks for keys on the network
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    with pytest.raises(Unavailable, match=said) as refused:
        Bucket(settings.model_copy(update=keys)).get_json("a")
    assert "PRUNING_S3_ACCESS_KEY" in str(refused.value.advice)


def test_a_document_that_is_being_replaced_is_read_whole(bucket: Bucket) -> None:
    written, ended = [{"n": n, "text": "x" * (n % 7) * 300} for n in range(7)], threading.Event()
    bucket.put_json("replaced.json", written[0])

    def replace() -> None:
        while not ended.is_set():
            for document in written:
                bucket.put_json("replaced.json", document)

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        for _ in range(50):
            assert bucket.get_json("replaced.json") in written
    finally:
        ended.set()
        writer.join()
