"""CHITA: swaps against brute force, schedules, choices on held-out data, the guard, stages and their checkpoints."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pruning_core.algorithms import FolderCheckpoints, PruningTask, Step
from pruning_core.algorithms.chita import Options, run
from pruning_core.algorithms.chita_choice import choose
from pruning_core.algorithms.chita_curvature import BlockCurvature, Effort, GlobalCurvature, Solved, free_first, guarded
from pruning_core.algorithms.chita_held_out import HeldOut
from pruning_core.algorithms.chita_stages import Relaxed, sparsities, stage_pattern
from pruning_core.algorithms.gradients import Blocks, columns, columns_and_blocks, gradient_rows
from pruning_core.calibration import Dataset
from pruning_core.curvature import Columns, Layout
from pruning_core.errors import Diverged
from pruning_core.patterns import Fixed, NofM, Pattern, Unstructured
from pruning_core.pipeline import finish
from pruning_core.solvers import BlockModel, BlockQuadratic, LowRankModel, LowRankQuadratic, swap_search
from tests.core.fakes import ModuleNetwork, cnn_network, mlp_network, samples

EFFORT = Effort(tolerance=1e-3, max_rounds=10, swaps=10, seed=0)


def job(network: ModuleNetwork, count: int = 64, *, labels: bool = True, **kwargs: Any) -> PruningTask:
    data, layout = samples(network, count, labels=labels), Layout(network.layers)
    held_out = Dataset(
        inputs=tuple(x[: count // 4] for x in data.inputs),
        labels=None if data.labels is None else data.labels[: count // 4],
    )
    fit = Dataset(
        inputs=tuple(x[count // 4 :] for x in data.inputs),
        labels=None if data.labels is None else data.labels[count // 4 :],
    )
    return PruningTask(
        network=network,
        calibration=fit,
        held_out=held_out,
        layout=layout,
        weights=layout.flatten(network.weights),
        seed=0,
        **kwargs,
    )


def unstructured(task: PruningTask, sparsity: float) -> Unstructured:
    return Unstructured.of(task.layout.sizes, sparsity)


# --- swaps


def rows_and_anchor(p: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    columns = torch.randn(p, n, generator=g) * torch.logspace(0, -1, n)
    return columns, torch.randn(p, generator=g)


@pytest.mark.parametrize("kind", ["global", "block"])
def test_swaps_lower_q_at_every_round_and_come_near_the_best_of_all_supports(kind: str) -> None:
    best_found, gaps_before, gaps_after = 0, [], []
    for seed in range(15):
        p, k = 10, 4
        G, anchor = rows_and_anchor(p, 14, seed)
        diagonal = G.square().mean(1)
        if kind == "global":
            model = LowRankModel(LowRankQuadratic(G, anchor, 0.05), diagonal)
        else:
            gram = (G @ G.T / 14).unsqueeze(0)
            model = BlockModel(BlockQuadratic([gram], (p,), anchor, 0.05), diagonal)
        pattern = Unstructured((p,), (k,))
        start = model.refit(pattern.keep(anchor.abs()))
        steps = swap_search(model, pattern, start, max_rounds=20)
        values = [start.value]
        while True:
            try:
                values.append(next(steps))
            except StopIteration as end:
                found = end.value
                break
        assert all(b < a for a, b in pairwise(values))
        assert found.value == values[-1]
        assert pattern.accepts(found.mask)
        assert not found.weights[~found.mask].any()
        every = []
        for support in combinations(range(p), k):
            mask = torch.zeros(p, dtype=torch.bool)
            mask[list(support)] = True
            every.append(model.refit(mask).value)
        lowest = min(every)
        assert found.value >= lowest * (1 - 1e-4)
        best_found += found.value <= lowest * (1 + 1e-3)
        gaps_before.append(start.value / lowest - 1)
        gaps_after.append(found.value / lowest - 1)
    assert best_found >= 5
    assert sum(gaps_after) < 0.4 * sum(gaps_before)


@pytest.mark.parametrize(
    "pattern",
    [
        Unstructured((12, 12), (3, 8)),
        NofM(((4, 6),), 1, 3),
        Fixed(torch.arange(24) % 3 == 0),
        Relaxed(Fixed(torch.arange(24) % 3 == 0), 12),
    ],
)
def test_swaps_stay_within_the_pattern(pattern: Pattern) -> None:
    G, anchor = rows_and_anchor(24, 30, 1)
    model = LowRankModel(LowRankQuadratic(G, anchor, 0.05), G.square().mean(1))
    start = model.refit(pattern.keep(anchor.abs()))
    found = finish(swap_search(model, pattern, start, max_rounds=20))
    assert pattern.accepts(found.mask)
    assert found.value <= start.value
    if isinstance(pattern, Fixed):
        assert torch.equal(found.mask, start.mask)
    else:
        assert found.value < start.value


# --- stages


@pytest.mark.parametrize("schedule", ["exponential", "polynomial", "linear"])
def test_schedules_rise_from_the_first_to_the_target(schedule: Any) -> None:
    found = sparsities(0.9, 15, schedule, 0.1)
    assert len(found) == 15
    assert found[0] == pytest.approx(0.1)
    assert found[-1] == 0.9
    assert all(a < b for a, b in pairwise(found))
    assert sparsities(0.9, 1, schedule, 0.1) == (0.9,)


def test_exponential_schedule_is_the_papers() -> None:
    T, s, s0 = 15, 0.98, 0.1
    for t, found in enumerate(sparsities(s, T, "exponential", s0)):
        assert found == pytest.approx(s0 + (s - s0) * 2 ** (T - 1) / (2 ** (T - 1) - 1) * (1 - 2**-t))


@pytest.mark.parametrize("final", [Unstructured((12, 12), (3, 8)), NofM(((4, 6),), 1, 3)])
def test_a_stage_holds_a_mask_of_the_pattern_and_the_best_of_the_rest(final: Pattern) -> None:
    score = torch.rand(24, generator=torch.Generator().manual_seed(0))
    stage = stage_pattern(final, 0.3)
    mask = stage.keep(score)
    assert int(mask.sum()) == stage.kept == 17
    assert stage.accepts(mask)
    inner = final.keep(score)
    assert not (inner & ~mask).any()
    assert score[mask & ~inner].min() > score[~mask].max()
    assert stage_pattern(final, 1 - final.kept / final.size) is final
    assert stage.rival(score, mask)[0] == score[~mask].max()
    parts = stage.per_layer((12, 12), score) if isinstance(final, Unstructured) else ()
    assert sum(part.kept for part in parts) in (0, 17)


def test_stages_resume_with_the_same_bytes(tmp_path: Path) -> None:
    options = Options(stages=4, samples=24, batch_size=1, structure="block", swaps=2)
    task = job(cnn_network(), checkpoints=FolderCheckpoints(tmp_path))
    pattern = unstructured(task, 0.8)
    whole = finish(finish(run(replace(task, checkpoints=FolderCheckpoints(tmp_path / "a")), options))(pattern))
    # Killed in the third stage: what is left are the checkpoints of the first two.
    steps = finish(run(task, options))(pattern)
    for step in steps:
        if step.fraction > 0.6:
            break
    steps.close()
    assert 1 <= len(list(tmp_path.glob("*.checkpoint"))) < 4
    resumed = finish(finish(run(task, options))(pattern))
    assert torch.equal(resumed.mask, whole.mask)
    assert torch.equal(resumed.weights, whole.weights)
    assert resumed.notes == whole.notes
    assert pattern.accepts(whole.mask)
    assert int(whole.mask.sum()) == pattern.kept


@pytest.mark.parametrize("structure", ["block", "global", "auto"])
def test_more_stages_do_better_than_one_on_the_calibration_data(structure: Any) -> None:
    task = job(mlp_network(), 256)
    pattern = unstructured(task, 0.8)
    held_out = HeldOut(task, classes=True)
    losses = []
    for stages in (1, 5):
        selector = finish(run(task, Options(stages=stages, structure=structure, samples=100, batch_size=1)))
        fractions = []
        steps = selector(pattern)
        while True:
            try:
                fractions.append(next(steps).fraction)
            except StopIteration as end:
                selection = end.value
                break
        assert fractions == sorted(fractions)
        assert fractions[-1] <= 1
        losses.append(held_out.loss(torch.where(selection.mask, selection.weights, 0.0)))
    assert losses[1] < losses[0]


# --- choices


class Fake:
    """A structure whose weights say which ridge they came from."""

    name, scale, batch_size, rows = "block", 1.0, 1, 10
    mean = torch.zeros(4)

    def __init__(self, breaks_below: float = 0.0) -> None:
        self.breaks_below = breaks_below

    def solve(
        self, anchor: Tensor, pattern: Pattern, ridge: float, slope: Tensor | None, effort: Effort
    ) -> Generator[Step, None, Solved]:
        yield Step(stage="select", done=1, total=1, fraction=1.0)
        end = float("nan") if ridge < self.breaks_below else 0.5
        return Solved(
            mask=torch.ones(4, dtype=torch.bool),
            weights=torch.full((4,), ridge),
            start=1.0,
            end=end,
            ridge=ridge,
            exchanged=0,
            rounds=(0, 0),
        )

    def refit(self, anchor: Tensor, mask: Tensor, ridge: float, slope: Tensor | None) -> Tensor:
        return anchor * 0 if slope is None else anchor * 0 + slope


class Valley:
    """A held-out loss with its lowest point at one value of the weights."""

    criterion = "loss"

    def __init__(self, lowest: float) -> None:
        self.lowest = lowest

    def loss(self, weights: Tensor) -> float:
        return float((weights[0].log10() - self.lowest).abs()) + 1.0


@pytest.mark.parametrize("lowest", [-3.0, -1.0, 0.4])
def test_auto_takes_the_ridge_with_the_lowest_held_out_loss_on_its_way(lowest: float) -> None:
    chosen = finish(
        choose(
            [Fake()],
            torch.zeros(4),
            Unstructured((4,), (4,)),
            ridge="auto",
            gradient=None,
            effort=EFFORT,
            held_out=Valley(lowest),
        )
    )
    assert chosen.loss == min(loss for _, _, loss in chosen.tried)
    assert abs(torch.tensor(chosen.solved.ridge).log10() - max(lowest, -3.5)) <= 0.26
    assert len(chosen.tried) <= 6


def test_a_given_ridge_and_the_rule_are_not_searched() -> None:
    for ridge, used in ((0.7, 0.7), (None, 0.1)):
        chosen = finish(
            choose(
                [Fake()],
                torch.zeros(4),
                Unstructured((4,), (4,)),
                ridge=ridge,
                gradient=None,
                effort=EFFORT,
                held_out=Valley(-5),
            )
        )
        assert [r for _, r, _ in chosen.tried] == [used]


def test_auto_on_a_network_takes_the_best_of_what_it_tried() -> None:
    task = job(mlp_network(), 256)
    pattern = unstructured(task, 0.7)
    selection = finish(finish(run(task, Options(swaps=3)))(pattern))
    held_out = HeldOut(task, classes=True)
    found = held_out.loss(torch.where(selection.mask, selection.weights, 0.0))
    assert selection.options["structure"] in ("block", "global")
    for structure in ("block", "global"):
        for ridge in (selection.options["ridge"], None):
            one = finish(finish(run(task, Options(structure=structure, ridge=ridge, swaps=3)))(pattern))
            if structure == selection.options["structure"] and ridge is not None:
                # The same but for rounding and, where columns came with blocks, the rows' grouping.
                assert found == pytest.approx(held_out.loss(torch.where(one.mask, one.weights, 0.0)), rel=0.2)
    assert any("Chosen on held-out data" in note for note in selection.notes)


# --- guard


def test_a_solve_that_diverges_is_tried_again_with_larger_ridges() -> None:
    pattern = Unstructured((4,), (4,))
    solved = finish(guarded(Fake(breaks_below=0.5), torch.zeros(4), pattern, 0.01, None, EFFORT))
    assert solved.ridge == pytest.approx(1.0)
    with pytest.raises(Diverged) as problem:
        finish(guarded(Fake(breaks_below=1e9), torch.zeros(4), pattern, 0.01, None, EFFORT))
    assert problem.value.received["ridges tried"] == pytest.approx([0.01, 0.1, 1.0, 10.0])


def test_a_ridge_far_too_small_for_float32_is_no_end() -> None:
    task = job(mlp_network())
    for structure in ("block", "global"):
        selection = finish(
            finish(run(task, Options(structure=structure, ridge=1e-30, swaps=1)))(unstructured(task, 0.8))
        )
        assert torch.isfinite(selection.weights).all()


# --- statistics and labels


def test_one_pass_gives_the_columns_and_the_blocks_of_two() -> None:
    task = job(mlp_network(), 80)
    options = Options(samples=60, batch_size=1)
    both = finish(columns_and_blocks(task, options, 100))
    G = torch.cat([block.clone() for block in gradient_rows(task, options, streamed=True)])
    torch.testing.assert_close(both.columns.values, G.T)
    torch.testing.assert_close(both.blocks.diagonal, G.square().mean(0))
    torch.testing.assert_close(both.blocks.mean, G.mean(0))
    assert finish(columns_and_blocks(task, options, 100)) is both
    assert finish(columns(task, options)) is finish(columns(task, options))


def test_stored_rows_are_means_of_streamed_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruning_core.algorithms.gradients.STORED_ROWS", 10)
    task = job(mlp_network(), 80)
    both = finish(columns_and_blocks(task, Options(), 100))
    G = torch.cat([block.clone() for block in gradient_rows(task, Options(), streamed=True)])
    assert both.batch_size == 6
    assert both.columns.values.shape == (task.layout.size, 10)
    torch.testing.assert_close(both.columns.values, G.view(10, 6, -1).mean(1).T)


def test_a_fixed_batch_is_the_default_size_of_a_row() -> None:
    task = job(mlp_network(batch=4), 80)
    for streamed in (True, False):
        rows = gradient_rows(task, Options(), streamed=streamed)
        assert (rows.count, rows.batch_size) == (15, 4)
    assert gradient_rows(task, Options(batch_size=1), streamed=True).batch_size == 1


def test_the_block_solve_is_the_dense_one() -> None:
    G, anchor = rows_and_anchor(20, 30, 3)
    gram = (G @ G.T / 30).unsqueeze(0)
    curvature = BlockCurvature(
        Blocks(grams=[gram], diagonal=G.square().mean(1), mean=G.mean(1)),
        (20,),
        type("Rows", (), {"count": 30, "batch_size": 1})(),
    )
    solved = finish(curvature.solve(anchor, Unstructured((20,), (8,)), 0.1, None, replace(EFFORT, swaps=0)))
    keep = solved.mask
    hessian = gram[0].double() + 0.1 * torch.eye(20, dtype=torch.float64)
    best = torch.zeros(20, dtype=torch.float64)
    best[keep] = torch.linalg.solve(hessian[keep][:, keep], hessian[keep] @ anchor.double())
    torch.testing.assert_close(solved.weights.double(), best, rtol=1e-4, atol=1e-5)
    # With the first-order term the weights move by -(H_SS + λI)⁻¹s_S.
    moved = curvature.refit(anchor, keep, 0.1, G.mean(1))
    step = torch.linalg.solve(hessian[keep][:, keep], G.mean(1).double()[keep])
    torch.testing.assert_close((moved - solved.weights)[keep].double(), -step, rtol=1e-3, atol=1e-4)


def test_both_structures_find_the_same_where_one_block_is_everything() -> None:
    G, anchor = rows_and_anchor(20, 30, 4)
    diagonal, mean = G.square().mean(1), G.mean(1)
    pattern = Unstructured((20,), (8,))
    rows = type("Rows", (), {"count": 30, "batch_size": 1})()
    block = BlockCurvature(Blocks(grams=[(G @ G.T / 30).unsqueeze(0)], diagonal=diagonal, mean=mean), (20,), rows)
    whole = GlobalCurvature(Columns(values=G, diagonal=diagonal, mean=mean), 1)
    mask, _ = free_first(anchor, diagonal, pattern)
    torch.testing.assert_close(
        block.refit(anchor, mask, 0.1, mean), whole.refit(anchor, mask, 0.1, mean), rtol=1e-2, atol=1e-2
    )


@pytest.mark.parametrize("stages", [1, 3])
@pytest.mark.parametrize("labels", ["auto", "sampled", "model", "output"])
def test_every_source_of_labels_prunes(labels: Any, stages: int) -> None:
    task = job(mlp_network(), labels=False)
    pattern = unstructured(task, 0.5)
    selection = finish(finish(run(task, Options(labels=labels, stages=stages, swaps=2)))(pattern))
    assert pattern.accepts(selection.mask)
    assert torch.isfinite(selection.weights).all()


def test_a_regression_model_without_labels_keeps_its_outputs() -> None:
    network = ModuleNetwork(
        torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1)), torch.zeros(1, 12)
    )
    task = job(network, 200, labels=False)
    pattern = unstructured(task, 0.6)
    plain = torch.where(pattern.keep(task.weights.abs()), task.weights, 0.0)
    held_out = HeldOut(task, classes=False)
    assert held_out.criterion == "squared distance from the dense outputs"
    losses = [held_out.loss(plain)]
    for stages in (1, 4):
        selection = finish(finish(run(task, Options(stages=stages)))(pattern))
        losses.append(held_out.loss(torch.where(selection.mask, selection.weights, 0.0)))
    assert losses[2] < losses[1] < losses[0]
    assert held_out.loss(task.weights) == 0
