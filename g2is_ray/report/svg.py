"""Inline SVG: elements as safe markup, and round numbers for axes.

`element` cleans and escapes each text and attribute, so data cannot reach a page unescaped. Colors
are CSS classes (`pool`, `main`, …), which the style sheet of the pages defines for light and dark.
"""

import math

from markupsafe import Markup, escape

from g2is_ray.report.pages import clean


def element(name: str, *children: object, **attributes: object) -> Markup:
    """Return `<name …>children</name>`; write class_ for class, text_anchor for text-anchor."""
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    shown = "".join(f' {key}="{_markup(value)}"' for key, value in pairs)
    return Markup(f"<{name}{shown}>{''.join(_markup(child) for child in children)}</{name}>")


def _markup(value: object) -> Markup:
    if isinstance(value, Markup):
        return value
    return escape(f"{value:.1f}" if isinstance(value, float) else clean(value))


def drawing(width: float, height: float, label: str, *children: object, class_: str) -> Markup:
    """Return an SVG image; `label` describes it for screen readers."""
    size = {"width": f"{width:g}", "height": f"{height:g}", "viewBox": f"0 0 {width:g} {height:g}"}
    return element("svg", *children, class_=class_, role="img", aria_label=label, **size)


def rect(x: float, y: float, width: float, height: float, class_: str) -> Markup:
    """Return a rectangle."""
    return element("rect", x=x, y=y, width=float(width), height=float(height), class_=class_)


def round_step(span: float, steps: int) -> float:
    """Return the smallest 1, 2 or 5 x a power of ten that covers `span` in `steps` steps."""
    least = span / steps * (1 - 1e-9)
    power = 10.0 ** math.floor(math.log10(least))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= least)


def ticks(low: float, high: float) -> list[float]:
    """Return round values that cover `low` < `high` in at most eight steps."""
    step = round_step(high - low, 7)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]
