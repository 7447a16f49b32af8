"""Inline SVG: elements as safe markup, and round numbers for axes.

`element` cleans and escapes each text and attribute, so that nothing from the data reaches a page
raw. Colors are CSS classes (`pool`, `main`, …) which the pages' style sheet defines for light and
dark.
"""

import math

from markupsafe import Markup, escape

from g2is_ray.report.pages import clean


def element(name: str, *children: object, **attributes: object) -> Markup:
    """`<name …>children</name>`; `class_` and `text_anchor` stand for class and text-anchor."""
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    shown = "".join(f' {key}="{_markup(value)}"' for key, value in pairs)
    return Markup(f"<{name}{shown}>{''.join(_markup(child) for child in children)}</{name}>")


def _markup(value: object) -> Markup:
    if isinstance(value, Markup):
        return value
    return escape(f"{value:.1f}" if isinstance(value, float) else clean(value))


def drawing(width: float, height: float, label: str, *children: object, class_: str) -> Markup:
    size = {"width": f"{width:g}", "height": f"{height:g}", "viewBox": f"0 0 {width:g} {height:g}"}
    return element("svg", *children, class_=class_, role="img", aria_label=label, **size)


def rect(x: float, y: float, width: float, height: float, class_: str) -> Markup:
    return element("rect", x=x, y=y, width=float(width), height=float(height), class_=class_)


def round_step(span: float, steps: int) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that covers `span` in so many steps."""
    least = span / steps * (1 - 1e-9)
    power = 10.0 ** math.floor(math.log10(least))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= least)


def ticks(low: float, high: float) -> list[float]:
    """Round values that cover low to high, which is larger, in at most eight steps."""
    step = round_step(high - low, 7)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]
