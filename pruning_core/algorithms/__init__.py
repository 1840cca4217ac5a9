"""The algorithms a recipe can name. To add one: a file beside these, and a line in a registry below."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import Any

from pydantic import BaseModel, ValidationError

from pruning_core.algorithms import (
    alps,
    best,
    cbs,
    chita,
    exact_obs,
    gradual,
    magnitude,
    mfac,
    obd,
    obs,
    snows,
    sparsegpt,
    wanda,
    woodfisher,
)
from pruning_core.algorithms.checkpoints import Checkpoints, FolderCheckpoints, NoCheckpoints, Saved, Within, remember
from pruning_core.algorithms.task import Algorithm, PruningTask, Refiner, Selection, Selector, Step, weights_of
from pruning_core.errors import RecipeError

__all__ = [
    "REFINERS",
    "REGISTRY",
    "Algorithm",
    "Checkpoints",
    "Entry",
    "FolderCheckpoints",
    "NoCheckpoints",
    "PruningTask",
    "Refiner",
    "Saved",
    "Selection",
    "Selector",
    "Step",
    "Within",
    "describe",
    "remember",
    "weights_of",
]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An algorithm with what the catalogue says about it."""

    run: Any
    options: type[BaseModel]
    summary: str
    source: str
    patterns: tuple[str, ...] | None
    needs_data: bool

    def parse(self, options: Mapping[str, Any]) -> Any:
        """Return the options with defaults filled in.

        Raises:
            RecipeError: They do not go together in a way that the JSON Schema cannot say.
        """
        try:
            return self.options.model_validate(options)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise RecipeError(
                "The recipe cannot be used: " + ": ".join(filter(None, (where, str(first["msg"])))),
                advice="GET /algorithms shows every option with its range and default.",
            ) from None

    @classmethod
    def of(cls, module: ModuleType) -> Entry:
        """Return the entry of a module that defines ``run``, ``Options``, ``SUMMARY`` and ``SOURCE``.

        ``PATTERNS`` (default: all) and ``NEEDS_DATA`` (default: true) are taken where the module has them.
        """
        patterns = getattr(module, "PATTERNS", None)
        return cls(
            run=module.run,
            options=module.Options,
            summary=module.SUMMARY,
            source=module.SOURCE,
            patterns=None if patterns is None else tuple(sorted(patterns)),
            needs_data=getattr(module, "NEEDS_DATA", True),
        )


#: Algorithms for ``select``; each ``run`` is an `Algorithm`.
REGISTRY: Mapping[str, Entry] = MappingProxyType(
    {
        "alps": Entry.of(alps),
        "best": Entry.of(best),
        "cbs": Entry.of(cbs),
        "chita": Entry.of(chita),
        "exact-obs": Entry.of(exact_obs),
        "gradual": Entry.of(gradual),
        "magnitude": Entry.of(magnitude),
        "mfac": Entry.of(mfac),
        "obd": Entry.of(obd),
        "obs": Entry.of(obs),
        "sparsegpt": Entry.of(sparsegpt),
        "wanda": Entry.of(wanda),
        "woodfisher": Entry.of(woodfisher),
    }
)

#: Algorithms for ``refine``; each ``run`` is a `Refiner`.
REFINERS: Mapping[str, Entry] = MappingProxyType({"snows": Entry.of(snows)})


def describe() -> dict[str, dict[str, Any]]:
    """Return the catalogue: name -> part, summary, source, and the JSON Schema of the options."""
    parts = {"select": REGISTRY, "refine": REFINERS}
    return {
        name: {
            "part": part,
            "summary": entry.summary,
            "source": entry.source,
            "needs_data": entry.needs_data,
            **({} if entry.patterns is None else {"patterns": list(entry.patterns)}),
            "options": entry.options.model_json_schema(),
        }
        for part, registry in parts.items()
        for name, entry in sorted(registry.items())
    }
