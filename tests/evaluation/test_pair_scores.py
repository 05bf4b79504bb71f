"""Scores of shortlists: those of each pair alone, whatever the size of the cache and of the batches."""

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mllmreid.evaluation import pair_scores
from modeling_mllmreid.evaluation.pair_scores import PairCost, score_shortlist, shared_scores
from modeling_mllmreid.model.pairs import Reading
from modeling_mllmreid.utils.errors import UserError

PAIR = {"pair_question_ids": [7, 9, 11, 6], "pair_answer_ids": [20, 30]}
QUERIES, GALLERY = 5, 9


@pytest.fixture
def model(make_model):
    return make_model(**PAIR).train()


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (70, 30, 3), dtype=np.uint8)) for _ in range(QUERIES + GALLERY)]


@pytest.fixture
def places():
    rng = np.random.default_rng(1)
    places = np.array([rng.permutation(GALLERY)[:4] for _ in range(QUERIES)])
    places[1, 2:] = -1  # a query whose person fills the gallery
    return places


def alone(model, processor, one, other) -> float:
    """The score of a pair in a batch of its own."""
    model.eval()
    with torch.inference_mode():
        reading = model.read_images(processor(images=[one, other])["pixel_values"])
        return float(model.score_pairs(reading, torch.tensor([0]), torch.tensor([1])))


def crop_bytes(model, processor, image) -> int:
    reading = model.read_images(processor(images=[image])["pixel_values"])
    return sum(states.numel() * states.element_size() for states in (*reading.keys, *reading.values))


@pytest.mark.parametrize("crops", [3, 4, 6, 1000])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_each_score_is_that_of_the_pair_alone(model, tiny_processor, images, places, monkeypatch, crops, batch_size):
    queries, gallery = images[:QUERIES], images[QUERIES:]
    limit = crops * crop_bytes(model, tiny_processor, images[0])
    seen, empty, read = [], pair_scores._empty, type(model).read_images

    def made(sample: Reading, count: int) -> Reading:
        seen.append([count])
        return empty(sample, count)

    def reads(self, pixel_values):
        if seen:
            seen[0].append(len(pixel_values))
        assert not self.training and torch.is_inference_mode_enabled()
        return read(self, pixel_values)

    monkeypatch.setattr(pair_scores, "_empty", made)
    monkeypatch.setattr(type(model), "read_images", reads)
    options = {"batch_size": batch_size, "cache_bytes": limit, "progress": False}
    scores, cost = score_shortlist(model, tiny_processor, queries, gallery, places, **options)
    # Readings in the cache and in the batch that is being read.
    ((kept, *batches),) = seen
    assert kept + max(batches) <= max(crops, 3) and max(batches) <= batch_size
    assert sum(batches) == cost.crops - 1 and cost.pairs == 18 and cost.reading_passes == 1 + len(batches)
    monkeypatch.undo()
    assert model.training
    assert scores.dtype == np.float32 and np.array_equal(np.isnan(scores), places < 0)
    for query, row in enumerate(places):
        for column, place in enumerate(row):
            if place >= 0:
                expected = alone(model, tiny_processor, queries[query], gallery[place])
                assert scores[query, column] == pytest.approx(expected, abs=1e-5)
                turned = alone(model, tiny_processor, gallery[place], queries[query])
                assert scores[query, column] == pytest.approx(turned, abs=1e-5)
    assert np.nanstd(scores) > 1e-3
    if crops == 1000:
        assert cost.crops == QUERIES + len(np.unique(places[places >= 0]))  # each one once
        assert cost.question_passes == {1: 18, 3: 6, 64: 1}[batch_size]
    else:
        assert cost.crops > QUERIES


def test_the_least_recently_used_crop_is_replaced():
    first, second = np.array([0, 0, 1, 1, 2]), np.array([10, 11, 10, 12, 10])
    steps = list(pair_scores._plan(first, second, 3))
    assert [step.missing for step in steps] == [[10, 11], [1, 12], [2]]
    # 0 and 11 make room for 1 and 12, as 10 is used again; then 1 makes room, the first of the block before.
    assert [step.slots for step in steps] == [[1, 2], [0, 2], [0]]
    assert [len(step.first) for step in steps] == [2, 2, 1]
    kept = {0: 0}
    for step in steps:
        kept |= {slot: crop for crop, slot in zip(step.missing, step.slots, strict=True)}
        assert len(kept) <= 3
    assert kept[steps[-1].first[0]] == 2 and kept[steps[-1].second[0]] == 10


def test_processes_share_the_queries(model, tiny_processor, images, places, monkeypatch):
    queries, gallery = images[:QUERIES], images[QUERIES:]
    whole, _ = score_shortlist(model, tiny_processor, queries, gallery, places, progress=False)
    parts = []
    monkeypatch.setattr(pair_scores, "gather_on_main", lambda own: parts.append(own) or list(parts))
    for rank in range(2):
        monkeypatch.setattr(pair_scores, "place", lambda rank=rank: (rank, 2))
        shared = shared_scores(model, tiny_processor, queries, gallery, places, progress=False)
    np.testing.assert_allclose(shared[0], whole, atol=1e-5)
    assert shared[1].pairs == 18 and shared[1].seconds == max(cost.seconds for _, cost in parts)
    # More processes than queries: some have none.
    none, cost = score_shortlist(model, tiny_processor, [], gallery, places[:0])
    assert none.shape == (0, 4) and (cost.pairs, cost.crops) == (0, 0)


def test_costs_of_processes_at_the_same_time():
    assert PairCost.combined([PairCost(1, 2, 3, 4, 5.0), PairCost(10, 20, 30, 40, 2.0)]) == PairCost(11, 22, 33, 44, 5)


def test_a_broken_image_is_named(model, tiny_processor, images, places, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    gallery = [*images[QUERIES:-1], str(tmp_path / "broken.jpg")]
    with pytest.raises(UserError, match=r"broken.jpg"):
        score_shortlist(model, tiny_processor, images[:QUERIES], gallery, np.full((QUERIES, 1), 8), progress=False)


def test_scores_that_are_not_finite_are_refused(model, tiny_processor, images, places):
    """Float16 may overflow: such scores have no order, and fit no fusion."""
    scored = model.score_pairs
    calls = []

    def overflow(*args):
        calls.append(scored(*args))
        return calls[-1] * float("inf" if len(calls) == 2 else 1)

    model.score_pairs = overflow
    given = (model, tiny_processor, images[:QUERIES], images[QUERIES:], places)
    message = "^pair scores: 6 of 18 are not finite: load the model in float32 or bfloat16, or train it again$"
    with pytest.raises(UserError, match=message):
        score_shortlist(*given, batch_size=6, progress=False)
