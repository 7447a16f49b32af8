"""The report of one run: a single HTML page that needs no network, scripts or other files.

`render` fills the template `report.html.j2` with records of `views` and drawings of `charts`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from markupsafe import Markup

from g2is_ray.report import charts
from g2is_ray.report.pages import DASH, clean, number, render_page
from g2is_ray.report.pool_map import MapPoints
from g2is_ray.report.views import ModelScore, PickView, RunView, SelectionView, TargetView
from g2is_ray.selection.lift import own_share, share_of

NO_COLOR = "c7"  # CSS class of picks without a component
SHOWN_PICKS = 20  # picks that the page lists with their texts
SHOWN_SOURCES = 18  # sources that the chart shows one by one
SHOWN_MARKS = 1_500  # picks that one chart draws


def render(run: RunView, targets: Sequence[TargetView], points: MapPoints | None) -> str:
    """Return the report as one HTML page; all data is cleaned, cut and escaped.

    Args:
        run: the run that the page reports.
        targets: the targets, each of which gets a section.
        points: the map of the pool; None leaves the maps out.
    """
    sections = [_section(run, target, points) for target in targets]
    return render_page(
        "report.html.j2",
        run=run,
        sections=sections,
        pool_sources=len(run.pool_groups),
        mark_limit=SHOWN_MARKS,
        charts=charts,
    )


def _section(run: RunView, target: TargetView, points: MapPoints | None) -> dict[str, object]:
    """Return all that the template shows for one target."""
    main, selections = target.main, [target.main, *target.others]
    own = {name for name, rows in target.groups.items() if rows > 0}
    losses = {
        role: _mean(score.loss for score in _of_role(target.scores, role))
        for role in ("base", "selection", "random")
    }
    return {
        "target": target,
        "main": main,
        "leaks": [one for one in selections if one.like_tests],
        "own": own,
        "own_pool_share": share_of(run.pool_groups, own),
        "scores": _scores(target.scores, losses["base"]),
        "losses": losses,
        "seeds": len({score.seed for score in _of_role(target.scores, "selection")}),
        "tokens": _tokens(target.scores),
        "colors": _colors(main),
        "map": _maps(target, own, points),
        "sources": _sources(run.pool_groups, selections, own),
        "walk": charts.walk_chart(_walk_points(main), "Similarity of the picks in their order"),
        "compared": [_compared(one, main, run.pool_groups, own) for one in selections],
        "picks": _reasons(main.picks),
    }


def _of_role(scores: Iterable[ModelScore], role: str) -> list[ModelScore]:
    """Return the scores of a role; "random" is every baseline whose name starts with it."""
    if role == "random":
        return [s for s in scores if s.role == "baseline" and s.name.startswith("random")]
    return [s for s in scores if s.role == role]


def _tokens(scores: Sequence[ModelScore]) -> tuple[float, float] | None:
    """Return mean supervised tokens of selection and random if they differ by over 10%."""
    means = []
    for role in ("selection", "random"):
        tokens = [s.train_tokens for s in _of_role(scores, role) if s.train_tokens is not None]
        if not tokens:
            return None
        means.append(fmean(tokens))
    return (means[0], means[1]) if abs(means[0] - means[1]) > 0.1 * max(means) else None


def _scores(scores: Sequence[ModelScore], base: float | None) -> list[dict[str, object]]:
    changes = [s.loss - base if base is not None else math.nan for s in scores]
    finite = [0.0, *(change for change in changes if math.isfinite(change))]
    rows = []
    for score, change in zip(scores, changes, strict=True):
        bar = Markup("")
        if math.isfinite(change) and score.role != "base":
            class_ = "main" if score.role == "selection" else "pool"
            bar = charts.difference(change, min(finite), max(finite), class_)
        rows.append({"score": score, "change": change, "bar": bar})
    return rows


def _colors(selection: SelectionView) -> dict[int | None, str]:
    return {row.index: charts.component_color(i) for i, row in enumerate(selection.components)}


def _maps(target: TargetView, own: set[str], points: MapPoints | None) -> list[dict[str, object]]:
    """Return the map with the main selection, then small maps with up to three baselines."""
    if points is None or not len(points.rows):
        return []
    places = {int(row): place for place, row in enumerate(points.rows)}
    maps: list[dict[str, object]] = []
    for order, selection in enumerate([target.main, *target.others][:4]):
        large, colors, other = order == 0, _colors(target.main), charts.other_color(order - 1)
        found = [pick for pick in selection.picks if pick.row in places]
        marks = [
            charts.Mark(
                point=places[pick.row],
                color=colors.get(pick.component, NO_COLOR) if large else other,
                step=pick.step,
                title=_tooltip(pick),
            )
            for pick in _thin(found)
        ]
        label = f"Map of {len(places):,} pool examples with {len(found):,} selected ones"
        drawn = charts.draw_map(
            points.xy, points.groups, own, marks, label, 640 if large else 300, large
        )
        maps.append({"svg": drawn, "title": selection.title, "found": len(found), "of": selection})
    return maps


def _thin(picks: Sequence[PickView]) -> list[PickView]:
    """Return at most about SHOWN_MARKS picks: every n-th, and more of the anchors."""
    stride = max(1, math.ceil(len(picks) / SHOWN_MARKS))
    anchors = [i for i, pick in enumerate(picks) if pick.step == "anchor"]
    kept = {*range(0, len(picks), stride), *anchors[:: max(1, math.ceil(len(anchors) / 300))]}
    return [picks[i] for i in sorted(kept)]


def _tooltip(pick: PickView) -> str:
    of = ", score" if pick.component is None else f", component {pick.component}, cos"
    kind, group = clean(pick.step, 40), clean(pick.group, 60)
    return f"#{pick.rank} {kind}{of} {number(pick.similarity, 2)}, {group}, row {pick.row}"


def _walk_points(selection: SelectionView) -> list[charts.WalkPoint]:
    colors = _colors(selection)
    return [
        charts.WalkPoint(
            pick.rank,
            pick.similarity,
            pick.step,
            DASH if pick.component is None else str(pick.component),
            colors.get(pick.component, NO_COLOR),
            _tooltip(pick),
        )
        for pick in _thin(selection.picks)
    ]


@dataclass(frozen=True)
class _SourceShares:
    """Shares of one source in the pool, the main selection and each baseline."""

    name: str
    own: bool
    shares: Sequence[float]

    @property
    def lift(self) -> float | None:
        return self.shares[1] / self.shares[0] if self.shares[0] else None


def _sources(
    pool: Mapping[str, int], selections: Sequence[SelectionView], own: set[str]
) -> list[tuple[_SourceShares, Markup]]:
    """Return the shares of each source and their bars, by lift; small sources share a row."""
    groups = [pool, *(selection.selected_groups for selection in selections)]
    totals = [sum(group.values()) or 1 for group in groups]
    sources = [
        _SourceShares(
            name, name in own, [g.get(name, 0) / t for g, t in zip(groups, totals, strict=True)]
        )
        for name in {name for group in groups for name in group}
    ]
    sources.sort(key=lambda source: (not source.own, -max(source.shares[:2]), source.name))
    shown = SHOWN_SOURCES if len(sources) > SHOWN_SOURCES + 1 else len(sources)
    smaller = [source.shares for source in sources[shown:]]
    rows = sorted(sources[:shown], key=lambda row: (row.lift is None, -(row.lift or 0)))
    if smaller:
        sums = [sum(column) for column in zip(*smaller, strict=True)]
        rows.append(_SourceShares(f"{len(smaller)} smaller sources", False, sums))
    top = max((max(row.shares) for row in rows), default=0.0)
    classes = ["pool", "main", *(charts.other_color(place) for place in range(len(selections) - 1))]
    label = "shares before and after"
    return [
        (row, charts.bars(list(zip(row.shares, classes, strict=True)), top, label)) for row in rows
    ]


def _compared(
    selection: SelectionView, main: SelectionView, pool: Mapping[str, int], own: set[str]
) -> dict[str, object]:
    rows = {pick.row for pick in selection.picks}
    neighbors = [p.similarity for p in selection.picks if p.step == "neighbor"]
    others = [p.similarity for p in selection.picks if p.step in ("anchor", "fallback")]
    return {
        "selection": selection,
        "share": share_of(selection.selected_groups, own),
        "lift": own_share(selection.selected_groups, pool, own),
        "neighbor_similarity": _mean(neighbors),
        "component_similarity": _mean(others),
        "fallbacks": sum(pick.step == "fallback" for pick in selection.picks),
        "sources": sum(count > 0 for count in selection.selected_groups.values()),
        "shared": len(rows & {pick.row for pick in main.picks}),
    }


def _mean(values: Iterable[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return fmean(finite) if finite else None


def _reasons(picks: Sequence[PickView]) -> list[tuple[PickView, str]]:
    """Return the first picks, each with the reason for it in words."""
    reasons: list[tuple[PickView, str]] = []
    last: dict[int | None, int] = {}
    for pick in picks[:SHOWN_PICKS]:
        cosine = f"(cos {number(pick.similarity, 2)})"
        before = last.get(pick.component)
        of = f"component {pick.component}"
        if pick.step == "anchor":
            reason = f"anchor: the unused example closest to {of} {cosine}"
        elif pick.step == "neighbor":
            reason = f"neighbor of {f'#{before}' if before is not None else 'the last'} {cosine}"
        elif pick.step == "fallback":
            reason = f"fallback: no neighbor qualified; the closest to {of} that does {cosine}"
        elif math.isnan(pick.similarity):
            reason = pick.step
        else:
            reason = f"{pick.step} (score {number(pick.similarity, 2)})"
        reasons.append((pick, reason))
        last[pick.component] = pick.rank
    return reasons
