"""Statistics of continuations: values by hand, and counts against loops over pairs."""

import itertools
import json
import math
import sys

import numpy as np
import pytest

from modeling_mllmreid.research import continuation_analysis
from modeling_mllmreid.research.continuation_analysis import analyse_continuations, corpus_statistics, text_retrieval
from modeling_mllmreid.synthetic.people.captions import sample_descriptions
from modeling_mllmreid.utils.errors import UserError
from modeling_mllmreid.utils.outputs import write_json


def test_equal_texts():
    got = corpus_statistics(["a red hat and red shoes ."] * 4, [1, 1, 2, 2])
    assert (got.num_texts, got.num_different) == (4, 1)
    assert (got.words_mean, got.words_min, got.words_max) == (6, 6, 6)
    # Five different words of 24, five different pairs of 20, four different triples of 16.
    assert (got.distinct_1, got.distinct_2, got.distinct_3) == (5 / 24, 5 / 20, 4 / 16)
    assert got.type_token_ratio == pytest.approx(5 / 6)
    assert got.self_bleu == pytest.approx(1)
    assert (got.same_for_two_people, got.unique_to_one_person) == (1, 0)
    # Ties count against the query: one match behind two others.
    assert got.retrieval_mAP == pytest.approx(1 / 3)


def test_wholly_different_texts():
    texts = ["red hat", "blue shoes", "green coat", "white bag"]
    got = corpus_statistics(texts, [1, 1, 2, 2])
    assert (got.distinct_1, got.distinct_2, got.type_token_ratio, got.self_bleu) == (1, 1, 1, 0)
    assert math.isnan(got.distinct_3) and got.to_dict()["distinct_3"] is None
    assert (got.same_for_two_people, got.unique_to_one_person) == (0, 1)


def test_a_text_that_repeats_itself_and_a_corpus_that_repeats_texts():
    inside = corpus_statistics(["red red red", "blue blue blue"], [1, 2])
    across = corpus_statistics(["red blue hat"] * 6, [1, 2, 3, 4, 5, 6])
    assert (inside.distinct_1, across.distinct_1) == (2 / 6, 3 / 18)
    assert (inside.type_token_ratio, across.type_token_ratio) == (pytest.approx(1 / 3), 1)


def test_self_bleu_by_hand():
    texts = [text.split() for text in ("a b c d e", "a b c d f")]
    # Each against the other: 4 of 5, 3 of 4, 2 of 3 and 1 of 2 n-grams, no brevity penalty.
    assert continuation_analysis.self_bleu(texts) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    # Without a match at orders 2 to 4: one of four words, then 0.1 of 3, 2 and 1.
    texts = [text.split() for text in ("a b c d", "a x y z")]
    assert continuation_analysis.self_bleu(texts) == pytest.approx((1 / 4 * 0.1 / 3 * 0.1 / 2 * 0.1 / 1) ** 0.25)
    assert math.isnan(continuation_analysis.self_bleu([["a"]]))


def test_self_bleu_draws_by_the_seed(monkeypatch):
    monkeypatch.setattr(continuation_analysis, "SELF_BLEU_TEXTS", 10)
    texts = [continuation_analysis.split_words(captions[0]) for captions in sample_descriptions(40, seed=0)]
    got = [continuation_analysis.self_bleu(texts, seed=seed) for seed in (0, 0, 1)]
    assert got[0] == got[1] != got[2]
    lines = [" ".join(words) for words in texts]
    whole = continuation_analysis.analyse_continuations(lines, lines, range(40), seed=1)
    assert whole.continuations.self_bleu == whole.captions.self_bleu == got[2]


@pytest.mark.parametrize("seed", range(4))
def test_counts_against_loops_over_pairs(seed):
    rng = np.random.default_rng(seed)
    people = rng.integers(5, size=40).tolist()
    texts = [f"text {number}" for number in rng.integers(8 if seed else 40, size=40)]
    pairs = [(a, b) for a, b in itertools.combinations(range(40), 2) if people[a] != people[b]]
    equal = sum(texts[a] == texts[b] for a, b in pairs)
    assert continuation_analysis.same_for_two_people(texts, people) == pytest.approx(equal / len(pairs), abs=1e-15)
    alone = [all(texts[b] != text or people[b] == people[a] for b in range(40)) for a, text in enumerate(texts)]
    assert continuation_analysis.unique_to_one_person(texts, people) == pytest.approx(sum(alone) / 40)


def test_retrieval_against_a_loop():
    texts = [caption for captions in sample_descriptions(12, seed=3) for caption in captions]
    people = [number // 3 for number in range(36)]
    bags = continuation_analysis.bags_of_words([continuation_analysis.split_words(text) for text in texts])
    vectors = bags.astype(np.float64) / np.linalg.norm(bags.astype(np.float64), axis=1, keepdims=True)
    precisions = []
    for query in range(36):
        others = [row for row in range(36) if row != query]
        order = sorted(
            others, key=lambda other: (-round(vectors[query] @ vectors[other], 6), people[other] == people[query])
        )
        hits = [rank for rank, row in enumerate(order, start=1) if people[row] == people[query]]
        precisions.append(np.mean([found / rank for found, rank in enumerate(hits, start=1)]))
    assert text_retrieval(bags, people) == pytest.approx(np.mean(precisions), abs=1e-6)
    assert math.isnan(text_retrieval(bags, range(36)))


def test_tf_idf_by_hand():
    bags = continuation_analysis.bags_of_words([["b", "a", "a"], ["b"]])
    assert bags == pytest.approx(np.array([[2 * (math.log(3 / 2) + 1), 1], [0, 1]]))


def test_words():
    assert continuation_analysis.split_words("A T-shirt, the man's 2 bags…  ÉTÉ.") == [
        "a",
        "t-shirt",
        "the",
        "man's",
        "2",
        "bags",
        "été",
    ]


def test_captions_beside_continuations(tmp_path):
    captions = ["a red cap", "a blue cap", "a red cap", "a green backpack"]
    texts = ["red", "", "blue jeans", "backpack"]
    features = np.eye(2)[[0, 0, 1, 1]]
    got = analyse_continuations(captions, texts, [1, 1, 2, 2], text_features=features)
    # As dicts: one statistic is NaN, which Python 3.13 finds different from itself in a dataclass.
    assert got.captions.to_dict() == corpus_statistics(captions, [1, 1, 2, 2]).to_dict()
    assert got.continuations.to_dict() == corpus_statistics(texts, [1, 1, 2, 2]).to_dict()
    # "red" of red and cap; nothing; nothing; "backpack" of green and backpack.
    assert got.kept_attribute_share == pytest.approx((1 / 2 + 0 + 0 + 1 / 2) / 4)
    assert got.retrieval_mAP_llm == 1
    assert analyse_continuations(captions, texts, [1, 1, 2, 2]).to_dict()["retrieval_mAP_llm"] is None
    own = analyse_continuations(
        captions, texts, [1, 1, 2, 2], attribute_words=lambda text: set(text.split()) & {"backpack"}
    )
    assert own.kept_attribute_share == 1
    write_json(tmp_path / "analysis.json", got.to_dict())
    assert json.loads((tmp_path / "analysis.json").read_text())["continuations"]["words_min"] == 0


def test_no_person_has_two_texts():
    got = corpus_statistics(["red hat", "blue hat"], [1, 2])
    assert got.to_dict()["retrieval_mAP"] is None
    assert corpus_statistics(["red hat", "blue hat"], [1, 1]).to_dict()["same_for_two_people"] is None


def test_bad_input(monkeypatch):
    with pytest.raises(UserError, match="captions: 1 for 2 continuations: give one for each"):
        analyse_continuations(["a"], ["a", "b"], [1, 2])
    with pytest.raises(UserError, match="person_ids: 3 for 2 continuations"):
        analyse_continuations(["a", "b"], ["a", "b"], [1, 2, 3])
    with pytest.raises(UserError, match="text_features: 1 for 2 continuations"):
        analyse_continuations(["a", "b"], ["a", "b"], [1, 2], text_features=np.eye(1))
    with pytest.raises(UserError, match="no text to analyse: give"):
        analyse_continuations([], [], [])
    with pytest.raises(UserError, match="row 1 contains NaN"):
        analyse_continuations(["a", "b"], ["a", "b"], [1, 1], text_features=np.array([[1.0], [np.nan]]))
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    with pytest.raises(UserError, match=r"pip install 'mllmreid\[ablation\]'"):
        corpus_statistics(["a", "b"], [1, 2])
