"""What every algorithm of the registry must do, whatever it is: a new one is tested on arrival."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pruning_core.algorithms import REFINERS, REGISTRY, FolderCheckpoints
from pruning_core.evaluate import compare, standing
from pruning_core.formats import read_model, write_model
from pruning_core.holdout import split
from pruning_core.pipeline import Pruned, finish, prune
from pruning_core.recipe import Recipe
from tests.core.exported import exported
from tests.core.fakes import Fragile, Killed

NETWORKS = ["mlp", "cnn", "vit", "bert"]
#: Options that make an algorithm quick on tiny networks; the rest runs with its defaults.
QUICK: Mapping[str, dict[str, Any]] = {"best": {"of": ["magnitude", "obd", "wanda"]}}
PATTERNS: Mapping[str, dict[str, Any]] = {
    "layer": {"sparsity": 0.6, "pattern": {"type": "unstructured", "scope": "layer"}},
    "capped": {"sparsity": 0.6, "pattern": {"type": "unstructured", "max_layer_sparsity": 0.7}},
    "n:m": {"pattern": "2:4"},
    "block": {"sparsity": 0.5, "pattern": "2x1"},
    "mask": {"pattern": "mask"},
}


def names() -> list[str]:
    return sorted(REGISTRY)


def recipe(algorithm: str, **select: Any) -> Recipe:
    return Recipe.parse({"select": {"algorithm": algorithm, **QUICK.get(algorithm, {}), **select}})


def uploaded(network: Any) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {layer.weight: torch.rand(layer.shape, generator=generator) < 0.6 for layer in network.layers[:3]}


def run(name: str, one: Recipe, **more: Any) -> Pruned:
    network, data, _ = exported(name)
    masks = uploaded(network) if one.needs_mask else None
    return finish(prune(network, data, one, masks=masks, **more))


def check(name: str, one: Recipe, pruned: Pruned) -> None:
    """The exact pattern in masks and weights, no other tensor touched, no worse than magnitude on held-out data."""
    network, data, _ = exported(name)
    for level in pruned.levels:
        assert level.report.pattern_holds
        sizes = sum(mask.numel() for mask in level.masks.values())
        zeros = sum(int((level.network.weights[weight] == 0).sum()) for weight in level.masks)
        assert level.report.sparsity == zeros / sizes
        for weight, tensor in network.weights.items():
            if weight in level.masks:
                assert not level.network.weights[weight][~level.masks[weight]].any()
                assert level.network.weights[weight].dtype == tensor.dtype
                assert level.network.weights[weight].isfinite().all()
            else:
                assert torch.equal(level.network.weights[weight], tensor)
    held_out = split(data, one.seed)[1]
    plain = finish(prune(network, data, _as_magnitude(one), masks=dict(pruned.levels[0].masks)))
    for level, point in zip(pruned.levels, pruned.report.frontier, strict=True):
        weights = {weight: level.network.weights[weight] for weight in level.masks}
        magnitude = plain.levels[
            [p.report.sparsity_requested for p in plain.levels].index(level.report.sparsity_requested)
        ]
        other = {weight: magnitude.network.weights[weight] for weight in magnitude.masks}
        found = compare(network, {"own": weights, "magnitude": other}, held_out)
        assert standing(found["own"]) >= standing(found["magnitude"])
        assert standing(found["own"]) == pytest.approx(standing(point.quality))


def _as_magnitude(one: Recipe) -> Recipe:
    select = one.select.model_dump(include={"sparsity", "pattern", "layers"}, exclude_none=True)
    return Recipe.parse({"select": {"algorithm": "magnitude", **select}, "seed": one.seed})


def same(a: Pruned, b: Pruned) -> bool:
    return all(
        torch.equal(x.masks[weight], y.masks[weight])
        and torch.equal(x.network.weights[weight], y.network.weights[weight])
        for x, y in zip(a.levels, b.levels, strict=True)
        for weight in x.masks
    )


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("algorithm", names())
def test_a_frontier_on_every_kind_of_network(algorithm: str, network: str) -> None:
    one = recipe(algorithm, sparsity=[0.0, 0.5, 0.7])
    pruned = run(network, one)
    check(network, one, pruned)
    assert [round(level.report.sparsity, 2) for level in pruned.levels] == pytest.approx([0, 0.5, 0.7], abs=0.02)
    dense = exported(network)[0]
    first = pruned.levels[0]
    assert all(torch.equal(first.network.weights[w], dense.weights[w]) for w in first.masks), "sparsity 0 is identity"
    assert all(mask.all() for mask in first.masks.values())
    if network in ("mlp", "bert"):
        assert same(pruned, run(network, one)), "the same bytes again"


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("algorithm", names())
def test_every_pattern(algorithm: str, pattern: str) -> None:
    served = REGISTRY[algorithm].patterns
    one_pattern = PATTERNS[pattern]
    kind = pattern if pattern in ("n:m", "block", "mask") else "unstructured"
    if served is not None and kind not in served:
        pytest.skip(f"{algorithm} does not serve {kind} patterns, and says so")
    one = recipe(algorithm, **one_pattern)
    check("cnn", one, run("cnn", one))


@pytest.mark.parametrize("algorithm", sorted(REFINERS))
@pytest.mark.parametrize("network", NETWORKS)
def test_a_refinement_keeps_the_mask(algorithm: str, network: str) -> None:
    select = {"algorithm": "magnitude", "sparsity": 0.6}
    refine = {"algorithm": algorithm, **QUICK.get(algorithm, {})}
    one = Recipe.parse({"select": select, "refine": refine})
    pruned = run(network, one)
    check(network, one, pruned)
    plain = run(network, Recipe.parse({"select": select}))
    assert all(torch.equal(pruned.masks[w], plain.masks[w]) for w in pruned.masks)
    assert pruned.report.levels[0].refine_options is not None
    assert same(pruned, run(network, one))


@pytest.mark.parametrize("algorithm", sorted(REFINERS))
def test_a_refinement_alone_on_an_uploaded_mask(algorithm: str) -> None:
    one = Recipe.parse({"refine": {"algorithm": algorithm, **QUICK.get(algorithm, {})}})
    pruned = run("cnn", one)
    wanted = uploaded(exported("cnn")[0])
    assert pruned.masks.keys() == wanted.keys()
    assert all(torch.equal(pruned.masks[w], wanted[w]) for w in wanted)


@pytest.mark.parametrize("algorithm", [*names(), *(f"magnitude+{name}" for name in sorted(REFINERS))])
def test_after_a_kill_it_goes_on_to_the_same_bytes(algorithm: str, tmp_path: Path) -> None:
    select, _, refine = algorithm.partition("+")
    document: dict[str, Any] = {"select": {"algorithm": select, "sparsity": [0.5, 0.7], **QUICK.get(select, {})}}
    if refine:
        document["refine"] = {"algorithm": refine, **QUICK.get(refine, {})}
    one = Recipe.parse(document)
    undisturbed = run("cnn", one)
    kills = 0
    for _ in range(100):
        try:
            # The first life makes one step, the second two, and so on.
            resumed = run("cnn", one, checkpoints=Fragile(tmp_path, 1 + kills))
            break
        except Killed:
            kills += 1
    assert kills >= 1
    assert same(undisturbed, resumed)
    assert undisturbed.report.resumed == 0 < resumed.report.resumed
    for file in tmp_path.glob(f"*{FolderCheckpoints.SUFFIX}"):
        file.write_bytes(file.read_bytes()[:-1])
    assert same(undisturbed, run("cnn", one, checkpoints=FolderCheckpoints(tmp_path))), "damaged steps are made again"


@pytest.mark.parametrize("network", NETWORKS)
def test_the_pruned_file_is_what_was_computed(network: str, tmp_path: Path) -> None:
    _, data, archive = exported(network)
    (tmp_path / "model.pt2").write_bytes(archive)
    pruned = run(network, recipe("chita", sparsity=0.6))
    assert not any("one sample at a time" in note for note in pruned.report.levels[0].notes)
    write_model(pruned.network, tmp_path / "model.pt2", tmp_path / "pruned.pt2")
    again = read_model(tmp_path / "pruned.pt2")
    assert torch.equal(again.run(data.inputs)[0], pruned.network.run(data.inputs)[0])
