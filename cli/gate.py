"""`prune gate`: fail a pipeline when a pruned model is not good enough."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import AsJson, command, fail, out, show, usage
from client import Problem

if TYPE_CHECKING:
    from pruning_core.report import LevelReport, PruningReport

_Limit = Annotated[float | None, typer.Option(min=0, metavar="X")]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One limit, and what was measured.

    Attributes:
        level: The sparsity of the model.
        what: Which limit.
        limit: What it may be at most (at least, for the sparsity).
        measured: What it is; None where the report does not have it, which is no pass.
        holds: Whether it is within the limit.
    """

    level: float
    what: str
    limit: float
    measured: float | None
    holds: bool


def verdicts(report: PruningReport, level: LevelReport, limits: dict[str, float]) -> Iterator[Verdict]:
    """Compare one model with the limits, by name of the option."""
    dense, pruned = report.dense, level.pruned
    accuracies, losses = (dense.accuracy, pruned.accuracy), (dense.loss, pruned.loss)
    measured = {
        "max_accuracy_drop": _difference(*accuracies),
        "max_loss_increase": _difference(*reversed(losses)),
        "max_output_error": pruned.output_error,
        "min_sparsity": level.sparsity,
    }
    for what, limit in limits.items():
        found = measured[what]
        holds = found is not None and (found >= limit if what.startswith("min") else found <= limit)
        yield Verdict(level=level.sparsity, what=what, limit=limit, measured=found, holds=holds)


@command
def gate(
    report: Annotated[Path, typer.Argument(metavar="REPORT", help="The job's report.json.", exists=True)],
    model: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The pruned model: only its level counts. Default: all levels.")
    ] = None,
    max_accuracy_drop: _Limit = None,
    max_loss_increase: _Limit = None,
    max_output_error: _Limit = None,
    min_sparsity: _Limit = None,
    as_json: AsJson = False,
) -> None:
    """Exit with 1 if a model of the report is beyond a limit, or the report does not have what the limit is about."""
    given = {
        "max_accuracy_drop": max_accuracy_drop,
        "max_loss_increase": max_loss_increase,
        "max_output_error": max_output_error,
        "min_sparsity": min_sparsity,
    }
    limits = {name: limit for name, limit in given.items() if limit is not None}
    if not limits:
        raise usage("give at least one limit, for instance --max-accuracy-drop 0.01")
    # The vocabulary takes as long to import as all the rest, and every command would wait for it.
    from cli.exports import level_of, read_report
    from pruning_core.errors import PruningError

    try:
        known = read_report(report)
        place = level_of(known, model)
    except PruningError as error:
        fail(Problem(error.problem()), as_json=as_json)
    levels = known.pruning.levels if place is None else (known.pruning.levels[place],)
    found = [verdict for level in levels for verdict in verdicts(known.pruning, level, limits)]
    if as_json:
        show([asdict(verdict) for verdict in found])
    else:
        for one in found:
            name = f"--{one.what.replace('_', '-')} {one.limit:g}"
            seen = "was not measured" if one.measured is None else f"{one.measured:.4g}"
            said = f"{'ok  ' if one.holds else 'FAIL'}  sparsity {one.level:.4g}: {seen} ({name})"
            out().print(f"{said}, on {known.pruning.dense.samples} samples", markup=False)
    if not all(verdict.holds for verdict in found):
        raise typer.Exit(1)


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else before - after
