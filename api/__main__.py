"""``python -m api``: serve on the host and port of the settings."""

from __future__ import annotations

import sys

import uvicorn

from api.app import app
from api.settings import ApiSettings, is_loopback


def main() -> int:
    """Serve until SIGINT or SIGTERM; return the exit status."""
    settings = ApiSettings()
    if not is_loopback(settings.host) and not settings.allow_remote:
        sys.stderr.write(
            f"api: refusing to listen on {settings.host}: there are no keys yet, so anybody who reaches it could use "
            "it. Keep PRUNING_API_HOST on loopback, or put an authenticating proxy in front and set "
            "PRUNING_API_ALLOW_REMOTE=true.\n"
        )
        return 2
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
