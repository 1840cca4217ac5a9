"""The figures of a report."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup

from pages.numbers import Interval, accuracy_interval, loss_interval, number, percent, seconds, size
from pages.svg import Drawing, Scale, spanning
from pruning_core.report import Histogram, LayerReport, PruningReport, Quality, StageReport

_LEFT, _RIGHT, _TOP = 64, 620, 34
#: Marks of one sparsity stand a little apart, so that each one's bar can be seen.
_ASIDE = {"plain": -8, "tried": 8}


@dataclass(frozen=True)
class Measure:
    """What qualities are compared by in figures: the first that was measured of accuracy, loss and output error."""

    name: str

    @property
    def title(self) -> str:
        """Its name for people."""
        return {"accuracy": "Accuracy", "loss": "Loss", "output_error": "Output error"}[self.name]

    def of(self, quality: Quality) -> float | None:
        """Return its value."""
        value: float | None = getattr(quality, self.name)
        if value is None and self.name == "output_error":
            return 0.0  # the dense network's distance from itself is not measured
        return value

    def interval(self, quality: Quality) -> Interval | None:
        """Return the 95 % interval of its value, where that can be known."""
        if self.name == "accuracy":
            return accuracy_interval(quality)
        return loss_interval(quality) if self.name == "loss" else None

    def text(self, value: float | None) -> str:
        """Return a value in words."""
        if value is None:
            return "–"
        return percent(value) if self.name == "accuracy" else number(value)

    def range(self, quality: Quality) -> str:
        """Return the interval in words; a dash where none is known."""
        found = self.interval(quality)
        return "–" if found is None else f"{self.text(found.low)} to {self.text(found.high)}"


def measure_of(report: PruningReport) -> Measure:
    """Return the measure that this report's figures use."""
    first = report.levels[0].pruned if report.levels else report.dense
    for name in ("accuracy", "loss"):
        if getattr(first, name) is not None and getattr(report.dense, name) is not None:
            return Measure(name)
    return Measure("output_error")


@dataclass(frozen=True)
class Point:
    """A row of the frontier's table and a mark of its figure."""

    series: str
    sparsity: float
    quality: Quality
    shape: str
    kind: str


def frontier_points(report: PruningReport) -> list[Point]:
    """Return every measured point: dense, produced, magnitude beside it, and what was tried on held-out data."""
    data = report.data
    points = [Point(f"dense ({data} data)", 0.0, report.dense, "circle", "dense")]
    points += [Point(f"pruned ({data} data)", v.sparsity, v.pruned, "circle", "pruned") for v in report.levels]
    points += [Point(f"magnitude ({data} data)", v.sparsity, v.magnitude, "square", "plain") for v in report.levels]
    points += [
        Point("tried and kept (held-out data)" if tried.kept else "tried (held-out data)",
              *(tried.sparsity, tried.quality, "diamond", "tried"))
        for tried in report.frontier
    ]  # fmt: skip
    return points


def frontier(report: PruningReport, name: str) -> Markup:
    """Draw quality against sparsity, with bars of 95 % confidence."""
    measure, points = measure_of(report), frontier_points(report)
    values = [measure.of(p.quality) for p in points]
    known = [(p, v) for p, v in zip(points, values, strict=True) if v is not None and math.isfinite(v)]
    ends = [x for p, _ in known if (i := measure.interval(p.quality)) for x in (i.low, i.high)]
    seen = [v for _, v in known]
    x = Scale(0.0, 1.0, _LEFT, _RIGHT)
    low, high = (0.0, 1.0) if measure.name == "accuracy" else (0.0, math.inf)
    y = spanning(seen + [e for e in ends if e >= 0], 270, _TOP, low, high)
    said = "; ".join(f"{p.series} at {percent(p.sparsity)} sparsity: {measure.text(v)}" for p, v in known[:12])
    drawing = Drawing(name, f"{measure.title} against sparsity", said + ("; the table has all." if known else "."))
    drawing.across(x, 270, [percent(t, 0) for t in x.ticks], "Sparsity of the weights that took part", _TOP)
    drawing.up(y, _LEFT, [measure.text(t) for t in y.ticks], measure.title, _RIGHT)
    for series in ("dense", "plain", "tried", "pruned"):
        here = sorted((p.sparsity, v, p) for p, v in known if p.kind == series) if series != "dense" else []
        if series == "dense" and known and known[0][0].kind == "dense":
            drawing.line(_LEFT, y(known[0][1]), _RIGHT, y(known[0][1]), "dense")
        drawing.path([(x(s) + _ASIDE.get(series, 0), y(v)) for s, v, _ in here], f"curve {series}")
    # What was handed out is drawn last, over the rest.
    for point, value in sorted(known, key=lambda one: ("tried", "plain", "dense", "pruned").index(one[0].kind)):
        interval, at = measure.interval(point.quality), x(point.sparsity) + _ASIDE.get(point.kind, 0)
        if interval is not None:
            a, b = y(interval.low), y(interval.high)
            drawing.line(at, a, at, b, f"bar {point.kind}")
            drawing.line(at - 4, a, at + 4, a, f"bar {point.kind}")
            drawing.line(at - 4, b, at + 4, b, f"bar {point.kind}")
        drawing.dot(at, y(value), point.shape, point.kind)
    return drawing.svg()


def layers(reports: tuple[LayerReport, ...], name: str) -> Markup:
    """Draw each layer's sparsity against its sensitivity, or where that is not known against the energy it lost."""
    by = "sensitivity" if all(r.sensitivity is not None for r in reports) else "change"
    placed = [(i, r, v) for i, r in enumerate(reports, 1) if (v := getattr(r, by)) is not None and math.isfinite(v)]
    if not placed:
        return Markup("")
    titles = {
        "sensitivity": "Output error when only this layer is pruned (held-out data)",
        "change": "Energy lost or moved, ‖W - W_pruned‖² / ‖W‖²",
    }
    x = spanning([0.0, *(v for _, _, v in placed)], _LEFT, _RIGHT, low=0.0)
    y = Scale(0.0, 1.0, 270, _TOP)
    said = "; ".join(f"{r.name}: {percent(r.sparsity)} sparse at {number(v)}" for _, r, v in placed[:12])
    drawing = Drawing(name, f"Layers: sparsity against {titles[by].lower()}", f"{said}; the table has all.")
    drawing.across(x, 270, [number(t) for t in x.ticks], titles[by], _TOP)
    drawing.up(y, _LEFT, [percent(t, 0) for t in y.ticks], "Sparsity (numbers are rows of the table)", _RIGHT)
    for i, report, value in placed:
        drawing.dot(x(value), y(report.sparsity), "circle", "pruned")
        if len(placed) <= 60:
            below = y(report.sparsity) < _TOP + 14
            drawing.label(x(value), y(report.sparsity) + (19 if below else -9), str(i))
    return drawing.svg()


def histogram(report: LayerReport, found: Histogram, name: str) -> Markup:
    """Draw how the weights of a layer are spread, before and after."""
    most = max((*found.dense, *found.pruned, 1))
    said = (
        f"{report.weights:,} weights from {number(-found.limit)} to {number(found.limit)}; "
        f"{report.weights - report.zeros:,} are not zero after pruning."
    )
    drawing = Drawing(name, f"Weights of {report.name}", said, width=240, height=120)
    wide, floor = 224 / len(found.dense), 98.0

    def tall(count: int) -> float:
        return 88 * math.sqrt(count / most)  # most weights lie around zero: their number would hide all others

    for i, count in enumerate(found.pruned):
        if count:
            drawing.box(8 + i * wide, floor - tall(count), wide - 0.6, tall(count), "fill")
    outline = [(8.0, floor)]
    for i, count in enumerate(found.dense):
        outline += [(8 + i * wide, floor - tall(count)), (8 + (i + 1) * wide, floor - tall(count))]
    drawing.path([*outline, (232.0, floor)], "outline")
    drawing.line(8, floor, 232, floor)
    drawing.label(8, 114, number(-found.limit), "start")
    drawing.label(120, 114, "0")
    drawing.label(232, 114, number(found.limit), "end")
    return drawing.svg()


def stages(reports: tuple[StageReport, ...], name: str) -> Markup:
    """Draw how long each stage took."""
    if not reports:
        return Markup("")
    longest = max((stage.seconds for stage in reports), default=0.0) or 1.0
    said = "; ".join(f"{stage.name}: {seconds(stage.seconds)}" for stage in reports)
    drawing = Drawing(name, "Time of each stage", said, height=12 + 26 * len(reports))
    for i, stage in enumerate(reports):
        wide = 330 * stage.seconds / longest
        drawing.label(176, 22 + 26 * i, stage.name, "end")
        drawing.box(184, 8 + 26 * i, max(wide, 1.0), 18, "fill")
        drawing.label(184 + max(wide, 1.0) + 6, 22 + 26 * i, seconds(stage.seconds), "start")
    return drawing.svg()


def peak(reports: tuple[StageReport, ...]) -> str:
    """Return the peak of memory in words."""
    known = [stage.peak_memory_bytes for stage in reports if stage.peak_memory_bytes is not None]
    device = [stage.peak_device_bytes for stage in reports if stage.peak_device_bytes is not None]
    said = f"{size(max(known))} of memory at most" if known else "memory was not measured"
    return said + (f", {size(max(device))} on the GPU" if device else "")
