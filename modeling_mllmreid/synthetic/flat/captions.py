"""Captions of pedestrians: varied sentences over a small vocabulary that mention only what the image shows."""

import re
from collections.abc import Callable
from random import Random

from ..sentences import TEMPLATES, Phrases, article, tidy
from .attributes import BAGS, COLORS, HAIR_COLORS, HATS, LOWERS, SHOES, SLEEVES, Person, random_person, random_stream
from .cameras import CAMERAS
from .figure import bag_side_in_image
from .shots import Shot, plan_shot

LENGTHS = range(15, 31)
PATTERN_WORDS = ("striped", "stripes", "checked", "checks", "dotted", "dots", "block", "logo")
HAIR_WORDS = ("hair", "short", "long", "ponytail")
ATTRIBUTE_WORDS = frozenset(
    word
    for phrase in (
        *COLORS,
        *HAIR_COLORS,
        *SLEEVES,
        "sleeves",
        "sleeveless",
        *PATTERN_WORDS,
        *LOWERS,
        *SHOES,
        *HAIR_WORDS,
        *HATS,
        *BAGS,
    )
    for word in phrase.split()
)


def tokenize(text: str) -> list[str]:
    """The lower-case words of a text; punctuation is dropped."""
    return re.findall(r"[a-z]+", text.lower())


def attribute_words(text: str) -> set[str]:
    """The attribute words of a text: colours, garments, sleeves, patterns, hair, hat, shoes and bag."""
    return set(tokenize(text)) & ATTRIBUTE_WORDS


def hidden_items(person: Person, shot: Shot) -> frozenset[str]:
    """The items that an image does not show, of "shoes", "logo", "ponytail" and "bag"."""
    invisible = {
        "shoes": shot.occluder in ("railing", "bin"),
        "logo": shot.view != "front",
        "ponytail": shot.view == "front",
        "bag": person.bag != "backpack" and (bag_side_in_image(person, shot.view) == 0 or shot.occluder == "passer-by"),
    }
    return frozenset(item for item, hidden in invisible.items() if hidden)


def write_captions(person: Person, shot: Shot, count: int, rng: Random) -> list[str]:
    """Writes `count` captions of one image, of 15 to 30 words; templates repeat after all are used."""
    order = rng.sample(TEMPLATES, len(TEMPLATES))
    return [_caption(person, shot, order[number % len(order)], rng) for number in range(count)]


def sample_descriptions(num: int, *, seed: int, captions: int = 3) -> list[list[str]]:
    """Writes `captions` different captions of one random view, for each of `num` people who are in no data set."""
    described = []
    for index in range(num):
        rng = random_stream(seed, "other", "description", index)
        person, shot = random_person(rng), plan_shot(rng, rng.randrange(len(CAMERAS)))
        described.append(write_captions(person, shot, captions, rng))
    return described


def _caption(person: Person, shot: Shot, template: Callable[[Phrases], str], rng: Random) -> str:
    """Fills a template; a long caption loses its least important phrases, a short one gains a sentence."""
    phrases = _phrases(person, shot, rng)
    for name in ("", "view", "shoes", "head"):
        phrases.pop(name, None)
        text = tidy(template(phrases))
        if len(tokenize(text)) in LENGTHS or len(tokenize(text)) < LENGTHS.start:
            break
    if len(tokenize(text)) < LENGTHS.start:
        text += " the picture was taken by a fixed camera."
    return text


def _phrases(person: Person, shot: Shot, rng: Random) -> Phrases:
    """The phrases about one image; "shoes", "head", "bag" and "view" may be missing."""
    hidden = hidden_items(person, shot)
    phrases = {
        "who": rng.choice((person.gender, person.gender, "person", "pedestrian")),
        "upper": _upper(person, "logo" in hidden, rng),
        "lower": f"{'a ' if person.lower == 'skirt' else ''}{person.lower_color} {person.lower}",
    }
    if rng.random() < 0.9:
        phrases["head"] = _head(person, "ponytail" in hidden)
    if "shoes" not in hidden and rng.random() < 0.85:
        phrases["shoes"] = f"{person.shoes_color} {person.shoes}"
    if person.bag and "bag" not in hidden:
        phrases["bag"] = article(f"{person.bag_color} {person.bag}")
    if rng.random() < 0.5:
        phrases["view"] = {"front": "from the front", "back": "from behind"}.get(shot.view, "from the side")
    return phrases


def _upper(person: Person, no_logo: bool, rng: Random) -> str:
    color, second, garment = person.upper_color, person.pattern_color, person.upper
    pattern = "plain" if person.pattern == "logo" and no_logo else person.pattern
    patterned = {
        "plain": (f"{color} {garment}",),
        "striped": (f"{color} and {second} striped {garment}", f"{color} {garment} with {second} stripes"),
        "checked": (f"{color} and {second} checked {garment}", f"{color} {garment} with {second} checks"),
        "dotted": (f"{color} {garment} with {second} dots", f"{color} {garment} dotted in {second}"),
        "block": (f"{color} and {second} block {garment}", f"{color} {garment} with a {second} block"),
        "logo": (f"{color} {garment} with a {second} logo",),
    }
    text = rng.choice(patterned[pattern])
    if person.upper == "shirt" and rng.random() < 0.6:
        text += f"{' and' if ' with ' in text else ' with'} {person.sleeves} sleeves"
    if person.sleeves == "none":
        text = f"sleeveless {text}"
    return article(text)


def _head(person: Person, no_ponytail: bool) -> str:
    style, color = person.hair_style, person.hair_color
    hair = f"{style} {color} hair"
    if style == "ponytail":
        hair = f"{color} hair" if no_ponytail else article(f"{color} ponytail")
    if person.hat is None:
        return hair
    hat = article(f"{person.hat_color} {person.hat}")
    return hat if style == "short" else f"{hat} over {hair}"
