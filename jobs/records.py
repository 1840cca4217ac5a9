"""What the use cases return: one job, one upload. Plain values, ready for JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs.ids import UploadKind
from jobs.states import JobState, UploadState


class View(BaseModel):
    """An immutable answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Attempt(View):
    """One time that a worker took the item up."""

    number: int
    worker: str
    started_at: datetime
    token: str = Field(description="The fencing token of the lease it ran under.")
    released: str | None = Field(
        default=None, description="Why the worker gave it back; such an attempt is not counted."
    )
    problem: dict[str, Any] | None = Field(default=None, description="What was seen, if it ended without an outcome.")
    ended_at: datetime | None = Field(default=None, description="When it was released or seen to have ended.")

    @property
    def closed(self) -> bool:
        """Whether the attempt is known to be over."""
        return self.released is not None or self.problem is not None


class InputView(View):
    """What a job keeps in mind of an upload, also when that was deleted."""

    filename: str | None
    size: int
    sha256: str


class JobView(View):
    """A job as the user sees it."""

    id: str
    state: JobState
    stage: str | None = None
    progress: float = Field(default=0.0, ge=0, le=1)
    eta_seconds: float | None = None
    queue_position: int | None = Field(default=None, description="1: next; only while queued.")
    attempt: int = Field(default=0, description="How many times a worker took it up.")
    attempts: tuple[Attempt, ...] = ()
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    model: str
    calibration: str
    validation: str | None = None
    masks: str | None = None
    inputs: dict[str, InputView] = Field(default={}, description="By field; empty for jobs of version 0.1.")
    recipe: dict[str, Any]
    labels: dict[str, str] = {}
    error: dict[str, Any] | None = None
    result: dict[str, Any] | None = Field(default=None, description="Summary of the report; only when succeeded.")


class UploadView(View):
    """An upload (model, dataset or mask) as the user sees it."""

    id: str
    kind: UploadKind
    state: UploadState
    filename: str | None
    format_hint: str | None
    size: int
    sha256: str
    created_at: datetime
    problem: dict[str, Any] | None = None
    inspection: dict[str, Any] | None = None


class SessionView(View):
    """An upload in parts, on its way or complete."""

    id: str
    kind: UploadKind
    state: Literal["open", "complete"]
    filename: str | None
    size: int
    sha256: str | None
    part_size: int
    parts: int
    received: tuple[int, ...]
    created_at: datetime
    expires_at: datetime | None


class PartUrl(View):
    """Where to send a part."""

    number: int
    size: int
    url: str = Field(repr=False)


def now() -> str:
    """Return the time of day as every record has it: UTC, RFC 3339, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
