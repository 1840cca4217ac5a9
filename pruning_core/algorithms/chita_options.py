"""CHITA's options, and what follows from them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pruning_core.algorithms.chita_curvature import Effort
from pruning_core.algorithms.chita_stages import Schedule
from pruning_core.algorithms.gradients import GradientOptions

Structure = Literal["auto", "block", "global"]


class Options(GradientOptions):
    """Options of CHITA."""

    structure: Structure = Field(
        default="auto",
        description="'block': diagonal blocks of the Fisher, streamed over any number of samples; memory "
        "4·p·block_size bytes. 'global': the whole low-rank Fisher; memory 4·p·samples bytes. 'auto': the one that "
        "does better on held-out calibration data, from one gradient pass; 'block' where 'global' does not fit.",
    )
    block_size: int = Field(
        default=500,
        ge=1,
        le=4096,
        description="About so many consecutive weights of one tensor in a diagonal block ('block').",
    )
    ridge: float | Literal["auto"] | None = Field(
        default="auto",
        description="λ of the quadratic model: a number; 'auto': the one that does best on held-out calibration data "
        "among multiples of the Fisher's mean diagonal; null: a fixed multiple of it (0.1 for 'block', 0.3 for "
        "'global'). The report states the value used.",
    )
    swaps: int = Field(
        default=20,
        ge=0,
        le=1000,
        description="Rounds of the swap search at most: pruned weights that would pay for themselves take the places "
        "of kept ones that do not, within the pattern. 0: the mask is magnitude's ('block') or the IHT's ('global').",
    )
    first_order: bool | None = Field(
        default=None,
        description="Add the first-order term ḡᵀ(w-w̄)/batch_size, scaled by a line search on held-out data. null: in "
        "multi-stage runs only, as in the paper.",
    )
    stages: int = Field(
        default=1,
        ge=1,
        le=100,
        description="Stages T of rising sparsity, with new gradients around the weights of the last one (CHITA++; 15 "
        "in the paper). 1: one shot.",
    )
    schedule: Schedule = Field(default="exponential", description="How sparsity rises over the stages.")
    initial_sparsity: float = Field(default=0.1, ge=0, lt=1, description="Sparsity s₀ of the first stage.")
    tolerance: float = Field(
        default=1e-3,
        gt=0,
        lt=1,
        description="'global' stops when a round of exchange and refit lowers the objective by less than this part.",
    )
    max_rounds: int = Field(default=20, ge=0, le=1000, description="Rounds of exchange and refit at most ('global').")

    def effort(self, seed: int) -> Effort:
        """Return how far a solve goes."""
        return Effort(tolerance=self.tolerance, max_rounds=self.max_rounds, swaps=self.swaps, seed=seed)
