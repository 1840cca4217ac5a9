"""The fork server and the sandboxed process, which is a fork of it: ``python -m worker.process <socket> <parent>``.

The server imports torch and waits for tasks (`worker.forkserver` is the other side of its socket). A fork of it
confines itself first, and then opens what the user sent. It speaks to its supervisor (`worker.sandbox`) in JSON: lines
on a pipe of its own, and ``result.json`` or ``problem.json`` in its folder.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import json
import os
import socket
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

from pruning_core.errors import PruningError
from pruning_core.report import Progress
from worker.confine import confine, die_with, gpu_present
from worker.environment import folder_environment
from worker.limits import Died, LimitName, Limits, limit_exceeded, no_space

#: What a task gets: its folder, the arguments, and where to say how far it is. It returns what goes to result.json.
Task = Callable[[Path, dict[str, Any], Callable[[Progress], None]], dict[str, Any]]

#: Exit codes: problem.json says why. After the first a retry cannot help, after the second it may.
REFUSED, UNEXPECTED = 3, 4
#: No file says why: there was no room for one.
NO_SPACE = 5

_REQUEST_BYTES = 64 * 1024
_OUT_OF_MEMORY = ("allocate memory", "out of memory", "bad_alloc", "failed to map segment", "can't start new thread")


def main(load: Callable[[], Mapping[str, Task]]) -> int:
    """Serve tasks until the supervisor closes the socket that the command line names.

    Args:
        load: Returns the tasks by name; called once, with all their imports.

    Returns:
        The exit code.
    """
    channel, parent = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    die_with(parent)
    tasks = load()
    gc.freeze()  # what is there now is never garbage: a collection in a child would copy its pages
    # Python counts the idle threads of BLAS; it stops and starts them itself around a fork.
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
    while (received := _receive(channel)) is not None:
        request, (out, err) = received
        pid = _fork(channel, tasks, request, out, err)
        os.close(out)
        os.close(err)
        try:
            _say(channel, pid, ended=False)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            _say(channel, pid, ended=True)
            if not channel.recv(_REQUEST_BYTES):
                break
            _say(channel, pid, ended=True, code=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        except ConnectionError:
            break
    return 0


def _receive(channel: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Return the next request and its two pipes; None if the supervisor has gone."""
    data, files, *_ = socket.recv_fds(channel, _REQUEST_BYTES, 2)
    while data and not data.endswith(b"\n"):
        data += channel.recv(_REQUEST_BYTES)
    return (json.loads(data), files) if data else None


def _say(channel: socket.socket, pid: int, *, ended: bool, code: int | None = None) -> None:
    channel.sendall(json.dumps({"pid": pid, "ended": ended, "code": code}).encode() + b"\n")


def _fork(channel: socket.socket, tasks: Mapping[str, Task], request: dict[str, Any], out: int, err: int) -> int:
    """Start the child that does the task; return when it leads a session of its own, so that it can be killed whole."""
    parent = os.getpid()
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _child(channel, tasks, request, out, err, parent, write_end)
    os.close(write_end)
    os.read(read_end, 1)
    os.close(read_end)
    return pid


def _child(
    channel: socket.socket,
    tasks: Mapping[str, Task],
    request: dict[str, Any],
    out: int,
    err: int,
    parent: int,
    begun: int,
) -> NoReturn:
    code = 1
    try:
        os.setsid()
        os.close(begun)
        channel.close()  # what a task does must not reach the supervisor this way
        # Whatever prints to standard output must not be taken for progress.
        os.dup2(err, 1)
        os.dup2(err, 2)
        os.close(err)
        with os.fdopen(out, "w", encoding="utf-8", buffering=1) as progress:
            code = _work(tasks, request, progress, parent)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:  # it must not return into the server's loop
        traceback.print_exc()
        code = NO_SPACE if no_space(error) else code
    finally:
        os._exit(code)


def _work(tasks: Mapping[str, Task], request: dict[str, Any], progress: TextIO, parent: int) -> int:
    """Confine this process, and do the task.

    Returns:
        The exit code: 0 with result.json, `REFUSED` or `UNEXPECTED` with problem.json, else `NO_SPACE`.
    """
    folder, limits = Path(request["folder"]), Limits(**request["limits"])
    os.chdir(folder)
    os.environ.update(folder_environment(folder))
    tempfile.tempdir = None
    protections = confine(folder, limits, parent=parent, use_gpu=_may_use_gpu(folder))
    print(json.dumps({"protections": protections}), file=progress)

    def report(step: Progress) -> None:
        print(step.model_dump_json(), file=progress)

    arguments: dict[str, Any] = {}
    try:
        arguments = json.loads((folder / "arguments.json").read_text("utf-8"))
        _write(folder / "result.json", tasks[request["task"]](folder, arguments, report))
    except Exception as error:
        return _refuse(folder, limits, error, arguments.get("request_id"))
    return 0


def _may_use_gpu(folder: Path) -> bool:
    device = json.loads((folder / "arguments.json").read_text("utf-8")).get("device", "auto")
    return device != "cpu" and os.environ.get("CUDA_VISIBLE_DEVICES", "all") not in ("", "-1") and gpu_present()


def _refuse(folder: Path, limits: Limits, error: Exception, request_id: str | None) -> int:
    """Write why there is no result: the user's doing, a limit, or a defect."""
    if no_space(error):
        traceback.print_exception(error, file=sys.stderr)
        return NO_SPACE
    limit = _limit_behind(error)
    if limit is not None:
        error.__traceback__ = None  # frames hold the tensors; writing the problem needs room
        _write(folder / "problem.json", limit_exceeded(limits, limit).problem())
        return REFUSED
    if isinstance(error, PruningError) and error.status < 500:
        _write(folder / "problem.json", error.problem())
        return REFUSED
    sys.stderr.write(f"request_id={request_id}\n")
    traceback.print_exception(error, file=sys.stderr)
    said = Died(f"The process ended with {type(error).__name__}: {str(error)[:500]}").problem()
    _write(folder / "problem.json", said)
    return UNEXPECTED


def _limit_behind(error: Exception) -> LimitName | None:
    if isinstance(error, PruningError) and not isinstance(error, RuntimeError):
        return None  # its text may quote the user; one that is a RuntimeError too passes on what PyTorch said
    if isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY):
        return "memory_bytes"
    if getattr(error, "errno", None) == errno.EFBIG or "File too large" in str(error):
        return "file_bytes"
    return None


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, allow_nan=False), "utf-8")


def _tasks() -> Mapping[str, Task]:
    from worker.work import TASKS  # imports torch

    # What PyTorch itself imports at the first use of `torch.func.grad`: it takes a second and more, and a folder for
    # temporary files that can be written to. A task without it would do that itself.
    with contextlib.suppress(OSError, ImportError):
        importlib.import_module("torch._dynamo")
    return cast("Mapping[str, Task]", TASKS)


if __name__ == "__main__":
    sys.exit(main(_tasks))
