"""What a user asks for. Imports no torch, so that the service can check a recipe before any work starts.

The options of each algorithm are declared beside its code and published as JSON Schema in ``catalogue.json``
(``make catalogue`` rewrites it); this module checks a recipe against that catalogue.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import jsonschema
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pruning_core.errors import RecipeError
from pruning_core.preprocess import Preprocess

#: Levels of one frontier at most: each is a model in the bucket.
MAX_LEVELS = 32


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
    max_layer_sparsity: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="With scope 'global': no layer loses more than this part of its weights. null: no cap.",
    )


class NofM(Frozen):
    """Of every m consecutive input channels (at one kernel position, for one output channel) n stay."""

    type: Literal["n:m"] = "n:m"
    n: int = Field(ge=1, le=256, description="Weights that stay in each group.")
    m: int = Field(ge=2, le=256, description="Weights in a group.")

    @model_validator(mode="after")
    def _fewer(self) -> NofM:
        if self.n >= self.m:
            raise ValueError(f"expected n < m, got {self.n}:{self.m}")
        return self


class Block(Frozen):
    """Whole blocks go: r consecutive output channels by c consecutive input channels at one kernel position."""

    type: Literal["block"] = "block"
    shape: tuple[Annotated[int, Field(ge=1, le=256)], Annotated[int, Field(ge=1, le=256)]] = Field(
        description="(r, c): outputs by inputs; [4, 1] is the field's '4x1'."
    )
    scope: Literal["global", "layer"] = Field(default="global", description="As for 'unstructured'.")


class Mask(Frozen):
    """Exactly the mask that was uploaded with the job (``"masks": "msk_…"``)."""

    type: Literal["mask"] = "mask"


Pattern = Annotated[Unstructured | NofM | Block | Mask, Field(discriminator="type")]


class Goal(Frozen):
    """Search for the highest sparsity whose loss of quality stays within a bound, on held-out data."""

    max_accuracy_drop: float | None = Field(
        default=None, ge=0, le=1, description="Dense accuracy less pruned accuracy, at most (0.01: one point)."
    )
    max_loss_increase: float | None = Field(
        default=None, ge=0, description="Pruned loss less dense loss, at most, in units of the loss."
    )
    max_sparsity: float = Field(default=0.99, gt=0, lt=1, description="Where the search ends.")
    precision: float = Field(default=0.005, ge=0.0005, le=0.2, description="How finely sparsity is searched.")

    @model_validator(mode="after")
    def _one_bound(self) -> Goal:
        if (self.max_accuracy_drop is None) == (self.max_loss_increase is None):
            raise ValueError("expected exactly one of max_accuracy_drop and max_loss_increase")
        return self


class Layers(Frozen):
    """Which prunable layers take part, by shell-style patterns on layer names."""

    include: tuple[str, ...] = Field(default=("*",), description="A layer takes part if one of these matches its name,")
    exclude: tuple[str, ...] = Field(
        default=(), description="and none of these does: what matches here stays dense, e.g. 'head*'."
    )

    def accepts(self, name: str) -> bool:
        """Return whether the layer of this name takes part.

        >>> Layers(exclude=("*.downsample.*",)).accepts("layer2.0.downsample.0")
        False
        """
        return any(fnmatchcase(name, p) for p in self.include) and not any(fnmatchcase(name, p) for p in self.exclude)


class _Named(BaseModel):
    """A part of a recipe that names an algorithm; options of the algorithm stand beside its own fields."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)
    part: ClassVar[str]

    algorithm: str = Field(description="A name from GET /algorithms.")

    @model_validator(mode="after")
    def _options_fit(self) -> _Named:
        known = {name: entry for name, entry in catalogue().items() if entry["part"] == self.part}
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


#: What prunes where no algorithm is named: the best that needs no labels (benchmarks/RESULTS.md).
RECOMMENDED = "gradual"

Sparsity = Annotated[float, Field(ge=0.0, lt=1.0)]


class Select(_Named):
    """Choose the mask: which weights stay. Options of the algorithm stand beside these fields."""

    part = "select"

    algorithm: str = Field(
        default=RECOMMENDED, description="A name from GET /algorithms; without one the recommended algorithm."
    )
    sparsity: Sparsity | tuple[Sparsity, ...] | Goal | None = Field(
        default=None,
        description="Fraction of the prunable weights that become zero: a number; or a rising list, whose models are "
        "all made from one pass of statistics; or a goal. An n:m pattern or a mask needs none.",
    )
    pattern: Pattern = Unstructured()
    layers: Layers = Layers()

    @field_validator("sparsity", mode="before")
    @classmethod
    def _a_form_that_is_known(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return Goal.model_validate(value)
        items = value if isinstance(value, list | tuple) else [value]
        if value is not None and any(isinstance(x, bool) or not isinstance(x, int | float) for x in items):
            raise ValueError(
                "expected a number 0 <= sparsity < 1, a rising list of numbers, or a goal such as "
                '{"max_accuracy_drop": 0.01}'
            )
        if isinstance(value, list | tuple) and not (
            0 < len(items) <= MAX_LEVELS and all(a < b for a, b in pairwise(items))
        ):
            raise ValueError(f"expected a rising list of 1 to {MAX_LEVELS} different numbers")
        if value is not None and not all(0 <= x < 1 for x in items):
            raise ValueError("expected 0 <= sparsity < 1: greater than or equal to 0 and less than 1")
        return value

    @field_validator("pattern", mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return {"type": "unstructured", **value} if isinstance(value, Mapping) else value
        if found := re.fullmatch(r"(\d{1,3}):(\d{1,3})", value):
            return {"type": "n:m", "n": int(found[1]), "m": int(found[2])}
        if found := re.fullmatch(r"(\d{1,3})x(\d{1,3})", value):
            return {"type": "block", "shape": [int(found[1]), int(found[2])]}
        if value in ("unstructured", "mask"):
            return {"type": value}
        raise ValueError(f"unknown pattern {value!r}; offered: 'unstructured', 'N:M' as '2:4', 'RxC' as '4x1', 'mask'")

    @model_validator(mode="after")
    def _sparsity_fits_the_pattern(self) -> Select:
        given = self.sparsity
        if isinstance(self.pattern, NofM):
            implied = 1 - self.pattern.n / self.pattern.m
            if given is not None and (not isinstance(given, float) or abs(given - implied) > 1e-6):
                raise ValueError(
                    f"sparsity: an {self.pattern.n}:{self.pattern.m} pattern has sparsity {implied:g}; leave it out"
                )
        elif isinstance(self.pattern, Mask):
            if given is not None:
                raise ValueError("sparsity: a mask has its own sparsity; leave it out")
        elif isinstance(self.pattern, Unstructured) and isinstance(given, float | tuple):
            cap = self.pattern.max_layer_sparsity
            most = max(given) if isinstance(given, tuple) else given
            if cap is not None and most > cap:
                raise ValueError(f"pattern: max_layer_sparsity {cap:g} is below the sparsity {most:g}")
        if given is None and isinstance(self.pattern, Unstructured | Block):
            raise ValueError("sparsity: required with this pattern: a number, a list or a goal")
        offered = catalogue()[self.algorithm].get("patterns") if self.algorithm in catalogue() else None
        if offered is not None and self.pattern.type not in offered:
            raise ValueError(f"pattern: {self.algorithm!r} serves {', '.join(offered)}; got {self.pattern.type!r}")
        return self

    @property
    def levels(self) -> tuple[float | None, ...]:
        """The sparsities asked for; ``(None,)`` where pattern or goal decide."""
        if isinstance(self.sparsity, tuple):
            return self.sparsity
        return (None,) if isinstance(self.sparsity, Goal) or self.sparsity is None else (self.sparsity,)


class Refine(_Named):
    """Re-fit the surviving weights under the mask. Options of the algorithm stand beside the name."""

    part = "refine"


class Recipe(Frozen):
    """One pruning request: ``{"select": {"algorithm": "chita", "sparsity": 0.9}, "seed": 0}``.

    Without ``select`` the mask is the uploaded one, and ``refine`` re-fits its weights.
    """

    select: Select
    refine: Refine | None = None
    seed: int = Field(default=0, ge=0, lt=2**63, description="Seeds everything random: same seed, same bytes.")
    preprocess: Preprocess | None = Field(
        default=None, description="How pictures become the network's input; null: by what it takes, scaled to 0..1."
    )

    @model_validator(mode="before")
    @classmethod
    def _refine_alone(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("select") is None and value.get("refine") is not None:
            return {**value, "select": {"algorithm": "magnitude", "pattern": "mask"}}
        return value

    @property
    def needs_mask(self) -> bool:
        """Whether the job must name an uploaded mask."""
        return isinstance(self.select.pattern, Mask)

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
            errors = [_told(e["loc"], e["msg"]) for e in error.errors(include_url=False, include_input=False)]
            raise RecipeError(
                "The recipe cannot be used: " + "; ".join(f"{e['field']}: {e['problem']}" for e in errors),
                advice="GET /algorithms shows every field with its range and default.",
                errors=errors,
            ) from None


def _told(location: tuple[int | str, ...], message: str) -> dict[str, str]:
    """Return a field's place as the user wrote it, without the names of a union's members, and what is wrong there."""
    members = {"unstructured", "n:m", "block", "mask", "Goal", "float", "int"}
    place = [str(part) for part in location if part not in members and not str(part).startswith(("tuple[", "constr"))]
    problem = message.removeprefix("Value error, ")
    # Checks of several fields together name the one at fault first.
    if found := re.match(r"(sparsity|pattern): ", problem):
        place.append(found[1])
        problem = problem[found.end() :]
    return {"field": ".".join(("recipe", *place)), "problem": problem}


@cache
def catalogue() -> dict[str, dict[str, Any]]:
    """Return what ``GET /algorithms`` shows: name -> part, summary, source and the JSON Schema of the options."""
    data: dict[str, dict[str, Any]] = json.loads(files("pruning_core").joinpath("catalogue.json").read_text("utf-8"))
    return data
