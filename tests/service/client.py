"""The few calls that service tests make again and again, over real HTTP."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx


class Client(httpx.Client):
    """An HTTP client for one running service."""

    def __init__(self, url: str) -> None:
        super().__init__(base_url=url, timeout=60)

    def send_file(self, kind: str, path: Path) -> dict[str, Any]:
        answer = self.put(f"/{kind}/{path.name}", content=path.read_bytes())
        assert answer.status_code == 201, answer.text
        return answer.json()

    def wait(self, where: str, until: set[str], seconds: float = 60) -> dict[str, Any]:
        """Poll until the state is one of these."""
        deadline = time.monotonic() + seconds
        while True:
            answer = self.get(where)
            assert answer.status_code == 200, answer.text
            document = answer.json()
            if document["state"] in until:
                return document
            assert time.monotonic() < deadline, f"not {until} within {seconds} s: {document}"
            time.sleep(0.1)

    def submit(self, recipe: dict[str, Any], model: str, calibration: str, **more: Any) -> dict[str, Any]:
        answer = self.post("/jobs", json={"model": model, "calibration": calibration, "recipe": recipe, **more})
        assert answer.status_code == 202, answer.text
        return answer.json()

    def prune(self, recipe: dict[str, Any], model: str, calibration: str, **more: Any) -> dict[str, Any]:
        """Submit a job and wait for its end."""
        job = self.submit(recipe, model, calibration, **more)
        return self.wait(f"/jobs/{job['id']}", {"succeeded", "failed", "cancelled"})
