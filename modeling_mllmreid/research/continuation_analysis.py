"""What continuations are worth as targets: how varied they are, what they keep of a caption, whom they tell apart."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..evaluation.metrics import metrics_from_blocks
from ..retrieval.distances import distance_blocks
from ..retrieval.matching import SamePerson
from ..synthetic.captions import attribute_words as synthetic_attribute_words
from ..text.continuations import kept_attribute_share
from ..utils.errors import UserError

SELF_BLEU_TEXTS = 200


@dataclass(frozen=True)
class CorpusStatistics:
    """Statistics of N texts, each of one person. All shares are fractions of 1; NaN where nothing can be counted.

    distinct_1, distinct_2, distinct_3: different n-grams over all n-grams, of the whole corpus (Li et al. 2016): small
    where texts repeat one another. type_token_ratio: the mean over texts of different words over words, in each text
    alone: small where a text repeats itself; unlike distinct_1 it does not fall as the corpus grows.
    self_bleu: the mean BLEU-4 of a text against all others (Texygen, Zhu et al. 2018), 1 where all texts are equal.
    same_for_two_people: the probability that two texts drawn from two different people are equal, over all such pairs
    of texts. unique_to_one_person: the share of the N texts that no other person has.
    retrieval_mAP: how well a text alone finds the person's other texts, by bags of words (`text_retrieval`).
    """

    num_texts: int
    num_different: int
    words_mean: float
    words_min: int
    words_max: int
    distinct_1: float
    distinct_2: float
    distinct_3: float
    type_token_ratio: float
    self_bleu: float
    same_for_two_people: float
    unique_to_one_person: float
    retrieval_mAP: float  # noqa: N815 - the field's name for it

    def to_dict(self) -> dict[str, float | int | None]:
        """The fields for JSON, which has no NaN: None instead."""
        return {name: _for_json(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class ContinuationAnalysis:
    """The continuations' statistics, and those of the captions that they continue, to compare with.

    kept_attribute_share: the mean share of a caption's attribute words that its continuation keeps. retrieval_mAP_llm:
    as the continuations' `retrieval_mAP`, by the given features of them; NaN where none were given.
    """

    continuations: CorpusStatistics
    captions: CorpusStatistics
    kept_attribute_share: float
    retrieval_mAP_llm: float  # noqa: N815

    def to_dict(self) -> dict[str, Any]:
        """The fields for JSON, which has no NaN: None instead."""
        return {
            "continuations": self.continuations.to_dict(),
            "captions": self.captions.to_dict(),
            "kept_attribute_share": _for_json(self.kept_attribute_share),
            "retrieval_mAP_llm": _for_json(self.retrieval_mAP_llm),
        }


def analyse_continuations(
    captions: Sequence[str],
    continuations: Sequence[str],
    person_ids: Sequence[int],
    *,
    attribute_words: Callable[[str], set[str]] = synthetic_attribute_words,
    text_features: np.ndarray | None = None,
    seed: int = 0,
) -> ContinuationAnalysis:
    """The statistics of N continuations, text i of caption i and of person i.

    attribute_words: the attribute words of a text; those of the rendered pedestrians by default. text_features: (N, D)
    floats of the continuations, such as a language model's. seed: draws the texts of the self-BLEU. The bags of words
    take 4 bytes for each text and each different word of the corpus.
    Raises UserError for texts, ids or features that differ in number, for none, and without sacrebleu.
    """
    for name, values in (("captions", captions), ("person_ids", person_ids), ("text_features", text_features)):
        if values is not None and len(values) != len(continuations):
            raise UserError(f"{name}: {len(values)} for {len(continuations)} continuations: give one for each")
    return ContinuationAnalysis(
        continuations=corpus_statistics(continuations, person_ids, seed=seed),
        captions=corpus_statistics(captions, person_ids, seed=seed),
        kept_attribute_share=kept_attribute_share(captions, continuations, attribute_words),
        retrieval_mAP_llm=math.nan if text_features is None else text_retrieval(text_features, person_ids),
    )


def corpus_statistics(texts: Sequence[str], person_ids: Sequence[int], *, seed: int = 0) -> CorpusStatistics:
    """The statistics of N texts, text i of person i. Raises UserError where there is no text, and without sacrebleu."""
    if not len(texts):
        raise UserError("there is no text to analyse: give a data set with continuations")
    words = [split_words(text) for text in texts]
    counts = [len(own) for own in words]
    return CorpusStatistics(
        num_texts=len(texts),
        num_different=len(set(texts)),
        words_mean=sum(counts) / len(counts),
        words_min=min(counts),
        words_max=max(counts),
        distinct_1=distinct(words, 1),
        distinct_2=distinct(words, 2),
        distinct_3=distinct(words, 3),
        type_token_ratio=_mean([len(set(own)) / len(own) for own in words if own]),
        self_bleu=self_bleu(words, seed=seed),
        same_for_two_people=same_for_two_people(texts, person_ids),
        unique_to_one_person=unique_to_one_person(texts, person_ids),
        retrieval_mAP=text_retrieval(bags_of_words(words), person_ids),
    )


def split_words(text: str) -> list[str]:
    """The lower-case words of a text, of letters, digits and inner hyphens and apostrophes; punctuation is dropped."""
    return re.findall(r"\w+(?:[-'’]\w+)*", text.lower())


def distinct(texts: Sequence[Sequence[str]], n: int) -> float:
    """Different n-grams over all n-grams of the texts' words, 0 to 1; NaN where every text is shorter than n words.

    Source: Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models", section 5.
    """
    ngrams = [tuple(words[start : start + n]) for words in texts for start in range(len(words) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else math.nan


def self_bleu(texts: Sequence[Sequence[str]], *, seed: int = 0) -> float:
    """The mean sentence BLEU-4 of each text's words against all others as references, 0 to 1; NaN for a single text.

    At most 200 texts, drawn by the seed, as references are counted anew for each. An order without a match counts 0.1
    matches, as in the source's code; a text of less than four words is judged by the orders that it has.
    Raises UserError where sacrebleu is not installed.
    Source: Zhu et al. 2018, "Texygen".
    """
    bleu = _bleu_class()(tokenize="none", smooth_method="floor", smooth_value=0.1, effective_order=True)
    drawn = np.arange(len(texts))
    if len(texts) > SELF_BLEU_TEXTS:
        drawn = np.random.default_rng(seed).choice(len(texts), SELF_BLEU_TEXTS, replace=False)
    lines = [" ".join(texts[index]) for index in drawn.tolist()]
    if len(lines) < 2:
        return math.nan
    scores = [bleu.sentence_score(line, lines[:at] + lines[at + 1 :]).score for at, line in enumerate(lines)]
    return _mean(scores) / 100


def same_for_two_people(texts: Sequence[str], person_ids: Sequence[int]) -> float:
    """Of all pairs of texts of two different people, the share that are equal; NaN where all are of one person."""
    # Pairs of equal things, less those that are of one person, too: no pair is ever visited.
    people, owned = Counter(person_ids), Counter(zip(texts, person_ids, strict=True))
    pairs = math.comb(len(texts), 2) - _pairs(people)
    return (_pairs(Counter(texts)) - _pairs(owned)) / pairs if pairs else math.nan


def unique_to_one_person(texts: Sequence[str], person_ids: Sequence[int]) -> float:
    """The share of the texts, equal ones counted each, that no other person has."""
    owners = Counter(text for text, _ in set(zip(texts, person_ids, strict=True)))
    return _mean([owners[text] == 1 for text in texts])


def bags_of_words(texts: Sequence[Sequence[str]]) -> np.ndarray:
    """The texts' words as tf-idf rows (N, different words) float32, not normalised; order has no part.

    A word's count times ln((1 + N) / (1 + texts with it)) + 1: a word that all texts have still counts.
    """
    vocabulary = {word: column for column, word in enumerate(sorted({word for words in texts for word in words}))}
    bags = np.zeros((len(texts), max(len(vocabulary), 1)), dtype=np.float32)
    for bag, words in zip(bags, texts, strict=True):
        for word, count in Counter(words).items():
            bag[vocabulary[word]] = count
    with_word = np.count_nonzero(bags, axis=0)
    bags *= (np.log((1 + len(texts)) / (1 + with_word)) + 1).astype(np.float32)
    return bags


def text_retrieval(features: np.ndarray, person_ids: Sequence[int]) -> float:
    """The mAP of each text as a query against all others by cosine, relevant where of the same person.

    features: (N, D) floats. Texts whose person has no other are no queries; NaN where no person has two. Of equal
    distances those of other people count as nearer: a text that two people share finds neither.
    Raises UserError for features that are not finite or not (N, D).
    """
    if max(Counter(person_ids).values()) < 2:
        return math.nan
    # Each text as its own camera: the protocol's camera rule then drops the query itself and nothing else.
    own = np.arange(len(person_ids))
    rule = SamePerson(person_ids, person_ids, own, own)
    return metrics_from_blocks(distance_blocks(features, features), rule).mAP


def _bleu_class() -> Any:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise UserError(
            "self-BLEU needs sacrebleu, which is not installed: pip install 'mllmreid[ablation]'"
        ) from error
    return BLEU


def _pairs(counts: Counter) -> int:
    """Pairs of two equal things, from how often each comes."""
    return sum(math.comb(count, 2) for count in counts.values())


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _for_json(value: float | int) -> float | int | None:
    return None if math.isnan(value) else value
