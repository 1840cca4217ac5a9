"""SNOWS: its products against dense float64 matrices, its solvers against certificates, and whole sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pruning_core.algorithms import FolderCheckpoints, NoCheckpoints, snows
from pruning_core.algorithms.snows_window import Chunk, WindowFit, normal_equations
from pruning_core.algorithms.task import PruningTask, Selection
from pruning_core.curvature import Layout
from pruning_core.curvature.layer_inputs import layer_patches
from pruning_core.formats import read_model
from pruning_core.network import Network, Site
from pruning_core.network.following import follow
from pruning_core.pipeline import finish
from pruning_core.solvers import Status, SupportFactors, layer_least_squares
from pruning_core.solvers.gauss_newton import backtrack
from pruning_core.solvers.newton_cg import newton_cg
from tests.core.exported import calibration, exported
from tests.formats import zoo

KINDS = ["mlp", "cnn", "depthwise", "vit", "bert", "transformers_bert"]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.func about itself


def fit_of(name: str, index: int, further: int = 3, **options: Any) -> tuple[WindowFit, Site, Tensor]:
    """A layer's window on 6 samples in two chunks, with targets of weights that are a little off."""
    network, data, _ = exported(name)
    site = [site for site in network.sites if site.alone][index]
    window = network.window(site, further)
    generator = torch.Generator().manual_seed(1)
    chunks = []
    for part in (slice(0, 4), slice(4, 6)):
        state, _ = network.advance(network.begin([x[part] for x in data.inputs]), site.node)
        _, found = network.advance(state, window.stop, keep=window.outputs)
        noisy = [y + 0.3 * torch.randn(y.shape, generator=generator, dtype=y.dtype) for y in map(found.get, found)]
        chunks.append(Chunk(state=state, targets=tuple(noisy)))
    weight = network.weights[site.layer.weight]
    return WindowFit(network, site, window, chunks, **options), site, weight


def stacked(fit: WindowFit, weight: Tensor) -> Tensor:
    """All residuals, each times the root of its scale: L = ‖stacked‖²."""
    parts = []
    for chunk in fit.chunks:
        overrides = {fit.site.layer.weight: weight}
        _, found = fit.network.advance(chunk.state, fit.window.stop, overrides, keep=fit.window.outputs)
        for scale, output, target in zip(fit.scales, fit.window.outputs, chunk.targets, strict=True):
            parts.append((scale**0.5 * (found[output] - target)).flatten())
    return torch.cat(parts)


@pytest.mark.parametrize(("name", "index"), [("cnn", 1), ("cnn", 4), ("depthwise", 1), ("vit", 1), ("bert", 2)])
def test_the_gauss_newton_product_equals_the_dense_matrix(name: str, index: int) -> None:
    fit, _, weight = fit_of(name, index)
    linear = fit.linearise(weight)
    leaf = weight.clone().requires_grad_()
    loss = stacked(fit, leaf).square().sum()
    assert abs(linear.objective - float(loss.detach())) <= 1e-10 * float(loss.detach())
    assert abs(fit.objective(weight) - float(loss.detach())) <= 1e-10 * float(loss.detach())
    assert torch.allclose(linear.gradient, torch.autograd.grad(loss, leaf)[0], rtol=1e-9, atol=1e-12)
    generator = torch.Generator().manual_seed(2)
    v, u = (torch.randn(weight.shape, generator=generator, dtype=weight.dtype) for _ in range(2))
    pushed = torch.func.jvp(lambda w: stacked(fit, w), (weight,), (v,))[1]
    leaf = weight.clone().requires_grad_()
    wanted = torch.autograd.grad(stacked(fit, leaf), leaf, 2 * pushed)[0]
    assert torch.allclose(linear.product(v), wanted, rtol=1e-8, atol=1e-12)
    assert torch.allclose((u * linear.product(v)).sum(), (v * linear.product(u)).sum(), rtol=1e-9)
    assert float((v * linear.product(v)).sum()) >= 0


def test_nothing_kept_gives_the_same_products() -> None:
    fit, _, weight = fit_of("cnn", 1)
    lean, _, _ = fit_of("cnn", 1, cache_bytes=0)
    v = torch.ones_like(weight)
    assert torch.equal(fit.linearise(weight).product(v), lean.linearise(weight).product(v))


def test_for_relu_and_batch_norm_the_gauss_newton_matrix_is_the_hessian() -> None:
    fit, _, weight = fit_of("cnn", 2)
    v = torch.randn(weight.shape, dtype=weight.dtype, generator=torch.Generator().manual_seed(3))
    leaf = weight.clone().requires_grad_()
    gradient = torch.autograd.grad(stacked(fit, leaf).square().sum(), leaf, create_graph=True)[0]
    hessian = torch.autograd.grad((gradient * v).sum(), leaf)[0]
    assert torch.allclose(fit.linearise(weight).product(v), hessian, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "index"), [("cnn", 3), ("cnn", -1), ("depthwise", 1), ("vit", 1), ("vit", 0)])
def test_the_closed_form_equals_lstsq_of_each_channel(name: str, index: int) -> None:
    fit, site, weight = fit_of(name, index, further=0)
    generator = torch.Generator().manual_seed(4)
    normal = normal_equations(fit.network, site, fit.chunks, positions=10**9, generator=generator)
    flat = weight.reshape(len(weight), -1)
    mask = torch.rand(flat.shape, generator=generator) < 0.5
    got = layer_least_squares(normal.H, normal.B, mask, 1e-12)
    rows = torch.cat([layer_patches(site, chunk.state.values[site.input]) for chunk in fit.chunks])
    zero = torch.zeros_like(weight)
    for channel in (0, len(weight) - 1):
        columns = []
        for chunk in fit.chunks:
            _, found = fit.network.advance(chunk.state, site.node + 1, {site.layer.weight: zero}, keep=(site.output,))
            rest = chunk.targets[0] - found[site.output]
            axis = 1 if site.layer.kind == "conv" else -1
            columns.append(rest.select(axis, channel).flatten())
        support = mask[channel]
        group = channel // (len(weight) // site.groups)
        wanted = torch.linalg.lstsq(rows[:, group, support], torch.cat(columns).unsqueeze(1), driver="gelsd").solution
        fitted = rows[:, group, support] @ got[channel, support]
        assert torch.allclose(fitted, rows[:, group, support] @ wanted.squeeze(1), rtol=1e-5, atol=1e-6)
        assert not got[channel, ~support].any()


def test_cg_solves_the_system_on_the_support() -> None:
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(40, 30, generator=generator, dtype=torch.float64)
    H, mask = A.T @ A, torch.arange(30) % 3 > 0
    b = torch.randn(30, generator=generator, dtype=torch.float64) * mask
    found = newton_cg(lambda v: (H @ v) * mask, b, lambda r: r / H.diagonal(), steps=60, tolerance=1e-10)
    assert found.status is Status.CONVERGED
    assert float((b - (H @ found.value) * mask).norm()) <= 1e-9 * float(b.norm())
    assert not found.value[~mask].any()
    assert abs(found.decrease - float(b @ found.value - found.value @ H @ found.value / 2)) < 1e-9
    exact = SupportFactors(H, mask.unsqueeze(0), 0.0)
    one = newton_cg(
        lambda v: (H @ v) * mask, b, lambda r: exact.solve(r.unsqueeze(0)).squeeze(0), steps=5, tolerance=1e-8
    )
    assert one.steps == 1
    early = newton_cg(lambda v: (H @ v) * mask, b, lambda r: r, steps=2, tolerance=1e-10)
    assert (early.status, early.steps) == (Status.STEP_LIMIT, 2)
    flat = newton_cg(lambda v: 0 * v, b, lambda r: r, steps=2, tolerance=1e-10)
    assert flat.status is Status.STALLED
    assert not flat.value.any()


def test_a_failed_line_search_goes_back() -> None:
    start = torch.ones(3)
    found = backtrack(lambda w: float(w.square().sum()), start, torch.ones(3), at_start=3.0)
    assert found.value is start
    assert (found.length, found.objective) == (0.0, 3.0)
    nan = backtrack(lambda _: float("nan"), start, torch.ones(3), at_start=3.0)
    assert nan.value is start
    better = backtrack(lambda w: float(w.square().sum()), start, -4 * torch.ones(3), at_start=3.0)
    assert better.length == 0.25
    assert better.objective == 0.0


def task_of(network: Network, data: Any, tmp: Path | None = None) -> tuple[PruningTask, Selection]:
    layout = Layout(network.layers)
    weights = layout.flatten(network.weights)
    task = PruningTask(
        network=network,
        calibration=data.subset(slice(0, 32)),
        held_out=data.subset(slice(32, 48)),
        layout=layout,
        weights=weights,
        seed=0,
        checkpoints=FolderCheckpoints(tmp) if tmp else NoCheckpoints(),
    )
    scores = torch.rand(layout.size, generator=torch.Generator().manual_seed(0))
    return task, Selection(mask=scores < 0.5)


@pytest.mark.parametrize(
    ("name", "targets"), [*((name, "dense") for name in KINDS), ("cnn", "local"), ("vit", "local")]
)
def test_a_sweep_keeps_the_mask_and_lowers_every_objective(name: str, targets: str, tmp_path: Path) -> None:
    network, data, _ = exported(name)
    task, start = task_of(network, data, tmp_path)
    options = snows.Options(targets=targets, batch=10, window=4)
    refined = finish(snows.run(task, options, start))
    assert refined.weights is not None
    assert torch.equal(refined.mask, start.mask)
    assert not refined.weights[~start.mask].any()
    assert torch.isfinite(refined.weights).all()
    alone = [site for site in network.sites if site.alone]
    for index in range(len(alone)):
        saved = task.checkpoints.load(f"snows/{index:04d}")
        assert saved is not None
        assert saved.facts["end"] <= saved.facts["start"]
    assert refined.objective["end"] < refined.objective["start"]
    moved = {
        n: not torch.equal(t, torch.where(m, w, 0.0))
        for (n, t), m, w in zip(
            task.layout.split(refined.weights).items(),
            task.layout.split(start.mask).values(),
            task.layout.split(task.weights).values(),
            strict=True,
        )
    }
    shared = {site.layer.weight for site in network.sites} - {site.layer.weight for site in alone}
    assert not any(moved[n] for n in shared)
    assert all(any(n in note for note in refined.notes) for n in shared)
    assert sum(moved.values()) >= len(alone) - 1
    resumed = finish(snows.run(task, options, start))
    assert torch.equal(resumed.weights, refined.weights)


def test_the_output_comes_nearer_to_the_dense_one() -> None:
    for name in ("cnn", "vit", "bert"):
        network, data, _ = exported(name)
        task, start = task_of(network, data)
        if name == "bert":  # its output matrix is the embedding, which is not solved
            task.layout.split(start.mask)["words.weight"][:] = True
        refined = finish(snows.run(task, snows.Options(), start))
        inputs = data.subset(slice(32, 48)).inputs

        def error(flat: Tensor) -> float:
            weights = {n: t.double() for n, t in task.layout.split(flat).items()}  # noqa: B023
            return float((network.run(inputs, weights)[0] - network.run(inputs)[0]).square().sum())  # noqa: B023

        assert error(refined.weights) < 0.7 * error(torch.where(start.mask, task.weights, 0.0)), name


def test_attention_weights_are_solved() -> None:
    network, data, _ = exported("vit")
    task, start = task_of(network, data)
    refined = task.layout.split(finish(snows.run(task, snows.Options(), start)).weights)
    masks = task.layout.split(start.mask)
    for name in ("block.attention.qkv.weight", "attention.in_proj_weight", "attention.out_proj.weight", "patch.weight"):
        assert not torch.equal(refined[name], network.weights[name].float() * masks[name]), name


def test_the_target_makes_up_for_what_the_residual_lost() -> None:
    network, data, _ = exported("cnn")
    task, start = task_of(network, data)
    sweep = snows.Sweep(task, snows.Options(window=1), start)
    site = next(site for site in network.sites if site.layer.name == "blocks.0.conv2")
    following = follow(network, site)
    chunk = sweep._chunks(sweep._fit, site, network.window(site, 1))[0]
    reached = type(chunk.state)(position=site.node + 1, values={**chunk.state.values, site.output: chunk.targets[0]})
    _, found = network.advance(reached, following.known, keep=(following.target,))
    chosen = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    _, dense = network.advance(network.begin([data.inputs[0][chosen]]), following.known, keep=(following.target,))
    assert torch.allclose(found[following.target], dense[following.target], rtol=1e-9, atol=1e-9)


def test_nothing_pruned_changes_nothing() -> None:
    network, data, _ = exported("cnn")
    task, start = task_of(network, data)
    for targets in ("dense", "local"):
        whole = Selection(mask=torch.ones_like(start.mask))
        refined = finish(snows.run(task, snows.Options(targets=targets), whole))
        assert torch.equal(refined.weights, task.weights)


def test_dense_targets_also_move_a_layer_that_is_whole_behind_a_pruned_one() -> None:
    network, data, _ = exported("cnn")
    task, start = task_of(network, data)
    size = task.layout.sizes[-1]
    start.mask[-size:] = True
    dense = finish(snows.run(task, snows.Options(), start))
    local = finish(snows.run(task, snows.Options(targets="local"), start))
    assert not torch.equal(dense.weights[-size:], task.weights[-size:])
    assert torch.equal(local.weights[-size:], task.weights[-size:])


def test_a_network_with_a_fixed_batch(tmp_path: Path) -> None:
    model = zoo.make("cnn")
    zoo.export(model, tmp_path / "m.pt2", dynamic=False)
    network = read_model(tmp_path / "m.pt2")
    assert network.batch == 4
    task, start = task_of(network, calibration(model))
    refined = finish(snows.run(task, snows.Options(samples=30), start))
    assert refined.objective["end"] < refined.objective["start"]
