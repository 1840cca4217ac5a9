"""Real servers for tests: a Valkey and a nanio on loopback, started and ended by process id."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from cli.embedded import Keys, Part, free_port, nanio, service_environment, valkey, wait_for


@contextmanager
def running(part: Part, log: Path, seconds: float = 30) -> Iterator[subprocess.Popen[bytes]]:
    """Start a part, wait until it answers, and end it (and only it) afterwards."""
    with log.open("ab") as out:
        process = subprocess.Popen(part.command, env={**os.environ, **part.environment}, stdout=out, stderr=out)
    try:
        wait_for(part.ready, seconds=seconds, what=part.name)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def embedded_servers(folder: Path | None = None) -> Iterator[dict[str, str]]:
    """Run a fresh Redis and a fresh S3; yield the environment that points the service at them."""
    with tempfile.TemporaryDirectory(prefix="pruning-servers-") as temporary:
        data = folder or Path(temporary)
        keys = Keys.of(data)
        redis_port, s3_port = free_port(), free_port()
        with (
            running(valkey(data, keys, redis_port), data / "redis.log"),
            running(nanio(data, keys, s3_port), data / "s3.log"),
        ):
            yield service_environment(keys, redis_port=redis_port, s3_port=s3_port)


def own_database(servers: dict[str, str], number: int) -> dict[str, str]:
    """Return the same servers with a Redis database of one's own: what is in it is not shared with other tests."""
    url = urlunsplit(urlsplit(servers["PRUNING_REDIS_URL"])._replace(path=f"/{number}"))
    return {**servers, "PRUNING_REDIS_URL": url}
