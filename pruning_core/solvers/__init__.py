"""Optimisation over flat vectors: solvers see matrices and patterns, never a network."""

from pruning_core.solvers.blocks import BlockQuadratic
from pruning_core.solvers.cardinality import solve_cardinality
from pruning_core.solvers.elimination import Elimination, eliminate, removal_ranks
from pruning_core.solvers.inverse_fisher import BlockCurvature, DualCurvature, DualInverse, damped_inverse, kernel
from pruning_core.solvers.layer_least_squares import SupportFactors, layer_least_squares
from pruning_core.solvers.line_search import Point, iht_step, largest_same_support_step
from pruning_core.solvers.low_rank import LowRankQuadratic
from pruning_core.solvers.refit import Refit, Refitter
from pruning_core.solvers.solution import Solution, Status
from pruning_core.solvers.staged import Scorer, counts_left, remove_cheapest, staged_removal
from pruning_core.solvers.swap import BlockModel, LowRankModel, Refitted, swap_search

__all__ = [
    "BlockCurvature",
    "BlockModel",
    "BlockQuadratic",
    "DualCurvature",
    "DualInverse",
    "Elimination",
    "LowRankModel",
    "LowRankQuadratic",
    "Point",
    "Refit",
    "Refitted",
    "Refitter",
    "Scorer",
    "Solution",
    "Status",
    "SupportFactors",
    "counts_left",
    "damped_inverse",
    "eliminate",
    "iht_step",
    "kernel",
    "largest_same_support_step",
    "layer_least_squares",
    "removal_ranks",
    "remove_cheapest",
    "solve_cardinality",
    "staged_removal",
    "swap_search",
]
