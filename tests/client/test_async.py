"""What only the client that does not block can do: be cancelled, and keep its connection all the same."""

from __future__ import annotations

import asyncio
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cli.embedded import LOOPBACK
from client import AsyncClient
from tests.api import finished_job
from tests.api.live_api import Api


def test_a_task_that_is_cancelled_leaves_a_client_that_works(client_api: Api, token: str, files: Path) -> None:
    async def go() -> None:
        async with AsyncClient(client_api.url, token) as client:
            model = await client.upload("model", files / "net.pt2")
            data = await client.upload("dataset", files / "data.npz")
            job = await client.create_job(model.id, data.id, finished_job.RECIPE)
            heard = asyncio.Event()
            waiting = asyncio.create_task(client.wait_job(job.id, told=lambda _: heard.set()))
            await asyncio.wait_for(heard.wait(), 30)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(waiting, 5)
            assert (await client.get_job(job.id)).state == "queued", "the job knows nothing of it"
            ended, _ = await asyncio.gather(client.wait_job(job.id), client.cancel_job(job.id))
            assert ended.state == "cancelled"

    asyncio.run(go())


def test_calls_that_follow_each_other_share_a_connection() -> None:
    connections = set()

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            connections.add(self.client_address)
            body = b'{"algorithms": {}}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    async def go(port: int) -> None:
        async with AsyncClient(f"http://{LOOPBACK}:{port}") as client:
            for _ in range(3):
                assert (await client.algorithms()).algorithms == {}

    with ThreadingHTTPServer((LOOPBACK, 0), Answers) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.05,))
        serving.start()
        asyncio.run(go(server.server_address[1]))
        server.shutdown()
        serving.join()
    assert len(connections) == 1
