"""SNOWS: re-fit the survivors of a mask, layer by layer, to what the dense network computes a few operations later.

For each layer, in execution order, with X from the pruned and solved part and W zero off the mask,

    L(W) = Σ_{k=0..K} (1/|Y_k|)·‖Y_k(W; X) - T_k‖²,

Y_0 being the layer's output and Y_1, ..., Y_K those of the next linear layers, convolutions and activations that depend
on it. It starts at the minimiser of the first term, closed-form for each output channel.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from pruning_core.algorithms.checkpoints import Saved, remember
from pruning_core.algorithms.recalibration import recalibrated
from pruning_core.algorithms.snows_window import Chunk, WindowFit, newton_step, normal_equations
from pruning_core.algorithms.task import PruningTask, Selection, Step
from pruning_core.curvature.layer_inputs import input_chunks
from pruning_core.curvature.predict import Samples
from pruning_core.holdout import Part
from pruning_core.network import Network, Site, State, Window
from pruning_core.network.following import Following, affine, followings
from pruning_core.recipe import Frozen
from pruning_core.solvers import SupportFactors

SUMMARY = (
    "Re-fit the surviving weights layer by layer so that the next few operations give what they give in the dense "
    "network: least squares in closed form, then a Hessian-free Gauss-Newton step. No labels, no training."
)
SOURCE = "Lucas & Mazumder, Preserving Deep Representations in One-Shot Pruning, ICLR 2025 (2411.18376)"


class Options(Frozen):
    """Options of SNOWS."""

    window: int = Field(
        default=3,
        ge=0,
        le=64,
        description="K: how many operations (linear layers, convolutions, activations) after the layer's own are "
        "matched, too. 0: layer-wise least squares, in closed form.",
    )
    targets: Literal["dense", "local"] = Field(
        default="dense",
        description="'dense': the activations of the dense network; where a layer's output goes into a sum (a residual "
        "connection), it also makes up for what the other term has lost. 'local': the dense layers on the inputs from "
        "the pruned part, as in the paper; what earlier layers lost stays lost.",
    )
    samples: int = Field(default=512, ge=1, le=1_000_000, description="Calibration samples to fit on, at most.")
    newton_steps: int = Field(default=1, ge=0, le=100, description="Gauss-Newton steps for each layer, at most.")
    cg_steps: int = Field(default=4, ge=1, le=1000, description="Conjugate-gradient steps in each, at most.")
    tolerance: float = Field(default=1e-3, gt=0, lt=1, description="Relative residual at which these end.")
    ridge: float = Field(
        default=1e-4, gt=0, le=1e3, description="Ridge of the least squares, as a multiple of XᵀX's mean diagonal."
    )
    positions: int = Field(
        default=65536,
        ge=1,
        description="About so many places of a convolution are enough for XᵀX: of larger maps a grid is taken.",
    )
    batch: int = Field(default=64, ge=1, le=4096, description="Samples run at a time.")
    recalibrate: bool = Field(
        default=False,
        description="Afterwards compute the batch norms' running statistics anew on the same samples; they are taken "
        "where that is better on held-out data, which with 'local' targets it mostly is. The only option with which "
        "tensors other than pruned weights change; the report names them.",
    )


def run(task: PruningTask, options: Options, start: Selection) -> Generator[Step, None, Selection]:
    """Sweep over the layers in execution order; each sees its inputs from the pruned and solved part."""
    sweep = Sweep(task, options, start)
    total = len(sweep.sites)
    for index, site in enumerate(sweep.sites):
        saved = yield from remember(task.checkpoints, f"snows/{index:04d}", sweep.solve(index, site))
        sweep.take(site, saved)
        yield Step(stage="refine", done=index + 1, total=total, fraction=(index + 1) / total)
    selection = sweep.selection()
    return recalibrated(task, selection, sweep.samples) if options.recalibrate else selection


class Sweep:
    """One pass over the layers.

    Args:
        task: The network and the samples.
        options: Of SNOWS.
        start: Mask, and the weights to begin with.
    """

    def __init__(self, task: PruningTask, options: Options, start: Selection) -> None:
        self.task, self.options, self.start = task, options, start
        network, layout = task.network, task.layout
        weights = task.weights if start.weights is None else start.weights
        self._masks = layout.split(start.mask)
        self.current = {n: t.clone() for n, t in layout.split(torch.where(start.mask, weights, 0.0)).items()}
        wanted = [site for site in network.sites if site.layer.weight in self._masks]
        self.sites = [site for site in wanted if site.alone]
        self._shared = sorted({site.layer.weight for site in wanted} - {site.layer.weight for site in self.sites})
        self._followings = followings(network)
        self.objectives = {"start": 0.0, "end": 0.0}
        self._fit = _Streams(network, task.calibration, options.samples, options, task.seed)
        self.samples = self._fit.inputs
        self._judge = _Streams(network, task.held_out, max(32, options.samples // 4), options, task.seed + 1)

    def take(self, site: Site, saved: Saved) -> None:
        """Go on with a layer's solution."""
        self.current[site.layer.weight] = saved.tensors["weight"].to(self.task.weights.device)
        for key in self.objectives:
            self.objectives[key] += saved.facts[key]

    def selection(self) -> Selection:
        """Return what came out."""
        flat = self.task.layout.flatten(self.current)
        notes = [
            f"{name} was left as it is: something else in the network reads the same weight." for name in self._shared
        ]
        return Selection(
            mask=self.start.mask,
            weights=torch.where(self.start.mask, flat, torch.zeros_like(flat)),
            objective=self.objectives,
            options=self.options.model_dump(),
            notes=tuple(notes),
        )

    def solve(self, index: int, site: Site) -> Generator[Step, None, Saved]:
        """Solve one layer."""
        name, options = site.layer.weight, self.options
        begun, mask = self.current[name], self._masks[name]
        if bool(mask.all()) and (options.targets == "local" or not self._pruned_before(site)):
            return Saved(tensors={"weight": begun}, facts={"start": 0.0, "end": 0.0})
        generator = torch.Generator().manual_seed(self.task.seed * 100_003 + index)
        window = self.task.network.window(site, options.window)
        with torch.no_grad():
            chunks = self._chunks(self._fit, site, window)
            held = self._chunks(self._judge, site, window)
            normal = normal_equations(self.task.network, site, chunks, positions=options.positions, generator=generator)
        fit = WindowFit(self.task.network, site, window, chunks)
        judge = WindowFit(self.task.network, site, window, held)
        flat = mask.reshape(len(mask), -1)
        factors = SupportFactors(normal.H, flat, options.ridge)
        solved = factors.solve(normal.B, begun.reshape(flat.shape)).view_as(mask).to(begun.dtype)
        at_begin, at = judge.objective(begun), judge.objective(solved)
        weight, at = (solved, at) if at < at_begin else (begun, at_begin)
        for number in range(options.newton_steps if len(window.outputs) > 1 else 0):
            share = (number + 1) / (options.newton_steps + 1)
            yield self._step(index, share)
            step = newton_step(
                *(fit, judge, weight, mask, factors),
                at_start=at,
                cg_steps=options.cg_steps,
                tolerance=options.tolerance,
                generator=generator,
            )
            if step.length == 0:
                break
            weight, at = step.value, step.objective
        return Saved(tensors={"weight": weight}, facts={"start": at_begin, "end": at})

    def _step(self, index: int, share: float) -> Step:
        total = len(self.sites)
        return Step(stage="refine", done=index, total=total, fraction=(index + share) / total)

    def _pruned_before(self, site: Site) -> bool:
        """Return whether anything that runs before this site has changed."""
        for other in self.task.network.sites:
            if other.node >= site.node:
                return False
            if other.layer.weight in self._masks and not bool(self._masks[other.layer.weight].all()):
                return True
        return False

    def _chunks(self, streams: _Streams, site: Site, window: Window) -> list[Chunk]:
        """Return the samples at a layer with their targets."""
        network, chunks = self.task.network, []
        following = self._followings[site.node]
        weights = {n: w.to(network.weights[n].dtype) for n, w in self.current.items()}
        streams.advance(site.node, weights, dense=self.options.targets == "dense")
        for pruned, dense in streams:
            source = dense if self.options.targets == "dense" else pruned
            _, found = network.advance(source, window.stop, keep=window.outputs)
            targets = [found[output] for output in window.outputs]
            if self.options.targets == "dense":
                targets[0] = self._with_residual(targets[0], site, following, pruned, dense, weights)
            chunks.append(Chunk(state=pruned, targets=tuple(targets)))
        return chunks

    def _with_residual(
        self, target: Tensor, site: Site, following: Following, pruned: State, dense: State, weights: dict[str, Tensor]
    ) -> Tensor:
        """Add what the sum that the output goes into lacks: T_0 + (r_dense - r_pruned)/s."""
        if following.residual is None:
            return target
        network, name = self.task.network, following.residual
        stop = max(following.residual_known, site.node)
        _, ours = network.advance(pruned, stop, weights, keep=(name,))
        _, theirs = network.advance(dense, stop, keep=(name,))
        lack = theirs[name] - ours[name]
        scaling = affine(network, following)
        if scaling is not None:
            scale = scaling[0]
            safe = torch.where(scale.abs() > 1e-6, scale, torch.full_like(scale, torch.inf))
            lack = lack / safe.view(1, -1, *(1,) * (lack.dim() - 2))
        return target + lack if lack.shape == target.shape else target


class _Streams:
    """Samples on their way through the pruned and the dense network, both stopped at the same node."""

    def __init__(self, network: Network, data: Samples, count: int, options: Options, seed: int) -> None:
        chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:count]
        part = Part(inputs=tuple(x[chosen.to(x.device)] for x in data.inputs), labels=None)
        self._network = network
        self.inputs = list(input_chunks(network, part, options.batch))
        self._pruned = [network.begin(inputs) for inputs in self.inputs]
        self._dense = list(self._pruned)

    def advance(self, stop: int, weights: dict[str, Tensor], *, dense: bool) -> None:
        """Go on to a node: the pruned network with these weights, and the dense one where it is wanted."""
        for index, state in enumerate(self._pruned):
            self._pruned[index], _ = self._network.advance(state, stop, weights)
            if dense:
                self._dense[index], _ = self._network.advance(self._dense[index], stop)

    def __iter__(self) -> Iterator[tuple[State, State]]:
        """Yield the states (pruned, dense) of each chunk."""
        return iter(zip(self._pruned, self._dense, strict=True))
