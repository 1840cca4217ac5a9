"""The plots of the site, as SVG on a transparent ground; one drawing for light pages and one for dark ones."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from docs.making import curves, put

#: Text and lines of the axes on light and on dark pages; nothing else has these colours.
INK, INK_ON_DARK = "#33373d", "#cfd3d9"
#: Okabe and Ito's colours, which colour-blind people can tell apart, a little away from both grounds.
COLOURS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#d55e00",
    "#b3609a",
    "#56a3d9",
    "#8a8f00",
    "#7a5fd0",
    "#8b8f96",
    "#c0392b",
    "#00a0a0",
)
MARKERS = "osD^vP*XphH"
#: The method that the pages speak of is drawn above the others.
WIDE = "gradual"


def write(folder: Path) -> None:
    """Write ``plots/<name>-light.svg`` and ``-dark.svg``."""
    for network, name in (
        (curves.resnet20(), "resnet20"),
        (curves.mlpnet(), "mlpnet"),
        (curves.transformer(), "transformer"),
    ):
        for kind, drawn in (("", accuracy(network)), ("-seconds", seconds(network))):
            put(folder / "plots" / f"{name}{kind}-light.svg", drawn)
            put(folder / "plots" / f"{name}{kind}-dark.svg", drawn.replace(INK, INK_ON_DARK))


def accuracy(network: curves.Network) -> str:
    """Return accuracy over sparsity; solid: no labels, dashed: with labels."""
    assert len(network.curves) <= min(len(COLOURS), len(MARKERS)), "two that look alike cannot be told apart"
    figure, axes = _axes()
    for one, colour, marker in zip(network.curves, COLOURS, MARKERS, strict=False):
        points = sorted((float(level), value) for level, value in one.accuracy.items() if ":" not in level)
        axes.plot(
            *zip(*points, strict=True),
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=2.6 if one.method == WIDE else 1.5,
            linestyle="--" if one.labels else "-",
            label=one.method,
        )
    if network.dense is not None:
        axes.axhline(network.dense, color=INK, linewidth=0.8, linestyle=":")
    axes.set_xlabel("sparsity")
    axes.set_ylabel("test accuracy, %")
    return _svg(figure, axes)


def seconds(network: curves.Network) -> str:
    """Return accuracy over CPU seconds at one sparsity; filled: no labels, hollow: with labels."""
    figure, axes = _axes()
    for one, colour, marker in zip(network.curves, COLOURS, MARKERS, strict=False):
        if network.timed_at not in one.accuracy:
            continue
        axes.plot(
            max(one.seconds, 0.01),
            one.accuracy[network.timed_at],
            color=colour,
            marker=marker,
            markersize=9,
            linestyle="none",
            fillstyle="none" if one.labels else "full",
            markeredgewidth=1.8,
            label=one.method,
        )
    axes.set_xscale("log")
    axes.set_xlabel("CPU seconds on one thread, statistics included")
    axes.set_ylabel(f"test accuracy at {network.timed_at}, %")
    return _svg(figure, axes)


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(colors=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    for spine in axes.spines.values():
        spine.set_color(INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=INK, alpha=0.15)
    return figure, axes


def _svg(figure: Figure, axes: Axes) -> str:
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, labelcolor=INK, fontsize=9)
    made = StringIO()
    # The same drawing has the same bytes: no date in it, and no random ids.
    with mpl.rc_context({"svg.hashsalt": "pruning-service"}):
        figure.savefig(made, format="svg", transparent=True, metadata={"Date": None})
    return made.getvalue()
