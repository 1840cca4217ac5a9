"""Gradual select-refine: targets found in the graph, fits that never get worse, exact nested masks, the global step."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from pruning_core.algorithms import FolderCheckpoints
from pruning_core.algorithms.gradual import Options, run
from pruning_core.algorithms.gradual_chain import Stage, nested, stages
from pruning_core.algorithms.gradual_joint import matched_values
from pruning_core.algorithms.gradual_sweep import DenseTargets, sweep
from pruning_core.algorithms.task import PruningTask, Selection
from pruning_core.calibration import Dataset
from pruning_core.curvature import Layout
from pruning_core.curvature.joint import JointMatch
from pruning_core.evaluate import compare
from pruning_core.formats import read_model
from pruning_core.holdout import split
from pruning_core.network import Network
from pruning_core.network.following import follow
from pruning_core.patterns import Block, Fixed, NofM, Pattern, Unstructured
from pruning_core.pipeline import finish
from pruning_core.solvers.global_step import descend
from tests.core.exported import exported
from tests.core.fakes import Fragile, Killed
from tests.formats import zoo

QUICK = Options(joint_steps=4, joint_batch=16, window=1)


def make_task(network: Network, data: Dataset, **more: object) -> PruningTask:
    fit, held_out = split(data, 0)
    layout = Layout(network.layers)
    weights = layout.flatten(network.weights)
    task = PruningTask(network=network, calibration=fit, held_out=held_out, layout=layout, weights=weights, seed=0)
    return replace(task, **more)


def select(task: PruningTask, *patterns: Pattern, options: Options = QUICK) -> list[Selection]:
    selector = finish(run(task, options))
    return [finish(selector(pattern)) for pattern in patterns]


def same(a: Selection, b: Selection) -> bool:
    assert a.weights is not None
    assert b.weights is not None
    return torch.equal(a.mask, b.mask) and torch.equal(a.weights, b.weights)


# What follows a layer


def described(name: str) -> dict[str, tuple[bool, bool, bool]]:
    """Layer -> whether a batch norm, a sum and an activation belong to it."""
    network, _, _ = exported(name)
    found = {site.layer.name: follow(network, site) for site in network.sites}
    return {
        layer: (one.norm is not None, one.residual is not None, one.activation is not None)
        for layer, one in found.items()
    }


def test_targets_of_a_residual_network() -> None:
    for name in ("cnn", "inplace_cnn"):
        assert described(name) == {
            "stem.0": (True, False, True),
            "blocks.0.conv1": (True, False, True),
            "blocks.0.conv2": (True, True, True),
            "blocks.1.conv1": (True, False, True),
            "blocks.1.conv2": (True, True, True),
            "blocks.1.downsample.0": (True, True, True),
            "fc": (False, False, False),
        }


def test_targets_of_transformers() -> None:
    vit = described("vit")
    assert vit["block.attention.qkv"] == vit["patch"] == vit["head"] == (False, False, False)
    assert vit["block.attention.out"] == vit["block.mlp.3"] == (False, True, False)  # a sum, through dropout
    assert vit["block.mlp.0"] == (False, False, True)
    bert = described("bert")
    assert bert["blocks.0.attention.out"] == bert["blocks.1.mlp.3"] == (False, True, False)


@pytest.mark.parametrize("name", ["cnn", "depthwise", "vit", "bert", "mlp"])
def test_the_wanted_output_is_the_dense_one_in_the_dense_network(name: str) -> None:
    """With the dense weights, X·Wᵀ = Y: patches, batch norm, residual and bias are taken back exactly."""
    network, data, _ = exported(name)
    layout = Layout(network.layers)
    targets = DenseTargets(network, data, layout.names, positions=4, seed=0)
    finish(targets.collect())
    for site in targets.sites:
        state, _ = network.advance(network.begin(targets.chunks[0]), site.node)
        X, Y = targets.rows(0, site, state, {})
        W = network.weights[site.layer.weight].reshape(site.groups, -1, X.shape[2])
        torch.testing.assert_close(torch.einsum("pgd,god->pgo", X, W).reshape(Y.shape), Y)


def test_a_sum_with_a_broadcast_is_no_target() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 5), nn.Linear(6, 1), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.a(x) + self.b(x)))

    network, data = small(Shifted(), torch.randn(40, 6))
    targets = DenseTargets(network, data, Layout(network.layers).names, positions=8, seed=0)
    finish(targets.collect())
    kinds = {site.layer.name: targets.following(site).residual is not None for site in targets.sites}
    assert kinds == {"a": False, "b": False, "c": False}  # each is fitted to its own output


# The layer-wise fits


@pytest.mark.parametrize("name", ["cnn", "depthwise", "vit", "bert"])
def test_no_fit_gets_worse(name: str) -> None:
    network, data, _ = exported(name)
    layout = Layout(network.layers)
    targets = DenseTargets(network, data, layout.names, positions=16, seed=0)
    finish(targets.collect())
    weights = layout.flatten(network.weights)
    mask = Unstructured.of(layout.sizes, 0.6).keep(weights.abs())
    fitted = finish(sweep(targets, layout.split(weights), layout.split(mask), ridge=1e-4))
    assert fitted.errors.keys() == fitted.weights.keys() == fitted.grams.keys() == set(layout.names)
    for before, after in fitted.errors.values():
        assert after <= before * (1 + 1e-9)
    assert sum(after for _, after in fitted.errors.values()) < 0.9 * sum(before for before, _ in fitted.errors.values())
    for weight, part in layout.split(mask).items():
        assert not fitted.weights[weight][~part].any()


def test_a_fit_is_the_least_squares_solution() -> None:
    torch.manual_seed(3)
    network, data = small(nn.Sequential(nn.Linear(8, 5)).double(), torch.randn(50, 8, dtype=torch.float64))
    layout = Layout(network.layers)
    targets = DenseTargets(network, data, layout.names, positions=1, seed=0)
    finish(targets.collect())
    mask = torch.rand(5, 8) < 0.5
    mask[0] = False
    name = layout.names[0]
    fitted = finish(sweep(targets, {name: network.weights[name]}, {name: mask}, ridge=1e-12))
    x, dense = data.inputs[0], network.weights[name]
    for row in range(5):
        oracle = torch.linalg.lstsq(x[:, mask[row]], x @ dense[row]).solution if mask[row].any() else x.new_zeros(0)
        torch.testing.assert_close(fitted.weights[name][row, mask[row]], oracle, rtol=1e-6, atol=1e-8)


# Stages and masks


def test_stages_of_a_level_are_those_of_any_sparser_one() -> None:
    sizes, grid = (60, 40), (0.4, 0.6, 0.8)
    keys = {s: [x.key for x in stages(Unstructured.of(sizes, s), grid, 2)] for s in (0.3, 0.4, 0.7, 0.8, 0.9)}
    assert keys == {
        0.3: ["kept-70"],
        0.4: ["0.4"],
        0.7: ["0.4", "0.6", "kept-30"],
        0.8: ["0.4", "0.6", "0.8"],
        0.9: ["0.4", "0.6", "0.8", "kept-10"],
    }
    n_of_m = stages(NofM(((4, 8),), 2, 4), grid, 2)
    assert [(x.pattern.kept, x.part) for x in n_of_m] == [(24, 0.5), (24, 1.0), (16, 0.5), (16, 1.0)]
    assert n_of_m == stages(NofM(((4, 8),), 1, 4), grid, 2)[:4]
    assert [x.key for x in stages(Fixed(torch.ones(3, dtype=torch.bool)), grid, 2)] == ["mask"]


def test_the_floor_keeps_every_layer_alive() -> None:
    network, _, _ = exported("cnn")
    layout = Layout(network.layers)
    weights = layout.flatten(network.weights)
    weights[: layout.sizes[0]] *= 1e-6
    everything = torch.ones_like(weights, dtype=torch.bool)
    shapes = [layer.shape for layer in layout.layers]
    for pattern in (Unstructured.of(layout.sizes, 0.9), Block.of(shapes, (2, 1), 0.9)):
        for floor in (0.0, 0.03):
            mask = nested(Stage("one", pattern), weights, everything, layout, floor)
            assert pattern.accepts(mask)
            least = int(mask[: layout.sizes[0]].sum())
            assert (least >= 0.025 * layout.sizes[0]) == (floor > 0)


def test_an_n_of_m_pattern_is_reached_in_equal_parts() -> None:
    network, _, _ = exported("cnn")
    layout = Layout(network.layers)
    weights = layout.flatten(network.weights)
    mask = torch.ones_like(weights, dtype=torch.bool)
    way = stages(NofM(tuple(layer.shape for layer in layout.layers), 1, 4), (), 3)
    kept = [layout.size]
    for stage in way:
        inside = nested(stage, weights, mask, layout, 0.0)
        assert not bool((inside & ~mask).any())
        assert not bool((stage.pattern.keep(torch.where(mask, weights.abs(), -1.0)) & ~inside).any())
        assert stage.pattern.accepts(inside) == (stage.part == 1.0)
        mask = inside
        kept.append(int(mask.sum()))
    gone = [a - b for a, b in pairwise(kept)]
    assert max(gone) - min(gone) <= 2


def patterns(layout: Layout) -> dict[str, Pattern]:
    shapes = tuple(layer.shape for layer in layout.layers)
    return {
        "global": Unstructured.of(layout.sizes, 0.7),
        "layer": Unstructured.of(layout.sizes, 0.7, scope="layer"),
        "capped": Unstructured.of(layout.sizes, 0.7, max_layer_sparsity=0.75),
        "2:4": NofM(shapes, 2, 4),
        "1:3": NofM(shapes, 1, 3),
        "block": Block.of(shapes, (2, 1), 0.5),
        "fixed": Fixed(torch.rand(layout.size, generator=torch.Generator().manual_seed(0)) < 0.4),
    }


@pytest.mark.parametrize("kind", ["global", "layer", "capped", "2:4", "1:3", "block", "fixed"])
@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_exact_patterns(name: str, kind: str) -> None:
    network, data, _ = exported(name)
    task = make_task(network, data)
    pattern = patterns(task.layout)[kind]
    (selection,) = select(task, pattern)
    assert selection.weights is not None
    assert pattern.accepts(selection.mask)
    assert not selection.weights[~selection.mask].any()
    assert selection.weights.isfinite().all()
    assert selection.objective["layer_error_end"] < selection.objective["layer_error_start"]
    assert selection.objective["joint_end"] <= selection.objective["joint_start"]


def test_levels_nest_and_do_not_depend_on_what_else_is_asked_for() -> None:
    network, data, _ = exported("cnn")
    levels = [Unstructured.of(Layout(network.layers).sizes, s) for s in (0.6, 0.72, 0.8)]
    up = select(make_task(network, data), *levels)
    assert not bool((up[2].mask & ~up[0].mask).any())
    down = select(make_task(network, data), *reversed(levels))
    alone = [select(make_task(network, data), level)[0] for level in levels]
    for a, b, c in zip(up, reversed(down), alone, strict=True):
        assert same(a, b)
        assert same(a, c)


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    network, data, _ = exported("cnn")
    levels = [Unstructured.of(Layout(network.layers).sizes, s) for s in (0.6, 0.8)]
    undisturbed = select(make_task(network, data), *levels)
    with pytest.raises(Killed):
        select(make_task(network, data, checkpoints=Fragile(tmp_path, 3)), *levels)
    kept = len(list(tmp_path.iterdir()))
    assert kept == 3
    resumed = select(make_task(network, data, checkpoints=FolderCheckpoints(tmp_path)), *levels)
    assert all(same(a, b) for a, b in zip(undisturbed, resumed, strict=True))
    # A level that the pipeline has kept is not asked for again.
    last = select(make_task(network, data, checkpoints=FolderCheckpoints(tmp_path)), levels[1])
    assert same(last[0], undisturbed[1])


def test_steps_tell_progress_that_never_falls() -> None:
    network, data, _ = exported("vit")
    task = make_task(network, data)
    selector = finish(run(task, QUICK))
    for sparsity in (0.5, 0.7):
        seen = [step.fraction for step in selector(Unstructured.of(task.layout.sizes, sparsity))]
        assert seen == sorted(seen)
        assert seen[0] >= 0
        assert 0.9 < seen[-1] <= 1


# The global step


@pytest.mark.parametrize("name", ["cnn", "vit", "bert"])
def test_joint_products_against_a_dense_oracle(name: str) -> None:
    network, data, _ = exported(name)
    layer = min(network.layers, key=lambda one: torch.Size(one.shape).numel())
    layout = Layout((layer, network.layers[-1]) if layer != network.layers[-1] else (layer,))
    blocks = matched_values(network)
    match = JointMatch(network, data.subset(slice(6)), layout, blocks, batch=3, output_weight=2.0)
    assert list(match.prepare()) == [1, 2]
    torch.manual_seed(0)
    dense = torch.cat([network.weights[n].reshape(-1) for n in layout.names])  # float64
    assert match.value(dense, 0) == 0.0
    w = dense + 0.1 * torch.randn_like(dense)

    def residual(flat: Tensor, chunk: int) -> Tensor:
        part = [x[3 * chunk : 3 * chunk + 3] for x in data.inputs]
        found = values(network, part, layout.split(flat), blocks)
        given = [values(network, [x[s : s + 3] for x in data.inputs], {}, blocks) for s in (0, 3)]
        scaled = []
        for i, value in enumerate(found):
            every = torch.cat([one[i] for one in given])
            last = i == len(found) - 1
            square = (every - every.mean()).square().sum() if last else every.square().sum() * len(blocks)
            scaled.append((value - given[chunk][i]) * ((2.0 if last else 1.0) * 6 / square).sqrt())
        return torch.cat([s.reshape(-1) for s in scaled]) / 3**0.5

    for chunk in (0, 1):
        r, J = residual(w, chunk), jacobian(partial(residual, chunk=chunk), w)
        value, gradient = match.gradient(w, chunk)
        assert value == pytest.approx(float(r.square().sum() / 2), rel=1e-9)
        assert match.value(w, chunk) == pytest.approx(value, rel=1e-9)
        torch.testing.assert_close(gradient, J.mT @ r, rtol=1e-6, atol=1e-9)
        d = torch.randn_like(w)
        assert match.curvature(w, d, chunk) == pytest.approx(float((J @ d).square().sum()), rel=1e-6)
    probes = torch.stack([match.transposed(w, 0, torch.Generator().manual_seed(s)) for s in range(300)])
    diagonal = jacobian(partial(residual, chunk=0), w).square().sum(0)
    assert float((probes.square().mean(0) - diagonal).norm() / diagonal.norm()) < 0.3


def values(network: Network, inputs: list[Tensor], weights: dict[str, Tensor], blocks: tuple[str, ...]) -> list[Tensor]:
    state, found = network.advance(network.begin(inputs), network.length, weights, keep=blocks)
    return [*(found[name] for name in blocks), network.outputs(state, weights)[0]]


class Quadratic:
    """½·‖A·w - b‖² in chunks of rows."""

    def __init__(self, rows: int = 64, size: int = 12) -> None:
        generator = torch.Generator().manual_seed(0)
        scales = torch.logspace(0, 1.5, size)
        self.A = torch.randn(4, rows, size, generator=generator) * scales
        self.b = (self.A @ torch.ones(size, 1)).squeeze(2)

    def __len__(self) -> int:
        return 4

    def gradient(self, w: Tensor, chunk: int) -> tuple[float, Tensor]:
        r = self.A[chunk] @ w - self.b[chunk]
        return float(r.square().sum() / 2), self.A[chunk].mT @ r

    def curvature(self, w: Tensor, d: Tensor, chunk: int) -> float:
        return float((self.A[chunk] @ d).square().sum())


def test_descent_with_the_right_preconditioner_solves_least_squares() -> None:
    problem = Quadratic()
    inverse = 1 / problem.A.square().sum((0, 1))
    found = finish(descend(problem, lambda g: g * inverse, torch.zeros(12), steps=60, momentum=0.5, scale=1.0, seed=0))
    assert not found.diverged
    assert found.end < 1e-4 * found.start
    torch.testing.assert_close(found.weights, torch.ones(12), rtol=0, atol=1e-2)


def test_a_descent_that_blows_up_says_so() -> None:
    found = finish(descend(Quadratic(), lambda g: g, torch.zeros(12), steps=60, momentum=0.9, scale=1e4, seed=0))
    assert found.diverged
    assert not found.weights.any()


# The whole


def small(module: nn.Module, x: Tensor) -> tuple[Network, Dataset]:
    """A module, exported and read back, with samples."""
    model = zoo.Model(module.eval(), (x[:4],), ({0: torch.export.Dim("batch", min=1, max=1024)},))
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(__import__("tempfile").mkdtemp())
        patch.chdir(folder)
        zoo.export(model, folder / "model.pt2")
        return read_model(folder / "model.pt2"), Dataset(inputs=(x,), labels=None)


@cache
def trained() -> tuple[Network, Dataset, Dataset]:
    """A small residual CNN trained on the digits; unlabelled calibration data, labelled test data."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    y = torch.tensor(digits.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        order = torch.randperm(len(x))
        x, y = x[order], y[order]
        module = nn.Sequential(
            *(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()),
            zoo.Residual(12, 2),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 10)),
        )
        optimizer = torch.optim.Adam(module.parameters(), 5e-3)
        for _ in range(6):
            for i in range(0, 1280, 64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(module(x[i : i + 64]), y[i : i + 64]).backward()
                optimizer.step()
    network, data = small(module, x[:512])
    return network, data, Dataset(inputs=(x[1280:],), labels=y[1280:])


def test_much_better_than_magnitude() -> None:
    network, data, test = trained()
    task = make_task(network, data)
    levels = [Unstructured.of(task.layout.sizes, s) for s in (0.8, 0.9)]
    chosen = select(task, *levels, options=Options())
    accuracies = []
    for level, selection in zip(levels, chosen, strict=True):
        assert selection.weights is not None
        plain = task.layout.split(level.keep(task.weights.abs()) * task.weights)
        found = compare(network, {"gradual": task.layout.split(selection.weights), "magnitude": plain}, test)
        accuracies.append((found["dense"].accuracy, found["gradual"].accuracy, found["magnitude"].accuracy))
    for dense, gradual, magnitude in accuracies:
        assert gradual is not None
        assert magnitude is not None
        assert dense is not None
        assert gradual > magnitude + 0.2
        assert gradual > dense - 0.1


def test_a_network_with_a_fixed_batch(tmp_path: Path) -> None:
    model = zoo.make("cnn")
    zoo.export(model, tmp_path / "model.pt2", dynamic=False)
    network = read_model(tmp_path / "model.pt2")
    assert network.batch == 4
    task = make_task(network, exported("cnn")[1])
    pattern = Unstructured.of(task.layout.sizes, 0.9)
    (selection,) = select(task, pattern, options=QUICK.model_copy(update={"window": 0}))
    assert pattern.accepts(selection.mask)
    assert selection.objective["joint_end"] < selection.objective["joint_start"]


def test_one_selector_serves_several_kinds_of_pattern() -> None:
    network, data, _ = exported("cnn")
    task = make_task(network, data)
    chosen = [patterns(task.layout)[kind] for kind in ("global", "layer", "2:4", "capped")]
    for one, pattern in zip(select(task, *chosen), chosen, strict=True):
        assert pattern.accepts(one.mask)
        assert same(one, select(task, pattern)[0])


def test_kinds_of_pattern_do_not_share_checkpoints(tmp_path: Path) -> None:
    network, data, _ = exported("cnn")
    sizes = Layout(network.layers).sizes
    kinds = [Unstructured.of(sizes, 0.8), Unstructured.of(sizes, 0.8, scope="layer")]
    together = select(make_task(network, data, checkpoints=FolderCheckpoints(tmp_path)), *kinds)
    for found, pattern in zip(together, kinds, strict=True):
        assert same(found, select(make_task(network, data), pattern)[0])


def test_the_fit_to_a_window_comes_where_the_layers_fits_leave_an_error() -> None:
    network, data, _ = exported("cnn")
    task = make_task(network, data)
    pattern = Unstructured.of(task.layout.sizes, 0.8)
    plain = Options(joint_steps=0, window=0)
    (without,) = select(task, pattern, options=plain)
    (small,) = select(task, pattern, options=plain.model_copy(update={"window": 2, "window_error": 1.0}))
    (large,) = select(task, pattern, options=plain.model_copy(update={"window": 2, "window_error": 0.0}))
    assert same(small, without)
    assert torch.equal(large.mask, without.mask)
    assert not same(large, without)
    assert [len(found.notes) for found in (without, small, large)] == [1, 1, 2]


def test_nothing_to_prune_is_the_identity() -> None:
    network, data, _ = exported("mlp")
    task = make_task(network, data)
    (selection,) = select(task, Unstructured.of(task.layout.sizes, 0.0))
    assert selection.mask.all()
    assert selection.weights is None


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="rising"):
        Options(stages=(0.5, 0.4))
