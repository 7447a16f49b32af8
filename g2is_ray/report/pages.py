"""Renders HTML pages that need no network, scripts or other files; formats texts and numbers.

`render_page` fills a template from the folder `templates`, which cleans, cuts and escapes texts.
"""

import math
import unicodedata
from pathlib import Path

import jinja2
from markupsafe import Markup

DASH = "\u2013"
TEXT_CHARACTERS = 3_000  # longest text on a page
_REPLACED = "\ufffd"
_JOINERS = "\u200c\u200d\u00ad"  # invisible characters that ordinary text needs


def render_page(template: str, **values: object) -> str:
    """Return the page that a template makes from the values."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    )
    environment.filters |= {
        one.__name__: one for one in (count, number, signed, percent, duration, size)
    }
    environment.globals |= {"cut": clean}
    return environment.get_template(template).render(**values)


def _finalize(value: object) -> object:
    if value is None:
        return DASH
    return value if isinstance(value, Markup | int) else clean(value, TEXT_CHARACTERS)


def clean(text: object, limit: int = 300) -> str:
    """Return text cut to `limit` characters, without control characters.

    Control characters, surrogates and direction overrides become U+FFFD; line ends become
    newlines. A cut text of 200 characters or more ends with its full length.
    """
    whole = str(text)
    kept = whole[:limit].replace("\r\n", "\n").replace("\u2028", "\n").replace("\u2029", "\n")
    shown = "".join(character if _printable(character) else _REPLACED for character in kept)
    if len(whole) <= limit:
        return shown
    return f"{shown}… [{len(whole):,} characters]" if limit >= 200 else f"{shown}…"


def _printable(character: str) -> bool:
    if character in "\n\t" or character in _JOINERS:
        return True
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs")


def count(value: int | None) -> str:
    """Return a count with thousands separators; a dash for None."""
    return DASH if value is None else f"{value:,}"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with that many decimals; a dash if it is None or not finite."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:,.{digits}f}".replace("-", "\u2212")


def signed(value: float | None, digits: int = 3) -> str:
    """Return a number as `number` does, with a plus sign if it is positive."""
    return ("+" if value is not None and value > 0 else "") + number(value, digits)


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share in [0, 1] as a percentage, such as 95%."""
    if value is not None and 0 < value < 0.0005:
        return "<0.1%"
    shown = number(None if value is None else 100 * value, digits)
    return shown if shown == DASH else f"{shown}%"


def duration(seconds: float) -> str:
    """Return a time, such as 2 h 01 min."""
    if not seconds >= 60:
        return f"{number(seconds, 1)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def size(value: float) -> str:
    """Return a number of bytes with its unit, such as 32.8 MB."""
    units = ["B", "kB", "MB", "GB", "TB"]
    power = min(int(math.log10(max(value, 1))) // 3, len(units) - 1)
    return f"{value / 1000**power:.{min(power, 1)}f}\u202f{units[power]}"
