"""Drawings of the report: functions from plain numbers to inline SVG.

Colors are CSS classes: `c0` … `c7` for components, `pool`, `own`, `main`, …
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from g2is_ray.report.pages import clean
from g2is_ray.report.svg import drawing, element, rect, round_step, ticks

_PALETTE = 7  # hues for components; later components share one gray


class Mark(NamedTuple):
    """One selected example on the map: its point, color class, step and tooltip."""

    point: int
    color: str
    step: str
    title: str


class WalkPoint(NamedTuple):
    """One pick of the walk chart."""

    rank: int
    similarity: float
    step: str
    component: str
    color: str
    title: str


def component_color(position: int) -> str:
    """Return the CSS class of the component at this position; those from the eighth share one."""
    return f"c{min(position, _PALETTE)}"


def other_color(position: int) -> str:
    """Return the CSS class of the baseline at this position."""
    return f"o{min(position, 2)}"


def bars(values: Sequence[tuple[float, str]], top: float, label: str, width: int = 180) -> Markup:
    """Draw one horizontal bar per (value, class), one below another, from 0 to `top`."""
    drawn, y = [], 1.0
    for value, class_ in values:
        height = 7 if class_ in ("pool", "main") else 3
        length = width * min(max(value, 0.0), top) / top if top > 0 else 0.0
        drawn.append(rect(0.0, y, max(length, 0.8 if value > 0 else 0.0), height, class_))
        y += height + 1
    return drawing(width, y, label, *drawn, class_="inline")


def stacked(parts: Sequence[tuple[int, str]], top: int, label: str, width: int = 220) -> Markup:
    """Draw one horizontal bar of adjacent parts (count, class), from 0 to `top`."""
    drawn, x = [], 0.0
    for count, class_ in parts:
        length = width * count / top if top > 0 else 0.0
        drawn.append(rect(x, 1.0, length, 12, class_))
        x += length
    return drawing(width, 14, label, *drawn, class_="inline")


def difference(value: float, low: float, high: float, class_: str, width: int = 120) -> Markup:
    """Draw a bar from zero to `value` on the scale `low` to `high` (low <= 0 <= high)."""
    span = (high - low) or 1.0
    zero, end = width * (0 - low) / span, width * (value - low) / span
    bar = rect(min(zero, end), 2.0, abs(end - zero), 10, class_)
    line = element("path", d=Markup(f"M{zero:.1f} 0v14"), class_="zero")
    return drawing(width, 14, f"difference {value:+.3f}", bar, line, class_="inline")


def draw_map(
    xy: np.ndarray,
    groups: Sequence[str],
    own: Iterable[str],
    marks: Sequence[Mark],
    label: str,
    size: int = 640,
    names: bool = True,
) -> Markup:
    """Draw the sample of the pool as faint dots, and the selection on top.

    Args:
        xy: float [n, 2]; points that are not finite are left out.
        groups: the n sources.
        own: sources of the target's rows, drawn darker.
        marks: selected examples; anchors get a ring.
        label: description of the chart for screen readers.
        size: width, and largest height, in pixels.
        names: whether to write each source's name where the source is densest.
    """
    place, height = _fit(np.asarray(xy, dtype=float).reshape(-1, 2), size, margin=24)
    members: dict[str, list[int]] = {}
    for index in np.flatnonzero(np.isfinite(place).all(axis=1)):
        members.setdefault(groups[int(index)], []).append(int(index))
    darker = set(own)
    order = sorted(members, key=lambda group: (group in darker, -len(members[group]), group))
    dots = []
    for group in order:
        path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in place[members[group]])
        title = element("title", f"{clean(group, 80)}: {len(members[group]):,} points")
        class_ = "dot own" if group in darker else "dot pool"
        dots.append(element("path", title, d=Markup(path), class_=class_))
    shown = [mark for mark in marks if np.isfinite(place[mark.point]).all()]
    shown.sort(key=lambda mark: mark.step == "anchor")
    radius = 3.4 if len(shown) <= 400 else 2.4
    picks = [_mark(mark, place[mark.point].tolist(), radius) for mark in shown]
    at = place[[mark.point for mark in shown]]
    texts = _names(place, members, darker, at, (size, height)) if names else []
    return drawing(
        size, height, label, *dots, *picks, *texts, class_="map" if names else "map small"
    )


def _mark(mark: Mark, at: Sequence[float], radius: float) -> Markup:
    title, (x, y) = element("title", mark.title), at
    dot = element("circle", cx=x, cy=y, r=radius, class_=f"pick {mark.color}")
    if mark.step != "anchor":
        return element("g", title, dot)
    ring = element("circle", cx=x, cy=y, r=2 * radius, class_=f"ring {mark.color}")
    return element("g", title, ring, dot)


def _fit(xy: np.ndarray, size: int, margin: int) -> tuple[np.ndarray, int]:
    """Scale points [n, 2] to at most `size` each way, with y upward; also return the height."""
    finite = xy[np.isfinite(xy).all(axis=1)]
    if not len(finite):
        return xy, size // 2
    low, high = finite.min(axis=0), finite.max(axis=0)
    scale = (size - 2 * margin) / max(float((high - low).max()), 1e-12)
    height = max(math.ceil((high - low)[1] * scale) + 2 * margin, size // 2)
    return (xy - (low + high) / 2) * scale * [1, -1] + [size / 2, height / 2], height


def _names(
    place: np.ndarray,
    members: Mapping[str, Sequence[int]],
    own: set[str],
    picks: np.ndarray,
    area: tuple[int, int],
) -> list[Markup]:
    """Write the names of the `own` and the largest sources where each source is densest."""
    drawn = []
    (width, height), cell = area, max(area) / 9
    taken: list[tuple[float, float, float]] = []  # left, right, y
    by_size = sorted(members, key=lambda group: (group not in own, -len(members[group]), group))
    for group in by_size[:18]:
        points = place[list(members[group])]
        text = clean(group, 24)
        half = 3.9 * len(text) + 4
        _, cells = np.unique(points // cell, axis=0, return_inverse=True)
        densest = points[cells.reshape(-1) == np.bincount(cells.reshape(-1)).argmax()]
        center = densest.mean(axis=0)
        near = points[np.hypot(*(points - center).T) < cell, 1]
        ys = np.clip([np.quantile(near, 0.04) - 8, np.quantile(near, 0.96) + 17], 14, height - 6)
        xs = np.clip(center[0] + half * np.array([0, 0.6, -0.6]), half, max(width - half, half))
        free = [
            (_covered(picks, x, y, half), x, y)
            for x, y in itertools.product(xs.tolist(), ys.tolist())
            if all(abs(y - b) >= 17 or x - half > r or left > x + half for left, r, b in taken)
        ]
        if free:
            _, x, y = min(free, key=lambda spot: spot[0])
            taken.append((x - half, x + half, y))
            class_ = "name own" if group in own else "name"
            drawn.append(element("text", text, x=x, y=y, text_anchor="middle", class_=class_))
    return drawn


def _covered(picks: np.ndarray, x: float, y: float, half: float) -> int:
    """Return the number of picks [n, 2] that a name centered at (x, y) covers."""
    return int((np.abs(picks - [x, y - 4]) < [half, 12]).all(axis=1).sum())


def walk_chart(points: Sequence[WalkPoint], label: str) -> Markup:
    """Draw the similarity of each pick by rank, with a strip of components above."""
    width, height, left, right, top, bottom = 960, 300, 46, 8, 40, 42
    shown = [point for point in points if math.isfinite(point.similarity)]
    if not shown:
        return Markup("")
    first, last = shown[0].rank, max(shown[-1].rank, shown[0].rank + 1)
    similarities = [point.similarity for point in shown]
    grid = ticks(min(0.0, *similarities), max(0.1, *similarities))
    low, high = grid[0], grid[-1]

    def x_of(rank: float) -> float:
        return left + 6 + (width - left - right - 12) * (rank - first) / (last - first)

    def y_of(value: float) -> float:
        return height - bottom - (height - top - bottom) * (value - low) / (high - low)

    drawn = []
    for tick in grid:
        line = Markup(f"M{left} {y_of(tick):.1f}H{width - right}")
        drawn.append(element("path", d=line, class_="zero" if tick == 0 else "grid"))
        at = {"x": left - 8.0, "y": y_of(tick) + 4, "text_anchor": "end"}
        drawn.append(element("text", f"{tick:.2f}".replace("-", "\u2212"), class_="tick", **at))
    for tick in _rank_ticks(first, last):
        at = {"x": x_of(tick), "y": height - bottom + 18.0, "text_anchor": "middle"}
        drawn.append(element("text", f"{tick:,}", class_="tick", **at))
    middle = {"x": (left + width - right) / 2, "y": height - 5.0, "text_anchor": "middle"}
    drawn.append(element("text", "pick, in order", class_="axis", **middle))
    drawn.append(element("text", "cosine", class_="axis", x=0.0, y=12.0))
    drawn += _strip(shown, x_of, top - 16.0)
    rare_last = sorted(shown, key=lambda p: p.step != "neighbor")
    drawn += [_walk_point(p, x_of(p.rank), y_of(p.similarity)) for p in rare_last]
    return drawing(width, height, label, *drawn, class_="wide")


def _walk_point(point: WalkPoint, x: float, y: float) -> Markup:
    shapes = {
        "neighbor": f"M{x - 2.6:.1f} {y:.1f}a2.6 2.6 0 1 0 5.2 0a2.6 2.6 0 1 0-5.2 0z",
        "anchor": f"M{x:.1f} {y - 6:.1f}l5.5 6l-5.5 6l-5.5-6z",
        "fallback": f"M{x:.1f} {y - 4.6:.1f}l4.6 8h-9.2z",
    }
    known = point.step in shapes
    path = Markup(shapes[point.step if known else "neighbor"])
    class_ = f"step {point.step}" if known else "step"
    return element("path", element("title", point.title), d=path, class_=class_)


def _strip(points: Sequence[WalkPoint], x_of: Callable[[float], float], y: float) -> list[Markup]:
    """Draw a strip with a colored piece for every run of picks of one component."""
    runs: list[list[WalkPoint]] = []
    for point in points:
        if runs and runs[-1][0].component == point.component:
            runs[-1].append(point)
        else:
            runs.append([point])
    drawn = []
    for run in runs:
        start, end = x_of(run[0].rank), x_of(run[-1].rank)
        title = element("title", f"component {run[0].component}")
        length = max(end - start, 1.5)
        at = {"x": start, "y": y, "width": length, "height": 5.0}
        drawn.append(element("rect", title, class_=f"fill {run[0].color}", **at))
        text = f"component {clean(run[0].component, 12)}"
        if length < 7 * len(text):
            text = clean(run[0].component, 12)
        if length > 8 * len(text):
            drawn.append(element("text", text, x=start, y=y - 6, class_="tick"))
    return drawn


def _rank_ticks(first: int, last: int) -> list[int]:
    """Return the first rank and round ranks after it, at most about ten."""
    step = max(1, round(round_step(last - first, 8)))
    rounds = [rank for rank in range(0, last + 1, step) if rank >= first + step / 2]
    return [first, *rounds]
