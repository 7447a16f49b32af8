"""Collects the records that a report shows from a finished workspace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pydantic
from numpy.typing import NDArray

import g2is_ray
from g2is_ray.config import PAPER, WALK, Features
from g2is_ray.contamination.stage import notes, rows_like_tests_if_compared
from g2is_ray.data.examples import ExampleSet
from g2is_ray.report.run_page import SHOWN_PICKS
from g2is_ray.report.views import (
    ComponentRow,
    ModelScore,
    PickView,
    RunView,
    SelectionView,
    TargetView,
    Timing,
)
from g2is_ray.selection.files import read_picks
from g2is_ray.workspace.layout import BASE, JOINT, model_name, score_name, variants_in
from g2is_ray.workspace.provenance import now, this_machine
from g2is_ray.workspace.workspace import Workspace

_COMPONENT, _PICK = pydantic.TypeAdapter(ComponentRow), pydantic.TypeAdapter(PickView)


def run_view(workspace: Workspace, pool_groups: dict[str, int]) -> RunView:
    """Return the run's model, settings, machine and times.

    Args:
        workspace: read from.
        pool_groups: number of pool rows, by source.

    Raises:
        WorkspaceError: the pool is not read yet, or a receipt is damaged.
    """
    stages = {s: r for s, r in workspace.stages().items() if not s.startswith("comparisons/")}
    pool = workspace.stage("pool").require()
    finished = [stage for stage in stages if workspace.storage.exists(f"{stage}/receipt.json")]
    receipts = {stage: workspace.stage(stage).receipt() for stage in finished}
    graph: dict[str, Any] = {}
    for name, receipt in receipts.items():
        if name.startswith("graph/"):
            graph[f"{name}: neighbors"] = stages[name]["settings"].get("neighbors")
            graph[f"{name}: mean similarity"] = round(receipt["mean_similarity"], 4)
            graph[f"{name}: recall"] = _recall(receipt)
    return RunView(
        model=model_name(stages),
        workspace=workspace.url,
        version=g2is_ray.__version__,
        created=now(),
        machine=this_machine(),
        pool_rows=pool["rows"],
        rejected_rows=pool["rejected"],
        truncated_rows=pool["truncated"],
        invalid_rows=max(
            (receipts[kind]["invalid"] for kind in get_args(Features) if kind in receipts),
            default=0,
        ),
        pool_groups=pool_groups,
        settings={stage: record["settings"] for stage, record in stages.items()},
        timings=[
            Timing(stage, receipt["seconds"], receipt.get("parts", 1))
            for stage, receipt in receipts.items()
        ],
        graph=graph,
    )


def _recall(receipt: dict[str, Any]) -> str:
    if not receipt["recall_rows"]:
        return "1, by exact search"
    low, mean, high = (receipt[name] for name in ("recall_low", "recall", "recall_high"))
    return f"{mean:.3f} ({low:.3f} to {high:.3f}, 95%, {receipt['recall_rows']} rows)"


def target_view(workspace: Workspace, target: str, groups: Sequence[str]) -> TargetView:
    """Return a target's selections and scores.

    Args:
        workspace: read from.
        target: name of the target.
        groups: sources of all pool rows.

    Raises:
        WorkspaceError: a file of the target is missing or damaged.
    """
    val = ExampleSet(workspace, f"targets/{target}/val")
    has_test = workspace.storage.exists(f"targets/{target}/test/receipt.json")
    variants = variants_in(workspace, target)
    like_tests = rows_like_tests_if_compared(workspace)
    views = [
        _selection_view(workspace, variants[0], variant, groups, like_tests) for variant in variants
    ]
    return TargetView(
        name=target,
        rows=val.rows,
        test_rows=ExampleSet(workspace, f"targets/{target}/test").rows if has_test else 0,
        groups=Counter(row["group"] for row in val.read_all(["group"])),
        overlap=notes(workspace, target),
        main=views[0],
        others=views[1:],
        scores=_scores(workspace, target, variants),
    )


def _selection_view(
    workspace: Workspace,
    main: str,
    variant: str,
    groups: Sequence[str],
    like_tests: NDArray[np.bool_],
) -> SelectionView:
    stage = f"selections/{variant}"
    summary = workspace.storage.read_json(f"{stage}/summary.json")
    records = read_picks(workspace, stage, len(groups))
    settings = workspace.stages()[stage]["settings"]
    base, _, baseline = variant.partition("@")
    title = _title(settings, baseline)
    if base == JOINT and "target_weight" in settings:
        title += ", for " + ", ".join(map(str, settings["target_weight"])) + " together"
    first = [record["row"] for record in records[:SHOWN_PICKS]]
    shown = ExampleSet(workspace, "pool").take(first, ["messages"])
    texts = [_prompt_and_answer(row["messages"]) for row in shown]
    texts += [("", "")] * (len(records) - len(texts))
    with workspace.storage.understanding(f"{stage}/summary.json"):
        budget, unit = int(summary["budget"]), str(summary["unit"])
        components = [
            _COMPONENT.validate_python({**one, "index": one["component"] + 1})
            for one in summary.get("per_component", ())  # selectors other than the walk have none
        ]
    with workspace.storage.understanding(f"{stage}/selection.jsonl"):
        picks = [
            _PICK.validate_python(
                _from_one(record) | {"group": groups[record["row"]], "text": text, "answer": answer}
            )
            for record, (text, answer) in zip(records, texts, strict=True)
        ]
    return SelectionView(
        name=score_name(main, variant),
        title=title,
        settings=settings,
        budget=budget,
        unit=unit,
        components=components,
        picks=picks,
        selected_groups=Counter(groups[record["row"]] for record in records),
        like_tests=int(like_tests[[record["row"] for record in records]].sum()),
    )


def _title(settings: dict[str, Any], baseline: str) -> str:
    """Return the name of the selector and preset, in a few words."""
    selector = settings.get("selector")
    by_gradients = settings.get("features", "gradients") == "gradients"
    if baseline == PAPER:
        return "as published (preset paper)"
    titles = {WALK: "gradient walk" if by_gradients else "walk", "random": "random rows"}
    title = titles.get(str(selector), f"selector {selector}")
    title += "" if by_gradients else " on embeddings"
    return title if baseline in ("", selector) else f"{title} ({baseline})"


def _from_one(record: dict[str, Any]) -> dict[str, Any]:
    """Return a pick with ranks from 1; some selectors have no components or similarities."""
    component, similarity = record["component"], record["similarity"]
    shown = {name: record[name] for name in ("row", "id", "step")}
    return shown | {
        "rank": record["rank"] + 1,
        "component": None if component is None else component + 1,
        "similarity": float("nan") if similarity is None else similarity,
    }


def _prompt_and_answer(messages: list[dict[str, str]]) -> tuple[str, str]:
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    prompt = "\n\n".join(message["content"] or "" for message in messages[:last])
    return prompt, messages[last]["content"] or ""


def _scores(workspace: Workspace, target: str, variants: Sequence[str]) -> list[ModelScore]:
    stage = f"evaluations/{target}"
    if not workspace.storage.exists(f"{stage}/receipt.json"):
        return []
    scores = []
    for variant in [None, *variants]:
        file = f"{stage}/{score_name(target, variant) if variant else BASE}.json"
        if not workspace.storage.exists(file):
            continue
        measured = workspace.stage(stage).receipt(score_name(target, variant) if variant else BASE)
        name = score_name(variants[0], variant) if variant else BASE
        tuned = workspace.stage(f"tuned/{variant}").receipt() if variant else {}
        scores.append(
            ModelScore(
                name=name,
                role={"base": "base", "selection": "selection"}.get(name, "baseline"),
                examples=tuned.get("rows"),
                steps=tuned.get("steps"),
                train_tokens=tuned.get("train_tokens"),
                seed=tuned.get("seed"),
                loss=measured["loss"],
                test_tokens=measured["test_tokens"],
                exact_match=measured["exact_match"],
                exact_match_rows=measured["exact_match_rows"],
                cut_replies=measured.get("cut_replies", 0),  # earlier versions did not count them
            )
        )
    return scores
