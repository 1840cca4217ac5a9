"""The algorithms a recipe can name. To add one: a file beside these, and a line in the registry below."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType, ModuleType
from typing import Any

from pydantic import BaseModel

from pruning_core.algorithms import chita, magnitude
from pruning_core.algorithms.task import Algorithm, PruningTask, Selection, Step

__all__ = ["REGISTRY", "Algorithm", "Entry", "PruningTask", "Selection", "Step", "describe"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An algorithm with what the catalogue says about it."""

    run: Algorithm
    options: type[BaseModel]
    summary: str
    source: str

    @classmethod
    def of(cls, module: ModuleType) -> Entry:
        """Return the entry of a module that defines ``run``, ``Options``, ``SUMMARY`` and ``SOURCE``."""
        return cls(run=module.run, options=module.Options, summary=module.SUMMARY, source=module.SOURCE)


REGISTRY: Mapping[str, Entry] = MappingProxyType(
    {
        "chita": Entry.of(chita),
        "magnitude": Entry.of(magnitude),
    }
)


def describe() -> dict[str, dict[str, Any]]:
    """Return the catalogue: name -> summary, source, and the JSON Schema of the options."""
    return {
        name: {
            "summary": entry.summary,
            "source": entry.source,
            "options": entry.options.model_json_schema(),
        }
        for name, entry in sorted(REGISTRY.items())
    }
