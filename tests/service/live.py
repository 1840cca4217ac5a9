"""Start and watch the service in tests, exactly as `make up` does."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def eventually(holds: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.2)


@contextmanager
def service(data: Path, port: int, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    data.mkdir(exist_ok=True)
    with (data / "up.log").open("ab") as log:
        up = subprocess.Popen(
            [sys.executable, "-m", "cli.up"],
            env={**os.environ, "PORT": str(port), "DATA": str(data), **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield up
    finally:
        if up.poll() is None:
            up.terminate()
        up.wait(60)
