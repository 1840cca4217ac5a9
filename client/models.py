"""What the service says, typed. Fields that a later version adds are kept as they come."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.errors import ClientError, Problem

T = TypeVar("T")
Kind = Literal["model", "dataset", "mask"]
Artifact = Literal["model", "masks", "compact", "report"]
JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class Document(BaseModel):
    """A JSON document of the service."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    @classmethod
    def of(cls, body: bytes) -> Self:
        """Read an answer.

        Raises:
            ClientError: It is not what the contract says.
        """
        try:
            return cls.model_validate_json(body)
        except ValidationError as error:
            raise ClientError(f"The answer is no {cls.__name__} of this service: {str(error)[:500]}") from None


class Upload(Document):
    """A model, a dataset or a mask."""

    id: str
    state: Literal["inspecting", "ready", "rejected"]
    filename: str | None
    size: int
    sha256: str
    created_at: datetime
    problem: dict[str, Any] | None = None
    inspection: dict[str, Any] | None = None

    def check(self) -> Upload:
        """Return this upload.

        Raises:
            Problem: It was rejected.
        """
        if self.state == "rejected":
            raise Problem(self.problem or {"title": "The upload was rejected"})
        return self


class Job(Document):
    """A job."""

    id: str
    state: JobState
    stage: str | None = None
    progress: float = 0.0
    eta_seconds: float | None = None
    queue_position: int | None = None
    attempt: int = 0
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    model: str
    calibration: str
    validation: str | None = None
    masks: str | None = None
    recipe: dict[str, Any] = {}
    labels: dict[str, str] = {}
    error: dict[str, Any] | None = None
    result: dict[str, Any] | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ("succeeded", "failed", "cancelled")

    @property
    def levels(self) -> list[dict[str, Any]]:
        """The models that were made, one for each sparsity."""
        return list((self.result or {}).get("levels", ()))

    def check(self) -> Job:
        """Return this job.

        Raises:
            Problem: It failed, or was cancelled.
        """
        if self.state == "failed":
            raise Problem(self.error or {"title": "The job failed"})
        if self.state == "cancelled":
            raise Problem({"title": "Cancelled", "detail": f"The job {self.id} was cancelled."})
        return self


class Event(Document):
    """Something that happened to a job.

    Args:
        kind: ``state``, ``stage``, ``progress`` or ``outcome``.
        data: What; of an ``outcome`` the whole job.
        id: For coming back later.
    """

    kind: str
    data: dict[str, Any]
    id: str | None = None


class Plan(Document):
    """What a job would do."""

    recipe: dict[str, Any]
    layers: list[dict[str, Any]]
    levels: list[dict[str, Any]]
    unprunable: dict[str, str] = {}
    estimate: dict[str, Any] = {}


class Algorithm(Document):
    """One way to choose the mask, or to re-fit the weights under it."""

    part: Literal["select", "refine"]
    summary: str
    source: str = ""
    needs_data: bool = True
    patterns: list[str] | None = None
    options: dict[str, Any] = {}


class Algorithms(Document):
    """All there is."""

    algorithms: dict[str, Algorithm]
    recipe: dict[str, Any] = Field(default={}, description="JSON Schema of a recipe.")


class Page(Document, Generic[T]):
    """Part of a list."""

    items: list[T]
    next_cursor: str | None = None


class Parts(Document):
    """An upload in parts."""

    id: str
    kind: Kind
    state: Literal["open", "complete"]
    size: int
    sha256: str | None = None
    part_size: int
    parts: int
    received: list[int]

    @property
    def missing(self) -> list[int]:
        """Numbers of the parts that the store does not have."""
        there = set(self.received)
        return [number for number in range(1, self.parts + 1) if number not in there]

    def length(self, number: int) -> int:
        """Return how many bytes this part has."""
        return min(self.part_size, self.size - (number - 1) * self.part_size)


class PartUrl(Document):
    """Where a part goes."""

    number: int
    size: int
    url: str = Field(repr=False)


class PartUrls(Document):
    """Where parts go."""

    parts: list[PartUrl]


class ReportDocument(Document):
    """A report as it came.

    Args:
        media_type: Such as ``application/json`` or ``text/html``.
        content: Its bytes.
    """

    media_type: str
    content: bytes = Field(repr=False)
