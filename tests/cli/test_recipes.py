"""What the options of the command line mean as a recipe."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import typer

from cli.local import _parts
from cli.recipes import Given, build, labels
from pruning_core.recipe import Recipe

CHITA = {"select": {"algorithm": "chita", "sparsity": 0.9}}


@pytest.mark.parametrize(
    ("given", "recipe"),
    [
        ({"algorithm": "chita", "sparsity": [0.9]}, CHITA),
        ({"sparsity": [0.9, 0.5, 0.9]}, {"select": {"sparsity": [0.5, 0.9]}}),
        ({"max_accuracy_drop": 0.01}, {"select": {"sparsity": {"max_accuracy_drop": 0.01}}}),
        ({"max_loss_increase": 0.5}, {"select": {"sparsity": {"max_loss_increase": 0.5}}}),
        # SNOWS refines: named alone it follows the default way to choose
        ({"algorithm": "snows", "pattern": "2:4"}, {"select": {"pattern": "2:4"}, "refine": {"algorithm": "snows"}}),
        (
            {"algorithm": "magnitude", "refine": "snows", "pattern": "2:4"},
            {"select": {"algorithm": "magnitude", "pattern": "2:4"}, "refine": {"algorithm": "snows"}},
        ),
        # on an uploaded mask it stands alone; what chooses a mask takes the uploaded one
        ({"algorithm": "snows", "has_masks": True}, {"refine": {"algorithm": "snows"}}),
        ({"algorithm": "obs", "has_masks": True}, {"select": {"algorithm": "obs", "pattern": "mask"}}),
        (
            {"algorithm": "chita", "sparsity": [0.9], "option": ["stages=4", "structure=block"]},
            {"select": {"algorithm": "chita", "sparsity": 0.9, "stages": 4, "structure": "block"}},
        ),
        (
            {"algorithm": "snows", "sparsity": [0.5], "option": ["k_step=2", "select.samples=64"]},
            {"select": {"sparsity": 0.5, "samples": 64}, "refine": {"algorithm": "snows", "k_step": 2}},
        ),
        (
            {"refine": "snows", "sparsity": [0.5], "option": ["refine.k_step=2"], "exclude": ["head*"], "seed": 3},
            {
                "select": {"sparsity": 0.5, "layers": {"exclude": ["head*"]}},
                "refine": {"algorithm": "snows", "k_step": 2},
                "seed": 3,
            },
        ),
        (
            {"sparsity": [0.5], "preprocess": ["resize=256", "mean=[0.5]"]},
            {"select": {"sparsity": 0.5}, "preprocess": {"resize": 256, "mean": [0.5]}},
        ),
    ],
)
def test_options_are_a_recipe(given: dict[str, Any], recipe: dict[str, Any]) -> None:
    has_masks = given.pop("has_masks", False)
    assert build(Given(**given), _parts, has_masks=has_masks) == recipe


def test_what_they_make_is_a_recipe_of_the_core() -> None:
    for given in (Given(algorithm="snows", pattern="2:4"), Given(algorithm="chita", sparsity=[0.9])):
        Recipe.parse(build(given, _parts))


def test_a_recipe_file_is_changed_by_the_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = {"select": {"algorithm": "chita", "sparsity": 0.9, "stages": 4}, "refine": {"algorithm": "snows"}}
    (tmp_path / "recipe.json").write_text(json.dumps(document), "utf-8")
    file = str(tmp_path / "recipe.json")
    assert build(Given(recipe=file), _parts) == document
    assert build(Given(recipe=file, sparsity=[0.5]), _parts)["select"]["sparsity"] == 0.5
    other = build(Given(recipe=file, algorithm="obs"), _parts)["select"]
    assert other == {"algorithm": "obs", "sparsity": 0.9}, "options are of the algorithm that they stand beside"
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(CHITA)))
    assert build(Given(recipe="-"), _parts) == CHITA


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"algorithm": "chitta"}, r"no such algorithm; did you mean chita\? offered: alps, best, "),
        ({"refine": "chita"}, "it is a select algorithm; offered: snows"),
        ({"algorithm": "snows", "refine": "snows"}, "it is a refine algorithm"),
        ({"sparsity": [0.5], "max_accuracy_drop": 0.1}, "give one of"),
        ({"option": ["stages"]}, "--option: expected key=value"),
        ({"option": ["refine.k_step=2"], "sparsity": [0.5]}, "needs --refine"),
        ({"recipe": "/no/such/file"}, "--recipe /no/such/file: No such file"),
        ({"seed": 3}, "it is not said how to prune"),
    ],
)
def test_what_cannot_be_meant_is_said(given: dict[str, Any], says: str) -> None:
    with pytest.raises(typer.BadParameter, match=says):
        build(Given(**given), _parts)


def test_labels() -> None:
    assert labels(["team=vision", "note=a=b"]) == {"team": "vision", "note": "a=b"}
    with pytest.raises(typer.BadParameter, match="name=value"):
        labels(["team"])
