"""Statistics of continuations as targets: variety, attribute words that they keep, and persons that they separate."""

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
from ..synthetic.people.captions import attribute_words as synthetic_attribute_words
from ..text.continuations import kept_attribute_share
from ..utils.errors import UserError

SELF_BLEU_TEXTS = 200


@dataclass(frozen=True)
class CorpusStatistics:
    """Statistics of N texts, each of one person. Shares are from 0 to 1; NaN if nothing can be counted.

    Args:
        num_texts (`int`): Number of texts.
        num_different (`int`): Number of different texts.
        words_mean (`float`): Mean number of words of a text.
        words_min (`int`): Words of the shortest text.
        words_max (`int`): Words of the longest text.
        distinct_1 (`float`): Different words over all words of the corpus (`distinct`); small if texts repeat others.
        distinct_2 (`float`): The same with 2-grams.
        distinct_3 (`float`): The same with 3-grams.
        type_token_ratio (`float`): Different words over words in each text, mean over texts; small if a text repeats
            itself. Unlike distinct_1 it does not fall as the corpus grows.
        self_bleu (`float`): Mean BLEU-4 of a text against all others (`self_bleu`); 1 if all texts are equal.
        same_for_two_people (`float`): Probability that two texts of two different people are equal.
        unique_to_one_person (`float`): Share of the texts that no other person has.
        retrieval_mAP (`float`): mAP of a text that retrieves the person's other texts by bags of words.
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
        """The fields for JSON, with None for NaN."""
        return {name: _for_json(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class ContinuationAnalysis:
    """The statistics of continuations and of the captions that they continue.

    Args:
        continuations (`CorpusStatistics`): Statistics of the continuations.
        captions (`CorpusStatistics`): Statistics of the captions.
        kept_attribute_share (`float`): Mean share of a caption's attribute words that its continuation keeps.
        retrieval_mAP_llm (`float`): As `retrieval_mAP` of the continuations, by features of a language model; NaN
            without features.
    """

    continuations: CorpusStatistics
    captions: CorpusStatistics
    kept_attribute_share: float
    retrieval_mAP_llm: float  # noqa: N815

    def to_dict(self) -> dict[str, Any]:
        """The fields for JSON, with None for NaN."""
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
    """Computes the statistics of continuations and their captions.

    The bags of words need 4 bytes for each text and each different word of the corpus.

    Args:
        captions (`Sequence[str]`): N captions.
        continuations (`Sequence[str]`): N continuations.
        person_ids (`Sequence[int]`): N person ids.
        attribute_words (`Callable[[str], set[str]]`): Returns the attribute words of a text; by default those of the
            rendered pedestrians.
        text_features (`np.ndarray`, *optional*): (N, D), features of the continuations, such as latents.
        seed (`int`): Seed that draws the texts of self-BLEU.

    Returns:
        `ContinuationAnalysis`: The statistics.

    Raises:
        UserError: For numbers of texts, ids or features that differ, for no text, and without sacrebleu.
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
    """The statistics of N texts, text i of person i. Raises UserError for no text, and without sacrebleu."""
    if not len(texts):
        raise UserError("there is no text to analyse: give a data set with continuations")
    words = [split_words(text) for text in texts]
    counts = [len(text_words) for text_words in words]
    return CorpusStatistics(
        num_texts=len(texts),
        num_different=len(set(texts)),
        words_mean=sum(counts) / len(counts),
        words_min=min(counts),
        words_max=max(counts),
        distinct_1=distinct(words, 1),
        distinct_2=distinct(words, 2),
        distinct_3=distinct(words, 3),
        type_token_ratio=_mean([len(set(text_words)) / len(text_words) for text_words in words if text_words]),
        self_bleu=self_bleu(words, seed=seed),
        same_for_two_people=same_for_two_people(texts, person_ids),
        unique_to_one_person=unique_to_one_person(texts, person_ids),
        retrieval_mAP=text_retrieval(bags_of_words(words), person_ids),
    )


def split_words(text: str) -> list[str]:
    """The lower-case words of a text: letters, digits, inner hyphens and apostrophes, without punctuation."""
    return re.findall(r"\w+(?:[-'’]\w+)*", text.lower())


def distinct(texts: Sequence[Sequence[str]], n: int) -> float:
    """Different n-grams over all n-grams of the texts' words, 0 to 1; NaN if every text has less than n words.

    Source: Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models", section 5.
    """
    ngrams = [tuple(words[start : start + n]) for words in texts for start in range(len(words) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else math.nan


def self_bleu(texts: Sequence[Sequence[str]], *, seed: int = 0) -> float:
    """The mean sentence BLEU-4 of each text's words against all others as references, 0 to 1; NaN for a single text.

    At most 200 texts count, drawn by the seed, because the cost is quadratic. An order without a match counts as 0.1
    matches, as in the code of the source; a text of less than four words has fewer orders.
    Raises UserError without sacrebleu.
    Source: Zhu et al. 2018, "Texygen: A Benchmarking Platform for Text Generation Models".
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
    """The share of equal texts among all pairs of texts of two different people; NaN for one person."""
    # Pairs are counted, not visited: the equal pairs, minus those of one person.
    people, owned = Counter(person_ids), Counter(zip(texts, person_ids, strict=True))
    pairs = math.comb(len(texts), 2) - _pairs(people)
    return (_pairs(Counter(texts)) - _pairs(owned)) / pairs if pairs else math.nan


def unique_to_one_person(texts: Sequence[str], person_ids: Sequence[int]) -> float:
    """The share of the texts that no other person has; equal texts of one person count each."""
    owners = Counter(text for text, _ in set(zip(texts, person_ids, strict=True)))
    return _mean([owners[text] == 1 for text in texts])


def bags_of_words(texts: Sequence[Sequence[str]]) -> np.ndarray:
    """The tf-idf vectors of texts, (N, different words) float32, not normalised.

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
    """Computes the mAP of each text as a query against all others, by cosine distance.

    Among equal distances those of other people are nearer: a text that two people share retrieves neither.

    Args:
        features (`np.ndarray`): (N, D), features of the texts.
        person_ids (`Sequence[int]`): N person ids. A text whose person has no other text is no query.

    Returns:
        `float`: The mAP, from 0 to 1; NaN if no person has two texts.

    Raises:
        UserError: For features that are not finite or not (N, D).
    """
    if max(Counter(person_ids).values()) < 2:
        return math.nan
    # Each text has its own camera: the camera rule of the protocol then only drops the query itself.
    camera_ids = np.arange(len(person_ids))
    rule = SamePerson(person_ids, person_ids, camera_ids, camera_ids)
    return metrics_from_blocks(distance_blocks(features, features), rule).mAP


def _bleu_class() -> Any:
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError as error:
        raise UserError(
            "self-BLEU needs sacrebleu, which is not installed: pip install 'mllmreid[ablation]'"
        ) from error
    return BLEU


def _pairs(counts: Counter[Any]) -> int:
    """The number of pairs of equal items, from the count of each."""
    return sum(math.comb(count, 2) for count in counts.values())


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _for_json(value: float | int) -> float | int | None:
    return None if math.isnan(value) else value
