"""Accuracy over sparsity, method by method, out of ``benchmarks/results``: what figures, plots and advice stand on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from docs.making import RESULTS
from docs.making.tables import Row, Table, number, table


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What one method reached.

    Attributes:
        method: As a recipe names it, with what was set.
        labels: Whether it was given labels.
        data: What it was calibrated on.
        file: The table's.
        accuracy: Test accuracy in percent by level: a sparsity, or ``n:m``.
        seconds: CPU seconds on one thread for one model of `Network.timed_at`, statistics and all.
    """

    method: str
    labels: bool
    data: str
    file: str
    accuracy: dict[str, float]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network that was pruned."""

    name: str
    dense: float | None
    timed_at: str
    curves: tuple[Curve, ...]

    def curve(self, method: str) -> Curve:
        """Return the curve of a method."""
        return next(one for one in self.curves if one.method == method)

    def best(self, level: str, among: Callable[[Curve], bool] = lambda _: True) -> Curve:
        """Return the most accurate at a level."""
        return max(
            (one for one in self.curves if level in one.accuracy and among(one)), key=lambda c: c.accuracy[level]
        )


def resnet20() -> Network:
    """Return ResNet20 on CIFAR-10, unstructured."""
    classic = table(RESULTS / "classics.md", "ResNet20")
    gradients = _number(classic.row(method="woodfisher")["statistics s"])
    layers = table(RESULTS / "layerwise.md", "ResNet20")
    inputs = _number(layers.row(method="magnitude, re-fitted")["statistics s"])
    chita = table(RESULTS / "chita_accuracy.md", "ResNet20")
    snows = table(RESULTS / "snows.md", "SNOWS")
    gradual = table(RESULTS / "gradual.md", "ResNet20, unstructured")
    return Network(
        name="ResNet20",
        dense=91.0,
        timed_at="0.9",
        curves=(
            _classic(classic, "magnitude", 0.0, data="none"),
            _classic(classic, "woodfisher", gradients, data="4000 images"),
            _classic(classic, "obs", gradients, data="4000 images"),
            _chita(chita, "one shot", "chita", "0.9", data="16 000 images"),
            _chita(chita, "multi-stage BSO", "chita, 8 stages", "0.9", data="16 000 images, anew at each stage"),
            *(_layerwise(layers, name, "0.9", inputs) for name in ("wanda", "sparsegpt", "alps")),
            _layerwise(layers, "exact-obs", "0.9", inputs, first="0.7"),
            Curve(
                method="magnitude, then snows",
                labels=False,
                data="512 images",
                file=snows.file,
                accuracy={level: _number(_snows(snows, level, "dense")) for level in ("0.7", "0.8", "0.9")},
                seconds=_number(_snows(snows, "0.9", "dense"), 4),
            ),
            _gradual(gradual, "0.9", ("0.6", "0.7", "0.8", "0.9", "0.95")),
        ),
    )


def resnet20_n_of_m() -> tuple[Curve, ...]:
    """Return what ResNet20 comes to at 2:4 and 1:4 with ``snows`` and with ``gradual``."""
    snows, gradual = table(RESULTS / "snows.md", "SNOWS"), table(RESULTS / "gradual.md", "ResNet20, n:m")
    levels = ("2:4", "1:4")
    return (
        Curve(
            method="magnitude, then snows",
            labels=False,
            data="512 images",
            file=snows.file,
            accuracy={level: _number(_snows(snows, level, "dense")) for level in levels},
            seconds=_number(_snows(snows, "2:4", "dense"), 4),
        ),
        _gradual(gradual, "2:4", levels),
    )


def mlpnet() -> Network:
    """Return MLPNet on MNIST, unstructured."""
    classic = table(RESULTS / "classics.md", "MLPNet")
    gradients = (
        _number(classic.row(method="obd")["statistics s"]),
        _number(classic.row(method="woodfisher")["statistics s"]),
    )
    stored = _number(classic.row(method="mfac")["statistics s"])
    chita = table(RESULTS / "chita_accuracy.md", "MLPNet")
    data = "1000 images"
    return Network(
        name="MLPNet",
        dense=None,
        timed_at="0.98",
        curves=(
            _classic(classic, "magnitude", 0.0, data="none"),
            _classic(classic, "obd", gradients[0], data=data),
            _classic(classic, "woodfisher", gradients[1], data=data),
            _classic(classic, "mfac", stored, data=data),
            _classic(classic, "cbs", stored, data=data),
            _classic(classic, "obs", gradients[1], data=data),
            _chita(chita, "one shot, defaults", "chita", "0.98", data="10 000 images"),
            _chita(chita, "CHITA++", "chita, 15 stages", "0.98", data="50 000 images, anew at each stage"),
        ),
    )


def transformer() -> Network:
    """Return the small vision transformer on MNIST; ``magnitude`` and layer-wise: the same in each layer."""
    layers = table(RESULTS / "layerwise.md", "ViT")
    inputs = _number(layers.row(method="magnitude, re-fitted")["statistics s"])
    joint = table(RESULTS / "gradual.md", "A transformer")
    levels = ("0.7", "0.8", "0.9", "2:4", "1:4")

    def whole(row: str, method: str) -> Curve:
        found = joint.row(method=row)
        return Curve(
            method=method,
            labels=False,
            data="512 images",
            file=joint.file,
            accuracy={level: _number(found[level]) for level in levels},
            seconds=_number(found["s"]),
        )

    return Network(
        name="A small transformer",
        dense=94.59,
        timed_at="0.8",
        curves=(
            _layerwise(layers, "magnitude", "0.8", 0.0),
            *(_layerwise(layers, name, "0.8", inputs) for name in ("wanda", "sparsegpt", "alps")),
            _layerwise(layers, "exact-obs", "0.8", inputs, first="0.5"),
            whole("snows", "magnitude, then snows"),
            whole("gradual", "gradual"),
        ),
    )


def _classic(found: Table, method: str, statistics: float, *, data: str) -> Curve:
    row = found.row(method=method)
    return Curve(
        method=method,
        labels=method != "magnitude",
        data=data,
        file=found.file,
        accuracy={name: _number(cell) for name, cell in row.items() if name[0] == "0" and number(cell) is not None},
        seconds=statistics + _number(row["s a mask (first, later)"]),
    )


def _chita(found: Table, row: str, method: str, timed_at: str, *, data: str) -> Curve:
    rows: dict[str, Row] = {one["sparsity"]: one for one in found.rows if one["method"] == row}
    timed = rows[timed_at]
    return Curve(
        method=method,
        labels=True,
        data=data,
        file=found.file,
        accuracy={level: _number(one["accuracy %"]) for level, one in rows.items()},
        seconds=_number(timed["shared s"]) + _number(timed["s"]),
    )


def _layerwise(found: Table, method: str, timed_at: str, statistics: float, first: str | None = None) -> Curve:
    """Return the curve; the level ``first`` paid for what all levels share."""
    cells = {
        name.partition(":")[0] if name[0] == "0" else name[:3]: cell for name, cell in found.row(method=method).items()
    }
    levels = {level: cell for level, cell in cells.items() if level[0].isdigit()}
    return Curve(
        method=method,
        labels=False,
        data="none" if method == "magnitude" else "512 images",
        file=found.file,
        accuracy={level: _number(cell) for level, cell in levels.items()},
        seconds=statistics + float(levels[first or timed_at].rpartition(",")[2]),
    )


def _gradual(found: Table, timed_at: str, levels: tuple[str, ...]) -> Curve:
    return Curve(
        method="gradual",
        labels=False,
        data="1024 images",
        file=found.file,
        accuracy={level: _number(found.row(level=level)["accuracy"]) for level in levels},
        seconds=_number(found.row(level=timed_at)["s"]),
    )


def _snows(found: Table, pattern: str, targets: str) -> str:
    row = found.row(pattern=pattern, K="3")
    return next(cell for name, cell in row.items() if name.startswith(targets))


def _number(cell: str, place: int = 0) -> float:
    found = number(cell, place)
    if found is None:
        raise LookupError(f"expected a number in the cell {cell!r}")
    return found
