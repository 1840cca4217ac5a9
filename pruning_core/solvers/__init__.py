"""Optimisation over flat vectors: solvers see matrices and patterns, never a network."""

from pruning_core.solvers.blocks import BlockQuadratic
from pruning_core.solvers.cardinality import solve_cardinality
from pruning_core.solvers.layer_least_squares import SupportFactors, layer_least_squares
from pruning_core.solvers.line_search import Point, iht_step, largest_same_support_step
from pruning_core.solvers.low_rank import LowRankQuadratic
from pruning_core.solvers.refit import Refit, Refitter
from pruning_core.solvers.solution import Solution, Status
from pruning_core.solvers.swap import BlockModel, LowRankModel, Refitted, swap_search

__all__ = [
    "BlockModel",
    "BlockQuadratic",
    "LowRankModel",
    "LowRankQuadratic",
    "Point",
    "Refit",
    "Refitted",
    "Refitter",
    "Solution",
    "Status",
    "SupportFactors",
    "iht_step",
    "largest_same_support_step",
    "layer_least_squares",
    "solve_cardinality",
    "swap_search",
]
