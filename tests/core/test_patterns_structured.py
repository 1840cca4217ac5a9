"""N:M, blocks, floors, fixed masks: feasible, idempotent, optimal by brute force, ties to the lower index."""

from __future__ import annotations

import math
from itertools import combinations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pruning_core import recipe
from pruning_core.errors import RecipeError
from pruning_core.patterns import Block, Fixed, NofM, Pattern, Unstructured, build, sweep_order

SHAPES: tuple[tuple[tuple[int, ...], ...], ...] = (
    ((1, 5),),
    ((2, 4),),
    ((2, 3), (3, 2)),
    ((2, 2, 2),),
    ((2, 3, 1, 2),),
    ((3, 1, 2, 2),),
)
SPARSITIES = (0.0, 0.5, 0.8)


def patterns(shapes: tuple[tuple[int, ...], ...]) -> list[Pattern]:
    sizes = [math.prod(s) for s in shapes]
    made: list[Pattern] = [NofM(shapes, n, m) for n, m in ((1, 2), (2, 3), (2, 4), (0, 2), (3, 3))]
    for sparsity, scope in product(SPARSITIES, ("global", "layer")):
        made += [Block.of(shapes, rc, sparsity, scope=scope) for rc in ((2, 1), (1, 2), (2, 2), (1, 1))]
    made += [Unstructured.of(sizes, s, max_layer_sparsity=max(s, 0.5)) for s in SPARSITIES]
    return made


CASES = [(shapes, pattern) for shapes in SHAPES for pattern in patterns(shapes)]


def every_mask(pattern: Pattern) -> list[Tensor]:
    """All masks that the definition allows, by trying each of the right size."""
    masks = []
    for kept in combinations(range(pattern.size), pattern.kept):
        mask = torch.zeros(pattern.size, dtype=torch.bool)
        mask[list(kept)] = True
        if allowed(pattern, mask):
            masks.append(mask)
    return masks


def allowed(pattern: Pattern, mask: Tensor) -> bool:
    """The definitions, spelt out one weight at a time."""
    if isinstance(pattern, Unstructured):
        parts = torch.split(mask, list(pattern.parts or pattern.sizes))
        return all(int(part.sum()) >= f for part, f in zip(parts, pattern.floors, strict=True))
    start, counts = 0, []
    for shape in pattern.shapes:
        out, channels, kernel = shape[0], shape[1], math.prod(shape[2:])
        layer = mask[start : start + out * channels * kernel].view(out, channels, kernel)
        start += layer.numel()
        r, c = (1, pattern.m) if isinstance(pattern, NofM) else pattern.shape
        whole = 0
        for o, i, k in product(range(out), range(channels), range(kernel)):
            if o >= out // r * r or i >= channels // c * c:
                if not layer[o, i, k]:
                    return False
            elif o % r == 0 and i % c == 0:
                members = layer[o : o + r, i : i + c, k]
                if isinstance(pattern, NofM) and int(members.sum()) != pattern.n:
                    return False
                if isinstance(pattern, Block):
                    if members.any() != members.all():
                        return False
                    whole += int(members.all())
        counts.append(whole)
    if isinstance(pattern, Block):
        return pattern.counts in ((sum(counts),), tuple(counts))
    return True


@pytest.mark.parametrize(("shapes", "pattern"), CASES, ids=lambda x: "" if isinstance(x, tuple) else type(x).__name__)
def test_keep_is_the_best_of_all_allowed_masks(shapes: tuple[tuple[int, ...], ...], pattern: Pattern) -> None:
    masks = every_mask(pattern)
    assert all(pattern.accepts(mask) for mask in masks)
    stacked = torch.stack(masks).double()
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        score = torch.randint(0, 4, (pattern.size,), generator=generator).double()
        mask = pattern.keep(score)
        assert pattern.accepts(mask)
        assert int(mask.sum()) == pattern.kept
        assert float(score @ mask.double()) == float((stacked @ score).max())
        # ties go to the lower index: a tiny slope that favours low indices changes nothing
        slope = torch.arange(pattern.size).double()
        if not isinstance(pattern, Block):
            assert torch.equal(mask, pattern.keep(score - 1e-6 * slope))
        # what is kept is kept again
        assert torch.equal(pattern.keep(torch.where(mask, score + 1, torch.zeros_like(score))), mask)


@pytest.mark.parametrize(("shapes", "pattern"), CASES[::4])
def test_accepts_nothing_else(shapes: tuple[tuple[int, ...], ...], pattern: Pattern) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        mask = torch.rand(pattern.size, generator=generator) < 0.5
        assert pattern.accepts(mask) == (int(mask.sum()) == pattern.kept and allowed(pattern, mask))
    assert not pattern.accepts(torch.ones(pattern.size + 1, dtype=torch.bool))
    assert not pattern.accepts(torch.ones(pattern.size))


@pytest.mark.parametrize(("shapes", "pattern"), CASES[::3])
def test_layers_side_by_side_are_the_whole(shapes: tuple[tuple[int, ...], ...], pattern: Pattern) -> None:
    sizes = tuple(math.prod(s) for s in shapes)
    generator = torch.Generator().manual_seed(2)
    guide = torch.rand(pattern.size, generator=generator)
    parts = pattern.per_layer(sizes, guide)
    assert [part.size for part in parts] == list(sizes)

    def side_by_side(score: Tensor) -> Tensor:
        return torch.cat([part.keep(s) for part, s in zip(parts, torch.split(score, sizes), strict=True)])

    assert torch.equal(side_by_side(guide), pattern.keep(guide))
    assert pattern.accepts(side_by_side(torch.rand(pattern.size, generator=generator)))
    with pytest.raises(ValueError, match="expected"):
        pattern.per_layer((pattern.size + 1,), guide)


@given(
    st.integers(1, 4), st.integers(1, 12), st.integers(1, 3), st.integers(1, 20), st.integers(0, 20), st.integers(0, 99)
)
@settings(deadline=None)
def test_any_n_of_m_on_any_shape(out: int, channels: int, kernel: int, m: int, n: int, seed: int) -> None:
    n = min(n, m)
    pattern = NofM(((out, channels, kernel),), n, m)
    score = torch.randint(0, 5, (pattern.size,), generator=torch.Generator().manual_seed(seed)).float()
    mask = pattern.keep(score)
    assert pattern.accepts(mask)
    cube, scores = mask.view(out, channels, kernel), score.view(out, channels, kernel)
    assert cube[:, channels // m * m :].all()
    for o, g, k in product(range(out), range(channels // m), range(kernel)):
        group = scores[o, g * m : (g + 1) * m, k]
        best = sorted(torch.argsort(group, descending=True, stable=True)[:n].tolist())
        assert cube[o, g * m : (g + 1) * m, k].nonzero().squeeze(1).tolist() == best


def test_decided_weights_can_be_forced_with_infinite_scores() -> None:
    shapes, generator = ((4, 8),), torch.Generator().manual_seed(0)
    for pattern in (NofM(shapes, 2, 4), Block.of(shapes, (4, 1), 0.5), Unstructured.of([32], 0.5)):
        first = pattern.keep(torch.rand(32, generator=generator))
        decided = torch.zeros(4, 8, dtype=torch.bool)
        decided[:, :4] = True
        score = torch.rand(32, generator=generator)
        score = torch.where(decided.view(-1), torch.where(first, torch.inf, -1.0), score)
        again = pattern.keep(score)
        assert torch.equal(again[decided.view(-1)], first[decided.view(-1)])
        assert pattern.accepts(again)


def test_rival_of_a_group_and_of_a_block() -> None:
    score = torch.tensor([9.0, 8.0, 1.0, 2.0, 5.0])
    mask = torch.tensor([True, True, False, False, True])
    assert NofM(((1, 5),), 2, 4).rival(score, mask).tolist() == [2, 2, 2, 2, 0]
    block = Block(((1, 5),), (1, 2), (1,))
    assert block.rival(score, mask).tolist() == [1.5, 1.5, 1.5, 1.5, 0]
    assert Fixed(mask).rival(score, mask).tolist() == [0] * 5
    assert NofM(((1, 3),), 2, 4).rival(torch.ones(3), torch.ones(3, dtype=torch.bool)).tolist() == [0, 0, 0]


def test_floors_bind_only_where_needed() -> None:
    pattern = Unstructured.of([10, 10], 0.8, max_layer_sparsity=0.9)
    assert pattern.floors == (1, 1)
    mask = pattern.keep(torch.cat([torch.rand(10), 2 + torch.rand(10)]))
    assert (int(mask[:10].sum()), int(mask[10:].sum())) == (1, 3)
    assert not pattern.accepts(torch.arange(20) < 4)
    assert [p.counts for p in pattern.per_layer((10, 10), torch.arange(20.0))] == [(1,), (3,)]


def test_cap_equal_to_the_sparsity_is_reached_in_spite_of_rounding() -> None:
    pattern = Unstructured.of([5, 5, 5], 0.9, max_layer_sparsity=0.9)
    assert (pattern.kept, pattern.floors) == (2, (0, 0, 0))
    with pytest.raises(RecipeError, match="above the cap"):
        Unstructured.of([5, 5], 0.9, max_layer_sparsity=0.5)


def test_block_sparsity_is_the_nearest_possible() -> None:
    pattern = Block.of(((8, 6, 3, 3), (5, 7)), (4, 1), 0.9)
    assert abs((pattern.size - pattern.kept) - 0.9 * pattern.size) <= 2
    assert Block.of(((4, 4),), (3, 3), 0.99).counts == (0,)


@pytest.mark.parametrize("m", [2, 3, 4, 9])
def test_sweep_order_puts_groups_together(m: int) -> None:
    shape = (2, 7, 2, 2)
    order = sweep_order(shape, m)
    assert sorted(order.tolist()) == list(range(28))
    grouped = 7 // m * m * 4
    for group in order[:grouped].view(-1, m).tolist():
        channels, positions = [j // 4 for j in group], {j % 4 for j in group}
        assert len(positions) == 1
        assert channels == list(range(channels[0], channels[0] + m))
        assert channels[0] % m == 0
    assert order[grouped:].tolist() == list(range(grouped, 28))


def test_build_from_recipes() -> None:
    shapes = [(4, 8), (4, 2, 3, 3)]
    assert build(recipe.Unstructured(), shapes, 0.5) == Unstructured((104,), (52,))
    layered = build(recipe.Unstructured(scope="layer"), shapes, 0.5)
    assert layered == Unstructured((32, 72), (16, 36))
    capped = build(recipe.Unstructured(max_layer_sparsity=0.75), shapes, 0.5)
    assert capped == Unstructured((104,), (52,), (32, 72), (8, 18))
    assert build(recipe.NofM(n=2, m=4), shapes) == NofM(((4, 8), (4, 2, 3, 3)), 2, 4)
    assert build(recipe.Block(shape=(4, 1)), shapes, 0.5) == Block(((4, 8), (4, 2, 3, 3)), (4, 1), (13,))
    mask = torch.arange(104) % 2 == 0
    assert build(recipe.Mask(), shapes, mask=mask).accepts(mask)
    for wrong in (lambda: build(recipe.Mask(), shapes), lambda: build(recipe.Unstructured(), shapes)):
        with pytest.raises(RecipeError, match="needs a"):
            wrong()


@pytest.mark.parametrize(
    "make",
    [
        lambda: NofM(((2, 2),), 3, 2),
        lambda: NofM(((4,),), 1, 2),
        lambda: Block(((2, 2),), (1, 1), (5,)),
        lambda: Block(((2, 2),), (0, 1), (0,)),
        lambda: Fixed(torch.ones(3)),
        lambda: Unstructured((4,), (2,), (2, 2), (2, 1)),
        lambda: Unstructured((4,), (5,)),
    ],
)
def test_impossible_patterns_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match="expected"):
        make()  # type: ignore[operator]
