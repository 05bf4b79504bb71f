"""How often reasons are right: each stated phrase is looked up in the captions of the people."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..text.reasons import Reason, phrases


@dataclass(frozen=True)
class Truth:
    """What is known about a crop.

    Args:
        person (`frozenset[str]`): Phrases of all captions of its person; a statement with one of them is right.
        crop (`frozenset[str]`): Phrases of one caption of the crop, which a description is expected to state.
    """

    person: frozenset[str]
    crop: frozenset[str]


@dataclass(frozen=True)
class Rates:
    """Counts of statements.

    Args:
        stated (`int`): Statements.
        right (`int`): How many of them are right.
        expected (`int`): Statements that are expected.
        found (`int`): How many of them were made.
    """

    stated: int
    right: int
    expected: int
    found: int

    @property
    def precision(self) -> float:
        """Share of the statements that are right; NaN without one."""
        return self.right / self.stated if self.stated else float("nan")

    @property
    def recall(self) -> float:
        """Share of the expected statements that were made; NaN without one."""
        return self.found / self.expected if self.expected else float("nan")


def truth_of(person_captions: Iterable[str], caption: str) -> Truth:
    """Returns what is known about a crop, from all captions of its person and one of its own."""
    return Truth(frozenset(phrase for text in person_captions for phrase in phrases(text)), frozenset(phrases(caption)))


def reason_rates(reasons: Sequence[Reason], truths: Sequence[tuple[Truth, Truth]]) -> dict[str, Rates]:
    """Counts the statements of reasons.

    Args:
        reasons (`Sequence[Reason]`): N reasons.
        truths (`Sequence[tuple[Truth, Truth]]`): For each what is known about its first and its second crop.

    Returns:
        `dict[str, Rates]`: Of three kinds of statements. "one crop": its person has a phrase. "both": both persons
        have it. "only one": the person of this crop has it, and that of the other crop does not.
    """
    counts = {"one crop": [0] * 4, "both": [0] * 4, "only one": [0] * 4}

    def count(kind: str, stated: set[str], right: frozenset[str], expected: frozenset[str]) -> None:
        numbers = (len(stated), len(stated & right), len(expected), len(stated & expected))
        counts[kind] = [old + new for old, new in zip(counts[kind], numbers, strict=True)]

    for reason, (first, second) in zip(reasons, truths, strict=True):
        shared, alone = set(reason.shared), (set(reason.only_first), set(reason.only_second))
        for own, other, only in ((first, second, alone[0]), (second, first, alone[1])):
            count("one crop", shared | only, own.person, own.crop)
            count("only one", only, own.person - other.person, own.crop - other.person)
        count("both", shared, first.person & second.person, first.crop & second.crop)
    return {kind: Rates(*numbers) for kind, numbers in counts.items()}
