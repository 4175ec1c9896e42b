"""The order of dimensions in maps of correlations."""

from itertools import pairwise

import numpy as np
import pytest

from dynprobe.metrics.clustering import correlation_order


def blocks(*groups: list[int], within: float = 0.9) -> np.ndarray:
    """Correlations of groups of dimensions: those of a group say the same, every second one with the other sign."""
    d = sum(map(len, groups))
    table = np.eye(d)
    for group in groups:
        for a in group:
            for b in group:
                if a != b:
                    table[a, b] = within * (-1) ** (a + b)
    return table


@pytest.mark.parametrize("groups", [([0, 3, 5], [1, 2, 4]), ([6, 0], [1, 5], [2, 3, 4]), ([0], [1, 2], [3])])
def test_groups_stand_together_whatever_the_sign(groups: tuple[list[int], ...]) -> None:
    order = correlation_order(blocks(*groups)).tolist()
    assert sorted(order) == list(range(len(order)))
    for group in groups:
        places = [order.index(dimension) for dimension in group]
        assert max(places) - min(places) == len(group) - 1


def test_the_groups_do_not_depend_on_the_names_of_the_dimensions() -> None:
    rng = np.random.default_rng(0)
    table = np.corrcoef(rng.normal(size=(30, 8)) @ rng.normal(size=(8, 8)), rowvar=False).clip(-1, 1)
    renamed = rng.permutation(8)
    order, other = correlation_order(table), correlation_order(table[np.ix_(renamed, renamed)])
    assert {frozenset(pair) for pair in pairwise(renamed[other])} == {frozenset(pair) for pair in pairwise(order)}


@pytest.mark.parametrize("wrong", [np.ones((2, 3)), np.ones((1, 1)), np.ones(4)])
def test_another_shape(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="`correlation` must be square, with at least 2 dimensions; got shape"):
        correlation_order(wrong)


@pytest.mark.parametrize("value", [np.nan, 1.5, -np.inf])
def test_values_that_are_no_correlations(value: float) -> None:
    with pytest.raises(ValueError, match="must be from -1 to 1; got other values"):
        correlation_order(np.array([[1.0, value], [value, 1.0]]))
