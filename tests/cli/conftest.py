"""The api, proxies and files of the client's tests: here the command line uses them. No worker runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from tests.client.conftest import before_s3, client_api, files, parts_proxy, proxy, token

__all__ = ["before_s3", "client_api", "files", "parts_proxy", "proxy", "token"]


class Shell:
    """Runs commands in this process, as without a terminal."""

    def __init__(self) -> None:
        self.url = "http://127.0.0.1:9"

    def __call__(self, *arguments: object, stdin: str | None = None) -> Result:
        options = ["--url", self.url, "--retry-seconds", "5"]
        result = CliRunner().invoke(app, [*options, *map(str, arguments)], input=stdin, prog_name="prune")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result


@pytest.fixture
def prune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.delenv("PRUNING_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    return Shell()
