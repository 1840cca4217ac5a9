"""``python -m api``: serve on the host and port of the settings."""

from __future__ import annotations

import sys
from types import FrameType

import uvicorn

from api.app import app
from api.protocol import PatientProtocol
from api.services import Context
from api.settings import ApiSettings, is_loopback
from jobs import logs, tracing
from jobs.settings import Settings


class _Server(uvicorn.Server):
    """Ends the streams of events when it is told to stop: it would wait for them."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal."""
        context: Context | None = getattr(app.state, "context", None)
        if context is not None:
            context.watcher.leave()
        super().handle_exit(sig, frame)


def main() -> int:
    """Serve until SIGINT or SIGTERM; return the exit status."""
    settings, shared = ApiSettings(), Settings()
    logs.configure(shared.log_format, shared.log_level)
    tracing.configure(shared.traces, "api")
    if not is_loopback(settings.host) and not settings.keys_required:
        sys.stderr.write(
            f"api: refusing to listen on {settings.host} without keys: anybody who reaches it could use it. Set "
            "PRUNING_API_KEYS=required and make the first key with `python -m cli.keys create`, or keep "
            "PRUNING_API_HOST on loopback. (PRUNING_API_ALLOW_REMOTE has no meaning any more.)\n"
        )
        return 2
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=PatientProtocol,
        ws="none",
        limit_concurrency=settings.max_connections,
        server_header=False,
        # Ours: with ids, and without the query (api.access_log).
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
    _Server(config).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
