"""Files on their way: uploads that an earlier command began are gone on with, and results find their names."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from cli.console import on_interrupt, say, usage
from cli.progress import transfer
from client import Client, Job
from client.models import Kind

_ID = re.compile(r"(mdl|dst|msk)_[0-9A-HJKMNP-TV-Z]{26}")
_PREFIX: dict[Kind, str] = {"model": "mdl_", "dataset": "dst_", "mask": "msk_"}


class Sent(Protocol):
    """Returns the id of what is given: itself, or that of the file after it was sent."""

    def __call__(self, kind: Kind, given: str, /) -> str:
        """Send it, if it is a file."""


@contextmanager
def sending(client: Client) -> Iterator[Sent]:
    """Send files in this block; if it breaks off, the same command goes on with what the service has of them."""
    with ExitStack() as notes:

        def sent(kind: Kind, given: str) -> str:
            path = Path(given)
            if not path.is_file():
                if _ID.fullmatch(given) and given.startswith(_PREFIX[kind]):
                    return given
                why = "is a folder, not a file" if path.is_dir() else "no such file"
                raise usage(f"{given}: {why}, and no id of a {kind} ({_PREFIX[kind]}…)")
            known, remember = notes.enter_context(_remembered(client, kind, path))
            return _sent(client, kind, path, known, remember)

        yield sent


def _sent(client: Client, kind: Kind, path: Path, known: str | None, remember: Callable[[str], None]) -> str:
    size, passed = path.stat().st_size, 0
    advice = "Interrupted while sending. The same command goes on: of a large file it sends what is missing."
    with on_interrupt(lambda: advice), transfer(f"sending {path.name}", size) as told:

        def sent(done: int) -> None:
            nonlocal passed
            passed = done
            told(done, size)

        upload = client.upload(kind, path, sent=sent, reuse=True, resume=known, begun=remember)
    say(f"{upload.id}  {path.name}  {size} bytes" + ("" if passed else ", there already"))
    return upload.id


def placed(output: Path | None) -> Path | None:
    """Check, before anything is done, that a file can be put there.

    Raises:
        typer.BadParameter: There is no such folder, or it cannot be written to.
    """
    if output is not None:
        folder = output if output.is_dir() else output.parent
        if not folder.is_dir():
            raise usage(f"{output}: there is no folder {folder}")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise usage(f"{output}: the folder {folder} cannot be written to")
    return output


@contextmanager
def put(target: Path) -> Iterator[Path]:
    """Yield where to write a file that is put in its place when the block is done: whole, or not at all.

    Raises:
        OSError: It cannot be written.
    """
    aside = target.with_name(f".{target.name}.part")
    try:
        yield aside
        aside.replace(target)
    except OSError as error:  # which may name no file, or another one
        raise OSError(error.errno, error.strerror, str(target)) from None
    finally:
        aside.unlink(missing_ok=True)


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
    """Yield the upload in parts that was begun for this file before, and what notes a new one until all is done."""
    found = path.stat()
    about = json.dumps([client.url, kind, str(path.resolve()), found.st_size, found.st_mtime_ns])
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
