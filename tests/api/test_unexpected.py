"""What nobody expected becomes a 500 problem that shows nothing of the inside."""

from __future__ import annotations

import logging

import anyio
import httpx
import pytest
from starlette.types import Message

from api.problems import LastResort
from tests.api.live_api import problem

SCOPE = {"type": "http", "method": "GET", "path": "/x", "headers": []}


async def nothing() -> Message:
    return {"type": "http.disconnect"}


def test_an_unexpected_error_is_logged_under_the_incident_that_the_client_sees(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def broken(*_: object) -> None:
        raise KeyError("the secret")

    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(LastResort(broken))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/x")

    with caplog.at_level(logging.ERROR):
        response = anyio.run(get)
    document = problem(response, 500, "internal")
    assert "secret" not in response.text
    assert "KeyError" not in response.text
    assert document["incident"] in caplog.text
    assert "the secret" in caplog.text


def test_an_error_after_the_answer_began_ends_the_connection() -> None:
    async def broken(_scope: object, _receive: object, send: object) -> None:
        assert callable(send)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError("half way")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    with pytest.raises(KeyError, match="half way"):
        anyio.run(LastResort(broken), SCOPE, nothing, send)  # type: ignore[arg-type]
    assert [message["type"] for message in sent] == ["http.response.start"]
