"""What a user asks for. Imports no torch, so that the service can check a recipe before any work starts.

The options of each algorithm are declared beside its code and published as JSON Schema in ``catalogue.json``
(``make catalogue`` rewrites it); this module checks a recipe against that catalogue.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import jsonschema
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pruning_core.errors import RecipeError


class Frozen(BaseModel):
    """A value: immutable, and closed to unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Unstructured(Frozen):
    """Any weight may go: the k largest scores stay, over the whole network or in each layer by itself."""

    type: Literal["unstructured"] = "unstructured"
    scope: Literal["global", "layer"] = Field(
        default="global",
        description="'global': one ranking over all prunable weights; 'layer': the same sparsity in every layer.",
    )


class Layers(Frozen):
    """Which prunable layers take part, by shell-style patterns on layer names."""

    include: tuple[str, ...] = Field(default=("*",), description="A layer takes part if any of these matches,")
    exclude: tuple[str, ...] = Field(default=(), description="and none of these does.")

    def accepts(self, name: str) -> bool:
        """Return whether the layer of this name takes part.

        >>> Layers(exclude=("*.downsample.*",)).accepts("layer2.0.downsample.0")
        False
        """
        return any(fnmatchcase(name, p) for p in self.include) and not any(fnmatchcase(name, p) for p in self.exclude)


class Select(BaseModel):
    """Choose the mask: which weights stay. Options of the algorithm stand beside these fields."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    algorithm: str = Field(description="A name from GET /algorithms.")
    sparsity: float = Field(ge=0.0, lt=1.0, description="Fraction of the prunable weights that become zero.")
    pattern: Unstructured = Unstructured()
    layers: Layers = Layers()

    @field_validator("sparsity", mode="before")
    @classmethod
    def _one_number(cls, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            kind = "a list of sparsities" if isinstance(value, list) else "a goal" if isinstance(value, dict) else None
            hint = f"; {kind} is not offered by this version" if kind else ""
            raise ValueError(f"expected one number, 0 <= sparsity < 1{hint}")  # noqa: TRY004 - pydantic wants it
        return value

    @field_validator("pattern", mode="before")
    @classmethod
    def _known_pattern(cls, value: Any) -> Any:
        kind = value.get("type", "unstructured") if isinstance(value, Mapping) else value
        if isinstance(kind, str) and kind != "unstructured":
            raise ValueError(f"pattern {kind!r} is not offered by this version; offered: 'unstructured'")
        return {"type": kind} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _options_fit(self) -> Select:
        known = catalogue()
        if self.algorithm not in known:
            raise ValueError(f"unknown algorithm {self.algorithm!r}; offered: {', '.join(sorted(known))}")
        schema = known[self.algorithm]["options"]
        for error in jsonschema.Draft202012Validator(schema).iter_errors(self.options):
            where = ".".join(map(str, error.absolute_path)) or self.algorithm
            fields = ", ".join(schema.get("properties", {}))
            raise ValueError(f"{where}: {error.message} (options of {self.algorithm!r}: {fields})")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The algorithm's own options, as given."""
        return dict(self.model_extra or {})


class Recipe(Frozen):
    """One pruning request: ``{"select": {"algorithm": "chita", "sparsity": 0.9}, "seed": 0}``."""

    select: Select
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seeds everything random: same seed, same bytes.")

    @model_validator(mode="before")
    @classmethod
    def _refine_later(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "refine" in value:
            raise ValueError("'refine' is not offered by this version; leave it out")
        return value

    @classmethod
    def parse(cls, document: Any) -> Recipe:
        """Build a recipe from parsed JSON.

        Args:
            document: What the user sent under ``recipe``.

        Raises:
            RecipeError: A field is unknown, missing or out of range; ``errors`` lists each with its place.
        """
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            errors = [
                {"field": ".".join(("recipe", *map(str, e["loc"]))), "problem": e["msg"].removeprefix("Value error, ")}
                for e in error.errors(include_url=False, include_input=False)
            ]
            raise RecipeError(
                "The recipe cannot be used: " + "; ".join(f"{e['field']}: {e['problem']}" for e in errors),
                advice="GET /algorithms shows every field with its range and default.",
                errors=errors,
            ) from None


@cache
def catalogue() -> dict[str, dict[str, Any]]:
    """Return what ``GET /algorithms`` shows: name -> summary, source and the JSON Schema of the options."""
    data: dict[str, dict[str, Any]] = json.loads(files("pruning_core").joinpath("catalogue.json").read_text("utf-8"))
    return data
