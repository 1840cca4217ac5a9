"""Exported archives, each made once per test session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.formats import zoo

Exported = Callable[..., Path]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """`exported(name, dynamic=True)` -> path of the archive of a zoo model; do not write to it."""
    folder = tmp_path_factory.mktemp("zoo")

    @cache
    def path(name: str, dynamic: bool = True) -> Path:
        target = folder / f"{name}-{'dynamic' if dynamic else 'static'}.pt2"
        zoo.export(zoo.make(name), target, dynamic=dynamic)
        return target

    return path
