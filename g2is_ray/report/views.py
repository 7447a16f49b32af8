"""Plain records of what the report shows; `collect` fills them and `run_page` renders them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True, kw_only=True)
class ModelScore:
    """One row of the evaluation table: a model on the target's test rows."""

    name: str
    """Shown unchanged; several seeds of one model share a name."""
    role: str
    """"base" (not tuned), "selection" (tuned on the main selection) or "baseline"."""
    examples: int | None
    """Rows tuned on."""
    steps: int | None
    """Optimizer steps."""
    train_tokens: int | None
    """Supervised tokens trained on, over all epochs."""
    seed: int | None
    loss: float
    """Mean negative log-likelihood per supervised token."""
    test_tokens: int
    exact_match: float | None
    """Share in [0, 1]; None if the rows have no answer."""
    exact_match_rows: int
    cut_replies: int = 0
    """Replies that reached max_new_tokens before the turn ended."""


@dataclass(frozen=True, kw_only=True)
class ComponentRow:
    """One principal component of the target's gradients, and the walk's picks for it."""

    index: int
    """Shown unchanged; picks refer to it."""
    target: str = ""
    """Name of the target that the component is of, in a selection for several targets."""
    weight: float
    explained_variance_ratio: float
    budget: int
    selected: int
    anchors: int
    neighbors: int
    fallbacks: int
    conflicting: int = 0
    """Nearer neighbors that were passed over because of a conflict with earlier picks."""
    inconsistent: int = 0
    """Nearer neighbors that were passed over because they point away from the component."""


@dataclass(frozen=True, kw_only=True)
class PickView:
    """One selected example; ranks and components are shown unchanged, so count them from 1."""

    rank: int
    row: int
    """Row of the pool."""
    id: str
    component: int | None
    """None if the selector has no components."""
    step: str
    """"anchor", "neighbor" or "fallback"; any other word is shown unchanged."""
    similarity: float
    """Cosine to the component (anchor, fallback) or to the previous pick (neighbor); the score of
    any other step, or NaN."""
    group: str
    """Source of the row."""
    text: str = ""
    """Prompt; shown for the first picks only."""
    answer: str = ""


@dataclass(frozen=True, kw_only=True)
class SelectionView:
    """One selection of a target: the main one, or a baseline."""

    name: str
    title: str
    settings: Mapping[str, object]
    budget: int
    unit: str = "rows"
    """Unit of the budget and of the components' budgets."""
    components: Sequence[ComponentRow]
    picks: Sequence[PickView]
    """All picks, in the order of selection."""
    selected_groups: Mapping[str, int]
    """Number of selected rows, by source."""
    like_tests: int = 0
    """Number of selected rows that are like test rows."""


@dataclass(frozen=True, kw_only=True)
class TargetView:
    """A target, its selections, and the scores of the models tuned on them."""

    name: str
    rows: int
    test_rows: int
    groups: Mapping[str, int]
    """Number of target rows, by source."""
    overlap: Sequence[str] = ()
    """Sentences about test rows in the pool and among target rows."""
    main: SelectionView
    others: Sequence[SelectionView] = ()
    scores: Sequence[ModelScore] = ()


class Timing(NamedTuple):
    """Wall-clock seconds of one stage."""

    stage: str
    seconds: float
    parts: int


@dataclass(frozen=True, kw_only=True)
class RunView:
    """The run: its model, pool, settings, machine and times."""

    model: str
    workspace: str
    version: str
    created: str
    machine: str
    pool_rows: int
    rejected_rows: int
    truncated_rows: int
    invalid_rows: int
    pool_groups: Mapping[str, int]
    settings: Mapping[str, Mapping[str, object]]
    """Settings by stage."""
    timings: Sequence[Timing] = ()
    graph: Mapping[str, object] = field(default_factory=dict)
    comparisons: Sequence[int] = ()
    """Budgets, in supervised tokens, of the comparisons that the page links to."""
