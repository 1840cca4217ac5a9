"""Numbers and names as people read them."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass

from pruning_core.report import Quality

#: Of the standard normal distribution, for intervals of 95 %.
Z95 = 1.959964
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


@dataclass(frozen=True)
class Interval:
    """Where the true value lies, in 95 of 100 cases."""

    low: float
    high: float


def wilson(right: float, count: int) -> Interval:
    """Return Wilson's 95 % interval of a fraction that was counted.

    >>> found = wilson(8, 10)
    >>> round(found.low, 3), round(found.high, 3)
    (0.49, 0.943)
    """
    p, z = right / count, Z95
    middle, half = p + z * z / (2 * count), z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return Interval(max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale))


def accuracy_interval(quality: Quality) -> Interval | None:
    """Return Wilson's interval of an accuracy; None where it was not counted once for each sample (tokens, pixels).

    >>> accuracy_interval(Quality(samples=10, accuracy=0.123)) is None
    True
    """
    if quality.accuracy is None or quality.samples < 1:
        return None
    right = quality.accuracy * quality.samples
    if abs(right - round(right)) > 1e-6 * quality.samples:
        return None
    return wilson(min(round(right), quality.samples), quality.samples)


def drop_interval(dense: Quality, pruned: Quality) -> Interval | None:
    """Return the 95 % interval of dense less pruned accuracy on the same samples; None where they were not counted.

    Newcombe's score interval of a paired difference (1998, method 10). How many samples only one of the two gets right
    is not in a report; there are at most as many as the two predict differently, and with so many it is widest.

    >>> dense, pruned = Quality(samples=200, accuracy=0.95), Quality(samples=200, accuracy=0.90, agreement=0.93)
    >>> found = drop_interval(dense, pruned)
    >>> round(found.low, 3), round(found.high, 3)
    (0.013, 0.093)
    """
    before, after = accuracy_interval(dense), accuracy_interval(pruned)
    if before is None or after is None or dense.accuracy is None or pruned.accuracy is None:
        return None
    p, q, n = dense.accuracy, pruned.accuracy, dense.samples
    if pruned.samples != n:
        return None
    together = 0.0
    if pruned.agreement is not None:
        apart = min(max(1 - pruned.agreement, abs(p - q)), p + q, 2 - p - q)
        first, second = (apart + p - q) / 2, (apart - p + q) / 2  # right in one only
        both, neither = p - first, 1 - p - second
        product = both * neither - first * second
        if product > 0:
            product = max(0.0, product - 1 / (2 * n))
        spread = math.sqrt(max(0.0, p * (1 - p) * q * (1 - q)))
        together = product / spread if spread > 0 else 0.0
    low = _apart(p - before.low, after.high - q, together)
    high = _apart(before.high - p, q - after.low, together)
    return Interval(p - q - low, p - q + high)


def _apart(a: float, b: float, together: float) -> float:
    return math.sqrt(max(0.0, a * a - 2 * together * a * b + b * b))


def loss_interval(quality: Quality) -> Interval | None:
    """Return the 95 % interval of a mean loss; None where the report has no standard error."""
    if quality.loss is None or quality.loss_standard_error is None:
        return None
    half = Z95 * quality.loss_standard_error
    return Interval(quality.loss - half, quality.loss + half)


def percent(fraction: float, digits: int = 1) -> str:
    """Return a fraction in per cent; what is not all is never shown as all.

    >>> percent(0.98), percent(0.9999), percent(1.0), percent(0.00001)
    ('98.0 %', '99.99 %', '100.0 %', '0.001 %')
    """
    while 0 < fraction < 1 and digits < 4 and round(100 * fraction, digits) in {0.0, 100.0}:
        digits += 1
    return f"{100 * fraction:.{digits}f} %"


def number(value: float) -> str:
    """Return a measured number with four significant digits.

    >>> number(0.123456), number(1234567.0), number(float("nan"))
    ('0.1235', '1.235e+06', 'not a number')
    """
    return "not a number" if math.isnan(value) else f"{value:.4g}"


def size(count: float) -> str:
    """Return bytes in decimal units.

    >>> size(999), size(1234567)
    ('999 bytes', '1.23 MB')
    """
    if count < 1000:
        return f"{int(count)} bytes"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.5:
            return f"{count:.3g} {unit}"
    return f"{count / 1000:,.3g} TB"


def seconds(value: float) -> str:
    """Return a duration.

    >>> seconds(0.0123), seconds(75), seconds(7300)
    ('0.01 s', '1 min 15 s', '2 h 1 min')
    """
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def shown(text: str, longest: int = 0) -> str:
    r"""Return a name as it may stand anywhere: without what is not seen or turns the direction of writing.

    >>> shown("a\u202eb\x00c"), shown("layer1.conv.weight", 9)
    ('a�b�c', 'layer1.c…')
    """
    text = "".join(
        "�" if unicodedata.category(letter) in _HIDDEN and letter not in "\n\t" else letter for letter in text
    )
    return text if not longest or len(text) <= longest else text[: longest - 1] + "…"
