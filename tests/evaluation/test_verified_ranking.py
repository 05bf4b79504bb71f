"""The verified ranking by hand: the order, ties, the camera rule, short galleries; the control; metrics of pairs."""

import numpy as np
import pytest
import torch

from modeling_mllmreid.evaluation.metrics import metrics_from_blocks
from modeling_mllmreid.evaluation.pair_fusion import PairFusion
from modeling_mllmreid.evaluation.pair_scores import PairCost
from modeling_mllmreid.evaluation.verified_ranking import verified_blocks
from modeling_mllmreid.evaluation.verified_report import Verified, pair_metrics, shuffled, verified_lines
from modeling_mllmreid.retrieval.distances import distance_blocks
from modeling_mllmreid.retrieval.exact import Ranking
from modeling_mllmreid.retrieval.matching import SamePerson
from modeling_mllmreid.retrieval.ranking import rank_gallery

FUSION = PairFusion(0.0, -1.0, 1.0, 0.5, 0.4, 0.6, 20, 400, 20, 0.2, 0.02)


def at(*angles: float) -> np.ndarray:
    """Features at these angles in degrees; a query at 0 has the cosine distances 1 - cos."""
    radians = np.radians(angles)
    return np.column_stack([np.cos(radians), np.sin(radians)]).astype(np.float32)


def verified(gallery, odds, top, rule=None):
    query = at(0.0)
    shortlist = rank_gallery(query, gallery, top, same_person=rule)
    ((rows, block),) = verified_blocks(query, gallery, shortlist, np.array([odds], dtype=float))
    assert rows == slice(0, 1)
    return block[0].numpy(), next(iter(distance_blocks(query, gallery)))[1][0].numpy()


def test_the_shortlist_gets_the_order_of_the_log_odds_and_its_own_distances():
    gallery = at(50, 10, 40, 20, 30)  # by distance: 1, 3, 4, 2, 0
    new, old = verified(gallery, [-1.0, 3.0, 2.0], 3)
    # Images 1, 3 and 4 in the order 3, 4, 1.
    assert (new[3], new[4], new[1]) == (old[1], old[3], old[4])
    assert (new[2], new[0]) == (old[2], old[0])
    assert new.argsort().tolist() == [3, 4, 1, 2, 0]


def test_the_order_of_the_embedding_changes_nothing():
    gallery = at(50, 10, 40, 20, 30)
    new, old = verified(gallery, [3.0, 2.0, 2.0, 1.0], 4)  # of equal log odds the nearer is first
    assert np.array_equal(new, old)


def test_images_that_are_equal_in_both_stay_equal():
    gallery = at(30, 10, 10, 20)
    new, old = verified(gallery, [0.0, 0.0, 5.0, 1.0], 4)
    assert new[1] == new[2] == old[0] and new.argsort(kind="stable").tolist() == [3, 0, 1, 2]
    # The wrong one of them counts as nearer.
    rule = SamePerson([1], [0, 1, 0, 0])
    assert metrics_from_blocks([(slice(0, 1), new[None])], rule).match_ranks[0].tolist() == [4]


def test_images_of_equal_distance_get_the_order_of_their_log_odds():
    gallery = at(10, 10, 10, 20)
    new, old = verified(gallery, [1.0, 3.0, 2.0], 3)
    assert new[1] < new[2] < new[0] == old[0] < new[3] == old[3]
    assert new[1] == pytest.approx(old[0], abs=1e-6)


def test_images_that_the_rule_drops_are_not_verified():
    gallery = at(5, 10, 20, 30)
    rule = SamePerson([1], [1, 0, 1, 0], [7], [7, 8, 8, 7])  # image 0 has the query's person and camera
    new, old = verified(gallery, [1.0, 2.0], 2, rule)
    assert (new[2], new[1]) == (old[1], old[2]) and (new[0], new[3]) == (old[0], old[3])
    assert metrics_from_blocks([(slice(0, 1), new[None])], rule).match_ranks[0].tolist() == [1]


def test_a_gallery_that_is_smaller_than_the_shortlist():
    gallery = at(5, 10)
    rule = SamePerson([1], [1, 0], [7], [7, 7])
    new, old = verified(gallery, [1.0, np.nan, np.nan], 3, rule)
    assert np.array_equal(new, old)
    new, _ = verified(gallery, [1.0, 2.0, np.nan], 3)
    assert new.argsort().tolist() == [1, 0]


def test_blocks_of_any_size_and_the_loop_agree(monkeypatch):
    random = np.random.default_rng(0)
    query, gallery = (random.normal(size=(count, 6)).astype(np.float32) for count in (40, 60))
    shortlist = rank_gallery(query, gallery, 7)
    odds = random.integers(0, 4, (40, 7)).astype(float)
    (whole,) = [block.numpy() for _, block in verified_blocks(query, gallery, shortlist, odds)]
    for number, row in enumerate(whole):
        order = sorted(range(7), key=lambda column, number=number: (-odds[number, column], column))
        rest = [image for image in np.argsort(row) if image not in shortlist.indices[number]]
        assert np.argsort(row).tolist() == [*shortlist.indices[number][order], *rest]
    tensors = (torch.from_numpy(features) for features in (query, gallery))
    (of_tensors,) = [block.numpy() for _, block in verified_blocks(*tensors, shortlist, odds)]
    assert np.array_equal(of_tensors, whole)
    small = "modeling_mllmreid.evaluation.verified_ranking.distance_blocks"
    monkeypatch.setattr(small, lambda *features: distance_blocks(*features, block_size=16))
    parts = [block.numpy() for _, block in verified_blocks(query, gallery, shortlist, odds)]
    assert len(parts) > 1 and np.array_equal(np.concatenate(parts), whole)


def test_the_control_exchanges_the_candidates_of_a_query():
    random = np.random.default_rng(0)
    scores = random.normal(size=(50, 6)).astype(np.float32)
    scores[0, 4:] = np.nan
    mixed = shuffled(scores)
    assert np.array_equal(np.sort(mixed, axis=1), np.sort(scores, axis=1), equal_nan=True)
    assert np.array_equal(np.isnan(mixed), np.isnan(scores))
    assert 0.05 < (mixed == scores).mean() < 0.3  # one in six stays by chance
    assert np.array_equal(shuffled(scores), mixed, equal_nan=True)


def scored(scores, distances, indices=None):
    scores, distances = np.array(scores, np.float32), np.array(distances, np.float32)
    indices = np.tile(np.arange(scores.shape[1]), (len(scores), 1)) if indices is None else np.array(indices)
    return Verified(Ranking(indices, distances), scores, PairCost(4, 6, 1, 1, 2.0), FUSION)


def test_metrics_of_the_pairs_by_hand():
    # The score separates the pairs, the distance has them the other way round.
    shortlists = scored([[9.0, -9.0], [8.0, -8.0]], [[0.6, 0.1], [0.7, 0.2]])
    found = pair_metrics(shortlists, SamePerson([1, 1], [1, 0]))
    assert (found.pairs, found.same) == (4, 2)
    assert found.by["pair score"].eer == 0 == found.by["fused"].eer and found.by["distance"].eer == 1
    assert found.ece["pair score"] < 0.001 and found.ece["fused"] < 0.01
    assert found.to_dict()["verification"]["fused"]["num_genuine"] == 2
    lines = verified_lines(shortlists, found)
    assert "pairs of the 2 nearest images: 4, 2 of one person; the fusion was fitted on the 20 nearest" in lines
    assert "cost per query: 2.0 pairs, 3.0 crops read, 1.00 forward passes, 1.000 s" in lines


def test_pairs_of_one_kind_have_no_rates():
    shortlists = scored([[9.0, np.nan]], [[0.6, np.inf]], [[0, -1]])
    found = pair_metrics(shortlists, SamePerson([1], [1]))
    assert (found.pairs, found.same, found.by) == (1, 1, {}) and set(found.ece) == {"pair score", "fused"}
    assert [line.split() for line in verified_lines(shortlists, found).splitlines() if line.startswith("dist")] == [
        ["distance", "-", "-", "-", "-"]
    ]
