"""The API key: where it comes from, where it goes, and where it is never seen."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from client import Client, ClientError, Problem
from client.connection import Connection
from tests.api.live_api import Api
from tests.client.conftest import QUICK, Make

SECRET = "prk_0123456789_topsecret"


def test_without_a_key_the_reason_is_told_and_with_one_it_works(
    make: Make, client_api: Api, token: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PRUNING_API_KEY", raising=False)
    with pytest.raises(Problem) as refused:
        next(make(client_api.url, None).list_uploads("mask"))
    assert (refused.value.status, refused.value.slug) == (401, "unauthenticated")
    assert refused.value.advice
    with caplog.at_level(logging.DEBUG):
        client = make(client_api.url, token)
        assert client.algorithms().algorithms
        monkeypatch.setenv("PRUNING_API_KEY", token)
        assert make(client_api.url, None).algorithms().algorithms
    assert caplog.text, "something was logged"
    assert token not in caplog.text
    assert token not in repr(client)


def test_the_key_is_in_no_text() -> None:
    connection = Connection("http://127.0.0.1:1", SECRET)
    assert SECRET not in repr(connection)
    assert SECRET not in str(vars(Client("http://127.0.0.1:1", SECRET, retry=QUICK)))
    with pytest.raises(ClientError) as refused:
        Connection("http://127.0.0.1:1", "prk_two\nlines")
    assert "two" not in str(refused.value)


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:8000", "http://", "http://user:pw@host", "http://h?x=1"])
def test_an_address_that_cannot_be_one_is_refused_at_once(url: str) -> None:
    with pytest.raises(ClientError, match="URL"):
        Connection(url)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRUNING_URL", raising=False)
    assert Connection().url == "http://127.0.0.1:8000"
    monkeypatch.setenv("PRUNING_URL", "https://prune.example/api/")
    assert Connection().url == "https://prune.example/api"


def test_the_client_needs_nothing_of_the_service() -> None:
    code = (
        "import sys, client; "
        "heavy = {'torch', 'numpy', 'boto3', 'celery', 'fastapi', 'jobs', 'api', 'worker', 'cli', 'pruning_core'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
