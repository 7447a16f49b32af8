"""The rule of covering over the graph, transcribed without sparse matrices.

x [n, d]: rows of the pool; `free` those that may be picked; `neighbors` [n, k].
"""

import numpy as np

from g2is_ray.selector.interface import Target


def similarities(x: np.ndarray, neighbors: np.ndarray) -> np.ndarray:
    """Of linked rows [n, n], a row's own 1."""
    found = np.eye(len(x))
    for v, near in enumerate(neighbors):
        for u in near[near >= 0]:
            found[u, v] = found[v, u] = max(0.0, float(x[v] @ x[u]))
    return found


def by_subtask(scores: dict[int, float], target: Target) -> float:
    """Of scores of target rows, the mean within a subtask, the maximum over subtasks."""
    return max(
        np.mean([scores[t] for t in scores if target.subtasks[t] == name])
        for name in set(target.subtasks)
    )


def facility_location(x, texts, target, free, neighbors, count):
    links = similarities(x, neighbors)
    cosines = np.maximum(target.features @ x.T, 0)  # [m, n]
    scores = [by_subtask(dict(enumerate((target.features @ row).tolist())), target) for row in x]
    relevance = np.maximum(scores, 0)

    def covered(rows: list[int]) -> tuple[float, float]:
        of_target = cosines[:, rows].max(axis=1, initial=0)
        of_pool = links[:, rows].max(axis=1, initial=0)
        return float(of_target.sum()), float((relevance * of_pool).sum())

    most, total = float(cosines.max(axis=1).sum()), float(relevance.sum())
    taken: list[int] = []
    while len(taken) < count:
        before, gains = covered(taken), {}
        for row in (row for row in free if row not in taken):
            after = covered([*taken, row])
            gains[row] = (after[0] - before[0]) / most + (after[1] - before[1]) / total
        taken.append(min(gains, key=lambda row: (-gains[row], row)))
    return taken
