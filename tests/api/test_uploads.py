"""Uploads through real HTTP: what is stored, what is refused, and that a refusal leaves nothing."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from api.digests import as_header
from jobs.blobs import bytes_of
from jobs.ids import is_id
from tests.api.live_api import Api, problem, safetensors_bytes, zip_bytes

KINDS = {"models": "model", "datasets": "dataset"}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def nothing_stored(running_api: Api) -> Iterator[None]:
    """The bucket holds after the test what it held before."""
    bucket = running_api.service.bucket

    def keys() -> list[str]:
        return [*bucket.list("models/"), *bucket.list("datasets/"), *bucket.list("blobs/"), *bucket.list("digests/")]

    def begun() -> list[str]:
        found = bucket.client.list_multipart_uploads(Bucket=bucket.name).get("Uploads", [])
        return [upload["UploadId"] for upload in found]

    before, others = keys(), begun()
    yield
    deadline = time.monotonic() + 5
    while (keys() != before or begun() != others) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert keys() == before
    assert begun() == others


@pytest.mark.parametrize("where", KINDS)
@pytest.mark.parametrize("data", [zip_bytes(100_000), safetensors_bytes()], ids=["zip", "safetensors"])
def test_an_upload_is_stored_listed_shown_and_deleted(
    http: httpx.Client, running_api: Api, where: str, data: bytes
) -> None:
    response = http.put(f"/{where}/net.v1.pt2", content=data)
    assert response.status_code == 201, response.text
    document = response.json()
    assert is_id(KINDS[where], document["id"])  # type: ignore[arg-type]
    assert response.headers["location"] == f"/{where}/{document['id']}"
    assert (document["size"], document["sha256"]) == (len(data), sha256(data))
    assert (document["filename"], document["state"]) == ("net.v1.pt2", "inspecting")
    assert http.get(response.headers["location"]).json() == document
    assert document in http.get(f"/{where}").json()["items"]
    _, stored = running_api.service.bucket.open(bytes_of(running_api.service.ledger.read(document["id"])))
    assert b"".join(stored) == data
    assert http.delete(response.headers["location"]).status_code == 204
    problem(http.get(response.headers["location"]), 404, "not-found")
    problem(http.delete(response.headers["location"]), 404, "not-found")


@pytest.mark.parametrize("path", ["/models", "/models/"])
def test_raw_bodies_come_by_put_and_by_post(http: httpx.Client, path: str) -> None:
    data = zip_bytes()
    for method in ("PUT", "POST"):
        response = http.request(method, path, content=data, params={"filename": "../a/net.pt2"})
        assert response.status_code == 201, response.text
        assert (response.json()["sha256"], response.json()["filename"]) == (sha256(data), "net.pt2")
    assert http.put(path, content=data).json()["filename"] is None


def test_a_form_is_stored_without_its_boundaries(http: httpx.Client) -> None:
    data = zip_bytes(700_000)
    response = http.post("/models", files={"file": ("réseau.pt2", data)}, params={"sha256": sha256(data)})
    assert response.status_code == 201, response.text
    document = response.json()
    assert (document["sha256"], document["size"], document["filename"]) == (sha256(data), len(data), "réseau.pt2")


@pytest.mark.parametrize("where", KINDS)
def test_the_right_digest_is_accepted_however_it_is_sent(http: httpx.Client, where: str) -> None:
    data = zip_bytes()
    headers = {"Content-Digest": as_header(sha256(data))}
    assert http.put(f"/{where}", content=data, headers=headers).status_code == 201
    assert http.put(f"/{where}", content=data, params={"sha256": sha256(data).upper()}).status_code == 201


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize("size", [1000, 900_000])
def test_a_wrong_digest_is_refused(http: httpx.Client, size: int) -> None:
    data, wrong = zip_bytes(size), sha256(b"another file")
    document = problem(http.put("/models", content=data, params={"sha256": wrong}), 422, "digest-mismatch")
    problem(http.get("/models", params={"sha256": wrong[1:]}), 422, "invalid-request")
    assert http.get("/models", params={"sha256": wrong.upper()}).json() == {"items": [], "next_cursor": None}
    assert (document["expected"], document["received"]) == (wrong, sha256(data))
    headers = {"Content-Digest": as_header(wrong)}
    problem(http.put("/models", content=data, headers=headers), 422, "digest-mismatch")
    problem(http.post("/models", files={"file": data}, params={"sha256": wrong}), 422, "digest-mismatch")
    problem(http.put("/models", content=data, params={"sha256": "abc"}), 422, "invalid-request")
    problem(http.put("/models", content=data, headers={"Content-Digest": "sha-256=abc"}), 400, "malformed-request")
    both = {"headers": headers, "params": {"sha256": sha256(data)}}
    problem(http.put("/models", content=data, **both), 422, "invalid-request")  # type: ignore[arg-type]


@pytest.mark.usefixtures("nothing_stored")
@pytest.mark.parametrize("where", KINDS)
def test_an_unknown_format_is_refused(http: httpx.Client, where: str) -> None:
    document = problem(http.put(f"/{where}/net.pkl", content=b"\x80\x04\x95" + bytes(5000)), 415, "unsupported-media")
    assert "pickle" in document["detail"]
    assert document["expected"]
    assert document["advice"]
    problem(http.post(f"/{where}", files={"file": b"GIF89a" + bytes(50)}), 415, "unsupported-media")


@pytest.mark.usefixtures("nothing_stored")
def test_an_empty_file_is_refused(http: httpx.Client) -> None:
    problem(http.put("/models/empty.pt2", content=b""), 422, "empty-body")
    problem(http.put("/models", content=iter([])), 422, "empty-body")
    problem(http.post("/datasets", files={"file": b""}), 422, "empty-body")


@pytest.mark.usefixtures("nothing_stored")
def test_an_oversized_body_is_refused_declared_or_not(http: httpx.Client) -> None:
    data = zip_bytes(2**20)
    document = problem(http.put("/models", content=data), 413, "too-large")
    assert str(2**20) in document["expected"]
    problem(http.put("/models", content=(data[at : at + 65536] for at in range(0, len(data), 65536))), 413, "too-large")
    problem(http.post("/models", files={"file": data}), 413, "too-large")


def send_for_ever(peer: socket.socket) -> None:
    while True:
        peer.sendall(bytes(2**20))


@pytest.mark.usefixtures("nothing_stored")
def test_an_oversized_body_of_a_client_that_only_writes_is_cut_off(running_api: Api) -> None:
    host, _, port = running_api.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as peer:
        peer.sendall(b"PUT /models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000000\r\n\r\n" + bytes(9))
        answer = peer.recv(65536)
        assert b" 413 " in answer.splitlines()[0]
        assert b"connection: close" in answer.lower()
        peer.settimeout(10)
        with pytest.raises(ConnectionError):
            send_for_ever(peer)


@pytest.mark.usefixtures("nothing_stored")
def test_a_client_that_leaves_half_way_leaves_nothing_behind(running_api: Api) -> None:
    host, _, port = running_api.url.removeprefix("http://").partition(":")
    data = zip_bytes(600_000)
    for head in (b"Content-Length: 900000\r\n\r\n" + data, b"Transfer-Encoding: chunked\r\n\r\n5\r\n" + data[:5]):
        with socket.create_connection((host, int(port)), timeout=20) as peer:
            peer.sendall(b"PUT /models/cut.pt2 HTTP/1.1\r\nHost: localhost\r\n" + head)
            time.sleep(0.1)
    # The api lives on.
    assert httpx.get(f"{running_api.url}/healthz").status_code == 200


@pytest.mark.usefixtures("nothing_stored")
def test_a_client_that_sends_nothing_more_is_given_up(running_api: Api) -> None:
    host, _, port = running_api.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as peer:
        peer.sendall(b"PUT /models HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n\r\nPK\x03\x04....")
        assert b" 408 " in peer.recv(65536).splitlines()[0]


@pytest.mark.usefixtures("nothing_stored")
def test_a_form_that_cannot_be_used_is_refused(http: httpx.Client) -> None:
    data = zip_bytes()
    document = problem(http.post("/models", files={"model": data}), 422, "invalid-request")
    assert "file" in document["expected"]
    problem(http.post("/models", files={"file": data}, data={"x": "y"}), 422, "invalid-request")
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    problem(http.post("/models", content=data, headers=headers), 400, "malformed-request")
    headers = {"Content-Encoding": "gzip"}
    problem(http.put("/models", content=data, headers=headers), 415, "unsupported-content-type")


def test_a_list_of_uploads_comes_in_pages(http: httpx.Client) -> None:
    made = [http.put("/datasets", content=zip_bytes(10)).json()["id"] for _ in range(3)]
    first = http.get("/datasets", params={"limit": 2}).json()
    assert [item["id"] for item in first["items"]] == [made[2], made[1]]
    following = http.get("/datasets", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert following["items"][0]["id"] == made[0]
    problem(http.get("/datasets", params={"limit": 0}), 422, "invalid-request")
    problem(http.get("/datasets", params={"limit": "many"}), 422, "invalid-request")
    problem(http.get("/datasets", params={"cursor": "nonsense"}), 422, "invalid-input")


@pytest.mark.parametrize("id", ["mdl_01JD3Z8Q9W3V6Y6T0B1C2D3E4F", "nonsense", "..%2F..%2Frequest.json", "a" * 2000])
def test_an_unknown_id_is_not_found(http: httpx.Client, id: str) -> None:
    for method in ("GET", "DELETE"):
        assert http.request(method, f"/models/{id}").status_code == 404
        response = http.request(method, f"/datasets/{id}")
        assert response.status_code == 404
        assert response.headers["content-type"] == "application/problem+json"


def test_a_model_is_no_dataset(http: httpx.Client) -> None:
    model = http.put("/models", content=zip_bytes(10)).json()["id"]
    problem(http.get(f"/datasets/{model}"), 404, "not-found")
    problem(http.delete(f"/datasets/{model}"), 404, "not-found")
    assert http.get(f"/models/{model}").status_code == 200
