"""Captions of pedestrians: varied sentences over a small vocabulary that mention only what the image shows."""

import re
from collections.abc import Callable, Mapping
from random import Random

from ..sentences import TEMPLATES, Phrases, article, tidy
from .attributes import BAGS, HATS, LOWERS, PATTERNS, SHOES, SLEEVES, Person, random_person, random_stream
from .colors import CLOTH, HAIR

LENGTHS = range(15, 31)
VIEWS = {"front": "from the front", "back": "from behind", "side": "from the side"}
# Names of attributes whose words differ, and how a hair style is called.
WORDS = {"puffer": "puffer jacket", "sunhat": "sun hat", "top": "tank top"}
HAIR_PHRASES = {"ponytail": "{} ponytail", "bun": "{} hair in a bun", "bob": "chin-length {} hair"}
PATTERN_PHRASES: dict[str, tuple[str, ...]] = {
    "plain": ("{color} {garment}",),
    "striped": ("{color} and {second} striped {garment}", "{color} {garment} with {second} stripes"),
    "checked": ("{color} and {second} checked {garment}", "{color} {garment} with {second} checks"),
    "dotted": ("{color} {garment} with {second} dots", "{color} {garment} dotted in {second}"),
    "block": ("{color} and {second} block {garment}", "{color} {garment} with {a_second} block"),
    "logo": ("{color} {garment} with {a_second} logo",),
    "floral": ("{color} floral {garment} with {second} flowers",),
    "camouflage": ("{color} and {second} camouflage {garment}",),
}
# The share of a person's pixels from which an item is mentioned.
LEAST = {
    "upper": 0.03,
    "lower": 0.03,
    "inner": 0.02,
    "shoes": 0.015,
    "hair": 0.01,
    "hat": 0.006,
    "bag": 0.01,
    "neck": 0.006,
    "pattern": 0.008,
    "legs": 0.03,
    "scalp": 0.01,
}
ATTRIBUTE_WORDS = frozenset(
    word
    for phrase in (
        *CLOTH,
        *HAIR,
        *(WORDS.get(name, name) for name in (*SLEEVES, *HATS)),
        *(name for name in PATTERNS if name != "plain"),
        *LOWERS,
        *SHOES,
        *BAGS,
        "stripes checks dots flowers sleeves sleeveless",
        "hair short long ponytail bun curly chin-length bald",
    )
    for word in re.findall("[a-z]+", phrase)
)


def tokenize(text: str) -> list[str]:
    """The lower-case words of a text; punctuation is dropped."""
    return re.findall(r"[a-z]+", text.lower())


def attribute_words(text: str) -> set[str]:
    """The attribute words of a text: colours, garments, sleeves, patterns, hair, hat, shoes and bag."""
    return set(tokenize(text)) & ATTRIBUTE_WORDS


def seen_items(visible: Mapping[str, float]) -> frozenset[str]:
    """The items that an image shows well enough to be mentioned. `visible`: their shares, see [`Crop`]."""
    return frozenset(item for item, share in visible.items() if share >= LEAST[item])


def write_captions(person: Person, seen: frozenset[str], view: str, count: int, rng: Random) -> list[str]:
    """Writes captions of one image; templates repeat after all are used.

    Args:
        person (`Person`): Who is in the image.
        seen (`frozenset[str]`): What the image shows, of `LEAST`.
        view (`str`): One of `VIEWS`.
        count (`int`): The number of captions.
        rng (`Random`): Draws the words.

    Returns:
        `list[str]`: Sentences of 15 to 30 words.
    """
    order = rng.sample(TEMPLATES, len(TEMPLATES))
    return [_caption(person, seen, view, order[number % len(order)], rng) for number in range(count)]


def sample_descriptions(num: int, *, seed: int, captions: int = 3) -> list[list[str]]:
    """Writes `captions` different captions of one random view, for each of `num` people who are in no data set."""
    described = []
    for index in range(num):
        rng = random_stream(seed, "other", "description", index)
        person, view = random_person(rng), rng.choice(tuple(VIEWS))
        hidden = {item for item, share in (("shoes", 0.1), ("bag", 0.2), ("hat", 0.02)) if rng.random() < share}
        hidden |= {"inner", "pattern"} if view == "back" and person.outfit.pattern == "logo" else set()
        described.append(write_captions(person, frozenset(LEAST) - hidden, view, captions, rng))
    return described


def _caption(person: Person, seen: frozenset[str], view: str, template: Callable[[Phrases], str], rng: Random) -> str:
    """Fills a template; a long caption loses its least important phrases, a short one gains a sentence."""
    phrases = _phrases(person, seen, view, rng)
    for name in ("", "view", "shoes", "head"):
        phrases.pop(name, None)
        text = tidy(template(phrases))
        if len(tokenize(text)) < LENGTHS.stop:
            break
    if len(tokenize(text)) < LENGTHS.start:
        text += " the picture was taken by a fixed camera."
    return text


def _phrases(person: Person, seen: frozenset[str], view: str, rng: Random) -> Phrases:
    """The phrases about one image; all but "who", "upper" and "lower" may be missing."""
    outfit = person.outfit
    phrases = {
        "who": rng.choice((person.body.gender, person.body.gender, "person", "pedestrian")),
        "upper": _upper(person, seen, rng) if "upper" in seen else "clothes that are hidden",
    }
    if ("legs" if outfit.lower is None else "lower") not in seen:
        phrases["lower"] = "something that is hidden"
    elif outfit.lower is None:
        phrases["lower"] = "bare legs"
    else:
        phrases["lower"] = f"{'a ' if outfit.lower == 'skirt' else ''}{outfit.lower_color.name} {outfit.lower}"
    head = _head(person, seen, view)
    if head and rng.random() < 0.9:
        phrases["head"] = head
    if "shoes" in seen and rng.random() < 0.85:
        phrases["shoes"] = f"{outfit.shoes_color.name} {outfit.shoes}"
    if outfit.bag is not None and "bag" in seen:
        phrases["bag"] = article(f"{outfit.bag_color.name} {outfit.bag}")
    if rng.random() < 0.5:
        phrases["view"] = VIEWS[view]
    return phrases


def _upper(person: Person, seen: frozenset[str], rng: Random) -> str:
    outfit = person.outfit
    pattern = outfit.pattern if "pattern" in seen else "plain"
    garment = WORDS.get(outfit.upper, outfit.upper)
    second = outfit.pattern_color.name
    text = rng.choice(PATTERN_PHRASES[pattern]).format(
        color=outfit.upper_color.name, second=second, a_second=article(second), garment=garment
    )
    if outfit.upper in ("shirt", "blouse", "dress") and outfit.sleeves != "none" and rng.random() < 0.6:
        text += f"{' and' if ' with ' in text else ' with'} {outfit.sleeves} sleeves"
    elif outfit.upper == "dress" and outfit.sleeves == "none":
        text = f"sleeveless {text}"
    if outfit.inner_color is not None and "inner" in seen:
        text = f"open {text} over {outfit.inner_color.name} cloth"
    return article(text)


def _head(person: Person, seen: frozenset[str], view: str) -> str:
    """What is on the head, or ""."""
    body, outfit = person.body, person.outfit
    color = body.hair_color.name
    if body.hair_style == "bald":
        hair = "a bald head" if outfit.hat is None and "scalp" in seen else ""
    elif "hair" not in seen:
        hair = ""
    else:
        style = body.hair_style
        if style in ("ponytail", "bun") and view == "front":
            hair = f"{color} hair"
        else:
            phrase = HAIR_PHRASES.get(style, f"{style} {{}} hair").format(color)
            hair = article(phrase) if style == "ponytail" else phrase
    if outfit.hat is None or "hat" not in seen:
        return hair
    hat = article(f"{outfit.hat_color.name} {WORDS.get(outfit.hat, outfit.hat)}")
    return f"{hat} over {hair}" if hair and body.hair_style not in ("short", "curly") else hat
