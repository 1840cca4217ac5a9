"""What a report says, in sentences: of results only what was measured, nothing that was merely asked for."""

from __future__ import annotations

import math
from typing import Any

from pages.numbers import Z95, Interval, drop_interval, number, percent, size
from pages.plots import Measure, measure_of
from pruning_core.report import FileReport, LevelReport, PruningReport, Quality, Report


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


def cost(report: PruningReport, level: LevelReport) -> str | None:
    """Return what pruning cost in quality, with its confidence; None where it was not counted."""
    measure, dense, pruned = measure_of(report), report.dense, level.pruned
    before, after = measure.of(dense), measure.of(pruned)
    if measure.name == "output_error" or before is None or after is None:
        return None
    if measure.name == "accuracy":
        change, interval = before - after, drop_interval(dense, pruned)
        name, unit, verbs = "Accuracy", " points", ("fell", "rose")
    else:
        change, interval = after - before, None
        errors = (dense.loss_standard_error, pruned.loss_standard_error)
        if errors[0] is not None and errors[1] is not None:
            # As if of different samples: of the same ones the difference is known better than this.
            half = Z95 * math.hypot(errors[0], errors[1])
            interval = Interval(change - half, change + half)
        name, unit, verbs = "Loss", "", ("rose", "fell")

    def amount(value: float) -> str:
        return f"{100 * value:.1f}" if measure.name == "accuracy" else number(value)

    said = (
        f"{name} {verbs[0] if change > 0 else verbs[1]} by {amount(abs(change))}{unit}" if change else f"{name} stayed"
    )
    if interval is None:
        return f"{said}; how sure that is cannot be known from this report."
    worse, ends = change >= 0, (interval.low, interval.high)
    low, high = ends if worse else (-ends[1], -ends[0])
    bounds = f"95 % interval {amount(low)} to {amount(high)}"
    sure = "" if low > 0 else f": with {pruned.samples:,} samples it cannot be told from no change"
    return f"{said} ({bounds}){sure}."


def gained(file: FileReport) -> str:
    """Return what became of the file's size."""
    packed, before = file.compressed_bytes, file.compressed_bytes_before
    ratio = f", {before / packed:.1f} times smaller" if 0 < packed < before else ""
    compact = ""
    if file.compact_bytes:
        less = file.size_bytes_before / file.compact_bytes
        compact = (
            f"; in the compact form, where no zeros are sent, {size(file.compact_bytes)} ({less:.1f} times smaller)"
        )
    return (
        f"The file has {size(file.size_bytes)} (before: {size(file.size_bytes_before)}); under zstd {size(packed)} "
        f"(before: {size(before)}{ratio}){compact}."
    )


def arithmetic(file: FileReport) -> str | None:
    """Return how many multiply-adds are left; None where they were not counted."""
    if file.macs is None or file.macs_before is None:
        return None
    ratio = f", {file.macs_before / file.macs:.1f} times as many" if 0 < file.macs < file.macs_before else ""
    return (
        f"Where zeros are skipped, a sample takes {file.macs:,} multiply-adds in the prunable layers (dense: "
        f"{file.macs_before:,}{ratio})."
    )


def speed(file: FileReport) -> str:
    """Return whether anything runs faster: the sentence of the JSON, with the plain verdict if an old one has none."""
    faster = file.faster or any(runtime.faster for runtime in file.runtimes)
    plain = "" if faster or file.speedup.lower().startswith("no speed-up") else "No speed-up here. "
    return plain + file.speedup


def fell_back(level: LevelReport) -> str | None:
    """Return that magnitude pruning was taken instead, if so."""
    if not level.fell_back:
        return None
    return "On held-out data plain magnitude pruning did better than what was asked for; it was taken instead."


def not_measured(report: Report) -> list[str]:
    """Return what this report says nothing of, and why."""
    pruning, files = report.pruning, report.files
    found = []
    if pruning.data != "validation":
        found.append(
            "Quality on data that the pruning has not seen: no validation data came with the job, and the calibration "
            "data flatter."
        )
    if pruning.dense.accuracy is None:
        found.append("Accuracy: the data have no class labels.")
    if not any(file.runtimes for file in files):
        found.append(
            f"Latency in any runtime but PyTorch's own operations on {pruning.device}: no other takes this file."
        )
    if any(file.ratio_interval is None for file in files):
        found.append("Whether a difference in latency is noise: there were too few rounds.")
    if any(file.macs is None for file in files):
        found.append("Multiply-adds.")
    if any(file.compact_bytes is None for file in files):
        found.append("The size of the compact form.")
    if any(layer.sensitivity is None for level in pruning.levels for layer in level.layers):
        found.append("What each layer alone does to the output: there are too many to try each.")
    if all(stage.peak_memory_bytes is None for stage in pruning.stages):
        found.append("Memory.")
    return [*found, "Other machines than the worker's: latency is of that one, and of one batch size."]


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
