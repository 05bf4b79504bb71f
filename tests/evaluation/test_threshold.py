"""The threshold chosen on val: what it promises, its interval, and its file."""

import numpy as np
import pytest

from modeling_mllmreid.evaluation import threshold
from modeling_mllmreid.evaluation.statistics import Error, people_error, share_interval
from modeling_mllmreid.evaluation.threshold import load_thresholds, save_thresholds
from modeling_mllmreid.evaluation.threshold_choice import _error, choose_threshold
from modeling_mllmreid.evaluation.verification import open_set_from_blocks
from modeling_mllmreid.retrieval.distances import distance_blocks
from modeling_mllmreid.retrieval.matching import SamePerson
from modeling_mllmreid.utils.errors import UserError


def val(people, seed=0, queries=4):
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(people, 16))
    persons = np.repeat(np.arange(people), queries)
    make = lambda: (centers[persons] + 0.4 * rng.normal(size=(len(persons), 16))).astype(np.float32)  # noqa: E731
    return make(), make(), SamePerson(persons, persons)


def test_it_holds_on_the_part_it_was_chosen_on_and_nearly_on_other_people():
    q, g, rule = val(60)
    chosen = choose_threshold(q, g, rule, fpir=0.1)
    metrics = open_set_from_blocks(distance_blocks(q, g), rule, fpirs=(0.1,))
    assert (chosen.distance, chosen.tpir) == (metrics.thresholds[0.1], metrics.tpir[0.1])
    assert (chosen.searches, chosen.people) == (240, 60)
    assert chosen.low <= chosen.distance <= chosen.high and 0.005 < chosen.high - chosen.low < 0.2
    few = choose_threshold(*val(15), fpir=0.1)
    assert few.high - few.low > chosen.high - chosen.low
    inside = [chosen.low <= choose_threshold(*val(60, seed), fpir=0.1).distance <= chosen.high for seed in range(1, 11)]
    assert sum(inside) >= 6


def test_too_few_searches_give_none():
    assert choose_threshold(*val(2, queries=1), fpir=0.1) is None
    assert choose_threshold(*val(1, queries=20), fpir=0.1) is None  # one person alone is never another


@pytest.mark.parametrize("feature", [[1, 0, 0], [0.6, 0.8, 0], [0.1, 0.7, 0.3]])
def test_a_collapsed_model_has_no_threshold(feature):
    """Nor if the distance of equal features is not 0 because of rounding."""
    persons = np.arange(30)
    same = np.tile(np.float32(feature), (30, 1))
    same /= np.linalg.norm(same, axis=1, keepdims=True)
    assert choose_threshold(same, same, SamePerson(persons, persons), fpir=0.1) is None
    same *= 1 + 1e-7 * persons[:, None].astype(np.float32)
    assert choose_threshold(same, same, SamePerson(persons, persons), fpir=0.1) is None


def test_copies_under_two_names_leave_a_threshold_that_can_be_kept(tmp_path):
    q = np.eye(10, dtype=np.float32)
    q[9] = q[0]  # two of ten searches find another person at 0
    chosen = choose_threshold(q, q, SamePerson(np.arange(10), np.arange(10)), fpir=0.1)
    assert (chosen.distance, chosen.low, chosen.fpir, chosen.tpir) == (0, 0, 0.2, 0.8)
    save_thresholds(tmp_path, {"llm": chosen})
    assert load_thresholds(str(tmp_path)) == {"llm": chosen}


def test_the_file_travels_with_the_checkpoint(tmp_path):
    chosen = choose_threshold(*val(20))
    save_thresholds(tmp_path, {"llm": chosen})
    assert load_thresholds(str(tmp_path)) == {"llm": chosen}
    (tmp_path / "threshold.json").unlink()
    assert load_thresholds(str(tmp_path)) == {}


@pytest.mark.parametrize("text", ["[]", "{", '{"llm": 3}', '{"llm": {}}', "NaN", '{"llm": {"distance": NaN}}'])
def test_a_foreign_file_is_named(tmp_path, text):
    (tmp_path / "threshold.json").write_text(text)
    with pytest.raises(UserError, match=r"threshold.json: holds no thresholds .*train again, or remove the file\)$"):
        load_thresholds(str(tmp_path))


def test_the_file_of_the_wanted_revision_is_read(monkeypatch, tmp_path):
    wanted = []
    monkeypatch.setattr("transformers.utils.hub.cached_file", lambda *names, **options: wanted.append((names, options)))
    assert load_thresholds("somebody/model", "v2") == {}
    assert wanted == [(("somebody/model", "threshold.json"), {"revision": "v2", **threshold.QUIET})]


def test_people_are_drawn_not_searches():
    """Each person's four searches are one search made four times: as wide an interval as with one search each."""
    q, g, _ = val(40, queries=1)
    persons = np.arange(40)
    once = choose_threshold(q, g, SamePerson(persons, persons))
    four = choose_threshold(np.repeat(q, 4, 0), g, SamePerson(np.repeat(persons, 4), persons))
    assert (four.low, four.high) == (once.low, once.high)


@pytest.mark.parametrize("copies", [0, 9])
def test_the_interval_by_hand(copies):
    """Twenty people of one or three searches, each of which lies between its person and another, or on another."""
    rng = np.random.default_rng(1)
    counts = np.where(np.arange(20) < 5, 3, 1)
    persons = np.repeat(np.arange(20), counts)
    found = (persons + rng.integers(1, 3, 30)) % 20
    toward = rng.permutation(np.linspace(0.1, 0.9, 30))
    features = np.eye(20)[persons] + toward[:, None] * np.eye(20)[found]
    features[:copies] = np.eye(20)[found[:copies]]
    other = 1 - toward / np.sqrt(1 + toward**2)
    other[:copies] = 0
    chosen = choose_threshold(features, np.eye(20), SamePerson(persons, np.arange(20)), fpir=0.2)
    nearest = np.sort(other)
    assert chosen.distance == pytest.approx(nearest[6], abs=1e-6)  # of 30 it lets 6 through
    positive = other == 0 if copies else other < nearest[6] - 1e-6
    assert (chosen.searches, chosen.people, chosen.gallery) == (30, 20, 20)
    assert chosen.fpir == (0.3 if copies else 0.2) and chosen.metric == "cosine"
    size = _error(persons, found, positive).effective_size(positive.mean(), counts)
    held = [n for n in range(31) if share_interval(n / 30, size)[0] <= 0.2 <= share_interval(n / 30, size)[1]]
    ends = [0, *nearest, 2]
    assert (chosen.low, chosen.high) == pytest.approx((ends[held[0]], ends[held[-1] + 1]), abs=1e-6)
    assert chosen.low <= chosen.distance < chosen.high < nearest[-1] and (copies or chosen.low > 0)


def test_searches_depend_where_they_share_a_person():
    larger = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        persons = np.repeat(np.arange(1, 13), rng.integers(1, 6, 12))
        # Two people look alike and find each other; or anybody is found, or 0 or 13, who are in the gallery alone.
        found = (persons - 1) // 2 * 2 + 1 + persons % 2
        positive = rng.random(13)[(persons - 1) // 2] + 0.4 * rng.random(len(persons)) < 0.6
        if seed % 2:
            found = (persons + rng.integers(1, 13, len(persons))) % 14
            positive = rng.random(len(persons)) < 0.4
        residuals = positive - positive.mean()
        involved = [{p, f} if of else {p} for p, f, of in zip(persons, found, positive, strict=True)]
        rows = range(len(persons))
        pairs = [residuals[i] * residuals[j] for i in rows for j in rows if involved[i] & involved[j]]
        alone = people_error(np.bincount(persons, positive)[1:], np.bincount(persons)[1:])
        shared = sum(pairs) / len(persons) ** 2 * 12 / 11
        larger.append(shared > alone.variance)
        expected = Error(pytest.approx(max(alone.variance, shared)), pytest.approx(alone.freedom))
        assert _error(persons, found, positive) == expected
    assert 3 < sum(larger) < 12


def test_ends_that_val_says_nothing_about_are_those_of_the_cosine():
    one = choose_threshold(np.eye(2)[[0] * 10], np.eye(2), SamePerson([1] * 10, [1, 2]))
    assert one is not None and (one.low, one.high, one.people) == (0, 2, 1)
    few = choose_threshold(*val(10, queries=1))
    assert few.low == 0 and few.distance < few.high < 2
    # Ten people of one search, and two who make nearly all.
    persons = np.concatenate([np.arange(10), np.repeat([10, 11], 20)])
    toward = np.linspace(0.1, 0.9, 50)[:, None]
    features = np.eye(12)[persons] + toward * np.eye(12)[(persons + 1) % 12]
    heavy = choose_threshold(features, np.eye(12), SamePerson(persons, np.arange(12)))
    assert (heavy.low, heavy.high) == (0, 2)
    # A person of whom there are all gallery images is never taken for another; two people say something.
    persons = np.repeat([0, 1], 20)
    features = np.eye(2)[persons] + np.tile(np.linspace(0.1, 0.9, 20), 2)[:, None] * np.eye(2)[1 - persons]
    two = choose_threshold(features, np.eye(2)[:1], SamePerson(persons, [0]), fpir=0.45)
    assert two.high == 2 and two.low >= 0
    alike = choose_threshold(features, np.eye(2), SamePerson(persons, [0, 1]), fpir=0.1)
    assert alike.high < 2


@pytest.mark.parametrize("queries", ["equal", "unequal"])
def test_coverage(queries):
    """Of val parts drawn anew, gallery and all. The bootstrap over people that was here held in 77 % of either."""
    rng, held = np.random.default_rng(0), []

    def draw(counts):
        centers, people = rng.normal(size=(20, 16)), np.arange(20)
        persons = np.repeat(people, counts)
        q = centers[persons] + 0.4 * rng.normal(size=(len(persons), 16))
        g = centers + 0.4 * rng.normal(size=(20, 16))
        return q, g, SamePerson(persons, people)

    every = []
    for _ in range(2000):
        q, g, rule = draw(np.ones(20, dtype=int))
        q, g = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (q, g))
        every.append((1 - q @ g.T + 9 * np.eye(20)).min(1))
    truth = np.quantile(np.concatenate(every), 0.1)
    for _ in range(400):
        counts = np.full(20, 4) if queries == "equal" else 1 + np.floor(20 * rng.random(20) ** 4).astype(int)
        chosen = choose_threshold(*draw(counts))
        held.append(chosen.low <= truth <= chosen.high)
    assert np.mean(held) > 0.93
