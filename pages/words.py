"""What a report says, in sentences: of results only what was measured, nothing that was merely asked for."""

from __future__ import annotations

from typing import Any

from pages.numbers import number, percent, size
from pages.plots import Measure, measure_of
from pruning_core.report import FileReport, LevelReport, PruningReport, Quality


def pattern(spec: dict[str, Any]) -> str:
    """Return a pattern in words.

    >>> pattern({"type": "n:m", "n": 2, "m": 4})
    '2:4 (of every 4 consecutive inputs 2 stay)'
    """
    kind = spec.get("type")
    if kind == "n:m":
        return f"{spec.get('n')}:{spec.get('m')} (of every {spec.get('m')} consecutive inputs {spec.get('n')} stay)"
    over = "the same sparsity in every layer" if spec.get("scope") == "layer" else "one ranking over all layers"
    if kind == "block":
        return f"blocks of {' by '.join(map(str, spec.get('shape', ())))} weights, {over}"
    if kind == "mask":
        return "the uploaded mask"
    cap = spec.get("max_layer_sparsity")
    return f"unstructured, {over}" + (f", no layer above {percent(cap)}" if cap is not None else "")


def asked(report: PruningReport) -> str:
    """Return what was asked for."""
    levels = [v.sparsity_requested for v in report.levels if v.sparsity_requested is not None]
    if report.goal is not None:
        bounds = {"max_accuracy_drop": "accuracy", "max_loss_increase": "loss"}
        bound = next((name for name in bounds if report.goal.get(name) is not None), None)
        by = "" if bound is None else f" by at most {number(report.goal[bound])}"
        target = f"as sparse as the goal allows: {bounds.get(bound or '', 'quality')} may change for the worse{by}"
    elif levels:
        target = "to " + _listed([percent(level) for level in levels]) + " sparsity"
    else:
        target = "as far as the pattern says"
    chosen = f"Prune with {report.algorithm} {target}; pattern: {pattern(report.pattern)}."
    refined = f" Then re-fit the weights that stay with {report.refine}." if report.refine else ""
    left_out = f" {len(report.excluded)} layers were left out by the recipe." if report.excluded else ""
    return f"{chosen}{refined}{left_out}"


def came(level: LevelReport) -> str:
    """Return what sparsity came, and whether the pattern holds."""
    weights = sum(layer.weights for layer in level.layers)
    zeros = sum(layer.zeros for layer in level.layers)
    holds = "The file was checked against mask and pattern: they hold." if level.pattern_holds else (
        "THE PATTERN DOES NOT HOLD in the produced file."
    )  # fmt: skip
    return f"{zeros:,} of {weights:,} weights are zero in the produced file: {percent(level.sparsity)}. {holds}"


def quality(report: PruningReport, level: LevelReport) -> str:
    """Return how well the network does, beside dense and magnitude."""
    measure = measure_of(report)
    if measure.name == "output_error":
        where = f"the {report.data} data ({level.pruned.samples:,} samples)"
        return (
            f"The output differs from the dense network's by {measure.text(level.pruned.output_error)} (relative) on "
            f"{where}; with magnitude pruning by {measure.text(level.magnitude.output_error)}."
        )
    dense, pruned = _with_interval(measure, report.dense), _with_interval(measure, level.pruned)
    plain = _with_interval(measure, level.magnitude)
    return (
        f"{measure.title} on the {report.data} data ({level.pruned.samples:,} samples): {pruned} pruned, {dense} "
        f"dense, {plain} with magnitude pruning of the same sparsity and pattern."
    )


def gained(file: FileReport) -> str:
    """Return what became of the file's size."""
    packed, before = file.compressed_bytes, file.compressed_bytes_before
    ratio = f", {before / packed:.1f} times smaller" if 0 < packed < before else ""
    return (
        f"The file has {size(file.size_bytes)} (before: {size(file.size_bytes_before)}); compressed {size(packed)} "
        f"(before: {size(before)}{ratio})."
    )


def speed(file: FileReport) -> str:
    """Return whether anything runs faster, plainly."""
    faster = file.faster or any(runtime.faster for runtime in file.runtimes)
    plain = "" if faster or file.speedup.lower().startswith("no speed-up") else "No speed-up here. "
    return plain + file.speedup


def fell_back(level: LevelReport) -> str | None:
    """Return that magnitude pruning was taken instead, if so."""
    if not level.fell_back:
        return None
    return "On held-out data plain magnitude pruning did better than what was asked for; it was taken instead."


def intervals(report: PruningReport) -> str:
    """Return where the bars come from, or why there are none."""
    measure = measure_of(report)
    qualities = [report.dense, *(v.pruned for v in report.levels), *(p.quality for p in report.frontier)]
    known = any(measure.interval(q) is not None for q in qualities)
    if measure.name == "accuracy" and known:
        return "Bars: Wilson's 95 % interval of an accuracy counted over so many samples."
    if measure.name == "accuracy":
        return (
            "No bars: the accuracy counts several labels of each sample (tokens, pixels), which are not independent; "
            "how far it may be off cannot be known from the report."
        )
    if measure.name == "loss" and known:
        return "Bars: 95 % interval of the mean loss, from its standard error over the samples."
    if measure.name == "loss":
        return "No bars: this report has no standard error of its losses."
    return "No bars: an output error over the data has no known spread."


def _with_interval(measure: Measure, quality: Quality) -> str:
    value, interval = measure.text(measure.of(quality)), measure.interval(quality)
    return value if interval is None else f"{value} (95 % interval {measure.range(quality)})"


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
