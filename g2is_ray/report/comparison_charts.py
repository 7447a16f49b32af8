"""Drawings of a comparison: losses of every method, and differences with their intervals.

Each method is a row over a common scale, with its name at the left; the best is first.
"""

import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup

from g2is_ray.comparison.comparison import MethodRow
from g2is_ray.comparison.significance import Interval
from g2is_ray.report.pages import clean, number, signed
from g2is_ray.report.svg import drawing, element, ticks

DIGITS = 4  # decimals of a loss
_WIDTH, _ROW, _TOP, _BOTTOM, _RIGHT = 760, 28, 10, 46, 16
_NAME_CHARACTERS = 32  # longest name of a method


class _Frame:
    """A chart of named rows over a scale that covers the values."""

    def __init__(self, names: Sequence[str], values: Iterable[float]) -> None:
        finite = [value for value in values if math.isfinite(value)] or [0.0]
        middle, half = (min(finite) + max(finite)) / 2, (max(finite) - min(finite)) / 2
        half = max(half, 0.001 * abs(middle), 1e-6)  # a width for equal values
        self._names, self._ticks = names, ticks(middle - half, middle + half)
        self._left = 18 + 8.0 * max(len(clean(name, _NAME_CHARACTERS)) for name in names)
        self._bottom = _TOP + _ROW * len(names)

    def x(self, value: float) -> float:
        low, high = self._ticks[0], self._ticks[-1]
        return self._left + (_WIDTH - _RIGHT - self._left) * (value - low) / (high - low)

    def y(self, row: int) -> float:
        return _TOP + _ROW * (row + 0.5)

    def line(self, value: float, class_: str) -> Markup:
        path = Markup(f"M{self.x(value):.1f} {_TOP}V{self._bottom}")
        return element("path", d=path, class_=class_)

    def dot(self, value: float, row: int, class_: str, title: str) -> Markup:
        at = {"cx": self.x(value), "cy": self.y(row), "r": 4.5}
        return element("circle", element("title", title), class_=class_, **at)

    def drawing(self, marks: Sequence[Markup], label: str, axis: str) -> Markup:
        digits = max(0, -math.floor(math.log10(self._ticks[1] - self._ticks[0]) + 1e-9))
        drawn = []
        for tick in self._ticks:
            drawn.append(self.line(tick, "grid"))
            at = {"x": self.x(tick), "y": self._bottom + 18.0, "text_anchor": "middle"}
            drawn.append(element("text", number(tick, digits), class_="tick", **at))
        for row, name in enumerate(self._names):
            at = {"x": self._left - 12, "y": self.y(row) + 4, "text_anchor": "end"}
            drawn.append(element("text", clean(name, _NAME_CHARACTERS), class_="method", **at))
        middle = (self._left + _WIDTH - _RIGHT) / 2
        at = {"x": middle, "y": self._bottom + 38.0, "text_anchor": "middle"}
        drawn.append(element("text", axis, class_="axis", **at))
        height = self._bottom + _BOTTOM
        return drawing(_WIDTH, height, label, *drawn, *marks, class_="wide rows")


def losses(
    methods: Sequence[MethodRow],
    seeds: Sequence[int],
    *,
    base: float | None,
    reference: str,
    label: str,
) -> Markup:
    """Draw a dot for each seed and a tick for the mean of each method.

    Args:
        methods: rows of the chart.
        seeds: of each method's losses.
        base: loss of the untuned model, drawn as a line; None leaves it out.
        reference: method whose mean is drawn as a line.
        label: description of the chart for screen readers.
    """
    values = [loss for method in methods for loss in method.losses]
    bases = [] if base is None else [base]
    frame = _Frame([method.name for method in methods], values + bases)
    marks = [frame.line(value, "base") for value in bases]
    for row, method in enumerate(methods):
        if method.name == reference and math.isfinite(method.loss):
            marks.append(frame.line(method.loss, "reference"))
        marks += [
            frame.dot(loss, row, "seed", f"seed {seed}: {number(loss, DIGITS)}")
            for seed, loss in zip(seeds, method.losses, strict=True)
            if math.isfinite(loss)
        ]
        if math.isfinite(method.loss):
            path = Markup(f"M{frame.x(method.loss):.1f} {frame.y(row) - 9:.1f}v18")
            title = element("title", f"mean: {number(method.loss, DIGITS)}")
            marks.append(element("path", title, d=path, class_="mean"))
    return frame.drawing(marks, label, "loss per supervised token: better ← → worse")


def differences(rows: Sequence[tuple[str, Interval]], label: str) -> Markup:
    """Draw a dot for each mean difference, on a line that spans its interval.

    Args:
        rows: methods, each with its loss minus the loss of the reference.
        label: description of the chart for screen readers.
    """
    ends = [end for _, one in rows for end in (one.low, one.high)]
    frame = _Frame([name for name, _ in rows], [0.0, *ends])
    marks = [frame.line(0.0, "zero")]
    for row, (_, one) in enumerate(rows):
        if math.isfinite(one.low + one.high):
            y, class_ = frame.y(row), verdict(one)
            path = Markup(
                f"M{frame.x(one.low):.1f} {y - 5:.1f}v10m0-5H{frame.x(one.high):.1f}m0-5v10"
            )
            marks.append(element("path", d=path, class_=f"whisker {class_}"))
            marks.append(frame.dot(one.mean, row, f"middle {class_}", in_words(one)))
    return frame.drawing(marks, label, "difference of loss: better ← → worse")


def in_words(one: Interval) -> str:
    """Return a difference with its interval as text."""
    mean, low, high = (signed(value, DIGITS) for value in (one.mean, one.low, one.high))
    return f"{mean} ({low} to {high})"


def verdict(difference: Interval) -> str:
    """Return the CSS class of a difference: better, worse, or even if zero is not excluded."""
    if not difference.excludes_zero:
        return "even"
    return "better" if difference.mean < 0 else "worse"
