"""What layer-wise algorithms share: a Gram for every layer, and one solved layer after the other.

With W̄ the given weights of a layer and X its inputs, they minimise

    ½·tr (W - W̄) H (W - W̄)ᵀ,   H = XᵀX / positions,

the squared change of the layer's outputs, over masks of the layer's pattern and the weights on them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pruning_core.algorithms.checkpoints import Saved, remember
from pruning_core.algorithms.task import PruningTask, Selection, Selector, Step, pattern_key, relay
from pruning_core.curvature.layer_inputs import GramSum, LayerGram, input_chunks, layer_grams, layer_patches
from pruning_core.curvature.memory import check_fits
from pruning_core.curvature.predict import Samples
from pruning_core.errors import Diverged
from pruning_core.holdout import drawn
from pruning_core.network import Layer, State
from pruning_core.patterns import Pattern
from pruning_core.recipe import Frozen
from pruning_core.solvers.layer_least_squares import layer_least_squares


class LayerwiseOptions(Frozen):
    """Options of every layer-wise algorithm."""

    samples: int = Field(
        default=512,
        ge=1,
        le=1_000_000,
        description="Calibration samples, drawn by the seed, whose inputs to each layer are looked at; fewer when the "
        "data has fewer.",
    )
    inputs: Literal["dense", "pruned"] = Field(
        default="dense",
        description="'dense': what goes into each layer in the given network, measured in one pass and shared by all "
        "sparsities; 'pruned': layer by layer, what comes out of the layers pruned so far, measured again for every "
        "sparsity.",
    )


@dataclass(frozen=True, kw_only=True)
class LayerProblem:
    """One layer to prune.

    Args:
        index: Place of the layer among those that take part.
        layer: Its description.
        gram: Second moment of its inputs.
        weights: W̄ (out, d) float32, d = in/groups · kernel.
        pattern: The masks allowed, over the out·d weights in row-major order.
    """

    index: int
    layer: Layer
    gram: LayerGram
    weights: Tensor
    pattern: Pattern

    def damped(self, damping: float) -> Tensor:
        """Return H + damping · mean diagonal · I, (groups, d, d) float64; 1 on the diagonal of a group without input.

        H was summed in single precision, so it may be slightly indefinite: where this much damping does not make it
        positive definite, ten times as much is tried.
        """
        mean = self.gram.H.diagonal(dim1=1, dim2=2).double().mean(1)
        shift = torch.where(mean > 0, damping * mean, torch.ones_like(mean))
        while True:
            H = self.gram.H.to(torch.float64, copy=True)
            H.diagonal(dim1=1, dim2=2).add_(shift.unsqueeze(1))
            failed = torch.linalg.cholesky_ex(H).info > 0
            if not bool(failed.any()):
                return H
            shift = torch.where(failed, 10 * shift, shift)

    def refit(self, H: Tensor, mask: Tensor) -> Tensor:
        """Return the minimiser of ½·tr (W - W̄) H (W - W̄)ᵀ over the weights on a mask, in closed form, (out, d).

        Args:
            H: (groups, d, d) float64, positive definite (see `damped`).
            mask: (out, d) bool.
        """
        dtype = self.weights.dtype
        linear = (self.by_group(self.weights).to(H.dtype) @ H).reshape(self.weights.shape)
        return layer_least_squares(H.to(dtype), linear.to(dtype), mask, ridge=0.0)

    def by_group(self, matrix: Tensor) -> Tensor:
        """Return a matrix (out, d) as (groups, out/groups, d); a view."""
        return matrix.view(len(self.gram.H), -1, matrix.shape[1])

    def energy(self, matrix: Tensor) -> float:
        """Return tr M H Mᵀ, the mean square over positions of the outputs that weights M (out, d) give, summed."""
        blocks = self.by_group(matrix)
        return float(((blocks @ self.gram.H.to(matrix.dtype)) * blocks).sum(dtype=torch.float64))

    def error(self, matrix: Tensor) -> float:
        """Return the squared change of the outputs over their square when W̄ becomes this matrix; 0/0 is 0."""
        return self.energy(matrix - self.weights) / (self.energy(self.weights) or 1.0)


@dataclass(frozen=True, kw_only=True)
class LayerSolution:
    """A mask (out, d) bool of the layer's pattern, and weights (out, d), used where it is true."""

    mask: Tensor
    weights: Tensor


#: Solves one layer.
LayerSolver = Callable[[LayerProblem], LayerSolution]


def solve_layers(
    task: PruningTask, options: LayerwiseOptions, name: str, solve: LayerSolver
) -> Generator[Step, None, Selector]:
    """Measure what goes into each layer of the given network, once; the selector then prunes layer by layer.

    Args:
        task: The job's.
        options: Which inputs, how many samples.
        name: Of the algorithm, for checkpoints.
        solve: Prunes one layer.

    Raises:
        Diverged: Inputs of a layer are not finite.
        LimitExceeded: The Grams do not fit into memory.
    """
    data = drawn(task.calibration, options.samples, task.seed)
    dense = None
    if options.inputs == "dense":
        dense = yield from dense_grams(task, options.samples)
    used = {**options.model_dump(), "samples": len(data)}

    def select(pattern: Pattern) -> Generator[Step, None, Selection]:
        parts = pattern.per_layer(task.layout.sizes, task.weights.abs())
        stored = f"{name}/{options.inputs}/{pattern_key(task, pattern)}"
        inputs = _PrunedInputs(task, data) if dense is None else _DenseInputs(dense)
        solved: dict[str, Tensor] = {}
        masks, values, errors = [], [], []
        total = len(task.layout.layers)
        for index, (layer, part) in enumerate(zip(task.layout.layers, parts, strict=True)):
            given = task.network.weights[layer.weight]
            flat = given.detach().reshape(len(given), -1).float()

            def make(
                index: int = index, layer: Layer = layer, part: Pattern = part, flat: Tensor = flat
            ) -> Generator[Step, None, Saved]:
                gram = inputs(layer, solved)
                problem = LayerProblem(index=index, layer=layer, gram=_checked(layer, gram), weights=flat, pattern=part)
                found = LayerSolution(mask=torch.ones_like(flat, dtype=torch.bool), weights=flat)
                if part.kept < part.size:
                    found = solve(problem)
                magnitude = flat * part.keep(flat.abs().reshape(-1)).view_as(flat)
                weights = torch.where(found.mask, found.weights, torch.zeros_like(flat)).float()
                facts = {"end": problem.error(weights), "start": problem.error(magnitude)}
                yield Step(stage="select", done=index + 1, total=total, fraction=(index + 1) / total)
                return Saved(tensors={"mask": found.mask, "weights": weights}, facts=facts)

            saved = yield from remember(task.checkpoints, f"{stored}/layer-{index:03d}", make())
            mask, weights = (saved.tensors[key].to(flat.device) for key in ("mask", "weights"))
            solved[layer.weight] = weights.view(layer.shape).to(given.dtype)
            masks.append(mask.reshape(-1))
            values.append(weights.reshape(-1))
            errors.append(saved.facts)
        return Selection(
            mask=torch.cat(masks),
            weights=torch.cat(values),
            objective={word: sum(e[word] for e in errors) / total for word in ("start", "end")},
            options=used,
            notes=(
                f"Layer by layer with {options.inputs} inputs from {len(data)} samples. The objective is the relative "
                "squared error of a layer's outputs, mean over layers; 'start' is that of magnitude pruning.",
            ),
        )

    return select


def dense_grams(task: PruningTask, samples: int) -> Generator[Step, None, Mapping[str, LayerGram]]:
    """Return the Gram of every layer that takes part, with the inputs it has in the given network; made once per job.

    Raises:
        LimitExceeded: They do not fit into memory.
    """
    needed = sum(4 * _width(layer) ** 2 * layer.groups for layer in task.layout.layers)
    check_fits(
        needed,
        task.weights.device,
        "The Gram matrices of the layers' inputs do not fit into memory.",
        "Choose inputs 'pruned', which keeps one of them at a time, or leave layers out with 'layers'.",
    )
    data = drawn(task.calibration, samples, task.seed)
    make = layer_grams(task.network, data, task.layout.layers)

    def shown(done: int) -> Step:
        fraction = min(1.0, done / len(data))
        return Step(stage="inputs", done=min(done, len(data)), total=len(data), fraction=fraction)

    grams = yield from relay(task.shared.once(("layer-grams", len(data)), make), shown)
    return grams


class _DenseInputs:
    """Grams that were measured beforehand."""

    def __init__(self, grams: Mapping[str, LayerGram]) -> None:
        self._grams = grams

    def __call__(self, layer: Layer, solved: Mapping[str, Tensor]) -> LayerGram:
        """Return the layer's Gram."""
        del solved
        return self._grams[layer.weight]


class _PrunedInputs:
    """Grams measured one layer at a time, behind the layers that are already solved.

    The samples stay where the last layer was measured, and go on from there with the weights solved since.
    """

    def __init__(self, task: PruningTask, data: Samples) -> None:
        self._network, self._data = task.network, data
        self._states: list[State] | None = None

    def __call__(self, layer: Layer, solved: Mapping[str, Tensor]) -> LayerGram:
        """Return the layer's Gram; one that is used more than once sees its later inputs with its own weights dense."""
        if layer.uses > 1:
            steps = layer_grams(self._network, self._data, [layer], solved)
            while True:
                try:
                    next(steps)
                except StopIteration as end:
                    grams: dict[str, LayerGram] = end.value
                    return grams[layer.weight]
        site = next(site for site in self._network.sites if site.layer.weight == layer.weight)
        total = GramSum()
        with torch.no_grad():
            if self._states is None:
                self._states = [self._network.begin(inputs) for inputs in input_chunks(self._network, self._data)]
            for i, state in enumerate(self._states):
                self._states[i], found = self._network.advance(state, site.node, solved, keep=(site.input,))
                total.add(layer_patches(site, found[site.input]))
        return total.gram()


def _checked(layer: Layer, gram: LayerGram) -> LayerGram:
    if not bool(torch.isfinite(gram.H).all()):
        raise Diverged(
            f"What goes into the layer {layer.name!r} is not finite.",
            expected="finite inputs",
            advice="Check the calibration data for extreme values.",
            layer=layer.name,
        )
    return gram


def _width(layer: Layer) -> int:
    width = 1
    for size in layer.shape[1:]:
        width *= size
    return width
