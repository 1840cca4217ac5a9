"""`make up` as a user sees it: it starts, restarts what dies, refuses what cannot work, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cli.embedded import LOOPBACK, Keys, free_port
from cli.up import is_ready
from tests.service.live import eventually, service


def parts(up: subprocess.Popen[bytes]) -> dict[str, psutil.Process]:
    """The service's direct children by what they are."""
    found = {}
    for child in psutil.Process(up.pid).children():
        try:
            line = " ".join(child.cmdline())
        except (psutil.ZombieProcess, psutil.NoSuchProcess):
            continue  # just killed, not yet started again
        for name, mark in {
            "redis": "valkey",
            "s3": "nanio",
            "api": "-m api",
            "worker": "-Q jobs",
            "inspector": "-Q insp",
        }.items():
            if mark in line:
                found[name] = child
    return found


def test_starts_restarts_a_dead_part_keeps_its_data_and_leaves_nothing(tmp_path: Path) -> None:
    port, other_port = free_port(), free_port()
    with service(tmp_path / "one", port) as up, service(tmp_path / "two", other_port) as other:
        eventually(lambda: is_ready(port) and is_ready(other_port), 60, "two services side by side are ready")
        path = tmp_path / "one" / "up.log"
        eventually(lambda: f"pruning-service is up at http://127.0.0.1:{port}" in path.read_text(), 20, "it says so")
        assert set(parts(up)) == {"redis", "s3", "api", "worker", "inspector"}

        second = subprocess.run(
            [sys.executable, "-m", "cli.up", "--port", str(free_port()), "--data", str(tmp_path / "one")],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert second.returncode != 0
        assert "another pruning-service uses the data directory" in second.stderr

        killed = parts(up)["api"].pid
        os.kill(killed, signal.SIGKILL)
        eventually(
            lambda: any(part.pid != killed for name, part in parts(up).items() if name == "api"),
            *(20, "the api is started again"),
        )
        eventually(lambda: is_ready(port), 30, "the service is ready again")

        everything = psutil.Process(up.pid).children(recursive=True)
        up.send_signal(signal.SIGINT)
        assert up.wait(40) == 0
        assert psutil.wait_procs(everything, timeout=5)[1] == [], "SIGINT leaves nothing running"

        everything = psutil.Process(other.pid).children(recursive=True)
        other.kill()
        other.wait()
        assert psutil.wait_procs(everything, timeout=10)[1] == [], "even a killed `up` leaves nothing running"
    log = path.read_text("utf-8")
    assert "starting again" in log
    keys = Keys.of(tmp_path / "one")
    assert keys.redis_password not in log
    assert keys.s3_secret_key not in log


def test_port_that_is_taken_is_said_plainly(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        done = subprocess.run(
            [sys.executable, "-m", "cli.up", "--port", str(taken.getsockname()[1]), "--data", str(tmp_path / "data")],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.returncode != 0
    assert "is taken" in done.stderr


@pytest.mark.parametrize("name", ["keys.json", "redis/valkey.conf"])
def test_secrets_are_readable_by_the_owner_only(tmp_path: Path, name: str) -> None:
    from cli.embedded import valkey

    valkey(tmp_path, Keys.of(tmp_path), 1)
    assert (tmp_path / name).stat().st_mode & 0o077 == 0
    assert Keys.of(tmp_path) == Keys.of(tmp_path), "made once, then read"
