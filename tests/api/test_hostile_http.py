"""Requests that no client library sends, written to the socket as they are: answered or hung up on, never a 5xx."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psutil
import pytest

from tests.api import finished_job
from tests.api.live_api import Api, problem, zip_bytes

SECONDS = 15.0


def raw(api: Api, data: bytes, *, seconds: float = SECONDS) -> list[tuple[int, dict[str, str], bytes]]:
    """Send bytes as they are; return each answer that comes until the server hangs up or is done."""
    host, port = api.url.removeprefix("http://").split(":")
    said = bytearray()
    with socket.create_connection((host, int(port)), timeout=seconds) as line:
        deadline = time.monotonic() + seconds
        with unless_hung_up():
            line.sendall(data)
            line.shutdown(socket.SHUT_WR)
        with unless_hung_up():
            while block := line.recv(1 << 16):
                said += block
                assert time.monotonic() < deadline, "it goes on and on"
    return list(_answers(bytes(said)))


@contextmanager
def unless_hung_up() -> Iterator[None]:
    """The server may hang up on such a client at any moment; that it says nothing for too long is another thing."""
    try:
        yield
    except TimeoutError:
        raise
    except OSError:
        pass


def _answers(said: bytes) -> Iterator[tuple[int, dict[str, str], bytes]]:
    while said:
        head, _, rest = said.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers.get("content-length", len(rest)))
        yield int(first.split()[1]), headers, rest[:length]
        said = rest[length:]


def get(*lines: str, path: str = "/healthz", method: str = "GET", body: bytes = b"") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode("latin-1") + body


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    "lines",
    [
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: 5, 6",),
        ("Content-Length: +5",),
        ("Content-Length: -1",),
        ("Content-Length: 5a",),
        ("Content-Length: 99999999999999999999999",),
        ("Content-Length : 5",),
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Content-Length: 5"),
        ("Transfer-Encoding: identity, chunked, identity",),
        ("Transfer-Encoding: xchunked",),
        ("Transfer-Encoding: chunked\x0b",),
        ("Transfer-Encoding : chunked",),
        (" Transfer-Encoding: chunked",),
        ("X: a\nTransfer-Encoding: chunked",),
        ("X: a\rTransfer-Encoding: chunked",),
        ("X: a\0b",),
        ("No colon here",),
        (": no name",),
    ],
)
def test_bodies_of_two_minds_are_one_request_at_most(lines: tuple[str, ...], running_api: Api) -> None:
    answers = raw(running_api, get(*lines, method="POST", path="/jobs", body=b"0\r\n\r\n" + SMUGGLED))
    assert [status for status, _, _ in answers] == [400], answers


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n" * 2000,
        b"\0" * 5000,
        b"GET",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"G\xffT / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET http://evil.example/healthz HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        get(*(f"X-{i}: {'a' * 4000}" for i in range(50))),
        get(*(f"X-{i}: a" for i in range(50_000))),
        get("X: " + "a" * 2_000_000),
    ],
    ids=lambda data: repr(data[:30]),
)
def test_what_is_no_request_is_refused(data: bytes, running_api: Api) -> None:
    for status, _, _ in raw(running_api, data):
        assert status < 500


@pytest.mark.parametrize(
    "path",
    [
        "/models/%ff%fe",
        "/models/%ed%a0%80",
        "/models/%00",
        "/jobs/%2e%2e%2fmodels",
        "/jobs/../../etc/passwd",
        "//etc/passwd",
        "/models/%252e%252e",
        "/models/" + "%e2%80%ae" * 50,
        "/jobs/job_%0d%0aX-Injected:%201",
        "/models?cursor=%ff&limit=%31",
        "/models?limit=1e9",
        "/models?limit=" + "9" * 5000,
        "/models?limit=1&limit=2",
        "/jobs?state=%ff",
        "/jobs?label=%00",
        "/models?" + "&".join(f"a{i}={i}" for i in range(3000)),
        "/jobs?" + "&".join("label=a%3Db" for _ in range(3000)),
        "/models?" + "&" * 5000,
        "/models?cursor=" + "%41" * 3000,
        "/\xe9\xff",
        "/models#fragment",
        "/models;a=b",
        "*",
    ],
)
def test_odd_paths_and_queries(path: str, running_api: Api) -> None:
    for status, headers, body in raw(running_api, get("Connection: close", path=path)):
        assert status < 500, body
        assert "x-injected" not in headers
        if headers.get("content-type", "").endswith("json"):
            json.loads(body)


def bodies() -> dict[str, bytes]:
    deep = 20_000
    return {
        "the same field twice": b'{"model": "a", "model": "b"}',
        "many fields, one twice": b"{" + b",".join(b'"k%d": 1' % i for i in range(60_000)) + b', "k59999": 1}',
        "NaN": b'{"model": NaN}',
        "infinity": b'{"recipe": {"select": {"sparsity": 1e999}}}',
        "a huge integer": b'{"recipe": {"seed": ' + b"9" * 4000 + b"}}",
        "an endless integer": b'{"recipe": {"seed": ' + b"9" * 900_000 + b"}}",
        "deep arrays": b"[" * deep + b"]" * deep,
        "deep objects": b'{"a":' * deep + b"1" + b"}" * deep,
        "unclosed": b"[" * 900_000,
        "no UTF-8": b'{"model": "\xff\xfe"}',
        "UTF-16": '{"model": "a"}'.encode("utf-16"),
        "half a surrogate": b'{"model": "\\ud800"}',
        "NUL": b'{"model": "\\u0000"}',
        "an array": b"[]",
        "nothing": b"",
        "a string": b'"x"',
        "many labels": json.dumps({"labels": {f"a{i}": "x" for i in range(20_000)}}).encode(),
        "many patterns": json.dumps({"recipe": {"select": {"layers": {"exclude": ["*a" * 200] * 1500}}}}).encode(),
        "many levels": json.dumps({"recipe": {"select": {"sparsity": [i / 90_000 for i in range(50_000)]}}}).encode(),
    }


@pytest.mark.parametrize("name", bodies())
@pytest.mark.parametrize("path", ["/jobs", "/plans"])
def test_hostile_json(name: str, path: str, http: httpx.Client) -> None:
    began = time.monotonic()
    answer = http.post(path, content=bodies()[name], headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 413, 422), answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(answer.content) < 64 * 2**10
    assert answer.json()["detail"]
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "declared", ["text/xml", "multipart/form-data", "application/json; charset=utf-7", "\xe9", "a" * 5000]
)
def test_other_content_types(declared: str, http: httpx.Client) -> None:
    for path in ("/jobs", "/plans", "/models"):
        headers = {"Content-Type": declared.encode("latin-1")}
        assert 400 <= http.post(path, content=b"{}", headers=headers).status_code < 500


def test_every_method_on_every_path(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        place = path.replace("{id}", "mdl_01JD3Z8Q9W3V6Y6T0B1C2D3E4F")
        place = re.sub(r"{\w+}", "1", place)
        for method in ("HEAD", "OPTIONS", "PATCH", "TRACE", "PROPFIND", "QUERY"):
            answer = http.request(method, place)
            assert answer.status_code < 500, (method, place)
            if method.lower() in operations:
                continue
            assert answer.status_code in (404, 405), (method, place, answer.status_code)
            if answer.status_code == 405:
                allowed = set(answer.headers["allow"].split(", "))
                assert {verb.upper() for verb in operations} <= allowed | {"HEAD"}


def test_a_body_that_drips_is_given_up(running_api: Api) -> None:
    host, port = running_api.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=SECONDS) as line:
        line.sendall(
            get("Content-Length: 100", "Content-Type: application/json", method="POST", path="/jobs", body=b"{")
        )
        said = b""
        while block := line.recv(1 << 16):
            said += block
    assert b" 408 " in said.split(b"\r\n")[0], said[:300]
    assert b"upload-stalled" in said


def test_chunks_that_lie(running_api: Api) -> None:
    for chunks in (
        b"ffffffffffffffff\r\nx",
        b"-1\r\n",
        b"5;" + b"a" * 50_000 + b"\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhel",
        b"zz\r\n",
        b"0\r\nX: " + b"y" * 50_000,
    ):
        head = get(
            "Transfer-Encoding: chunked", "Content-Type: application/octet-stream", method="PUT", path="/models/x"
        )
        for status, _, body in raw(running_api, head + chunks):
            assert 400 <= status < 500, body


def test_forms_in_many_parts(http: httpx.Client) -> None:
    part = b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n\r\n'
    hostile = (
        part * 5000,
        b"--XX\r\n" + b"X: y\r\n" * 20_000,
        b'--XX\r\nContent-Disposition: form-data; name="file"; ' + b"a=b; " * 5000 + b"\r\n\r\nx\r\n--XX--",
        b"--XX\r\nContent-Disposition: " + b"x" * 60_000,
        b"\r\n" * 30_000,
        b"--X" * 20_000,
    )
    for body in hostile:
        began = time.monotonic()
        answer = http.post("/models", content=body, headers={"Content-Type": "multipart/form-data; boundary=XX"})
        assert 400 <= answer.status_code < 500, answer.text
        assert time.monotonic() - began < 5
    boundary = {"Content-Type": "multipart/form-data; boundary=" + "b" * 5000}
    assert 400 <= http.post("/models", content=b"--" + b"b" * 5000, headers=boundary).status_code < 500


def test_the_api_has_lived_through_it(http: httpx.Client, running_api: Api) -> None:
    problem(http.get("/nowhere"), 404, "no-such-path")
    assert http.put("/models/still.pt2", content=zip_bytes(100)).status_code == 201
    watched: Any = psutil.Process(running_api.process.pid)
    assert watched.memory_info().rss < 400 * 2**20
    assert "incident" not in running_api.log.read_text("utf-8", "replace")


def test_a_list_does_not_grow_with_what_is_in_the_files(http: httpx.Client, running_api: Api) -> None:
    id = http.put("/models/wide.pt2", content=zip_bytes(60)).json()["id"]
    layers = [{"name": f"layer{i}", "shape": [4, 4]} for i in range(5000)]
    finished_job.accept(running_api.service, id, {"format": "pt2", "layers": layers, "unprunable": {}})
    assert http.get(f"/models/{id}").json()["inspection"]["layers"] == layers
    listed = next(item for item in http.get("/models?limit=200").json()["items"] if item["id"] == id)
    assert listed["inspection"] == {"format": "pt2"}
