"""TPIR at FPIR against searches made one by one."""

import numpy as np
import pytest

from modeling_mllmreid.evaluation.verification import open_set_distances, open_set_from_blocks, share_of, threshold_at
from modeling_mllmreid.retrieval.matching import SamePerson
from modeling_mllmreid.utils.errors import UserError


def test_equals_searches_one_by_one():
    rng = np.random.default_rng(0)
    qp, gp = rng.integers(0, 25, 60), rng.integers(0, 20, 100)
    qc, gc = rng.integers(0, 3, 60), rng.integers(0, 3, 100)
    matrix = rng.random((60, 100)).astype(np.float32)
    matrix[qp[:, None] == gp[None]] *= 0.1
    got = open_set_from_blocks([(slice(0, 60), matrix)], SamePerson(qp, gp, qc, gc), fpirs=(0.01, 0.05, 0.5))
    nearest_other = np.array([matrix[i][gp != qp[i]].min() for i in range(60)])
    mated, found = 0, dict.fromkeys((0.05, 0.5), 0)
    for i, row in enumerate(matrix):
        kept = ~((gp == qp[i]) & (gc == qc[i]))
        if not (kept & (gp == qp[i])).any():
            continue
        mated += 1
        first = np.flatnonzero(kept)[np.argmin(row[kept])]
        for fpir in found:
            assert (nearest_other <= got.thresholds[fpir]).mean() == fpir
            found[fpir] += gp[first] == qp[i] and row[first] <= got.thresholds[fpir]
    assert (got.num_mated, got.num_non_mated) == (mated, 60) and mated < 60
    assert {fpir: got.tpir[fpir] for fpir in found} == {fpir: n / mated for fpir, n in found.items()}
    assert 0 < got.tpir[0.05] < got.tpir[0.5] < 1
    assert np.isnan(got.tpir[0.01]) and got.to_dict()["tpir_at_fpir"] == {
        **{"0.01": None, "0.05": got.tpir[0.05], "0.5": got.tpir[0.5]}
    }


def test_a_mate_at_the_threshold_is_named_and_all_is_in_the_json():
    below = np.nextafter(np.float32(0.5), np.float32(0))
    matrix = np.array([[below, 0.5, 0.5], [0.9, 0.2, 0.6], [0.9, 0.9, 0.7]], dtype=np.float32)
    got = open_set_from_blocks([(slice(0, 3), matrix)], SamePerson([1, 2, 4], [1, 2, 3]), fpirs=(0.1, 0.4))
    assert got.thresholds[0.4] == np.nextafter(np.float32(0.6), np.float32(0)) and got.tpir[0.4] == 1
    assert got.to_dict() == {
        "tpir_at_fpir": {"0.1": None, "0.4": 1.0},
        "threshold_at_fpir": {"0.1": None, "0.4": got.thresholds[0.4]},
        "num_mated": 2,
        "num_non_mated": 3,
    }
    edge = open_set_from_blocks([(slice(0, 2), matrix[[0, 0]])], SamePerson([1, 1], [1, 2, 3]), fpirs=(0.5,))
    assert edge.thresholds[0.5] == below and edge.tpir[0.5] == 1


def test_whom_a_search_finds_instead():
    matrix = np.array([[0.1, 0.3, 0.2], [0.4, 0.3, 0.4], [0.1, 0.2, 0.2]], dtype=np.float32)
    rule = SamePerson([7, 8, 9], [7, 8, 9], [0, 0, 0], [0, 1, 1])
    got = open_set_distances([(slice(0, 3), matrix)], rule)
    assert got.other_person.tolist() == [9, 7, 7] and got.other.tolist() == np.float32([0.2, 0.4, 0.1]).tolist()
    assert np.isnan(got.mate[0]) and got.mate[1] == np.float32(0.3) and np.isinf(got.mate[2])
    alone = open_set_distances([(slice(0, 1), matrix[:1])], SamePerson([7], [7, 7, 7]))
    assert alone.other_person.tolist() == [-1] and np.isinf(alone.other).all() and alone.mate == np.float32(0.1)
    assert (matrix[0] == np.float32([0.1, 0.3, 0.2])).all()


def test_a_collapsed_model_finds_nobody():
    got = open_set_from_blocks([(slice(0, 2), np.full((2, 4), 0.3))], SamePerson([1, 2], [1, 2, 3, 4]), fpirs=(0.5,))
    assert got.tpir[0.5] == 0 and got.thresholds[0.5] < np.float32(0.3)


def test_shares_are_not_one_less_by_rounding():
    assert share_of(0.29, 100) == 29 and share_of(0.1, 30) == 3 and share_of(0.1, 9) == 0
    assert threshold_at(np.float32([0.5, 0.1, 0.3]), 0.1) == np.nextafter(np.float32(0.1), np.float32(0))


def test_mistakes():
    for rate in (10, 1.5, 1, 0, -0.1):
        with pytest.raises(UserError, match=f"rate: {rate} is not between 0 and 1"):
            threshold_at(np.ones(3), rate)
    with pytest.raises(UserError, match="no query has a match"):
        open_set_from_blocks([(slice(0, 1), np.ones((1, 1)))], SamePerson([1], [2]))


def test_of_equal_distances_the_others_are_nearer():
    """Below the threshold too: query 0 is as near to another person as to its own."""
    matrix = np.array([[0.1, 0.1, 0.9], [0.9, 0.2, 0.5], [0.9, 0.8, 0.3]])
    got = open_set_from_blocks([(slice(0, 3), matrix)], SamePerson([1, 2, 3], [1, 2, 3]), fpirs=(0.4,))
    assert got.thresholds[0.4] > 0.3 and got.tpir[0.4] == pytest.approx(2 / 3)
