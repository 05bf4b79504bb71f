"""Phrases of descriptions, what two descriptions share, and how often statements are right."""

import math

import pytest

from modeling_mllmreid.evaluation.reason_rates import Truth, reason_rates, truth_of
from modeling_mllmreid.synthetic.people.captions import sample_descriptions, tokenize
from modeling_mllmreid.text.captioning import whole_sentences
from modeling_mllmreid.text.reasons import compare_descriptions, phrases


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("the person is walking.", []),
        ("A red coat", ["red coat"]),
        (
            "with short brown hair, the man is wearing a blue shirt over jeans",
            ["short brown hair", "man", "blue shirt", "jeans"],
        ),
        ("a blue and white striped shirt and gray leggings", ["blue and white striped shirt", "gray leggings"]),
        ("a red coat and black and blue trousers", ["red coat", "black and blue trousers"]),
        ("a shirt and and blue", ["shirt", "blue"]),
        ("a red coat, a RED COAT; a red coat", ["red coat"]),
        ("a navy-blue T-shirt (the man’s)", ["navy-blue t-shirt", "man’s"]),
        ("ein roter Mantel - größer als blau", ["ein roter mantel", "größer als blau"]),
        ("- ... !", []),
        ("a man without a hat or a bag, and a red coat", ["man", "no hat", "no bag", "red coat"]),
        ("no visible bag. a hat", ["no bag", "hat"]),
        ("neither a hat nor a black and white bag", ["no hat", "no black and white bag"]),
        ("she isn’t wearing a coat and does not carry a bag", ["no coat", "no bag"]),
        ("no, the face cannot be seen: a red hat", ["face", "red hat"]),
        # Accents apart from their letter, and hyphens of two kinds.
        ("un e\u0301te\u0301, a t\u2011shirt", ["un été", "t-shirt"]),
        ("लाल कोट", ["लाल कोट"]),
        ("\u0301\u0301 ]^\\-[", []),
    ],
)
def test_phrases_of_a_text(text, expected):
    assert phrases(text) == expected


def test_phrases_keep_every_attribute_of_the_captions():
    """No caption of rendered people loses a colour, a garment or a bag to the words between phrases."""
    between = {"a", "an", "the", "and", "with", "in"}
    for captions in sample_descriptions(200, seed=0):
        for caption in captions:
            kept = {word for phrase in phrases(caption) for word in tokenize(phrase)}
            assert {"coat", "jeans", "red", "handbag", "hair", "leggings", "bald", "sleeves"} & set(
                tokenize(caption)
            ) <= kept
            assert not between & {phrase for phrase in phrases(caption)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("a man in a coat", "a man in a coat"),
        ("a man . the feet are in boots . the feet are in boots . the feet", "a man . the feet are in boots ."),
        ("A man, 1.5 m tall! Is it? Yes", "A man, 1.5 m tall! Is it?"),
        ("... a man.", "... a man."),
    ],
)
def test_whole_sentences_each_once(text, expected):
    assert whole_sentences(text) == expected


def test_two_descriptions_are_compared():
    reason = compare_descriptions(
        "a man in a red coat, blue jeans", "a woman with a hat wears blue jeans in a blue coat"
    )
    assert reason.shared == ("blue jeans",)
    assert (reason.only_first, reason.only_second) == (("man", "red coat"), ("woman", "hat", "blue coat"))
    assert reason.lines("query", "row") == [
        "both: blue jeans",
        "only query: man, red coat",
        "only row: woman, hat, blue coat",
    ]
    turned = compare_descriptions(reason.second, reason.first)
    assert (turned.shared, turned.only_first, turned.only_second) == (
        reason.shared,
        reason.only_second,
        reason.only_first,
    )
    opposite = compare_descriptions("a man without a hat", "a man with a hat")
    assert (opposite.shared, opposite.only_first, opposite.only_second) == (("man",), ("no hat",), ("hat",))
    assert compare_descriptions("", "the person").lines("query", "row") == []


def test_statements_are_looked_up_in_the_captions():
    first = truth_of(["a red coat, blue jeans", "a red coat, a hat"], "a red coat, blue jeans")
    second = truth_of(["a red coat, a bag"], "a red coat, a bag")
    assert first == Truth(frozenset({"red coat", "blue jeans", "hat"}), frozenset({"red coat", "blue jeans"}))
    # Stated: the coat of both; of the first a hat (right) and a bag, which the second has; of the second jeans.
    reason = compare_descriptions("a red coat, a hat, a bag", "a red coat, blue jeans")
    rates = reason_rates([reason], [(first, second)])
    one, both, only = rates["one crop"], rates["both"], rates["only one"]
    assert (one.stated, one.right, one.expected, one.found) == (5, 3, 4, 2)
    assert (both.stated, both.right, both.expected, both.found) == (1, 1, 1, 1)
    assert (only.stated, only.right, only.expected, only.found) == (3, 1, 2, 0)
    assert (both.precision, only.recall, only.precision) == (1, 0, pytest.approx(1 / 3))
    assert math.isnan(reason_rates([], [])["both"].precision) and math.isnan(reason_rates([], [])["both"].recall)
