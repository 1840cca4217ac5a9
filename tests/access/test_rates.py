"""Rate limits, over HTTP and in the bucket of tokens itself; and what a slow or endless head of a request meets."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from api.protocol import HEAD_BYTES, PatientProtocol
from api.rates import Rate, Rates, Verdict
from cli.embedded import free_port, wait_for
from jobs.ids import new_ulid
from jobs.keys import Keys
from tests.api.live_api import Api, api, problem
from tests.servers import own_database

WRONG = {"Authorization": f"Bearer prk_01ARZ3NDEKTSV4RRFFQ69G5FAV_{'0' * 64}"}


@pytest.fixture(scope="module")
def strict(servers: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """An api with small rates, which fill slowly: one token in 20 seconds."""
    rates = {"api_rate_per_second": "0.05", "api_rate_burst": "5", "api_failures_per_minute": "3"}
    folder = tmp_path_factory.mktemp("strict")
    # A Redis database of its own: what is used up here is not used up for other tests.
    environment = {**own_database(servers, 9), "PRUNING_S3_BUCKET": "rate-tests"}
    with api(environment, folder, api_keys="required", api_failures_burst="3", **rates) as started:
        started.service.bucket.ensure()
        yield started


def client(strict: Api, **more: str) -> httpx.Client:
    _, token = Keys(strict.service.bucket, strict.service.clock).create("red", "k", "read", by="test")
    return httpx.Client(base_url=strict.url, headers={"Authorization": f"Bearer {token}", **more})


def test_a_key_that_calls_too_often_is_told_when_to_go_on(strict: Api) -> None:
    # Behind a proxy on this machine, this is another address: other tests' failures do not count here.
    with client(strict, **{"X-Forwarded-For": "198.51.100.1"}) as calls:
        answers = [calls.get("/jobs") for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200] * 5
        assert answers[0].headers["ratelimit-policy"] == '"key";q=5;w=100'
        assert [answer.headers["ratelimit"].split(";")[1] for answer in answers] == [f"r={n}" for n in (4, 3, 2, 1, 0)]
        refused = calls.get("/jobs")
        problem(refused, 429, "rate-limited")
        assert 1 <= int(refused.headers["retry-after"]) <= 20
    with client(strict, **{"X-Forwarded-For": "198.51.100.1"}) as other:
        assert other.get("/jobs").status_code == 200, "each key has its own"


def test_guessing_is_slowed_down_and_a_key_at_work_is_not(strict: Api) -> None:
    here = {"X-Forwarded-For": "203.0.113.7"}
    with client(strict, **here) as known, client(strict, **here) as unknown:
        assert known.get("/jobs").status_code == 200
        with httpx.Client(base_url=strict.url, headers={**WRONG, **here}) as guess:
            for _ in range(3):
                problem(guess.get("/jobs"), 401, "unauthenticated")
            refused = guess.get("/jobs")
            problem(refused, 429, "rate-limited")
            assert int(refused.headers["retry-after"]) >= 1
            assert guess.get("/healthz").status_code == 200
        assert known.get("/jobs").status_code == 200, "what this process has just seen to be valid comes in"
        problem(unknown.get("/jobs"), 429, "rate-limited")
    with client(strict, **{"X-Forwarded-For": "203.0.113.8"}) as elsewhere:
        assert elsewhere.get("/jobs").status_code == 200


@pytest.mark.parametrize("down", [False, True])
def test_the_bucket_of_tokens(servers: dict[str, str], down: bool) -> None:
    async def scenario() -> None:
        url = "redis://127.0.0.1:9/0" if down else servers["PRUNING_REDIS_URL"]
        ours, others = Rates(url, 1.0), Rates(url, 1.0)
        name, rate = new_ulid(), Rate(per_second=20, burst=3)
        try:
            assert (await ours.take(name, rate, cost=0)).tokens == 3
            verdicts = [await ours.take(name, rate) for _ in range(2)]
            verdicts += [await (ours if down else others).take(name, rate) for _ in range(2)]
            allowed = [verdict.allowed for verdict in verdicts]
            assert allowed[:3] == [True] * 3
            # A machine that sleeps in between fills the bucket.
            assert allowed[3] is False or verdicts[3].tokens >= 1
            assert verdicts[3].retry_after == 1
            await asyncio.sleep(0.12)
            assert (await ours.take(name, rate)).allowed
        finally:
            await ours.close()
            await others.close()

    asyncio.run(scenario())


def test_what_a_verdict_tells() -> None:
    rate = Rate(per_second=0.5, burst=10)
    assert Verdict(10, rate).headers() == {"RateLimit-Policy": '"key";q=10;w=20', "RateLimit": '"key";r=9;t=2'}
    assert (Verdict(0.25, rate).allowed, Verdict(0.25, rate).retry_after) == (False, 2)


# -- heads -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server with little patience."""

    class Hurried(PatientProtocol):
        head_seconds = 0.4

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    config = uvicorn.Config(app, port=free_port(), http=Hurried, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started, seconds=10, what="the server")
        yield config.port
    finally:
        server.should_exit = True
        thread.join(10)


def answer(port: int, *parts: bytes, pause: float = 0.0) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
        return received


@pytest.mark.parametrize("parts", [(), (b"GET / HTT",), (b"GET / HTTP/1.1\r\n", b"Host: x\r\n")])
def test_a_head_that_does_not_come_is_not_waited_for(port: int, parts: tuple[bytes, ...]) -> None:
    assert answer(port, *parts).startswith(b"HTTP/1.1 408 ")


def test_drops_of_a_head_do_not_prolong_it(port: int) -> None:
    begun = time.monotonic()
    with pytest.raises(OSError, match=r"reset|Broken|abort"):
        answer(port, b"GET / HTTP/1.1\r\n", *[b"X: y\r\n"] * 100, pause=0.1)
    assert time.monotonic() - begun < 5


def test_an_endless_head_is_cut(port: int) -> None:
    line = b"X-Pad: " + b"y" * 1000 + b"\r\n"
    try:
        said = answer(port, b"GET / HTTP/1.1\r\n", *[line] * (3 * HEAD_BYTES // len(line)), pause=0.0005)
    except OSError:
        return  # reset while it was still sending: cut, too
    assert said[:12] in {b"HTTP/1.1 431", b"HTTP/1.1 400"}


def test_a_slow_body_and_a_second_request_have_their_time(port: int) -> None:
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
    body = [b"a", b"b", b"c", b"d"]
    said = answer(port, head + b"\r\n", *body, head + b"Connection: close\r\n\r\n", *body, pause=0.2)
    assert said.count(b"HTTP/1.1 204") == 2
