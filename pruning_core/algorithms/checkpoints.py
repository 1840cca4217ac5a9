"""Finished steps are kept, so that a job that was killed goes on from there, with the same bytes in the end."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import safetensors
from safetensors.torch import load, save
from torch import Tensor

S = TypeVar("S")


@dataclass(frozen=True, kw_only=True)
class Saved:
    """The result of one step: tensors by name (kept bit for bit), and plain facts (JSON)."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


class Checkpoints(Protocol):
    """Where finished steps of one job are kept."""

    def load(self, key: str) -> Saved | None:
        """Return what was saved under this key, or None."""

    def save(self, key: str, saved: Saved) -> None:
        """Keep a finished step."""


class NoCheckpoints:
    """Keeps nothing."""

    def load(self, key: str) -> Saved | None:
        """Return None."""
        del key
        return None

    def save(self, key: str, saved: Saved) -> None:
        """Do nothing."""


class FolderCheckpoints:
    """One file for each finished step; a step counts once its file is whole.

    Args:
        folder: Made when it is not there.
        fingerprint: Of model, data and recipe: steps of other work are not taken for this one's.
    """

    SUFFIX = ".checkpoint"

    def __init__(self, folder: Path, fingerprint: str = "") -> None:
        self._folder, self._fingerprint = folder, fingerprint
        folder.mkdir(parents=True, exist_ok=True)

    def load(self, key: str) -> Saved | None:
        """Return what was saved under this key; None where there is nothing, or nothing that can be trusted."""
        try:
            data = self._path(key).read_bytes()
            digest, document = data[:32], data[32:]
            if hashlib.sha256(document).digest() != digest:
                return None
            with contextlib.suppress(ValueError, KeyError, safetensors.SafetensorError):
                size = int.from_bytes(document[:8], "little")
                stated = json.loads(json.loads(document[8 : 8 + size])["__metadata__"]["checkpoint"])
                if (stated["key"], stated["fingerprint"]) == (key, self._fingerprint):
                    return Saved(tensors=load(document), facts=stated["facts"])
        except OSError:
            pass
        return None

    def save(self, key: str, saved: Saved) -> None:
        """Keep a finished step: written beside, then renamed, so that half a file is never seen."""
        stated = {"key": key, "fingerprint": self._fingerprint, "facts": dict(saved.facts)}
        tensors = {name: t.detach().cpu().contiguous() for name, t in saved.tensors.items()}
        document = save(tensors, metadata={"checkpoint": json.dumps(stated)})
        path = self._path(key)
        beside = path.with_suffix(".part")
        beside.write_bytes(hashlib.sha256(document).digest() + document)
        beside.replace(path)

    def _path(self, key: str) -> Path:
        return self._folder / (hashlib.sha256(f"{self._fingerprint}\n{key}".encode()).hexdigest()[:32] + self.SUFFIX)


class Within:
    """The checkpoints of one part of a job: every key gets a prefix.

    Attributes:
        taken: Steps that were there already.
    """

    def __init__(self, inner: Checkpoints, prefix: str) -> None:
        self._inner, self._prefix = inner, prefix
        self.taken = 0

    def load(self, key: str) -> Saved | None:
        """Return what was saved under the prefixed key, or None."""
        found = self._inner.load(f"{self._prefix}/{key}")
        self.taken += found is not None
        return found

    def save(self, key: str, saved: Saved) -> None:
        """Keep a finished step under the prefixed key."""
        self._inner.save(f"{self._prefix}/{key}", saved)


def remember(checkpoints: Checkpoints, key: str, make: Generator[S, None, Saved]) -> Generator[S, None, Saved]:
    """Return a step's result from its checkpoint, or run it, yielding its steps, and keep its result.

    A step must depend on nothing but the job and the results of steps before it: then a job that goes on from its
    checkpoints ends with the bytes of one that was never disturbed.

    Args:
        checkpoints: Where it is kept.
        key: Of the step; unique within the job.
        make: Runs the step; closed unused when its result is there.
    """
    found = checkpoints.load(key)
    if found is not None:
        make.close()
        return found
    made = yield from make
    checkpoints.save(key, made)
    # What was kept is what is gone on with: the same values whether the step ran now or before.
    return Saved(tensors=dict(made.tensors), facts=json.loads(json.dumps(dict(made.facts))))
