"""Which sets of weights may stay: a pattern turns scores into the best mask it allows."""

from pruning_core.patterns.pattern import Pattern
from pruning_core.patterns.topk import top_k
from pruning_core.patterns.unstructured import Unstructured, kept_count

__all__ = ["Pattern", "Unstructured", "kept_count", "top_k"]
