"""A small real model and dataset, as bytes."""

from __future__ import annotations

import io
import json
from itertools import pairwise

import numpy as np
import torch
from safetensors.torch import save

WIDTHS = (784, 40, 20, 10)


def mlpnet(seed: int = 0) -> bytes:
    """An MLPNet with random weights."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for i, (inner, outer) in enumerate(pairwise(WIDTHS), start=1):
        weights[f"fc{i}.weight"] = torch.randn(outer, inner, generator=generator) / inner**0.5
        weights[f"fc{i}.bias"] = torch.randn(outer, generator=generator) / 10
    return save(weights, {"config": json.dumps({"architecture": "mlpnet-mnist"})})


def digits(samples: int, seed: int = 0) -> bytes:
    """Random inputs with labels, as npz."""
    random = np.random.default_rng(seed)
    file = io.BytesIO()
    x = random.standard_normal((samples, WIDTHS[0])).astype(np.float32)
    np.savez(file, x=x, y=random.integers(0, WIDTHS[-1], samples))
    return file.getvalue()
