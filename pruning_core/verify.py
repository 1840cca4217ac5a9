"""Check a pruned model file against its report, offline: ``python -m pruning_core.verify model.pt2 report.json``.

Nothing is taken from the report on trust: digest, zeros, pattern and masks are computed again from the bytes. Nothing
in any of the files is executed.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from pruning_core import recipe
from pruning_core.compact import expand, is_compact
from pruning_core.errors import PruningError
from pruning_core.formats import read_model, same_bits
from pruning_core.formats.masks import read_masks
from pruning_core.network import Layer, Network
from pruning_core.network.batch_norms import batch_norms
from pruning_core.patterns import Pattern, build
from pruning_core.report import FileReport, LevelReport, Report

_PATTERN: TypeAdapter[recipe.Pattern] = TypeAdapter(recipe.Pattern)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Args:
        what: What, in a few words.
        holds: Whether it is as it should be.
        seen: What was found, and what should have been.
    """

    what: str
    holds: bool
    seen: str


def verify(
    model: str | Path, report: str | Path, *, masks: str | Path | None = None, dense: str | Path | None = None
) -> tuple[Check, ...]:
    """Check a produced model against its report.

    Args:
        model: The model file, as downloaded, or its compact form.
        report: The job's report (JSON). With several levels, the model's SHA-256 says which one it is.
        masks: The masks file of the same level, if at hand: every False must be an exact zero.
        dense: The model as it was sent, if at hand: tensors that took no part must have the same bits.

    Returns:
        Every check, in order. The model is what the report says when all hold.

    Raises:
        OSError: A file cannot be opened.
    """
    with tempfile.TemporaryDirectory(prefix="verify-") as folder:
        return tuple(_expanded(Path(model), Path(report), _path(masks), _path(dense), Path(folder)))


def _expanded(model: Path, report: Path, masks: Path | None, dense: Path | None, folder: Path) -> Iterator[Check]:
    if is_compact(model):
        packed, whole = model.stat().st_size, folder / "model"
        try:
            whole.write_bytes(expand(model.read_bytes()))
        except PruningError as error:
            yield Check(what="compact form", holds=False, seen=error.detail)
            return
        yield Check(what="compact form", holds=True, seen=f"{packed} bytes, {whole.stat().st_size} expanded")
        model = whole
    yield from _checks(model, report, masks, dense)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path)


def _checks(model: Path, report_path: Path, masks_path: Path | None, dense_path: Path | None) -> Iterator[Check]:
    try:
        report = Report.model_validate_json(report_path.read_bytes())
        for level in report.pruning.levels:
            _PATTERN.validate_python(level.pattern)
        network = read_model(model)
        masks = None if masks_path is None else read_masks(masks_path)
        dense = None if dense_path is None else read_model(dense_path)
    except ValidationError as error:
        yield Check(what="report", holds=False, seen=f"cannot be read: {str(error.errors()[0]['msg'])[:200]}")
        return
    except PruningError as error:
        yield Check(what="files", holds=False, seen=error.detail)
        return
    digest = _sha256(model)
    digests = [file.sha256 for file in report.files]
    if digest not in digests:
        stated = f"of {', '.join(digests)}" if len(digests) > 1 else "".join(digests)
        yield Check(what="sha256", holds=False, seen=f"{digest}; the report says {stated}")
        if len(digests) != 1 or len(report.pruning.levels) != 1:
            return
    place = digests.index(digest) if digest in digests else 0
    level, file = report.pruning.levels[place], report.files[place]
    if digest in digests:
        yield Check(what="sha256", holds=True, seen=f"{digest} (level {place + 1} of {len(digests)})")
    yield from _file(model, file)
    by_name = {layer.name: layer for layer in network.layers}
    yield from _layers(level, network, by_name)
    taking_part = [by_name[layer.name] for layer in level.layers if layer.name in by_name]
    if len(taking_part) == len(level.layers):
        yield from _pattern(level, network, taking_part)
        if masks is not None:
            yield from _masks(level, network, taking_part, masks)
    if dense is not None and dense_path is not None:
        yield from _untouched(
            report, network, dense, dense_path, {layer.weight for layer in taking_part} | _recalibrated(level, network)
        )


def _file(model: Path, file: FileReport) -> Iterator[Check]:
    size = model.stat().st_size
    yield Check(what="size", holds=size == file.size_bytes, seen=f"{size} bytes; the report says {file.size_bytes}")


def _layers(level: LevelReport, network: Network, by_name: Mapping[str, Layer]) -> Iterator[Check]:
    zeros = total = 0
    for stated in level.layers:
        what = f"layer {stated.name}"
        layer = by_name.get(stated.name)
        if layer is None:
            yield Check(what=what, holds=False, seen="is not in the model")
            continue
        weight = network.weights[layer.weight]
        found = int((weight == 0).sum())
        zeros, total = zeros + found, total + weight.numel()
        yield Check(
            what=what,
            holds=(layer.shape, found, weight.numel()) == (stated.shape, stated.zeros, stated.weights)
            and _near(stated.sparsity, found / weight.numel()),
            seen=f"{found} of {weight.numel()} are zero; the report says {stated.zeros} of {stated.weights}",
        )
    measured = zeros / max(total, 1)
    yield Check(
        what="sparsity",
        holds=_near(measured, level.sparsity),
        seen=f"{measured:.6f}; the report says {level.sparsity:.6f}",
    )


def _pattern(level: LevelReport, network: Network, layers: Sequence[Layer]) -> Iterator[Check]:
    """Prove that some mask of the pattern holds every weight that is not zero."""
    pattern = _built(level, layers)
    if pattern is None:
        return
    nonzero = torch.cat([(network.weights[layer.weight] != 0).reshape(-1) for layer in layers])
    outside = int((nonzero & ~pattern.keep(nonzero.float())).sum())
    yield Check(
        what=f"pattern {_words(level.pattern)}",
        holds=outside == 0 and level.pattern_holds,
        seen=f"{outside} of {int(nonzero.sum())} nonzero weights break it",
    )


def _masks(
    level: LevelReport, network: Network, layers: Sequence[Layer], masks: Mapping[str, Tensor]
) -> Iterator[Check]:
    shapes = {layer.weight: layer.shape for layer in layers}
    given = {name: tuple(mask.shape) for name, mask in masks.items()}
    yield Check(
        what="masks fit",
        holds=given == shapes,
        seen=f"masks of {len(given)} weights; {len(shapes)} took part"
        + "".join(f"; {name} differs" for name in sorted({*given, *shapes}) if given.get(name) != shapes.get(name))[
            :500
        ],
    )
    if given != shapes:
        return
    alive = {name: int((network.weights[name][~mask] != 0).sum()) for name, mask in masks.items()}
    pruned = sum(int((~mask).sum()) for mask in masks.values())
    yield Check(
        what="masked weights are zero",
        holds=not any(alive.values()),
        seen=f"{sum(alive.values())} of {pruned} are not"
        + "".join(f"; {name}" for name, n in alive.items() if n)[:500],
    )
    pattern = _built(level, layers)
    if pattern is not None:
        flat = torch.cat([masks[layer.weight].reshape(-1) for layer in layers])
        yield Check(
            what=f"masks have the pattern {_words(level.pattern)}",
            holds=pattern.accepts(flat),
            seen=f"{int(flat.sum())} weights are kept; the pattern keeps {pattern.kept}",
        )


def _recalibrated(level: LevelReport, network: Network) -> set[str]:
    """Return which tensors the report says were replaced; of those only the statistics of batch norms count."""
    statistics = {name for norm in batch_norms(network) for name in (norm.mean, norm.variance)}
    return statistics & set(level.recalibrated)


def _untouched(report: Report, network: Network, dense: Network, path: Path, taking_part: set[str]) -> Iterator[Check]:
    digest, stated = _sha256(path), report.inputs.get("model", "nothing")
    yield Check(what="sha256 of the dense file", holds=digest == stated, seen=f"{digest}; the report says {stated}")
    names = {name for name in {*network.weights, *dense.weights} if name not in taking_part}
    changed = sorted(
        name
        for name in names
        if name not in network.weights
        or name not in dense.weights
        or not same_bits(network.weights[name].detach(), dense.weights[name].detach())
    )
    yield Check(
        what="untouched tensors",
        holds=not changed,
        seen=f"{len(changed)} of {len(names)} differ from the dense file" + "".join(f"; {n}" for n in changed)[:500],
    )


def _built(level: LevelReport, layers: Sequence[Layer]) -> Pattern | None:
    """Return the pattern that the level must have; None where the report alone does not say it."""
    spec = _PATTERN.validate_python(level.pattern)
    if spec.type == "mask":
        return None  # the uploaded mask is not in the report
    return build(spec, [layer.shape for layer in layers], level.sparsity_target, None)


def _words(spec: Mapping[str, Any]) -> str:
    if spec["type"] == "n:m":
        return f"{spec['n']}:{spec['m']}"
    if spec["type"] == "block":
        return "x".join(map(str, spec["shape"]))
    return str(spec["type"])


def _near(a: float, b: float) -> bool:
    return abs(a - b) < 1e-9


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Print a table of what was checked.

    Returns:
        The exit status: 0 if all holds, 1 if something does not, 2 if a file cannot be opened.
    """
    parser = argparse.ArgumentParser(prog="python -m pruning_core.verify", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path, help="the pruned model, as downloaded, or its compact form")
    parser.add_argument("report", type=Path, help="the job's report.json")
    parser.add_argument("--masks", type=Path, help="the masks.safetensors of the same level")
    parser.add_argument("--dense", type=Path, help="the model as it was sent")
    given = parser.parse_args(arguments)
    try:
        checks = verify(given.model, given.report, masks=given.masks, dense=given.dense)
    except OSError as error:
        sys.stderr.write(f"verify: {error}\n")
        return 2
    width = max(len(check.what) for check in checks)
    for check in checks:
        sys.stdout.write(f"{'ok  ' if check.holds else 'FAIL'}  {check.what:<{width}}  {check.seen}\n")
    failed = sum(not check.holds for check in checks)
    sys.stdout.write(f"{len(checks)} checks, {failed} failed\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
