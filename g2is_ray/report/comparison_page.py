"""The page of a comparison: the best method on each target, its confidence interval, its costs.

`render_comparison` fills the template `comparison.html.j2` with a comparison and the drawings of
`comparison_charts`.
"""

import math
from collections.abc import Sequence

from g2is_ray.comparison.comparison import Comparison, MethodRow, TargetComparison
from g2is_ray.comparison.significance import CONFIDENCE, Interval
from g2is_ray.report import charts, comparison_charts
from g2is_ray.report.pages import render_page

_MAX_DISTANCE = 3  # ranges of the losses; a line further off would leave them little room
_UNEQUAL = 0.05  # smallest relative difference in training tokens that the page points out


def render_comparison(comparison: Comparison) -> str:
    """Return the comparison as one HTML page; every text is cleaned, cut and escaped."""
    methods = [method for target in comparison.targets for method in target.methods]
    return render_page(
        "comparison.html.j2",
        comparison=comparison,
        sections=[_section(comparison, target) for target in comparison.targets],
        methods=len({method.name for method in methods}),
        steps=sorted({method.steps for method in methods}),
        confidence=CONFIDENCE,
        digits=comparison_charts.DIGITS,
        bars=charts.bars,
        in_words=comparison_charts.in_words,
        verdict=comparison_charts.verdict,
    )


def _section(comparison: Comparison, target: TargetComparison) -> dict[str, object]:
    """Return all that the template shows for one target."""
    methods, reference = target.methods, comparison.reference
    measured = [method for method in methods if math.isfinite(method.loss)]
    base = target.base_loss if _is_near(target.base_loss, methods) else None
    to_reference = [(m.name, m.to_reference) for m in methods if m.to_reference is not None]
    label = f"of each method on {target.target}"
    return {
        "target": target,
        "measured": measured,
        "rivals": _rivals(target, measured, reference),
        "base_is_drawn": base is not None,
        "losses": comparison_charts.losses(
            methods, comparison.seeds, base=base, reference=reference, label=f"Loss {label}"
        ),
        "differences": to_reference
        and comparison_charts.differences(to_reference, f"Difference to {reference} {label}"),
        "pairs": len(methods) * (len(methods) - 1) // 2,
        "unequal": _unequal(methods),
    }


def _is_near(base: float, methods: Sequence[MethodRow]) -> bool:
    """Return whether the untuned model's loss fits on the scale of the methods' losses."""
    losses = [loss for method in methods for loss in method.losses if math.isfinite(loss)]
    if not losses or not math.isfinite(base):
        return False
    low, high = min(losses), max(losses)
    return low == high or low - base <= _MAX_DISTANCE * (high - low) >= base - high


def _rivals(
    target: TargetComparison, measured: Sequence[MethodRow], reference: str
) -> list[tuple[MethodRow, Interval]]:
    """Return the reference and the second best method, with the best one's difference to each."""
    if not measured:
        return []
    best, *others = measured
    rivals = [other for other in others if other is others[0] or other.name == reference]
    rivals.sort(key=lambda other: other.name != reference)
    return [(other, target.differences[best.name][other.name]) for other in rivals]


def _unequal(methods: Sequence[MethodRow]) -> tuple[MethodRow, MethodRow] | None:
    """Return the methods trained on the fewest and the most tokens, or None if they are equal."""
    fewest = min(methods, key=lambda method: method.train_tokens)
    most = max(methods, key=lambda method: method.train_tokens)
    return (fewest, most) if fewest.train_tokens < (1 - _UNEQUAL) * most.train_tokens else None
