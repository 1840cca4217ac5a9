"""Files on their way: uploads that an earlier command began are gone on with, and results find their names."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

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


def targets(levels: Sequence[Mapping[str, Any]], output: Path) -> list[tuple[float | None, Path]]:
    """Return each level of a job with the file it goes to: of several, the name has the sparsity.

    >>> [str(path) for _, path in targets([{"sparsity": 0.5}, {"sparsity": 0.9}], Path("net.pt2"))]
    ['net-0.5.pt2', 'net-0.9.pt2']
    """
    if len(levels) < 2:
        return [(None, output)]
    names = [float(level["sparsity"]) for level in levels]
    # In a folder each gets the name that the service gives it.
    stem, suffix, folder = output.stem, output.suffix, output.is_dir()
    return [(name, output if folder else output.with_name(f"{stem}-{name:.6g}{suffix}")) for name in names]


def fetch_models(client: Client, job: Job, output: Path) -> list[Path]:
    """Fetch every model of a job."""
    found = []
    for sparsity, target in targets(job.levels, output):
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
