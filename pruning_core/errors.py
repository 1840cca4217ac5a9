"""The one exception tree. Every error can say itself as an RFC 9457 problem document.

A message says what was expected, what came and what to do; ``slug`` is stable and ends the problem's ``type``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

#: What every problem ``type`` begins with; the slug follows. Stable: clients may match on it.
PROBLEM_TYPE = "urn:pruning-service:problem:"

#: A problem may quote what came, but not at any length: it is stored, listed and shown.
_LONGEST_TEXT = 2000
_MOST_ITEMS = 100


class PruningError(Exception):
    """Something went wrong that is not the user's doing."""

    slug: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    status: ClassVar[int] = 500

    def __init__(
        self,
        detail: str,
        *,
        expected: Any = None,
        received: Any = None,
        advice: str | None = None,
        **extensions: Any,
    ) -> None:
        """Say what went wrong.

        Args:
            detail: One or two sentences a person can act on.
            expected: What would have been right (JSON-able).
            received: What came instead (JSON-able).
            advice: What to do next.
            extensions: Further members of the problem document (JSON-able), such as ``layer`` or ``limit``.
        """
        super().__init__(detail)
        self.detail = detail
        self.expected = expected
        self.received = received
        self.advice = advice
        self.extensions = extensions

    def problem(self) -> dict[str, Any]:
        """Return the RFC 9457 problem document, without members that are unknown; what it quotes is cut short."""
        document = {
            "type": PROBLEM_TYPE + self.slug,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "expected": self.expected,
            "received": self.received,
            "advice": self.advice,
            **self.extensions,
        }
        return {key: _quotable(value) for key, value in document.items() if value is not None}


def _quotable(value: Any, depth: int = 0) -> Any:
    """Return a value as JSON can carry it and a person can read it.

    >>> _quotable({"a": float("nan"), "b": ["x" * 3000]})["a"], len(_quotable("x" * 3000))
    ('nan', 2001)
    """
    if isinstance(value, str):
        value = value if len(value) <= _LONGEST_TEXT else value[:_LONGEST_TEXT] + "…"
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping | list | tuple) and depth > 8:
        return "…"
    if isinstance(value, Mapping):
        items = list(value.items())[:_MOST_ITEMS]
        return {_quotable(str(key)): _quotable(item, depth + 1) for key, item in items}
    if isinstance(value, list | tuple):
        return [_quotable(item, depth + 1) for item in value[:_MOST_ITEMS]]
    return value


class InputError(PruningError):
    """What the user sent cannot be used."""

    slug = "invalid-input"
    title = "Invalid input"
    status = 422


class ModelError(InputError):
    """The model file is broken, hostile or not what it says it is."""

    slug = "invalid-model"
    title = "Invalid model file"


class UnsupportedModel(ModelError):  # noqa: N818 - the field's word, not an accident
    """The model file is sound, but uses something this version does not support."""

    slug = "unsupported-model"
    title = "Unsupported model"


class NothingToPrune(ModelError):  # noqa: N818
    """The model has no layer that the recipe could prune."""

    slug = "nothing-to-prune"
    title = "No prunable layers"


class DatasetError(InputError):
    """The calibration or validation data is broken or does not fit the model."""

    slug = "invalid-dataset"
    title = "Invalid dataset"


class MaskError(InputError):
    """The uploaded mask is broken or does not fit the model."""

    slug = "invalid-mask"
    title = "Invalid mask"


class RecipeError(InputError):
    """The recipe asks for something impossible, unknown or not offered yet."""

    slug = "invalid-recipe"
    title = "Invalid recipe"


class Diverged(PruningError):  # noqa: N818
    """The optimisation left the finite numbers; nothing was written."""

    slug = "diverged"
    title = "The solver diverged"
    status = 422


class LimitExceeded(PruningError):  # noqa: N818
    """The work ran into a limit of memory, CPU, file size or wall clock."""

    slug = "limit-exceeded"
    title = "A resource limit was reached"
    status = 422
