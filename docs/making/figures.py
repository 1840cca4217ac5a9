"""The benchmarks' figures as tables of the pages: drawn from the results, so that no page can say something else."""

from __future__ import annotations

from pathlib import Path

from docs.making import curves, put

#: Shown where a method was not measured.
NONE = "–"


def write(folder: Path) -> None:
    """Write ``figures/<network>.md`` and ``figures/n-of-m.md``."""
    networks = {"resnet20": curves.resnet20(), "mlpnet": curves.mlpnet(), "transformer": curves.transformer()}
    for name, network in networks.items():
        put(folder / "figures" / f"{name}.md", unstructured(network))
    put(folder / "figures" / "n-of-m.md", n_of_m(networks["resnet20"], networks["transformer"]))


def unstructured(network: curves.Network) -> str:
    """Return accuracy by sparsity, and the seconds, of every method."""
    levels = sorted({level for one in network.curves for level in one.accuracy if ":" not in level}, key=float)
    lines = [
        f"| method | labels | {' | '.join(levels)} | seconds to {network.timed_at} | calibrated on | from |",
        "|" + "---|" * (len(levels) + 5),
    ]
    for one in network.curves:
        cells = []
        for level in levels:
            value = one.accuracy.get(level)
            best = value is not None and value == network.best(level).accuracy[level]
            shown = NONE if value is None else f"{value:.1f}"
            cells.append(f"**{shown}**" if best else shown)
        lines.append(
            f"| `{one.method}` | {'yes' if one.labels else 'no'} | {' | '.join(cells)} | {one.seconds:.3g} "
            f"| {one.data} | `{one.file}` |"
        )
    return "\n".join(lines) + "\n"


def n_of_m(*networks: curves.Network) -> str:
    """Return accuracy at 2:4 and 1:4."""
    extra = curves.resnet20_n_of_m()
    lines = ["| network | method | 2:4 | 1:4 | from |", "|---|---|---|---|---|"]
    for network in networks:
        for one in (*network.curves, *(extra if network.name == "ResNet20" else ())):
            found = [one.accuracy.get(level) for level in ("2:4", "1:4")]
            if any(value is not None for value in found):
                shown = " | ".join(NONE if value is None else f"{value:.1f}" for value in found)
                lines.append(f"| {network.name} | `{one.method}` | {shown} | `{one.file}` |")
    return "\n".join(lines) + "\n"
