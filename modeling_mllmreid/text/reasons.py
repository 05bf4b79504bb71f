"""Reasons: what two crops share and where they differ, by texts that a multimodal LLM writes about them.

Each crop is described alone, so that a description cannot follow the other crop, a distance or a score. The texts are
compared phrase by phrase.
"""

import re
import unicodedata
from dataclasses import dataclass

NOTE = "generated text: it can be wrong, and it is not how the distance or the probability came about"
# Words between the phrases of an English description: those of grammar, of showing and wearing, and of places.
BETWEEN = re.compile(
    "an?|the|this|that|these|those|and|or|but|with|of|in|on|at|by|to|from|over|under|below|above|as|for|into|"
    "down|up|along|through|who|which|he|she|they|it|his|her|their|its|is|are|was|were|be|been|being|has|have|having|"
    "had|does|do|also|one|some|there|here|person|pedestrian|individual|someone|somebody|picture|image|photo|photograph|"
    "camera|view|crop|scene|shows?|shown|showing|depicts|seen|sees?|visible|appears|taken|photographed|captured|fixed|"
    "can|wears?|wearing|worn|dressed|clothed|carry|carries|carrying|carried|holds?|holding|held|walks?|walking|stands?|"
    "standing|features|featuring|front|behind|back|sides?|left|right|feet|foot|head|body|hands?|shoulder"
)
COLORS = re.compile(
    "black|white|gr[ae]y|red|orange|yellow|green|blue|purple|pink|brown|beige|navy|teal|maroon|olive|khaki"
)
# What follows is stated as missing, up to the end of the phrase: "without a hat", "not wearing a hat".
NEGATIONS = re.compile("no|not|without|neither|nor|never|cannot|[a-z]+n['’]t")


@dataclass(frozen=True)
class Reason:
    """What the descriptions of two crops have in common and what only one of them states.

    Args:
        first (`str`): The generated description of the first crop.
        second (`str`): That of the second crop.
        shared (`tuple[str, ...]`): Phrases of both, such as "white jeans".
        only_first (`tuple[str, ...]`): Phrases of the first alone.
        only_second (`tuple[str, ...]`): Phrases of the second alone.
    """

    first: str
    second: str
    shared: tuple[str, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    def lines(self, first: str, second: str) -> list[str]:
        """Returns what is shared and what is not as lines. `first`, `second`: names of the crops."""
        parts = {"both": self.shared, f"only {first}": self.only_first, f"only {second}": self.only_second}
        return [f"{name}: {', '.join(phrases)}" for name, phrases in parts.items() if phrases]


def compare_descriptions(first: str, second: str) -> Reason:
    """Compares two English descriptions phrase by phrase.

    Args:
        first (`str`): A description.
        second (`str`): Another one.

    Returns:
        [`Reason`]

    Example:

    ```python
    >>> from modeling_mllmreid.text.reasons import compare_descriptions
    >>> reason = compare_descriptions("a man in a red coat and blue jeans", "a man with a hat wears blue jeans")
    >>> reason.shared, reason.only_first, reason.only_second
    (('man', 'blue jeans'), ('red coat',), ('hat',))

    ```
    """
    one, other = (dict.fromkeys(phrases(text)) for text in (first, second))
    return Reason(
        first=first,
        second=second,
        shared=tuple(phrase for phrase in one if phrase in other),
        only_first=tuple(phrase for phrase in one if phrase not in other),
        only_second=tuple(phrase for phrase in other if phrase not in one),
    )


def phrases(text: str) -> list[str]:
    """Returns the phrases of an English description in their order, each once: runs of words that are no `BETWEEN`.

    Two colours that are joined by "and" are of one phrase, such as "blue and white striped shirt". What a description
    states as missing is a phrase with "no": "without a hat or a bag" has "no hat" and "no bag".
    """
    found, run, missing = dict[str, None](), list[str](), False
    # A mark that is no word ends a phrase, and so does the end of the text.
    tokens = [*_tokens(text), "."]
    for token, following in zip(tokens, [*tokens[1:], "."], strict=True):
        negation, word = NEGATIONS.fullmatch(token), token[0].isalnum()
        joins = token == "and" and run and COLORS.fullmatch(run[-1]) and COLORS.fullmatch(following)
        if joins or (word and not negation and not BETWEEN.fullmatch(token)):
            run.append(token)
            continue
        if run:
            phrase = " ".join(run)
            found[f"no {phrase}" if missing else phrase] = None
        if run or not word:
            missing = missing and token == "or"
        run, missing = [], missing or negation is not None
    return list(found)


def _tokens(text: str) -> list[str]:
    """Returns the words of a text in lower case, and its marks. The accents of a letter are part of its word."""
    text = unicodedata.normalize("NFC", text.lower()).translate({0x2010: "-", 0x2011: "-"})
    # Accents that no letter includes are no word characters of `re`.
    accents = "".join(sorted({mark for mark in text if unicodedata.category(mark).startswith("M")}))
    letters = rf"[^\W_](?:[^\W_]|[{accents}])*" if accents else r"[^\W_]+"
    return re.findall(rf"{letters}(?:['’-]{letters})*|[^\w\s]", text)
