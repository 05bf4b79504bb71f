"""The attributes of a synthetic pedestrian, drawn from a named stream of random numbers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

RGB = tuple[int, int, int]

COLORS: dict[str, RGB] = {
    "black": (24, 24, 28),
    "white": (240, 240, 236),
    "gray": (128, 130, 134),
    "red": (205, 28, 34),
    "orange": (242, 128, 20),
    "yellow": (244, 218, 48),
    "green": (36, 138, 56),
    "teal": (24, 176, 176),
    "blue": (34, 66, 196),
    "purple": (122, 44, 150),
    "pink": (248, 146, 188),
    "brown": (108, 66, 36),
}
HAIR_COLORS: dict[str, RGB] = {
    "black": (22, 20, 22),
    "brown": (92, 54, 28),
    "blond": (228, 192, 104),
    "gray": (168, 166, 164),
    "ginger": (190, 84, 28),
}
SKINS: tuple[RGB, ...] = ((250, 216, 190), (232, 188, 154), (198, 144, 106), (144, 94, 64), (88, 56, 40))

SLEEVES: dict[str, tuple[str, ...]] = {
    "tee": ("short",),
    "shirt": ("short", "long"),
    "sweater": ("long",),
    "hoodie": ("long",),
    "jacket": ("long",),
    "coat": ("long",),
    "top": ("none",),
}
PATTERNS = ("plain", "striped", "checked", "dotted", "block", "logo")
LOWERS = ("jeans", "trousers", "shorts", "skirt")
SHOES = ("sneakers", "boots")
HAIR_STYLES = ("short", "long", "ponytail")
HATS = ("cap", "beanie")
BAGS = ("backpack", "shoulder bag", "handbag")
SIDES = ("left", "right")

# Attributes that images show and captions never name.
NOT_IN_CAPTIONS = (
    "skin",
    "height",
    "girth",
    "bag_side",
    "emblem_side",
    "emblem_color",
    "hem_color",
    "seam_color",
    "sole_color",
)

LOOKALIKE_EVERY = 5


@dataclass(frozen=True)
class Crowd:
    """The number of look-alikes: of every `size` people the last `copies` are near copies of the person before them."""

    size: int = LOOKALIKE_EVERY
    copies: int = 1


@dataclass(frozen=True)
class Person:
    """The appearance of one identity: attributes that captions may name, then those of `NOT_IN_CAPTIONS`.

    Colours are names of `COLORS` (hair: of `HAIR_COLORS`); None means that the person does not wear the item. `height`
    and `girth` are factors on the average build, `skin` is an index into `SKINS`, `bag_side` the wearer's own side.
    """

    gender: str
    hair_style: str
    hair_color: str
    hat: str | None
    hat_color: str
    upper: str
    upper_color: str
    sleeves: str
    pattern: str
    pattern_color: str
    lower: str
    lower_color: str
    shoes: str
    shoes_color: str
    bag: str | None
    bag_color: str

    skin: int
    height: float
    girth: float
    bag_side: str
    emblem_side: str | None
    emblem_color: str
    hem_color: str | None
    seam_color: str | None
    sole_color: str


def shade(color: RGB, factor: float) -> RGB:
    """The color with its channels multiplied by `factor`, at most 255."""
    return (min(255, int(color[0] * factor)), min(255, int(color[1] * factor)), min(255, int(color[2] * factor)))


def random_stream(seed: int, *key: object) -> Random:
    """The random numbers of a key under a seed: equal on every machine, different for every key."""
    return Random(":".join(str(value) for value in (seed, *key)))


def make_person(
    seed: int,
    group: str,
    index: int,
    crowd: Crowd = Crowd(),
    dress: Callable[[Random, "Person"], "Person"] | None = None,
) -> Person:
    """Draws an identity; a pure function of its arguments.

    Args:
        seed (`int`): Seed of the world.
        group (`str`): "train", "test", "other" or "distractor".
        index (`int`): Number of the identity in its group, from 0.
        crowd (`Crowd`): The number of look-alikes.
        dress (`Callable`, *optional*): Draws the clothes of the world's people.

    Returns:
        `Person`: The attributes.
    """
    rng = random_stream(seed, group, "person", index)
    original = crowd.size - crowd.copies - 1
    position = index % crowd.size
    if position > original:
        first = index - position + original
        copied, *others = (make_person(seed, group, number, crowd, dress) for number in range(first, index))
        person = look_alike(rng, copied)
        # Two copies of one person may look equal in every image: draw again.
        while _shown(person) in map(_shown, others):
            person = look_alike(rng, copied)
        return person
    person = random_person(rng)
    return person if dress is None else dress(rng, person)


def random_person(rng: Random) -> Person:
    """Draws a person with independent attributes; a pattern or hem always differs in color from its background."""
    gender = rng.choice(("man", "woman"))
    upper = rng.choice(tuple(SLEEVES))
    upper_color, pattern_color, lower_color = rng.sample(tuple(COLORS), 3)
    pattern = rng.choices(PATTERNS, (3, 2, 1, 1, 2, 1))[0]
    skirt, shorts = 3 * (gender == "woman"), 2
    # A coat would hide a skirt or shorts.
    lower = rng.choices(LOWERS, (3, 4, 0, 0) if upper == "coat" else (3, 4, shorts, skirt))[0]
    return Person(
        gender=gender,
        hair_style="short" if gender == "man" else rng.choices(HAIR_STYLES, (1, 2, 2))[0],
        hair_color=rng.choice(tuple(HAIR_COLORS)),
        hat=rng.choices((None, *HATS), (6, 2, 2))[0],
        hat_color=_color(rng),
        upper=upper,
        upper_color=upper_color,
        sleeves=rng.choice(SLEEVES[upper]),
        pattern=pattern,
        pattern_color=pattern_color,
        lower=lower,
        lower_color=lower_color,
        shoes=rng.choice(SHOES),
        shoes_color=_color(rng),
        bag=rng.choices((None, *BAGS), (2, 4, 2, 2))[0],
        bag_color=_color(rng, upper_color),
        skin=rng.randrange(len(SKINS)),
        height=rng.uniform(0.9, 1.05),
        girth=rng.uniform(0.84, 1.1),
        bag_side=rng.choice(SIDES),
        emblem_side=rng.choices((None, *SIDES), (4, 3, 3))[0] if pattern == "plain" else None,
        emblem_color=_color(rng, upper_color),
        hem_color=rng.choice((None, _color(rng, upper_color, lower_color))),
        seam_color=rng.choice((None, None, _color(rng, lower_color))),
        sole_color=rng.choice(("white", "black", "orange")),
    )


def look_alike(rng: Random, person: Person) -> Person:
    """A near copy: the colour of a garment or two smaller attributes differ, and one that captions never name."""
    garments: list[Callable[[], dict[str, Any]]] = [
        lambda: {"upper_color": _color(rng, person.upper_color, person.pattern_color, person.lower_color)},
        lambda: {"lower_color": _color(rng, person.lower_color, person.upper_color, person.pattern_color)},
    ]
    smaller: list[Callable[[], dict[str, Any]]] = [
        lambda: {
            "pattern": rng.choice([p for p in PATTERNS if p not in (person.pattern, "logo")]),
            "emblem_side": None,
        },
        lambda: {"bag": rng.choice([b for b in (None, *BAGS) if b != person.bag])},
        lambda: {"hat": rng.choice([h for h in (None, *HATS) if h != person.hat])},
        lambda: {"shoes_color": _color(rng, person.shoes_color)},
        lambda: {"hair_color": _other(rng, HAIR_COLORS, person.hair_color)},
    ]
    unnamed: list[dict[str, Any]] = [
        {"hem_color": _color(rng, person.hem_color, person.upper_color, person.lower_color)},
        {"seam_color": _color(rng, person.seam_color, person.lower_color)},
        {"bag_side": _other(rng, SIDES, person.bag_side)},
    ]
    for change in rng.sample(garments, 1) if rng.random() < 0.5 else rng.sample(smaller, 2):
        person = replace(person, **change())
    return replace(person, **rng.choice(unnamed))


def _shown(person: Person) -> Person:
    """The person without attributes that no image of them shows."""
    bare, no_side = person.lower in ("shorts", "skirt"), person.bag in (None, "backpack")
    return replace(
        person,
        seam_color=None if bare else person.seam_color,
        bag_side="left" if no_side else person.bag_side,
    )


def _color(rng: Random, *avoid: str | None) -> str:
    """A random color other than those of `avoid`."""
    return rng.choice([color for color in COLORS if color not in avoid])


def _other(rng: Random, values: dict[str, RGB] | tuple[str, ...], avoid: str) -> str:
    """A random value other than `avoid`."""
    return rng.choice([value for value in values if value != avoid])
