import numpy as np
import pytest

from modeling_mllmreid.evaluation.grouping import grouping_metrics
from modeling_mllmreid.utils.errors import UserError


def test_values_computed_by_hand():
    """Groups {0,1,2} {3,4,5} of people {0,1} {2,3} {4,5}: 2 common pairs of 6 in groups and 3 of people, of 15."""
    metrics = grouping_metrics([7, 7, 7, -2, -2, -2], [0, 0, 1, 1, 2, 2])
    assert (metrics.precision, metrics.recall, metrics.groups) == (2 / 6, 2 / 3, 2)
    assert metrics.ari == pytest.approx((2 - 6 * 3 / 15) / ((6 + 3) / 2 - 6 * 3 / 15))
    # Mutual information: person 0 and person 2 give their group away, person 1 says nothing.
    information = np.log(2) - np.log(2) / 3
    assert metrics.nmi == pytest.approx(information / ((np.log(2) + np.log(3)) / 2))


def test_ends_of_the_scales():
    same = grouping_metrics([5, 5, 3, 3], [0, 0, 9, 9])
    assert (same.ari, same.nmi, same.precision, same.recall) == (1, 1, 1, 1)
    crossed = grouping_metrics([0, 0, 1, 1], [0, 1, 0, 1])
    assert (crossed.ari, crossed.nmi, crossed.precision, crossed.recall) == (-0.5, 0, 0, 0)
    alone = grouping_metrics([0, 1, 2], [4, 4, 4])
    assert np.isnan(alone.precision) and (alone.recall, alone.ari, alone.nmi) == (0, 0, 0)
    assert grouping_metrics([3], [4]).ari == grouping_metrics([3], [4]).nmi == 1


def test_many_crops_do_not_overflow():
    metrics = grouping_metrics(np.arange(400_000) // 200_000, np.arange(400_000) // 200_000)
    assert metrics.ari == 1


@pytest.mark.parametrize(("groups", "persons"), [([], []), ([1], [1, 2]), ([[1]], [[1]])])
def test_one_number_per_crop(groups, persons):
    with pytest.raises(UserError, match="give one number of each per crop"):
        grouping_metrics(groups, persons)
