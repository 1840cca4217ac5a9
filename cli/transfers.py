"""Files on their way: uploads that an earlier command began are gone on with, and results find their names."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cli.console import on_interrupt, say, usage
from cli.progress import transfer
from client import Client, Job
from client.models import Kind

_ID = re.compile(r"(mdl|dst|msk)_[0-9A-HJKMNP-TV-Z]{26}")
_PREFIX: dict[Kind, str] = {"model": "mdl_", "dataset": "dst_", "mask": "msk_"}


def sent(client: Client, kind: Kind, given: str) -> str:
    """Return the id of what is given: itself, or that of the file after it was sent.

    Raises:
        typer.BadParameter: It is neither.
    """
    path = Path(given)
    if not path.is_file():
        if _ID.fullmatch(given) and given.startswith(_PREFIX[kind]):
            return given
        raise usage(f"{given}: no such file, and no id of a {kind} ({_PREFIX[kind]}…)")
    size = path.stat().st_size
    with _remembered(client, kind, path) as (known, remember), transfer(f"sending {path.name}") as told:
        advice = "Interrupted while sending. The same command sends only what is missing of a large file."
        with on_interrupt(lambda: advice):
            upload = client.upload(kind, path, sent=lambda done: told(done, size), resume=known, begun=remember)
    say(f"{upload.id}  {path.name}  {size} bytes")
    return upload.id


def targets(job: Job, output: Path) -> list[tuple[float | None, Path]]:
    """Return each level of a job with the file it goes to: of several, the name has the sparsity.

    >>> from types import SimpleNamespace
    >>> two = SimpleNamespace(levels=[{"sparsity": 0.5}, {"sparsity": 0.9}])
    >>> [str(path) for _, path in targets(two, Path("net.pt2"))]
    ['net-0.5.pt2', 'net-0.9.pt2']
    """
    levels = [float(level["sparsity"]) for level in job.levels]
    if len(levels) < 2 or output.is_dir():
        return [(level, output) for level in levels] if len(levels) > 1 else [(None, output)]
    return [(level, output.with_name(f"{output.stem}-{level:.6g}{output.suffix}")) for level in levels]


def fetch_models(client: Client, job: Job, output: Path) -> list[Path]:
    """Fetch every model of a job."""
    found = []
    for sparsity, target in targets(job, output):
        with transfer("fetching the model") as told:
            found.append(client.download(job.id, "model", target, sparsity=sparsity, got=told))
        say(f"saved {found[-1]}")
    return found


@contextmanager
def _remembered(client: Client, kind: Kind, path: Path) -> Iterator[tuple[str | None, Callable[[str], None]]]:
    """Yield the upload in parts that was begun for this file before, and what notes a new one until the block ends."""
    found = path.stat()
    about = json.dumps([repr(client), kind, str(path.resolve()), found.st_size, found.st_mtime_ns])
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pruning-service" / "uploads"
    note = root / hashlib.sha256(about.encode()).hexdigest()[:32]

    def remember(id: str) -> None:
        with suppress(OSError):  # then it cannot be gone on with; that is all
            root.mkdir(parents=True, exist_ok=True)
            note.write_text(id, "ascii")

    known = ""
    with suppress(OSError, ValueError):
        known = note.read_text("ascii").strip()
    yield known if _ID.fullmatch(known) else None, remember
    with suppress(OSError):
        note.unlink(missing_ok=True)
