"""Fixtures: a fresh service on the session's real Redis and S3."""

from __future__ import annotations

from tests.jobs.conftest import service, settings

__all__ = ["service", "settings"]
