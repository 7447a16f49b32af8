"""Core knowledge: principal components of the target, their signs, and the budgets."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from g2is_ray.errors import InputError
from g2is_ray.selector.budget import split_budget
from g2is_ray.selector.knowledge import CoreKnowledge, core_knowledge, joint_knowledge

RNG = np.random.default_rng(0)
TARGET = RNG.standard_normal((12, 20)) * np.linspace(3, 0.1, 20) + 0.5


@pytest.mark.parametrize("explained", [0.01, 0.5, 0.9, 1.0])
def test_centered_components_are_scikit_learns_with_its_signs(explained):
    found = core_knowledge(TARGET, explained_variance=explained)
    model = PCA(svd_solver="full").fit(TARGET)
    count = len(found.components)
    np.testing.assert_allclose(found.components, model.components_[:count], atol=1e-12)
    np.testing.assert_allclose(
        found.explained_variance_ratio, model.explained_variance_ratio_[:count]
    )


@pytest.mark.parametrize("pca", ["centered", "uncentered"])
@pytest.mark.parametrize("explained", [0.01, 0.3, 0.5, 0.8, 0.99])
def test_as_few_components_as_explain_the_share(pca, explained):
    ratios = core_knowledge(TARGET, explained_variance=explained, pca=pca).explained_variance_ratio
    assert ratios.sum() >= explained
    assert ratios[:-1].sum() < explained


@pytest.mark.parametrize(("pca", "most"), [("centered", 11), ("uncentered", 12)])
def test_all_of_the_variance_takes_every_informative_component_and_no_other(pca, most):
    found = core_knowledge(TARGET, explained_variance=1.0, pca=pca)
    assert len(found.components) == most
    assert found.explained_variance_ratio.sum() == pytest.approx(1)


@pytest.mark.parametrize("pca", ["centered", "uncentered"])
@pytest.mark.parametrize("orient", [True, False])
def test_components_are_orthonormal_and_in_descending_order(pca, orient):
    found = core_knowledge(TARGET, explained_variance=0.95, pca=pca, orient=orient)
    count = len(found.components)
    assert count > 2
    np.testing.assert_allclose(found.components @ found.components.T, np.eye(count), atol=1e-10)
    assert (np.diff(found.explained_variance_ratio) <= 0).all()
    assert found.weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("pca", ["centered", "uncentered"])
def test_orienting_only_turns_components_towards_the_mean(pca):
    plain = core_knowledge(TARGET, explained_variance=0.95, pca=pca).components
    turned = core_knowledge(TARGET, explained_variance=0.95, pca=pca, orient=True).components
    assert (turned @ TARGET.mean(axis=0) >= 0).all()
    np.testing.assert_array_equal(np.abs(turned), np.abs(plain))
    assert (turned != plain).any()  # else this target shows nothing


def test_uncentered_components_do_not_lose_the_mean():
    target = np.tile([3.0, 4.0, 0.0], (5, 1))  # all alike, so nothing is left when centered
    found = core_knowledge(target, explained_variance=0.5, pca="uncentered", orient=True)
    np.testing.assert_allclose(found.components, [[0.6, 0.8, 0]], atol=1e-12)


@pytest.mark.parametrize("pca", ["centered", "uncentered"])
def test_the_order_of_the_targets_rows_does_not_matter(pca):
    found = core_knowledge(TARGET, explained_variance=0.9, pca=pca).components
    other = core_knowledge(TARGET[::-1], explained_variance=0.9, pca=pca).components
    np.testing.assert_allclose(other, found, atol=1e-10)


@pytest.mark.parametrize(
    ("target", "pca", "problem"),
    [
        (np.ones((0, 3)), "centered", "0 usable rows"),
        (np.ones((1, 3)), "centered", "1 usable rows"),
        (np.ones((0, 3)), "uncentered", "0 usable rows"),
        (np.ones((4, 3)), "centered", "all alike"),
        (np.zeros((4, 3)), "uncentered", "all alike"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # PCA of equal rows
def test_a_target_without_components_is_refused(target, pca, problem):
    with pytest.raises(InputError, match=problem):
        core_knowledge(target, explained_variance=0.5, pca=pca)


@pytest.mark.parametrize(
    ("budget", "weights", "parts"),
    [
        (10, [1.0], [10]),
        (10, [0.5, 0.5], [5, 5]),
        (10, [0.55, 0.45], [6, 4]),  # equal remainders: the earlier one
        (10, [0.34, 0.33, 0.33], [4, 3, 3]),
        (10, [0.36, 0.36, 0.28], [4, 3, 3]),  # remainders .6, .6, .8
        (1, [0.4, 0.35, 0.25], [1, 0, 0]),
        (0, [0.6, 0.4], [0, 0]),
    ],
)
def test_budgets_are_split_by_the_largest_remainder(budget, weights, parts):
    assert split_budget(budget, np.array(weights)) == parts


@pytest.mark.parametrize("count", [1, 2, 7, 50])
@pytest.mark.parametrize("budget", [1, 3, 100, 99_999])
def test_budgets_sum_to_the_whole_and_stay_within_one_of_their_quota(count, budget):
    weights = RNG.random(count)
    weights /= weights.sum()
    parts = split_budget(budget, weights)
    assert sum(parts) == budget
    assert (np.abs(np.array(parts) - budget * weights) < 1).all()


def known(weights: list[float], first: int) -> CoreKnowledge:
    """Components that are unit vectors, the first along axis `first`."""
    ratios = np.array(weights) / 2
    return CoreKnowledge(
        components=np.eye(8)[first : first + len(weights)],
        explained_variance_ratio=ratios,
        weights=ratios / ratios.sum(),
        means=np.full((1, 8), first),
        mean_of=np.zeros(len(weights), dtype=int),
        number=np.arange(len(weights)),
    )


def test_joint_weights_are_the_targets_shares_of_the_budget() -> None:
    each = {"a": known([0.7, 0.3], 0), "b": known([0.5, 0.3, 0.2], 2)}
    joint = joint_knowledge(each, {"a": 1, "b": 3})
    assert joint.targets == ("b", "b", "a", "b", "a")
    np.testing.assert_array_equal(joint.means[joint.mean_of][:, 0], [2, 2, 0, 2, 0])
    np.testing.assert_allclose(joint.weights, [0.375, 0.225, 0.175, 0.15, 0.075])
    np.testing.assert_array_equal(joint.components, np.eye(8)[[2, 3, 0, 4, 1]])
    np.testing.assert_array_equal(joint.number, [0, 1, 0, 2, 1])
    np.testing.assert_allclose(joint.explained_variance_ratio, [0.25, 0.15, 0.35, 0.1, 0.15])


def test_the_joint_knowledge_of_one_target_is_its_own() -> None:
    own = known([0.5, 0.3, 0.2], 0)
    joint = joint_knowledge({"a": own}, {"a": 7})
    np.testing.assert_array_equal(joint.weights, own.weights)
    np.testing.assert_array_equal(joint.components, own.components)
