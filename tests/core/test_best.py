"""Best: never worse than any of its list on held-out data, statistics shared, and it says what each reached."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from pruning_core.algorithms import REGISTRY, Selection, best
from pruning_core.algorithms.surgeon import best_of
from pruning_core.algorithms.task import weights_of
from pruning_core.errors import Diverged, RecipeError
from pruning_core.evaluate import compare, standing
from pruning_core.patterns import NofM, Unstructured
from pruning_core.pipeline import finish
from tests.core.test_obs import problem

OF = ("magnitude", "obd", "obs", "woodfisher")


def test_it_is_the_best_of_its_list_at_each_level() -> None:
    task = problem()
    select = finish(best.run(task, best.Options(of=OF)))
    selectors = {name: finish(REGISTRY[name].run(task, REGISTRY[name].options())) for name in OF}
    for sparsity in (0.4, 0.8):
        pattern = Unstructured.of(task.layout.sizes, sparsity)
        selection = finish(select(pattern))
        assert pattern.accepts(selection.mask)
        each = {name: finish(selector(pattern)) for name, selector in selectors.items()}
        found = compare(
            task.network,
            {"best": weights_of(task, selection), **{name: weights_of(task, s) for name, s in each.items()}},
            task.held_out,
        )
        assert standing(found["best"]) == max(standing(found[name]) for name in OF)
        assert selection.options["chosen"] in OF
        assert all(f"{name}: accuracy" in selection.notes[0] for name in OF)


def test_nothing_is_computed_twice() -> None:
    alone, both = problem(), problem()
    finish(REGISTRY["obs"].run(alone, REGISTRY["obs"].options()))
    finish(best.run(both, best.Options(of=("obs", "woodfisher"))))
    assert both.network.runs == alone.network.runs


def test_what_cannot_take_part_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruning_core.algorithms.cbs.LARGEST", 10)
    task = problem()
    select = finish(best.run(task, best.Options(of=("magnitude", "cbs"))))
    selection = finish(select(NofM(tuple(layer.shape for layer in task.layout.layers), 2, 4)))
    assert selection.options["chosen"] == "magnitude"
    assert any("cbs was left out" in note for note in selection.notes)
    alone = finish(best.run(task, best.Options(of=("cbs",))))
    with pytest.raises(RecipeError):
        finish(alone(Unstructured.of(task.layout.sizes, 0.5)))


def test_what_is_not_finite_is_never_the_best() -> None:
    task = problem()
    mask = torch.ones_like(task.weights, dtype=torch.bool)
    broken = Selection(mask=mask, weights=torch.full_like(task.weights, torch.nan))
    assert best_of(task, {"broken": broken, "sound": Selection(mask=mask)})[0] == "sound"
    with pytest.raises(Diverged) as met:
        best_of(task, {"broken": broken})
    assert "larger ridge" in str(met.value.advice)


def test_the_names_are_those_of_the_registry() -> None:
    assert set(best.Options().of) <= set(REGISTRY)
    for wrong in (("magnitude", "magnitude"), ("magnitude", "best"), ("prune-o-matic",)):
        with pytest.raises(ValidationError, match="each algorithm once"):
            best.Options(of=wrong)
