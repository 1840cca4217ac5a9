"""What a checkpoint is valid for: one job's inputs on one kind of machine, under one version of the code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch

import pruning_core
from pruning_core.recipe import Recipe


def fingerprint(inputs: Mapping[str, str], recipe: Recipe, device: torch.device) -> str:
    """Return a digest of all that the bytes of a step depend on.

    A worker of another kind, or of a later version, does not go on from such a step: it does it again, so that what
    comes out is what an undisturbed run there gives.

    Args:
        inputs: SHA-256 of each file by its role.
        recipe: As parsed, with the defaults of its fields.
        device: Where the work is done.
    """
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    parts = {
        "inputs": dict(inputs),
        "recipe": recipe.model_dump(mode="json"),
        "device": [device.type, name, torch.get_num_threads()],
        "torch": str(torch.__version__),
        "code": _code(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _code() -> str:
    """Return a digest of the core's source: versions are too coarse where a deployment follows every commit."""
    root = Path(pruning_core.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
