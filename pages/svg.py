"""A small drawing of lines, bars and dots that needs no script and takes its colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

from pages.numbers import shown


@dataclass(frozen=True)
class Scale:
    """Maps values to places along one direction of the drawing."""

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the place; what lies outside is put at the edge."""
        part = (value - self.low) / (self.high - self.low)
        return self.begin + (self.end - self.begin) * min(max(part, 0.0), 1.0)

    @property
    def ticks(self) -> list[float]:
        """Four to eight round values within."""
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [step * i for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def spanning(
    values: Sequence[float], begin: float, end: float, low: float = -math.inf, high: float = math.inf
) -> Scale:
    """Return a scale over all finite values with a little room, within limits."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    least, most = min(finite), max(finite)
    room = 0.06 * (most - least) or 0.05 * abs(most) or 0.5
    return Scale(max(low, least - room), min(high, most + room), begin, end)


@dataclass
class Drawing:
    """One figure; ``title`` and ``text`` say in words what it shows.

    Args:
        name: Unique in the document.
        title: What it is,
        text: and what can be seen in it.
        width: Of the drawing's own units; the page scales it.
        height: The same.
    """

    name: str
    title: str
    text: str
    width: int = 640
    height: int = 330
    parts: list[Markup] = field(default_factory=list)

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str = "axis") -> None:
        """Draw a line."""
        self._add('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>', x1, y1, x2, y2, kind)

    def path(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """Draw a line through points."""
        self._add('<polyline points="{}" class="{}"/>', " ".join(f"{_short(x)},{_short(y)}" for x, y in points), kind)

    def box(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        """Draw a filled box."""
        self._add('<rect x="{}" y="{}" width="{}" height="{}" class="{}"/>', x, y, width, height, kind)

    def dot(self, x: float, y: float, shape: str, kind: str) -> None:
        """Draw a mark: a circle, square, or diamond, so that colour is not all that tells them apart."""
        if shape == "circle":
            self._add('<circle cx="{}" cy="{}" r="5" class="{}"/>', x, y, kind)
        elif shape == "square":
            self.box(x - 4.5, y - 4.5, 9, 9, kind)
        else:
            points = ((x, y - 6.5), (x + 6.5, y), (x, y + 6.5), (x - 6.5, y))
            self._add(
                '<polygon points="{}" class="{}"/>', " ".join(f"{_short(a)},{_short(b)}" for a, b in points), kind
            )

    def label(self, x: float, y: float, text: str, anchor: str = "middle", kind: str = "") -> None:
        """Write a text."""
        self._add('<text x="{}" y="{}" text-anchor="{}" class="{}">{}</text>', x, y, anchor, kind, shown(text, 60))

    def across(self, scale: Scale, y: float, texts: Sequence[str], title: str, top: float) -> None:
        """Draw the horizontal axis, with light lines up to ``top``."""
        for tick, text in zip(scale.ticks, texts, strict=True):
            self.line(scale(tick), y, scale(tick), top, "grid")
            self.label(scale(tick), y + 18, text)
        self.line(scale.begin, y, scale.end, y)
        self.label((scale.begin + scale.end) / 2, y + 38, title)

    def up(self, scale: Scale, x: float, texts: Sequence[str], title: str, right: float) -> None:
        """Draw the vertical axis, with light lines to ``right``."""
        for tick, text in zip(scale.ticks, texts, strict=True):
            self.line(x, scale(tick), right, scale(tick), "grid")
            self.label(x - 6, scale(tick) + 4, text, "end")
        self.line(x, scale.begin, x, scale.end)
        self.label(x, min(scale.begin, scale.end) - 12, title, "start")

    def svg(self) -> Markup:
        """Return the figure's markup."""
        head = Markup(
            '<svg viewBox="0 0 {w} {h}" role="img" aria-labelledby="{n}-t {n}-d"><title id="{n}-t">{title}</title>'
            '<desc id="{n}-d">{text}</desc>'
        ).format(w=self.width, h=self.height, n=self.name, title=shown(self.title), text=shown(self.text))
        return head + Markup("").join(self.parts) + Markup("</svg>")

    def _add(self, template: str, *values: object) -> None:
        made = [_short(v) if isinstance(v, float) else v for v in values]
        self.parts.append(Markup(template).format(*map(escape, made)))  # noqa: S704 - templates are ours


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
