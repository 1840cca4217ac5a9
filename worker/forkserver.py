"""The supervisor's side of a fork server: a process that has imported everything, and forks one child per task.

Importing torch takes seconds, often more than the work. So a process started from nothing (its environment is built
here, it never had a credential) imports it once and waits; each task gets a fork of it that confines itself before it
opens an untrusted file (`worker.process`). The server opens no such file and touches no GPU: a forked CUDA context
cannot be used.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from typing import IO, Any

from worker.environment import process_environment

#: More than this are not kept waiting: tests start some of another kind.
_MAX_IDLE = 2
_ANSWER_BYTES = 4096


class ForkServer:
    """One such process. Linux kills it when the thread that started it ends, and with it whatever it forked."""

    def __init__(self, module: str) -> None:
        """Start it; it imports in the background.

        Args:
            module: What ``python -m`` runs; it calls `worker.process.main`.
        """
        self.module, self.environment, self.thread = module, process_environment(), threading.get_ident()
        self.socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-s", "-m", module, str(theirs.fileno()), str(os.getpid())],
                cwd="/",
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def serves(self, module: str) -> bool:
        """Return whether it can run a task of this module for this thread, in an environment as it would be now."""
        return (
            self.module == module
            and self.thread == threading.get_ident()
            and self.process.poll() is None
            and self.environment == process_environment()
        )

    def close(self) -> None:
        """End it, and what it forked."""
        self.socket.close()
        self.process.kill()
        self.process.wait()


@dataclass
class Child:
    """A forked child: its output, its end, its exit code.

    Attributes:
        stdout: What it says, unbuffered.
        stderr: Likewise.
        pid: Its id, which is its process group's too; None until the server has answered.
        ended: Whether it has ended; it is not reaped before `reap`, so its group keeps its id until then.
        code: Exit code as in `subprocess`: negative for a signal. The server's, if the server itself died.
    """

    server: ForkServer
    stdout: IO[bytes]
    stderr: IO[bytes]
    pid: int | None = None
    ended: bool = False
    code: int | None = None
    _answers: bytes = field(default=b"", repr=False)

    def fileno(self) -> int:
        """Return what becomes readable when the server has something to say; then call `listen`."""
        return self.server.socket.fileno()

    def listen(self) -> None:
        """Take what the server says; blocks until there is something."""
        data = b""
        with contextlib.suppress(ConnectionError):
            data = self.server.socket.recv(_ANSWER_BYTES)
        if not data:  # the server is dead, and the kernel has killed the child
            self.ended, self.code = True, self.server.process.wait()
            return
        *lines, self._answers = (self._answers + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            self.pid, self.ended, self.code = said["pid"], said["ended"], said["code"]

    def reap(self) -> None:
        """Kill the whole group and wait for its leader. Afterwards no process of the group is left."""
        if self.pid is None:  # the server may be in the middle of its imports
            self.server.close()
            self.ended, self.code = True, self.server.process.returncode
            return
        # The leader is not reaped yet, so its id cannot have become another group's.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ConnectionError):
            self.server.socket.sendall(b"reap\n")
        while self.code is None:
            self.listen()


def fork(module: str, request: dict[str, Any]) -> Child:
    """Have a server fork a child for a task.

    Args:
        module: What the server runs.
        request: What the child gets; JSON.

    Returns:
        The child. Hand it to `release` in the end, however that is.
    """
    server = _take(module)
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    child = Child(server, os.fdopen(out_read, "rb", buffering=0), os.fdopen(err_read, "rb", buffering=0))
    try:
        # A server that has just died shows at `Child.listen`.
        with contextlib.suppress(ConnectionError):
            socket.send_fds(server.socket, [json.dumps(request).encode() + b"\n"], [out_write, err_write])
    finally:
        os.close(out_write)
        os.close(err_write)
    return child


def release(child: Child) -> None:
    """Kill and reap the child; keep its server for the next task."""
    child.reap()
    if child.server.process.poll() is None:
        with _guard:
            _idle.append(child.server)
            surplus = _idle[:-_MAX_IDLE]
            del _idle[:-_MAX_IDLE]
        for server in surplus:
            server.close()
    else:
        child.server.close()


def warm(module: str) -> None:
    """Start a server before there is work for it."""
    with _guard:
        _idle.append(ForkServer(module))


_idle: list[ForkServer] = []
_guard = threading.Lock()


def _take(module: str) -> ForkServer:
    with _guard:
        for server in reversed(_idle):
            if server.serves(module):
                _idle.remove(server)
                return server
    return ForkServer(module)


@atexit.register
def _close_all() -> None:
    while _idle:
        _idle.pop().close()


def _forget() -> None:
    """In a fork of this process: the servers are the parent's."""
    _idle.clear()


os.register_at_fork(after_in_child=_forget)
