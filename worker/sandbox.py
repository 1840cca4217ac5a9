"""The supervisor's side of the sandbox: start one process, watch it, end it, and say how it went.

Works from any process, a Celery pool child included. Call it from a thread that lives as long as the call (the main
thread does): Linux kills the process when the thread that had it started ends.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from pruning_core.errors import PruningError
from pruning_core.report import Progress
from worker import forkserver
from worker.limits import Died, LimitName, Limits, limit_exceeded
from worker.process import NO_SPACE, REFUSED, UNEXPECTED
from worker.usage import cpu_seconds, group_memory_bytes

__all__ = ["DISK_FULL", "Limits", "Result", "run", "warm"]

_log = logging.getLogger(__name__)

MODULE = "worker.process"
#: Why a process stopped that nobody asked to.
DISK_FULL = "disk-full"
_POLL_SECONDS = 0.1
_STOP_SECONDS = 0.5
_LINE_BYTES = 64 * 1024
_TAIL_BYTES = 16 * 1024
_RESULT_BYTES = 16 * 2**20
_NAMES = {int(number): number.name for number in signal.Signals}


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a sandboxed task ended.

    Args:
        status: "ok"; "failed": the user's doing or a limit, a retry cannot help; "stopped": as ``stop`` asked, or for
            want of room on the disk;
            "died": the process ended without a word, a retry may help.
        value: What the task returned, when ok.
        problem: A problem document, when failed or died.
        reason: When stopped: what ``stop`` returned, or `DISK_FULL`.
        memory_peak_bytes: The most that its processes were seen to have resident; 0: it ended before anybody looked.
    """

    status: Literal["ok", "failed", "stopped", "died"]
    value: dict[str, Any] | None = None
    problem: dict[str, Any] | None = None
    reason: str | None = None
    memory_peak_bytes: int = field(default=0, compare=False)


def run(
    task: str,
    folder: Path,
    arguments: dict[str, Any],
    *,
    limits: Limits,
    on_progress: Callable[[Progress], None],
    stop: Callable[[], str | None],
    module: str = MODULE,
) -> Result:
    """Run one task in a process of its own session, without credentials, and with limits.

    Args:
        task: "prune", "inspect_model" or "inspect_dataset".
        folder: Holds the task's files; the process works there and writes there. Should be private to it.
        arguments: Written to ``arguments.json``.
        limits: Exceeding one ends the process: status "failed", the problem names the limit.
        on_progress: Called with the newest step, at most ten times a second; the fraction never falls.
        stop: Asked about every half second; a reason ends the process at once.
        module: What ``python -m`` runs; tests name another.

    Returns:
        How it ended. When it returns or raises, no process of the group is left.
    """
    folder = folder.resolve()
    for name in ("result.json", "problem.json"):
        (folder / name).unlink(missing_ok=True)
    (folder / "arguments.json").write_text(json.dumps(arguments), "utf-8")
    child = forkserver.fork(module, {"task": task, "folder": str(folder), "limits": asdict(limits)})
    watch = _Watch(child, limits, on_progress, stop)
    try:
        verdict = watch.until_end()
    finally:
        watch.kill()
    if verdict is None:
        assert child.code is not None
        verdict = _judge(child.code, folder, limits, watch)
    if watch.tail or verdict.status == "died":
        level = logging.WARNING if verdict.status == "died" else logging.INFO
        said, problem = watch.tail.decode("utf-8", "replace"), json.dumps(verdict.problem)
        _log.log(level, "sandbox ended task=%s status=%s problem=%s stderr=%s", task, verdict.status, problem, said)
    return replace(verdict, memory_peak_bytes=watch.memory_peak_bytes)


def warm() -> None:
    """Begin to import what tasks need, so that the first finds it done."""
    forkserver.warm(MODULE)


class _Watch:
    """One running process: its output is read, its limits are watched, and it does not outlive this."""

    def __init__(
        self,
        child: forkserver.Child,
        limits: Limits,
        on_progress: Callable[[Progress], None],
        stop: Callable[[], str | None],
    ) -> None:
        self.child = child
        self.limits = limits
        self.tail = b""
        self.cpu_seconds = 0.0
        self.memory_peak_bytes = 0
        self._on_progress = on_progress
        self._stop = stop
        self._line = b""
        self._latest: Progress | None = None
        self._fraction = 0.0
        self._pipes = selectors.DefaultSelector()
        self._pipes.register(child, selectors.EVENT_READ)
        self._pipes.register(child.stdout, selectors.EVENT_READ, self._read_line)
        self._pipes.register(child.stderr, selectors.EVENT_READ, self._read_tail)

    def until_end(self) -> Result | None:
        """Return a verdict if this side ended the process, None if it ended by itself (it is not reaped yet)."""
        deadline = time.monotonic() + self.limits.wall_seconds
        next_stop, begun = 0.0, False
        while not self.child.ended:
            self._pump(_POLL_SECONDS)
            self._tell()
            now, pid = time.monotonic(), self.child.pid
            if pid is not None and not begun:
                # Its own time: the server may still have had to import.
                begun, deadline = True, now + self.limits.wall_seconds
            if now >= deadline:
                return self._over("wall_seconds")
            if pid is not None:
                memory = group_memory_bytes(pid)
                self.memory_peak_bytes = max(self.memory_peak_bytes, memory)
                if memory > self.limits.memory_bytes:
                    return self._over("memory_bytes")
            if now >= next_stop:
                next_stop = now + _STOP_SECONDS
                if (reason := self._stop()) is not None:
                    return Result(status="stopped", reason=reason)
        self.cpu_seconds = cpu_seconds(self.child.pid) if self.child.pid is not None else 0.0
        return None

    def kill(self) -> None:
        """Kill the whole group, reap it, and read what it said last."""
        self._pipes.unregister(self.child)
        forkserver.release(self.child)
        while self._pump(0):
            pass
        for key in list(self._pipes.get_map().values()):
            self._close(key.fileobj)
        self._pipes.close()

    def _over(self, limit: LimitName) -> Result:
        return Result(status="failed", problem=limit_exceeded(self.limits, limit).problem())

    def _pump(self, seconds: float) -> bool:
        """Read what is there; wait at most this long for something. Returns whether there was anything."""
        if not self._pipes.get_map():
            return False
        started = time.monotonic()
        ready = self._pipes.select(seconds)
        for key, _ in ready:
            if key.fileobj is self.child:
                self.child.listen()
                continue
            data = os.read(key.fd, _LINE_BYTES)
            if data:
                key.data(data)
            else:
                self._close(key.fileobj)
        # One pass per poll: a process that floods its pipes does not keep this side busy.
        if seconds and not self.child.ended and (rest := started + seconds - time.monotonic()) > 0:
            time.sleep(rest / 4)
        return bool(ready)

    def _close(self, pipe: Any) -> None:
        self._pipes.unregister(pipe)
        pipe.close()

    def _read_tail(self, data: bytes) -> None:
        self.tail = (self.tail + data)[-_TAIL_BYTES:]

    def _read_line(self, data: bytes) -> None:
        *lines, self._line = (self._line + data).split(b"\n")
        if len(self._line) > _LINE_BYTES:
            self._line = b""
        for line in lines:
            if line.startswith(b'{"protections"'):
                _log_protections(line[:1000].decode("utf-8", "replace"))
                continue
            with contextlib.suppress(ValidationError):
                self._latest = Progress.model_validate_json(line)

    def _tell(self) -> None:
        if self._latest is not None:
            latest, self._latest = self._latest, None
            self._fraction = max(self._fraction, latest.fraction)
            self._on_progress(latest.model_copy(update={"fraction": self._fraction}))


@cache
def _log_protections(line: str) -> None:
    """Log once per supervisor what holds on this machine."""
    _log.info("sandbox: %s", line)


def _judge(code: int, folder: Path, limits: Limits, watch: _Watch) -> Result:
    """Say how a process that ended by itself went."""

    def failed(limit: LimitName) -> Result:
        return Result(status="failed", problem=limit_exceeded(limits, limit).problem())

    if code == -signal.SIGXCPU or (code == -signal.SIGKILL and watch.cpu_seconds >= limits.cpu_seconds):
        return failed("cpu_seconds")
    if code == -signal.SIGXFSZ:
        return failed("file_bytes")
    if code == -signal.SIGABRT and b"bad_alloc" in watch.tail:
        return failed("memory_bytes")
    if code == NO_SPACE:
        return Result(status="stopped", reason=DISK_FULL)
    strange = next(_not_regular(folder), None)
    if strange is not None:
        return _died(f"The process left {strange!r}, which is no regular file.")
    if code == 0 and (value := _document(folder / "result.json")) is not None:
        return Result(status="ok", value=value)
    if code in (REFUSED, UNEXPECTED) and (problem := _document(folder / "problem.json")) is not None:
        return Result(status="failed" if code == REFUSED else "died", problem=problem)
    if code < 0:
        name = _NAMES.get(-code, f"signal {-code}")
        hint = "; the machine may have run out of memory" if code == -signal.SIGKILL else ""
        return _died(f"The process was ended by {name}{hint}.")
    return _died(f"The process ended with exit code {code} and no result.")


def _died(detail: str) -> Result:
    error: PruningError = Died(detail, advice="It is tried again by itself; report it if it happens again.")
    return Result(status="died", problem=error.problem())


def _not_regular(folder: Path) -> Iterator[str]:
    """Yield what could lead a reader of the results out of the folder: links, pipes, devices."""
    for path, folders, files in os.walk(folder):
        for name in files:
            status = os.lstat(Path(path, name))
            if status.st_mode & 0o170000 != 0o100000 or status.st_nlink != 1:
                yield name
        yield from (name for name in folders if Path(path, name).is_symlink())


def _document(path: Path) -> dict[str, Any] | None:
    """Return a JSON object that the process wrote, or None."""
    try:
        if path.stat().st_size > _RESULT_BYTES:
            return None
        document = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
