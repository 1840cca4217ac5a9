"""Downloads: written aside, resumed after a cut, compared with their digest, and only then put in their place."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from email.message import Message
from io import FileIO
from pathlib import Path
from urllib.parse import unquote

import httpx

from client.effects import Answer, Open, Operation, Read, Request, Work
from client.errors import ClientError, DigestMismatch, NotOffered, Problem
from client.models import Artifact, ReportDocument
from client.retries import Patience, Retry, pause_after, pause_before, reliably
from client.sending import sha256_of

_SHA256 = re.compile(r"[0-9a-f]{64}")


def download(
    job: str,
    artifact: Artifact,
    to: Path | None,
    retry: Retry,
    *,
    sparsity: float | None = None,
    got: Callable[[int, int], None] = lambda _count, _size: None,
) -> Operation[Path]:
    """Fetch a file that a job made.

    Args:
        job: Its id.
        artifact: Which file.
        to: Where to put it: a file, a folder, or None for the current folder; there under the service's name for it.
        retry: For broken connections.
        sparsity: Which level, where there are several.
        got: Told how many bytes are here, and how many there are.

    Returns:
        Where it is.

    Raises:
        Problem: There is no such file (yet).
        DigestMismatch: What came is not what the service has.
        Unreachable: The service does not answer.
        OSError: It cannot be written.
    """
    url = f"/jobs/{job}/{artifact}"
    params = {} if sparsity is None else {"sparsity": sparsity}
    head = yield from _head(url, params, retry)
    digest, size = digest_of(head), int(head.headers["content-length"])
    path = to if to is not None and not to.is_dir() else (to or Path()) / name_of(head, artifact)
    # The digest in its name: what an earlier, broken download has left is gone on with only if it is of the same file.
    aside = path.with_name(f".{path.name}.{digest[:16]}.part")
    begun = aside.exists()
    while True:
        yield from _fill(aside, Request(method="GET", url=url, params=params), head, size, retry, got)
        if (yield Work(lambda: sha256_of(aside))) == digest:
            break
        aside.unlink()
        if not begun:
            raise DigestMismatch(f"{path}: what came does not have the SHA-256 that the service says, {digest}.")
        begun = False  # the old part may have been damaged: once more, from the beginning
    aside.replace(path)
    return path


def _head(url: str, params: dict[str, float], retry: Retry) -> Operation[Answer]:
    try:
        return (yield from reliably(Request(method="HEAD", url=url, params=params), retry))
    except Problem:
        # To HEAD the service may not say why.
        first = Request(method="GET", url=url, params=params, headers={"Range": "bytes=0-0"})
        yield from reliably(first, retry)
        raise


def _fill(
    aside: Path, request: Request, head: Answer, size: int, retry: Retry, got: Callable[[int, int], None]
) -> Operation[None]:
    """Fetch what is missing of a file, as often as it takes."""
    patience = Patience(retry)
    while True:
        have = aside.stat().st_size if aside.exists() else 0
        if have > size:
            aside.unlink()
            have = 0
        if have == size and aside.exists():
            got(size, size)
            return
        headers = {"Range": f"bytes={have}-", "If-Range": head.headers.get("etag", "")} if have else {}
        wanted = Request(method="GET", url=request.url, params=request.params, headers=headers)
        try:
            answer: Answer = yield Open(wanted)
            if answer.status >= 300:
                yield from pause_before(answer, patience)
                continue
            whole = answer.status != 206
            have = 0 if whole else have
            with aside.open("wb" if whole else "ab", buffering=0) as file:
                while block := (yield Read()):
                    _write(file, block)
                    have += len(block)
                    patience.renew()
                    got(have, size)
        except httpx.TransportError as error:
            yield from pause_after(error, patience)


def _write(file: FileIO, block: bytes) -> None:
    rest = memoryview(block)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:  # which says that the disk is full, and not where
        raise OSError(error.errno, error.strerror, str(file.name)) from None


def report(job: str, media_type: str, retry: Retry) -> Operation[ReportDocument]:
    """Fetch the report as this type of document.

    Raises:
        NotOffered: The service has it only as something else.
        Problem: There is none (yet).
        Unreachable: The service does not answer.
    """
    request = Request(method="GET", url=f"/jobs/{job}/report", headers={"Accept": media_type})
    try:
        answer = yield from reliably(request, retry)
    except Problem as problem:
        if problem.status != 406:
            raise
        raise NotOffered(f"This service has no report as {media_type}; {problem}") from None
    came = answer.headers.get("content-type", "").partition(";")[0].strip()
    if came != media_type:
        raise NotOffered(f"This service has no report as {media_type}; it gives {came or 'no type'}.")
    return ReportDocument(media_type=came, content=answer.body)


def digest_of(answer: Answer) -> str:
    """Return the SHA-256 (hexadecimal) of the whole file that an answer is about.

    Raises:
        ClientError: It does not say one.
    """
    found = re.search(r"sha-256=:([A-Za-z0-9+/=]+):", answer.headers.get("repr-digest", ""))
    digest = base64.b64decode(found[1]).hex() if found else answer.headers.get("etag", "").strip('"')
    if not _SHA256.fullmatch(digest):
        raise ClientError("The service does not say the SHA-256 of this file, so it cannot be checked.")
    return digest


def name_of(answer: Answer, artifact: str) -> str:
    """Return the file name that an answer proposes, without any folder."""
    message = Message()
    message["Content-Disposition"] = answer.headers.get("content-disposition", "")
    extended = re.search(r"filename\*=UTF-8''([^;]+)", answer.headers.get("content-disposition", ""), re.IGNORECASE)
    given = unquote(extended[1]) if extended else message.get_filename() or artifact
    name = re.split(r"[/\\]", given)[-1].strip()
    return name if name.strip(".") else artifact
