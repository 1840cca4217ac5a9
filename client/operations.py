"""The calls of the service as operations; `client.sync` and `client.aio` run them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from client import fetching, following, sending
from client.effects import Emit, Operation, Request, Sleep
from client.errors import StillRunning
from client.models import Algorithms, Artifact, Document, Job, JobState, Kind, Page, Plan, ReportDocument, Upload
from client.retries import Retry, reliably
from client.sending import FileToSend

M = TypeVar("M", bound=Document)
Recipe = Mapping[str, Any]
_LOOK_SECONDS = 0.5


class Operations:
    """Every call, with one way of trying again."""

    def __init__(self, retry: Retry) -> None:
        self.retry = retry

    def upload(self, file: FileToSend) -> Operation[Upload]:
        """Send a file."""
        return sending.upload(file, self.retry)

    def get_upload(self, kind: Kind, id: str) -> Operation[Upload]:
        """Look at an upload."""
        return self._get(Upload, f"/{kind}s/{id}")

    def list_uploads(self, kind: Kind, sha256: str | None) -> Operation[None]:
        """Emit uploads of a kind, newest first."""
        return self._pages(Upload, f"/{kind}s", {"sha256": sha256})

    def wait_upload(self, kind: Kind, id: str, timeout: float) -> Operation[Upload]:
        """Wait until an upload is inspected."""
        waited = 0.0
        while True:
            found: Upload = yield from self.get_upload(kind, id)
            if found.state != "inspecting":
                return found.check()
            if waited >= timeout:
                raise StillRunning(f"{id} is still being inspected.")
            yield Sleep(_LOOK_SECONDS)
            waited += _LOOK_SECONDS

    def delete(self, url: str) -> Operation[None]:
        """Delete what is there."""
        yield from reliably(Request(method="DELETE", url=url), self.retry)

    def algorithms(self) -> Operation[Algorithms]:
        """What can be asked for."""
        return self._get(Algorithms, "/algorithms")

    def plan(self, model: str, recipe: Recipe, calibration: str | None, masks: str | None) -> Operation[Plan]:
        """What a job would do."""
        wanted = {"model": model, "recipe": dict(recipe), "calibration": calibration, "masks": masks}
        return self._post(Plan, "/plans", wanted)

    def create_job(
        self,
        model: str,
        calibration: str,
        recipe: Recipe,
        *,
        validation: str | None,
        masks: str | None,
        labels: Mapping[str, str] | None,
        key: str | None,
    ) -> Operation[Job]:
        """Make a job. There is always a key, so that it is made once however often this is sent."""
        wanted = {
            "model": model,
            "calibration": calibration,
            "recipe": dict(recipe),
            "validation": validation,
            "masks": masks,
            "labels": dict(labels) if labels else None,
        }
        return self._post(Job, "/jobs", wanted, {"Idempotency-Key": key or str(uuid.uuid4())})

    def get_job(self, id: str) -> Operation[Job]:
        """Look at a job."""
        return self._get(Job, f"/jobs/{id}")

    def list_jobs(self, state: JobState | None, label: tuple[str, str] | None) -> Operation[None]:
        """Emit jobs, newest first."""
        params = {"state": state, "label": None if label is None else "=".join(label)}
        return self._pages(Job, "/jobs", params)

    def cancel_job(self, id: str) -> Operation[Job]:
        """Cancel a job."""
        return self._post(Job, f"/jobs/{id}/cancel", {})

    def wait_job(self, id: str, timeout: float | None) -> Operation[Job]:
        """Emit a job's events; return it when it has ended."""
        return following.follow(id, self.retry, timeout=timeout)

    def download(
        self, job: str, artifact: Artifact, to: Path | None, sparsity: float | None, got: Callable[[int, int], None]
    ) -> Operation[Path]:
        """Fetch what a job made."""
        return fetching.download(job, artifact, to, self.retry, sparsity=sparsity, got=got)

    def report(self, job: str, media_type: str) -> Operation[ReportDocument]:
        """Fetch a report."""
        return fetching.report(job, media_type, self.retry)

    def _get(self, model: type[M], url: str) -> Operation[M]:
        answer = yield from reliably(Request(method="GET", url=url), self.retry)
        return model.of(answer.body)

    def _post(
        self, model: type[M], url: str, document: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> Operation[M]:
        body = json.dumps({name: value for name, value in document.items() if value is not None}).encode()
        more = {"Content-Type": "application/json", **(headers or {})}
        answer = yield from reliably(Request(method="POST", url=url, headers=more, body=body), self.retry)
        return model.of(answer.body)

    def _pages(self, model: type[M], url: str, params: Mapping[str, Any]) -> Operation[None]:
        given = {name: value for name, value in params.items() if value is not None}
        cursor: dict[str, str] = {}
        while True:
            request = Request(method="GET", url=url, params={**given, **cursor})
            answer = yield from reliably(request, self.retry)
            page = Page[model].of(answer.body)  # type: ignore[valid-type]
            for item in page.items:
                yield Emit(item)
            if page.next_cursor is None:
                return
            cursor = {"cursor": page.next_cursor}
