"""The threshold chosen on val: what it promises, its interval, and its file."""

import numpy as np
import pytest

from modeling_mllmreid.evaluation.open_set import open_set_from_blocks
from modeling_mllmreid.evaluation.threshold import choose_threshold, load_thresholds, save_thresholds
from modeling_mllmreid.retrieval import SamePerson, distance_blocks


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


def test_a_collapsed_model_has_no_threshold():
    persons = np.arange(30)
    same = np.tile(np.eye(8, dtype=np.float32)[:1], (30, 1))
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
    with pytest.raises(Exception, match=r"threshold.json: holds no thresholds"):
        load_thresholds(str(tmp_path))


def test_people_are_drawn_not_searches():
    """Each person's four searches are one search made four times: as wide an interval as with one search each."""
    q, g, _ = val(40, queries=1)
    persons = np.arange(40)
    once = choose_threshold(q, g, SamePerson(persons, persons))
    four = choose_threshold(np.repeat(q, 4, 0), g, SamePerson(np.repeat(persons, 4), persons))
    assert (four.low, four.high) == (once.low, once.high)
