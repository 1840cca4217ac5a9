"""The one exception tree. Every error can say itself as an RFC 9457 problem document.

A message says what was expected, what came and what to do; ``slug`` is stable and ends the problem's ``type``.
"""

from __future__ import annotations

from typing import Any, ClassVar

#: What every problem ``type`` begins with; the slug follows. Stable: clients may match on it.
PROBLEM_TYPE = "urn:pruning-service:problem:"


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
        """Return the RFC 9457 problem document, without members that are unknown."""
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
        return {key: value for key, value in document.items() if value is not None}


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
