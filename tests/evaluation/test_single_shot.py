"""Single-gallery-shot CMC against a naive drawing, and what its draws may depend on."""

import numpy as np
import pytest

from modeling_mllmreid.evaluation.metrics import single_shot_cmc
from modeling_mllmreid.retrieval.matching import SamePerson
from modeling_mllmreid.utils.errors import UserError


def problem():
    rng = np.random.default_rng(0)
    matrix = rng.random((6, 30)).astype(np.float32)
    matrix[:, 20:] = matrix[:, 10:20]  # ties
    return matrix, [0, 1, 2, 3, 4, 99], rng.integers(0, 5, 30), [0, 1, 0, 1, -1, 0], rng.integers(0, 2, 30)


def test_equals_the_share_over_many_naive_draws():
    matrix, qp, gp, qc, gc = problem()
    rng, ranks, draws = np.random.default_rng(1), (1, 2, 4), 4000
    hits = dict.fromkeys(ranks, 0.0)
    for i, row in enumerate(matrix[:5]):
        for _ in range(draws):
            drawn = {}
            for person in range(5):
                kept = [j for j in range(30) if gp[j] == person and not (person == qp[i] and gc[j] == qc[i])]
                drawn[person] = row[rng.choice(kept)]
            place = 1 + sum(d <= drawn[qp[i]] for person, d in drawn.items() if person != qp[i])
            for rank in ranks:
                hits[rank] += (place <= rank) / (5 * draws)
    got = single_shot_cmc([(slice(0, 6), matrix)], SamePerson(qp, gp, qc, gc), ranks=ranks, repeats=draws)
    assert got == pytest.approx(hits, abs=0.015)
    assert 0 < got[1] < got[2] < got[4] < 1


def test_seed_and_blocks():
    matrix, qp, gp, qc, gc = problem()
    ids = SamePerson(qp, gp, qc, gc)
    whole = single_shot_cmc([(slice(0, 6), matrix)], ids)
    parts = [(slice(4, 6), matrix[4:]), (slice(0, 4), matrix[:4])]
    assert single_shot_cmc(parts, ids) == whole
    assert single_shot_cmc(parts, ids, seed=1) != whole == single_shot_cmc(parts, ids, seed=0, repeats=10)
    one_each = SamePerson([3], [4, 3, 5])
    assert single_shot_cmc([(slice(0, 1), np.array([[0.2, 0.1, 0.1]]))], one_each) == {1: 0.0, 5: 1.0, 10: 1.0}


def test_no_match():
    with pytest.raises(UserError, match="no query has a match"):
        single_shot_cmc([(slice(0, 1), np.ones((1, 1)))], SamePerson([1], [2]))
