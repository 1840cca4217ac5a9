"""Settings, read from the environment here and nowhere else (variables ``PRUNING_…``)."""

from __future__ import annotations

import tempfile
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

GiB = 2**30


class Settings(BaseSettings):
    """All knobs of api and worker. Durations in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="PRUNING_", frozen=True, extra="ignore")

    # Never printed: a Redis URL carries its password.
    redis_url: str = Field(default="redis://127.0.0.1:6379/0", repr=False)
    redis_timeout: float = Field(default=2.0, gt=0, description="Of one Redis call; then it counts as down.")
    s3_endpoint: str | None = Field(default=None, description="None: the endpoint of the region.")
    s3_access_key: str | None = Field(default=None, repr=False, description="None: the SDK's own credential chain.")
    s3_secret_key: str | None = Field(default=None, repr=False)
    s3_bucket: str = "pruning"
    s3_region: str = "us-east-1"

    log_format: Literal["json", "text"] = Field(
        default="json", description="One JSON object a line, or for a terminal."
    )
    traces: bool = Field(default=False, description="Send OpenTelemetry traces; needs the extra `otel`.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    max_upload_bytes: int = Field(default=16 * GiB, gt=0)
    s3_public_endpoint: str | None = Field(
        default=None, description="Where clients reach the S3 server, for presigned URLs. None: as the service does."
    )
    presigned_seconds: int = Field(default=3600, ge=10, le=7 * 24 * 3600, description="Life of a presigned URL.")
    upload_session_seconds: float = Field(
        default=7 * 24 * 3600.0, gt=0, description="For a presigned multipart upload to be completed."
    )
    max_parts: int = Field(default=10_000, ge=1, le=10_000, description="Of a presigned multipart upload.")
    max_open_uploads: int = Field(default=100, ge=1, description="Presigned multipart uploads of one tenant.")
    abandoned_seconds: float = Field(
        default=24 * 3600.0, gt=0, description="What a broken-off request left in the bucket is removed after so long."
    )
    retention_jobs_days: float | None = Field(
        default=None, gt=0, description="Jobs are deleted so long after they ended. None: kept until somebody does."
    )
    retention_uploads_days: float | None = Field(
        default=None, gt=0, description="Uploads are deleted so long after they came, unless an open job uses them."
    )
    sweep_seconds: float = Field(default=3600.0, gt=0, description="How often what nobody needs is looked for.")
    lease_seconds: float = Field(default=10.0, gt=0, description="A worker not heard of for so long is dead.")
    heartbeat_seconds: float = Field(default=2.0, gt=0)
    reconcile_seconds: float = Field(default=2.0, gt=0)
    rescan_seconds: float = Field(default=600.0, gt=0, description="How often Redis is compared with the whole bucket.")
    max_attempts: int = Field(default=3, ge=1)
    shutdown_seconds: float = Field(default=20.0, gt=0, description="For a stopping worker to hand back its job.")

    quota_stored_bytes: int | None = Field(
        default=None, ge=0, description="Quotas: of each tenant that has no limits of its own (python -m cli.quotas)."
    )
    quota_open_jobs: int | None = Field(default=None, ge=0)
    quota_jobs_per_day: int | None = Field(default=None, ge=0)
    quota_pruning_seconds_per_month: int | None = Field(default=None, ge=0)

    work_dir: Path = Field(
        default_factory=lambda: Path(tempfile.gettempdir()) / "pruning-work",
        description="Scratch space of the worker; emptied of what dead processes left there.",
    )
    webhook_sender: bool = Field(default=True, description="Whether this process delivers webhooks.")
    webhook_allow_http: bool = Field(default=False, description="Also send to http:// URLs.")
    webhook_networks: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Private networks that webhooks may reach, as 10.1.0.0/16, comma-separated."
    )
    webhook_schedule: Annotated[tuple[float, ...], NoDecode] = Field(
        default=(0, 5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400),
        min_length=1,
        description="The pause before each attempt; jitter is added. Comma-separated.",
    )
    webhook_timeout_seconds: float = Field(default=15.0, gt=0, description="Of one attempt, from name to answer.")
    webhook_grace_seconds: float = Field(default=86400.0, ge=0, description="A replaced secret signs for so long.")
    max_webhooks: int = Field(default=20, ge=1, description="Of one tenant.")

    min_free_bytes: int = Field(
        default=GiB,
        ge=0,
        description="A worker whose work directory has less room is no help: readiness says so, and one whose "
        "disk was full waits for it.",
    )
    device: str = Field(default="auto", description="'auto', 'cpu' or 'cuda'.")
    job_memory_bytes: int = Field(default=16 * GiB, gt=0)
    job_cpu_seconds: int = Field(default=24 * 3600, gt=0, description="CPU seconds over all cores.")
    job_wall_seconds: float = Field(default=6 * 3600.0, gt=0)
    job_file_bytes: int = Field(default=32 * GiB, gt=0)
    job_checkpoint_bytes: int = Field(
        default=8 * GiB, ge=0, description="Of finished steps that one job keeps in the bucket until it has ended."
    )
    inspection_memory_bytes: int = Field(default=8 * GiB, gt=0)
    inspection_cpu_seconds: int = Field(default=600, gt=0)
    inspection_wall_seconds: float = Field(default=300.0, gt=0)
    inspection_file_bytes: int = Field(default=64 * 2**20, gt=0)

    @field_validator("webhook_networks", mode="before")
    @classmethod
    def _networks(cls, value: Any) -> Any:
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(str(ip_network(part.strip())) for part in parts if part.strip())

    @field_validator("webhook_schedule", mode="before")
    @classmethod
    def _pauses(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value
