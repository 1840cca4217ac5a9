"""Optimisation over flat vectors: solvers see matrices and patterns, never a network."""

from pruning_core.solvers.blocks import BlockQuadratic
from pruning_core.solvers.solution import Solution, Status

__all__ = ["BlockQuadratic", "Solution", "Status"]
