"""What a person sees: the commands in a real terminal (a pty), with the job at a stage that the test sets."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from client import Client
from jobs.service import Service
from pruning_core.report import Progress
from tests.api import finished_job
from tests.api.live_api import Api
from tests.cli.shell import environment

_COLOUR = re.compile(rb"\x1b\[[0-9;]*m")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A command in a terminal of so many columns."""

    def __init__(self, columns: int, folder: Path, variables: dict[str, str], *arguments: str) -> None:
        self.pid, self._master = pty.fork()
        if self.pid == 0:
            try:
                size = struct.pack("HHHH", 24, columns, 0, 0)
                fcntl.ioctl(0, termios.TIOCSWINSZ, size)
                os.chdir(folder)
                signal.signal(signal.SIGINT, signal.SIG_DFL)  # a suite in the background ignores it, and hands that on
                os.execve(sys.executable, [sys.executable, "-m", "cli", *arguments], variables)
            finally:
                os._exit(127)
        self.raw = b""

    def until(self, holds: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, self.raw
            assert self._read(), self.raw

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def end(self) -> int:
        """Read what is left and return the exit status."""
        while self._read():
            pass
        os.close(self._master)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def lines(self) -> list[str]:
        """What is on the screen, while no line is longer than it is wide: each as it was last written."""
        text = _CONTROL.sub("", self.raw.decode("utf-8", "ignore"))
        return [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")]

    def _read(self) -> bool:
        if select.select([self._master], [], [], 0.2)[0]:
            try:
                data = os.read(self._master, 65536)
            except OSError:
                return False  # closed at the other end
            self.raw += data
            return bool(data)
        return True


@pytest.fixture
def service(client_api: Api) -> Service:
    return client_api.service


@pytest.fixture
def work(client_api: Api, token: str, files: Path) -> tuple[str, str]:
    """A job that is worked on, and its lease: 25 % of it took ten seconds."""
    with Client(client_api.url, token) as client:
        model, data = client.upload("model", files / "net.pt2"), client.upload("dataset", files / "data.npz")
        made = client.create_job(model.id, data.id, finished_job.RECIPE).id
    service = client_api.service
    lease = service.clock.claim(made)
    assert lease is not None
    item = service.ledger.resolve(made, lease)
    assert item is not None
    service.ledger.begin(item, lease, "test")
    report = Progress(stage="gradients", done=1, total=4, fraction=0.25)
    service.clock.report(made, report, started=time.time() - 10)
    return made, lease


@pytest.fixture
def shown(client_api: Api, token: str, files: Path) -> Callable[..., Terminal]:
    def start(columns: int, *arguments: str, **more: str) -> Terminal:
        variables = {**environment(files, client_api.url), "PRUNING_API_KEY": token, "TERM": "xterm-256color", **more}
        return Terminal(columns, files, variables, *arguments)

    return start


def test_a_job_is_watched_and_goes_on_when_the_watcher_leaves(
    shown: Callable[..., Terminal], work: tuple[str, str], service: Service
) -> None:
    job, _ = work
    terminal = shown(80, "wait", job)
    terminal.until(lambda: "gradients" in terminal.lines()[-1])
    bar = terminal.lines()[-1]
    assert re.fullmatch(rf"{job} ━\S+  25% gradients \d+ s left", bar), bar
    assert len(bar) < 78, "there is room for ^C"
    assert _COLOUR.search(terminal.raw)
    terminal.type(b"\x03")
    assert terminal.end() == 130
    shown_last = terminal.lines()
    assert shown_last[0].startswith(f"{job} ━")
    assert shown_last[1:] == [
        "",
        "Interrupted; the job goes on.",
        f"  wait for it:  prune wait {job}",
        f"  end it:       prune cancel {job}",
        "",
    ]
    assert terminal.raw.rindex(b"\x1b[?25h") > terminal.raw.rindex(b"\x1b[?25l"), "the cursor is seen again"
    view = service.get_job(job)
    assert view is not None
    assert view.state == "running"


def test_a_narrow_terminal_without_colours(
    shown: Callable[..., Terminal], work: tuple[str, str], service: Service
) -> None:
    job, lease = work
    terminal = shown(40, "wait", job, NO_COLOR="1")
    terminal.until(lambda: "gradients" in terminal.lines()[-1])
    bar = terminal.lines()[-1]
    assert re.fullmatch(r"[━╸╺ ]+ +25% gradients \d+ s left", bar), bar
    assert len(bar) < 38
    service.clock.release(job, lease)
    assert service.cancel_job(job).state == "cancelled"
    assert terminal.end() == 1
    assert b";5;" not in terminal.raw, "no colour"
    assert f"prune: Cancelled: The job {job} was cancelled." in " ".join(terminal.lines())
