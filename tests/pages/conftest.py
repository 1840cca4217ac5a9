"""One api process for the tests of this folder."""

from tests.api.conftest import running_api

__all__ = ["running_api"]
