"""Who a synthetic pedestrian is: one frozen record of attributes, drawn from a named stream of random numbers."""

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

# What the camera shows and no caption ever tells.
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
    """How many look-alikes there are: the last `copies` of every `size` people are copies of the one before them."""

    size: int = LOOKALIKE_EVERY
    copies: int = 1


@dataclass(frozen=True)
class Person:
    """The appearance of one identity: what captions may tell (first block) and what they never do (`NOT_IN_CAPTIONS`).

    Colours are names of `COLORS` (hair: of `HAIR_COLORS`); None means that the thing is not worn. `height` and `girth`
    are factors on the average build, `skin` an index into `SKINS`, `bag_side` the wearer's own side.
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
    """`color` with its three channels multiplied by `factor`, cut at 255."""
    return (min(255, int(color[0] * factor)), min(255, int(color[1] * factor)), min(255, int(color[2] * factor)))


def random_stream(seed: int, *key: object) -> Random:
    """The random numbers that belong to `key` under `seed`: equal on every machine, unlike those of any other key."""
    return Random(":".join(str(part) for part in (seed, *key)))


def make_person(
    seed: int,
    group: str,
    index: int,
    crowd: Crowd = Crowd(),
    dress: Callable[[Random, "Person"], "Person"] | None = None,
) -> Person:
    """Identity number `index` (from 0) of `group` ("train", "test", "other"); a pure function of its arguments.

    Look-alikes (`look_alike`) are as many as the crowd says. dress: what the world's people wear.
    """
    rng = random_stream(seed, group, "person", index)
    original = crowd.size - crowd.copies - 1
    place = index % crowd.size
    if place > original:
        first = index - place + original
        copied, *others = (make_person(seed, group, number, crowd, dress) for number in range(first, index))
        person = look_alike(rng, copied)
        # Copies of one person may come out alike, and nobody could tell these apart.
        while _shown(person) in map(_shown, others):
            person = look_alike(rng, copied)
        return person
    person = random_person(rng)
    return person if dress is None else dress(rng, person)


def random_person(rng: Random) -> Person:
    """A person of independently drawn attributes; contrasts that the eye needs (pattern, hem...) are kept apart."""
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
    """A near copy of `person`: one garment's colour or two smaller things differ, and one that captions never tell."""
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
    untold: list[dict[str, Any]] = [
        {"hem_color": _color(rng, person.hem_color, person.upper_color, person.lower_color)},
        {"seam_color": _color(rng, person.seam_color, person.lower_color)},
        {"bag_side": _other(rng, SIDES, person.bag_side)},
    ]
    for change in rng.sample(garments, 1) if rng.random() < 0.5 else rng.sample(smaller, 2):
        person = replace(person, **change())
    return replace(person, **rng.choice(untold))


def _shown(person: Person) -> Person:
    """The person without what a look-alike may have and no image shows."""
    bare, no_side = person.lower in ("shorts", "skirt"), person.bag in (None, "backpack")
    return replace(
        person,
        seam_color=None if bare else person.seam_color,
        bag_side="left" if no_side else person.bag_side,
    )


def _color(rng: Random, *avoid: str | None) -> str:
    return rng.choice([color for color in COLORS if color not in avoid])


def _other(rng: Random, values: dict[str, RGB] | tuple[str, ...], avoid: str) -> str:
    return rng.choice([value for value in values if value != avoid])
