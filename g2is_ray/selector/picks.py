"""Picks: the rows that a selector takes, in order, and why it takes each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class PassedOver(NamedTuple):
    """Free neighbors of the last pick that did not qualify, by the first rule they broke."""

    conflicting: int = 0
    inconsistent: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Pick:
    """One selected row and why it was taken.

    The walk's steps are anchor, neighbor and fallback. The similarity of a neighbor is its cosine
    to the pick before it; that of an anchor or fallback is its cosine to the component. Other
    selectors have a step and a score of their own; similarity is None where there is no score.

    The last two fields count the free neighbors of the previous pick that are nearer than this row
    and did not qualify, or all of those neighbors if this row is no neighbor. See `PassedOver`.
    """

    rank: int
    row: int
    component: int | None
    step: str
    similarity: float | None
    conflicting: int = 0
    inconsistent: int = 0


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The picks of a selector, and what its summary says beyond their number."""

    picks: Sequence[Pick]
    details: Mapping[str, Any] = field(default_factory=dict)
    """Further facts for summary.json; `per_component` holds one record for each component."""
    why_short: str = ""
    """Why the budget in rows was not filled, if the selector can say so."""

    @property
    def rows(self) -> list[int]:
        return [pick.row for pick in self.picks]


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """Finished pieces of a selection, so that a killed run resumes after the last one.

    A selector that works in pieces (the walk's are its components) takes `earlier` as made, and
    saves each further piece as soon as it is finished.
    """

    label: str = "select"
    """Heads the log lines."""
    earlier: Iterable[list[Pick]] = ()
    save: Callable[[int, list[Pick]], None] = lambda piece, picks: None
