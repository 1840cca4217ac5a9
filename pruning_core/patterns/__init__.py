"""Which sets of weights may stay: a pattern turns scores into the best mask it allows."""

from pruning_core.patterns.block import Block
from pruning_core.patterns.build import build
from pruning_core.patterns.fixed import Fixed
from pruning_core.patterns.n_of_m import NofM
from pruning_core.patterns.pattern import Pattern
from pruning_core.patterns.sweep import sweep_order
from pruning_core.patterns.topk import top_k
from pruning_core.patterns.unstructured import Unstructured, kept_count

__all__ = ["Block", "Fixed", "NofM", "Pattern", "Unstructured", "build", "kept_count", "sweep_order", "top_k"]
