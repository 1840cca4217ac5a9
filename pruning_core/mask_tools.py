"""Masks by themselves: compare two, or set a model's pruned weights to zero.

``python -m pruning_core.mask_tools diff a.safetensors b.safetensors`` and
``python -m pruning_core.mask_tools apply model.pt2 masks.safetensors -o masked.pt2``. Nothing in a file is executed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from pruning_core.errors import MaskError, PruningError
from pruning_core.formats import read_model, write_model
from pruning_core.formats.masks import read_masks
from pruning_core.masks import masked_layers


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two masks of one weight.

    Attributes:
        weight: Its name; "all" for the sum.
        weights: How many numbers it has.
        kept_first: How many the first keeps,
        kept_second: and the second.
        kept_both: How many both keep.
    """

    weight: str
    weights: int
    kept_first: int
    kept_second: int
    kept_both: int

    @property
    def changed(self) -> int:
        """Weights that one keeps and the other does not."""
        return self.kept_first + self.kept_second - 2 * self.kept_both

    @property
    def overlap(self) -> float:
        """Kept by both / kept by one or the other (Jaccard); 1 where neither keeps anything."""
        either = self.kept_first + self.kept_second - self.kept_both
        return self.kept_both / either if either else 1.0


def diff(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> tuple[Difference, ...]:
    """Compare two sets of masks, weight by weight in alphabetical order; the last entry is the sum.

    Args:
        first: Weight name -> bool, True = kept.
        second: Of the same weights.

    Raises:
        MaskError: They are not of the same weights.
    """
    shapes = [{name: tuple(mask.shape) for name, mask in masks.items()} for masks in (first, second)]
    if shapes[0] != shapes[1]:
        odd = sorted(n for n in {*shapes[0], *shapes[1]} if shapes[0].get(n) != shapes[1].get(n))
        raise MaskError(
            "The two files are masks of different weights.",
            expected={name: shapes[0].get(name) for name in odd[:5]},
            received={name: shapes[1].get(name) for name in odd[:5]},
        )
    found = [
        Difference(
            weight=name,
            weights=a.numel(),
            kept_first=int(a.sum()),
            kept_second=int(second[name].sum()),
            kept_both=int((a & second[name]).sum()),
        )
        for name, a in sorted(first.items())
    ]
    total = Difference(
        weight="all",
        weights=sum(one.weights for one in found),
        kept_first=sum(one.kept_first for one in found),
        kept_second=sum(one.kept_second for one in found),
        kept_both=sum(one.kept_both for one in found),
    )
    return (*found, total)


def apply(model: str | Path, masks: str | Path, target: str | Path) -> int:
    """Write a model whose weights are zero where the masks say so; nothing else is changed.

    Args:
        model: A model file of any format that is read.
        masks: A masks file.
        target: What to write, in the model's format.

    Returns:
        How many weights are zero under the masks.

    Raises:
        PruningError: The model or the masks cannot be read, or do not belong together.
    """
    network, found = read_model(model), read_masks(masks)
    masked_layers(network, found)
    weights = {name: torch.where(mask, network.weights[name], 0) for name, mask in found.items()}
    write_model(network.with_weights(weights), model, target)
    return sum(int((~mask).sum()) for mask in found.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says.

    Returns:
        The exit status: 0, or 1 with a message on standard error.
    """
    parser = argparse.ArgumentParser(prog="prune masks", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    compared = commands.add_parser("diff", help="compare two masks files")
    compared.add_argument("first", type=Path)
    compared.add_argument("second", type=Path)
    compared.add_argument("--json", action="store_true", help="one JSON object for each weight, and one for all")
    applied = commands.add_parser("apply", help="write a model with its pruned weights set to zero")
    applied.add_argument("model", type=Path)
    applied.add_argument("masks", type=Path)
    applied.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args(arguments)
    try:
        if given.command == "apply":
            zeros = apply(given.model, given.masks, given.output)
            sys.stdout.write(f"{zeros} weights are zero under the masks\n")
        else:
            _show(diff(read_masks(given.first), read_masks(given.second)), as_json=given.json)
    except (PruningError, OSError) as error:
        sys.stderr.write(f"masks: {error.detail if isinstance(error, PruningError) else error}\n")
        return 1
    return 0


def _show(found: tuple[Difference, ...], *, as_json: bool) -> None:
    if as_json:
        for one in found:
            sys.stdout.write(json.dumps({**asdict(one), "changed": one.changed, "overlap": one.overlap}) + "\n")
        return
    width = max(len(one.weight) for one in found)
    sys.stdout.write(f"{'weight':<{width}}  {'weights':>10}  {'first':>10}  {'second':>10}  {'both':>10}  overlap\n")
    for one in found:
        counts = (one.weights, one.kept_first, one.kept_second, one.kept_both)
        sys.stdout.write(
            f"{one.weight:<{width}}  {'  '.join(f'{count:>10}' for count in counts)}  {one.overlap:7.2%}\n"
        )


if __name__ == "__main__":
    sys.exit(main())
