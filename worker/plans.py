"""What an attempt needs: which files, which task, under which limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from jobs.blobs import bytes_of
from jobs.bucket import Bucket
from jobs.errors import DigestMismatch, NotFound
from jobs.ids import UploadKind
from jobs.ledger import Item, Ledger
from jobs.settings import Settings
from jobs.submission import rejection
from jobs.uploads import USES
from worker import sandbox

TaskName = Literal["prune", "inspect_model", "inspect_dataset", "inspect_mask"]

_INSPECTIONS: dict[UploadKind, TaskName] = {
    "model": "inspect_model",
    "dataset": "inspect_dataset",
    "mask": "inspect_mask",
}


class Unusable(Exception):  # noqa: N818 - a verdict
    """A file that is needed has gone, or never was what was announced; the argument is the problem document."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file in the bucket."""

    key: str
    sha256: str
    verified: bool  # False: the digest was announced by the sender, and nobody has compared it yet


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to fetch and what to run."""

    task: TaskName
    files: dict[str, Source]  # by their name in the folder
    arguments: dict[str, Any]
    limits: sandbox.Limits


def plan_of(item: Item, ledger: Ledger) -> Plan:
    """Return the plan.

    Raises:
        NotFound: An upload was deleted.
        RejectedUpload: An upload was found unusable.
    """
    if item.kind != "job":
        return _inspection(ledger.settings, item, item.kind)
    settings = ledger.settings
    files = {field: _usable(ledger, item, field) for field in USES if item.request.get(field)}
    return Plan(
        task="prune",
        files=files,
        arguments={
            "recipe": item.request["recipe"],
            "device": settings.device,
            "sha256": {name: source.sha256 for name, source in files.items()},
        },
        limits=sandbox.Limits(
            memory_bytes=settings.job_memory_bytes,
            cpu_seconds=settings.job_cpu_seconds,
            file_bytes=settings.job_file_bytes,
            wall_seconds=settings.job_wall_seconds,
        ),
    )


def fetch(plan: Plan, bucket: Bucket, folder: Path, patiently: Callable[[Callable[[], Any]], Any]) -> None:
    """Bring the files.

    Args:
        plan: It names them.
        bucket: Where they are.
        folder: Where to put them.
        patiently: Does a step that needs the bucket, as long as it takes.

    Raises:
        Unusable: Another attempt would not get them either.
        DigestMismatch: They were damaged on the way.
    """
    for name, source in plan.files.items():
        step = partial(bucket.download_to, source.key, folder / name, source.sha256)
        try:
            try:
                patiently(step)
            except DigestMismatch:
                if source.verified:
                    raise  # they were right once
                patiently(step)
        except (NotFound, DigestMismatch) as error:
            if source.verified and isinstance(error, DigestMismatch):
                raise
            raise Unusable(error.problem()) from None


def _usable(ledger: Ledger, job: Item, field: str) -> Source:
    upload = job.request[field]
    found = ledger.read(upload)
    if found is None:
        # The job itself refers to the bytes, if it was recorded by a version that knew of that.
        known = job.request.get("inputs", {}).get(field)
        if known is None or ledger.bucket.head(known["blob"]) is None:
            raise NotFound(f"{field}: the upload was deleted before the job began.", received=upload, field=field)
        return Source(key=known["blob"], sha256=known["sha256"], verified=known.get("verified", True))
    if found.outcome is not None and found.outcome["state"] == "rejected":
        raise rejection(field, upload, found.outcome.get("problem"))
    return _source(found)


def _source(upload: Item) -> Source:
    verified = upload.outcome is not None or upload.request.get("verified", True)
    return Source(key=bytes_of(upload), sha256=upload.request["sha256"], verified=verified)


def _inspection(settings: Settings, item: Item, kind: UploadKind) -> Plan:
    return Plan(
        task=_INSPECTIONS[kind],
        files={kind: _source(item)},
        arguments={"device": "cpu", "sha256": {kind: item.request["sha256"]}},
        limits=sandbox.Limits(
            memory_bytes=settings.inspection_memory_bytes,
            cpu_seconds=settings.inspection_cpu_seconds,
            file_bytes=settings.inspection_file_bytes,
            wall_seconds=settings.inspection_wall_seconds,
        ),
    )
