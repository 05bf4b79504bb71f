"""Ranks of matches: by hand, on a GPU's way of counting as on the CPU's, in any number of threads and parts."""

import numpy as np
import pytest
import torch

from modeling_mllmreid.retrieval import match_ranks, ranking
from modeling_mllmreid.retrieval.match_ranks import MatchRanks
from modeling_mllmreid.retrieval.matching import SamePerson
from modeling_mllmreid.retrieval.ranking import parts


def problem(seed, queries=23, gallery=300, persons=9, levels=40):
    """Distances with many ties, a person with most of the images, one without any, and infinite distances."""
    rng = np.random.default_rng(seed)
    block = torch.from_numpy(rng.integers(0, levels, (queries, gallery)).astype(np.float32)) / 7
    block[:, ::50] = torch.inf
    gallery_persons = np.where(rng.random(gallery) < 0.5, 0, rng.integers(0, persons, gallery))
    query_persons = rng.integers(0, persons, queries)
    query_persons[[0, 5]] = persons
    rule = SamePerson(
        query_persons,
        gallery_persons,
        rng.integers(-1, 3, queries),
        rng.integers(-1, 3, gallery),
        query_clothes_ids=rng.integers(-1, 2, queries),
        gallery_clothes_ids=rng.integers(-1, 2, gallery),
    )
    return block, rule


def ranks_of(block, rule):
    """Ranks of a whole matrix, from all its parts."""
    found = [match_ranks.match_ranks(part) for part in parts([(slice(0, len(block)), block)], rule)]
    return MatchRanks(*map(np.concatenate, zip(*found, strict=True)))


def by_counting(row, same, dropped):
    """The definition: strangers that are at most as far come before a match, and so do nearer matches."""
    others = np.delete(row, same)
    return [int((others <= match).sum()) + place for place, match in enumerate(sorted(row[same[~dropped]]), start=1)]


def test_by_hand():
    row = torch.tensor([[0.5, 0.1, 0.3, 0.3, 0.2, 0.9, 0.3]])
    # Matches 2, 6 (tied with the stranger 3) and 5; image 4 is dropped; strangers 0, 1, 3.
    rule = SamePerson([7], [1, 2, 7, 3, 7, 7, 7], [0], [1, 0, 1, 0, 0, 1, -1])
    ranks, counts = ranks_of(row, rule)
    assert ranks.tolist() == [3, 4, 6] and counts.tolist() == [3]
    ranks, counts = ranks_of(row, SamePerson([9], rule.gallery_persons))
    assert ranks.tolist() == [] and counts.tolist() == [0] and ranks.dtype == counts.dtype == np.int64


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_definition(seed):
    block, rule = problem(seed)
    found = ranks_of(block, rule).by_query()
    assert len(found) == 23 and not all(map(len, found))
    for query, ranks in enumerate(found):
        assert ranks.tolist() == by_counting(block[query].numpy(), *rule.gallery_images(query))


@pytest.mark.parametrize("compared", [1000, 0])
@pytest.mark.parametrize("seed", range(3))
def test_a_gpus_way_of_counting_is_the_cpus(compared, seed, monkeypatch):
    block, rule = problem(seed)
    expected = ranks_of(block, rule)
    monkeypatch.setattr(match_ranks, "COMPARED", compared)  # compares with each match, or sorts
    used = []

    def near(block, matches, counts):
        used.append(len(block))
        return match_ranks._near_on_device(block, matches)

    monkeypatch.setattr(match_ranks, "_near_in_threads", near)
    got = ranks_of(block, rule)
    assert used == [23]
    for array, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(array, other)


def test_threads_and_parts_change_nothing(monkeypatch):
    block, rule = problem(7)
    expected = ranks_of(block, rule)
    for threads, images in ((1, 1), (3, 2**20), (40, 500)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        monkeypatch.setattr(ranking, "PART_IMAGES", images)
        got = ranks_of(block, rule)
        for array, other in zip(got, expected, strict=True):
            np.testing.assert_array_equal(array, other)
