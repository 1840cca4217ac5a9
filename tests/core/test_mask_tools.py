"""Masks compared and applied, from Python and from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pruning_core.errors import MaskError
from pruning_core.formats import read_model, same_bits
from pruning_core.formats.masks import write_masks
from pruning_core.mask_tools import Difference, apply, diff, main
from tests.core.exported import exported


def test_differences_by_hand() -> None:
    first = {"a": torch.tensor([[True, True], [False, False]]), "b": torch.tensor([False])}
    second = {"b": torch.tensor([False]), "a": torch.tensor([[True, False], [True, False]])}
    a, b, total = diff(first, second)
    assert a == Difference(weight="a", weights=4, kept_first=2, kept_second=2, kept_both=1)
    assert (a.changed, a.overlap) == (2, 1 / 3)
    assert (b.changed, b.overlap) == (0, 1.0)
    assert total == Difference(weight="all", weights=5, kept_first=2, kept_second=2, kept_both=1)
    with pytest.raises(MaskError):
        diff(first, {"a": first["a"]})


def test_applied_masks_change_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network, _, archive = exported("cnn")
    (tmp_path / "model").write_bytes(archive)
    generator = torch.Generator().manual_seed(0)
    masks = {layer.weight: torch.rand(layer.shape, generator=generator) > 0.6 for layer in network.layers[:-1]}
    write_masks(masks, tmp_path / "masks")
    arguments = ["apply", str(tmp_path / "model"), str(tmp_path / "masks"), "-o", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith(str(sum(int((~mask).sum()) for mask in masks.values())))
    made = read_model(tmp_path / "out")
    for name, weight in made.weights.items():
        expected = torch.where(masks[name], network.weights[name], 0) if name in masks else network.weights[name]
        assert same_bits(weight, expected)

    write_masks({**masks, "nobody's": torch.ones(3, dtype=torch.bool)}, tmp_path / "masks")
    with pytest.raises(MaskError):
        apply(tmp_path / "model", tmp_path / "masks", tmp_path / "out")
    assert main(arguments) == 1
    assert "nobody's" in capsys.readouterr().err


def test_the_command_line_shows_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = {"a.weight": torch.tensor([True, False, True, True])}
    write_masks(masks, tmp_path / "a")
    write_masks({"a.weight": torch.tensor([True, True, False, True])}, tmp_path / "b")
    assert main(["diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert "50.00%" in capsys.readouterr().out
    assert main(["diff", str(tmp_path / "a"), str(tmp_path / "b"), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["weight"], line["changed"], line["overlap"]) for line in lines] == [
        ("a.weight", 2, 0.5),
        ("all", 2, 0.5),
    ]
    assert main(["diff", str(tmp_path / "a"), str(tmp_path / "nothing")]) == 1
