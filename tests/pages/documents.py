"""Report documents: a plain one, and one whose every text is hostile."""

from __future__ import annotations

from typing import Any

HOSTILE = (
    "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> {{7*7}} `x` [a](javascript:1) | \u202eevil\u2066 \x00"
)


def quality(accuracy: float | None, **more: Any) -> dict[str, Any]:
    return {"samples": 200, "loss": 0.5, "accuracy": accuracy, "agreement": 0.9, "output_error": 0.2, **more}


def level(sparsity: float, text: str = "plain", **more: Any) -> dict[str, Any]:
    def layer(i: int) -> dict[str, Any]:
        return {
            "name": f"layer{i}.{text}",
            "kind": text,
            "shape": [10, 10],
            "weights": 100,
            "zeros": int(100 * sparsity),
            "sparsity": sparsity,
            "change": 0.1 * i,
            "sensitivity": 0.05 * i,
            "histogram": {"limit": 1.5, "dense": [1, 98, 1], "pruned": [1, 0, 1]},
        }

    return {
        "sparsity_requested": sparsity,
        "sparsity": sparsity,
        "pattern": {"type": "unstructured", "scope": "global"},
        "pattern_holds": True,
        "layers": [layer(1), layer(2)],
        "objective": {text: 1.0},
        "options": {text: text},
        "fell_back": False,
        "notes": [text],
        "magnitude": quality(0.7),
        "pruned": quality(0.9),
        **more,
    }


def document(*levels: dict[str, Any], text: str = "plain", **more: Any) -> dict[str, Any]:
    made = levels or (level(0.9, text),)
    pruning = {
        "algorithm": text,
        "refine": text,
        "pattern": {"type": "unstructured", "scope": "layer", "max_layer_sparsity": 0.95},
        "goal": None,
        "excluded": [text],
        "unprunable": {text: text},
        "data": "validation",
        "held_out": 40,
        "dense": quality(0.95),
        "levels": made,
        "frontier": [{"sparsity": v["sparsity"], "quality": quality(0.91), "kept": True} for v in made],
        "stages": [{"name": text, "seconds": 75.0, "cpu_seconds": 70.0, "peak_memory_bytes": 123_456_789}],
        "seed": 7,
        "device": text,
        "versions": {text: text},
        **more,
    }
    file = {
        "format": text,
        "size_bytes": 1_000_000,
        "size_bytes_before": 1_000_000,
        "compressed_bytes": 250_000,
        "compressed_bytes_before": 1_000_000,
        "compact_bytes": 100_000,
        "macs": 1200,
        "macs_before": 12_000,
        "sha256": "a" * 64,
        "latency_ms": 10.0,
        "latency_ms_before": 10.2,
        "batch": 64,
        "speedup": f"Measured. {text}",
    }
    return {"pruning": pruning, "files": [file] * len(made), "inputs": {"model": "b" * 64}, "how_to_check": text}
