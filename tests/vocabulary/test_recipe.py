"""What a recipe may say, and how it is told that it may not."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from pruning_core.errors import PROBLEM_TYPE, InputError, PruningError, RecipeError
from pruning_core.recipe import Block, Goal, Layers, Mask, NofM, Recipe, Unstructured, catalogue


def test_defaults_are_filled_in() -> None:
    recipe = Recipe.parse({"select": {"algorithm": "chita", "sparsity": 0.9}})
    assert recipe.seed == 0
    assert recipe.select.pattern.scope == "global"
    assert recipe.select.layers.accepts("any.layer")
    assert recipe.select.options == {}


def test_without_a_name_it_is_the_recommended_algorithm() -> None:
    assert Recipe.parse({"select": {"sparsity": 0.9}}).select.algorithm == "gradual"
    assert Recipe.parse({"select": {"pattern": "2:4", "passes": 1}}).select.options == {"passes": 1}


def test_options_of_the_algorithm_stand_beside_the_common_fields() -> None:
    option = next(iter(catalogue()["chita"]["options"]["properties"]))
    default = catalogue()["chita"]["options"]["properties"][option].get("default")
    recipe = Recipe.parse({"select": {"algorithm": "chita", "sparsity": 0.9, option: default}})
    assert recipe.select.options == {option: default}


@pytest.mark.parametrize(
    ("document", "field", "says"),
    [
        ({}, "recipe.select", "required"),
        ([], "recipe", "valid dictionary"),
        ({"select": {}}, "recipe.select.sparsity", "required"),
        ({"select": {"algorithm": "chita"}}, "recipe.select.sparsity", "required"),
        ({"select": {"algorithm": "chita", "sparsity": 1.0}}, "recipe.select.sparsity", "less than 1"),
        ({"select": {"algorithm": "chita", "sparsity": -0.1}}, "recipe.select.sparsity", "greater than or equal to 0"),
        ({"select": {"algorithm": "chita", "sparsity": "0.9"}}, "recipe.select.sparsity", "a number"),
        ({"select": {"algorithm": "chita", "sparsity": True}}, "recipe.select.sparsity", "a number"),
        ({"select": {"algorithm": "chita", "sparsity": float("nan")}}, "recipe.select.sparsity", "0 <= sparsity < 1"),
        ({"select": {"algorithm": "chita", "sparsity": [0.9, 0.8]}}, "recipe.select.sparsity", "rising list"),
        ({"select": {"algorithm": "chita", "sparsity": []}}, "recipe.select.sparsity", "rising list"),
        ({"select": {"algorithm": "chita", "sparsity": [0.5, 1.0]}}, "recipe.select.sparsity", "less than 1"),
        ({"select": {"algorithm": "chita", "sparsity": {}}}, "recipe.select.sparsity", "exactly one of"),
        (
            {"select": {"algorithm": "chita", "sparsity": {"max_drop": 1}}},
            "recipe.select.sparsity.max_drop",
            "not permitted",
        ),
        (
            {"select": {"algorithm": "chita", "sparsity": {"max_accuracy_drop": 0.1, "max_loss_increase": 0.1}}},
            "recipe.select.sparsity",
            "exactly one of",
        ),
        (
            {"select": {"algorithm": "chita", "sparsity": 0.9, "pattern": "2:4"}},
            "recipe.select.sparsity",
            "leave it out",
        ),
        ({"select": {"algorithm": "chita", "pattern": "4:2"}}, "recipe.select.pattern", "n < m"),
        (
            {"select": {"algorithm": "chita", "pattern": "0x4"}},
            "recipe.select.pattern.shape.0",
            "greater than or equal",
        ),
        ({"select": {"algorithm": "chita", "sparsity": 0.5, "pattern": "4x1x1"}}, "recipe.select.pattern", "offered"),
        ({"select": {"algorithm": "chita", "sparsity": 0.5, "pattern": "mask"}}, "recipe.select.sparsity", "its own"),
        (
            {"select": {"algorithm": "chita", "sparsity": [0.5, 0.9], "pattern": {"max_layer_sparsity": 0.8}}},
            "recipe.select.pattern",
            "below the sparsity 0.9",
        ),
        ({"select": {"algorithm": "snows", "sparsity": 0.5}}, "recipe.select", "unknown algorithm"),
        ({"refine": {"algorithm": "chita"}}, "recipe.refine", "unknown algorithm"),
        ({"select": {"algorithm": "prune-o-matic", "sparsity": 0.9}}, "recipe.select", "offered: "),
        (
            {"select": {"algorithm": "chita", "sparsity": 0.9, "pattern": {"type": "unstructured", "scope": "row"}}},
            "recipe.select.pattern.scope",
            "'global' or 'layer'",
        ),
        ({"select": {"algorithm": "chita", "sparsity": 0.9, "speed": 1}}, "recipe.select", "'speed' was unexpected"),
        ({"select": {"algorithm": "magnitude", "sparsity": 0.9}, "refine": {}}, "recipe.refine.algorithm", "required"),
        ({"select": {"algorithm": "magnitude", "sparsity": 0.9}, "sed": 1}, "recipe.sed", "not permitted"),
        ({"select": {"algorithm": "magnitude", "sparsity": 0.9}, "seed": -1}, "recipe.seed", "greater than or equal"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(document: Any, field: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(document)
    problem = caught.value.problem()
    assert [error["field"] for error in problem["errors"]] == [field]
    assert says in problem["errors"][0]["problem"]
    assert says in problem["detail"]
    assert problem["type"] == PROBLEM_TYPE + "invalid-recipe"
    assert problem["status"] == 422


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("2:4", NofM(n=2, m=4)),
        ("4x1", Block(shape=(4, 1))),
        ("mask", Mask()),
        ("unstructured", Unstructured()),
        ({"scope": "layer"}, Unstructured(scope="layer")),
    ],
)
def test_patterns_have_short_forms(given: Any, meant: Any) -> None:
    needs = isinstance(meant, Block | Unstructured)
    select = {"algorithm": "magnitude", "pattern": given, **({"sparsity": 0.5} if needs else {})}
    assert Recipe.parse({"select": select}).select.pattern == meant


def test_forms_of_sparsity() -> None:
    def parsed(sparsity: Any) -> Any:
        return Recipe.parse({"select": {"algorithm": "magnitude", "sparsity": sparsity}}).select

    assert parsed(0.5).levels == (0.5,)
    assert parsed([0, 0.5, 0.9]).levels == (0.0, 0.5, 0.9)
    assert parsed({"max_accuracy_drop": 0.01}).levels == (None,)
    assert parsed({"max_accuracy_drop": 0.01}).sparsity == Goal(max_accuracy_drop=0.01)
    recipe = Recipe.parse({"select": {"algorithm": "magnitude", "sparsity": [0.5, 0.9], "pattern": "4x1"}, "seed": 3})
    assert Recipe.parse(recipe.model_dump(mode="json", exclude_none=True)) == recipe


def test_refinement_alone_takes_the_uploaded_mask() -> None:
    recipe = Recipe.parse({"refine": {"algorithm": "snows"}})
    assert recipe.needs_mask
    assert recipe.select.pattern == Mask()
    assert not Recipe.parse({"select": {"algorithm": "magnitude", "sparsity": 0.5}}).needs_mask


def test_layers_by_name_pattern() -> None:
    layers = Layers(include=("encoder.*",), exclude=("*.embed",))
    assert layers.accepts("encoder.0.linear")
    assert not layers.accepts("encoder.embed")
    assert not layers.accepts("head")


def test_slugs_are_stable_and_mean_one_thing_each() -> None:
    def tree(kind: type[PruningError]) -> list[type[PruningError]]:
        return [kind, *(found for child in kind.__subclasses__() for found in tree(child))]

    import jobs.errors  # noqa: F401 - part of the one tree

    slugs = [kind.slug for kind in tree(PruningError) if "slug" in vars(kind)]  # a subclass may share its parent's
    assert len(slugs) == len(set(slugs))
    assert all(400 <= kind.status < 600 and kind.title for kind in tree(PruningError))
    assert all(kind.status < 500 for kind in tree(InputError)), "bad input is never our fault"


def test_vocabulary_imports_no_torch() -> None:
    program = "import pruning_core, sys; pruning_core.Recipe; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
