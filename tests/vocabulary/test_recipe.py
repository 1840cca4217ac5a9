"""What a recipe may say, and how it is told that it may not."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from pruning_core.errors import PROBLEM_TYPE, InputError, PruningError, RecipeError
from pruning_core.recipe import Layers, Recipe, catalogue


def test_defaults_are_filled_in() -> None:
    recipe = Recipe.parse({"select": {"algorithm": "chita", "sparsity": 0.9}})
    assert recipe.seed == 0
    assert recipe.select.pattern.scope == "global"
    assert recipe.select.layers.accepts("any.layer")
    assert recipe.select.options == {}


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
        ({"select": {"sparsity": 0.9}}, "recipe.select.algorithm", "required"),
        ({"select": {"algorithm": "chita"}}, "recipe.select.sparsity", "required"),
        ({"select": {"algorithm": "chita", "sparsity": 1.0}}, "recipe.select.sparsity", "less than 1"),
        ({"select": {"algorithm": "chita", "sparsity": -0.1}}, "recipe.select.sparsity", "greater than or equal to 0"),
        ({"select": {"algorithm": "chita", "sparsity": "0.9"}}, "recipe.select.sparsity", "one number"),
        ({"select": {"algorithm": "chita", "sparsity": True}}, "recipe.select.sparsity", "one number"),
        ({"select": {"algorithm": "chita", "sparsity": float("nan")}}, "recipe.select.sparsity", "finite"),
        (
            {"select": {"algorithm": "chita", "sparsity": [0.8, 0.9]}},
            "recipe.select.sparsity",
            "list of sparsities is not offered",
        ),
        (
            {"select": {"algorithm": "chita", "sparsity": {"max_accuracy_drop": 0.01}}},
            "recipe.select.sparsity",
            "goal is not offered",
        ),
        ({"select": {"algorithm": "prune-o-matic", "sparsity": 0.9}}, "recipe.select", "offered: chita"),
        ({"select": {"algorithm": "chita", "sparsity": 0.9, "pattern": "2:4"}}, "recipe.select.pattern", "not offered"),
        (
            {"select": {"algorithm": "chita", "sparsity": 0.9, "pattern": {"type": "unstructured", "scope": "row"}}},
            "recipe.select.pattern.scope",
            "'global' or 'layer'",
        ),
        ({"select": {"algorithm": "chita", "sparsity": 0.9, "speed": 1}}, "recipe.select", "'speed' was unexpected"),
        ({"select": {"algorithm": "magnitude", "sparsity": 0.9}, "refine": {}}, "recipe", "'refine' is not offered"),
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
