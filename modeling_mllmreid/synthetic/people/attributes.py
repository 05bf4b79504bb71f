"""Who a pedestrian is: a body and an outfit, drawn from named streams of random numbers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from .colors import BRIGHT, HAIR, RGB, SKINS, WORN, Color, cloth_color, shade_of

GENDERS = ("man", "woman")
SLEEVES = {
    "tee": ("short",),
    "top": ("none",),
    "shirt": ("long", "long", "short"),
    "blouse": ("long", "short"),
    "sweater": ("long",),
    "hoodie": ("long",),
    "jacket": ("long",),
    "puffer": ("long",),
    "coat": ("long",),
    "dress": ("none", "short", "long"),
}
OPEN = {"jacket": 0.5, "coat": 0.5, "puffer": 0.4, "hoodie": 0.2, "shirt": 0.2}
PATTERNS = {"plain": 11, "logo": 5, "striped": 3, "checked": 2, "block": 3, "dotted": 1, "floral": 1, "camouflage": 1}
LOWERS = ("jeans", "trousers", "leggings", "shorts", "skirt")
SHOES = {"sneakers": 6, "shoes": 3, "boots": 2}
HATS = ("cap", "beanie", "sunhat")
BAGS = {"backpack": 20, "shoulder bag": 11, "crossbody bag": 8, "handbag": 8, "shopping bag": 7, "suitcase": 3}
IN_HAND = ("handbag", "shopping bag", "suitcase")
SIDES = ("left", "right")
HAIR_STYLES = {
    "man": {"bald": 6, "short": 74, "curly": 8, "long": 4, "ponytail": 2},
    "woman": {"short": 12, "curly": 10, "bob": 18, "long": 36, "ponytail": 20, "bun": 9},
}


@dataclass(frozen=True)
class Season:
    """What people wear at a time of the year: weights of uppers and lowers for men and women, and of the rest."""

    uppers: dict[str, tuple[int, int]]
    lowers: dict[str, tuple[int, int]]
    hats: tuple[int, int, int, int]  # none, then `HATS`
    scarf: float


SEASONS = {
    "mild": Season(
        uppers={
            "tee": (27, 20),
            "top": (2, 7),
            "shirt": (13, 7),
            "blouse": (0, 8),
            "sweater": (13, 12),
            "hoodie": (12, 8),
            "jacket": (16, 13),
            "puffer": (7, 7),
            "coat": (7, 9),
            "dress": (0, 9),
        },
        lowers={"jeans": (38, 28), "trousers": (38, 24), "leggings": (1, 14), "shorts": (20, 12), "skirt": (0, 20)},
        hats=(82, 9, 7, 2),
        scarf=0.06,
    ),
    "summer": Season(
        uppers={
            "tee": (56, 30),
            "top": (8, 20),
            "shirt": (22, 8),
            "blouse": (0, 14),
            "hoodie": (4, 2),
            "dress": (0, 22),
        },
        lowers={"jeans": (25, 22), "trousers": (20, 18), "leggings": (0, 10), "shorts": (48, 22), "skirt": (0, 24)},
        hats=(80, 12, 0, 8),
        scarf=0.0,
    ),
    "winter": Season(
        uppers={"sweater": (10, 10), "hoodie": (12, 6), "jacket": (28, 20), "puffer": (26, 30), "coat": (24, 34)},
        lowers={"jeans": (45, 38), "trousers": (50, 28), "leggings": (2, 26), "skirt": (0, 6)},
        hats=(62, 6, 32, 0),
        scarf=0.3,
    ),
}


@dataclass(frozen=True)
class Build:
    """The shape of a body, from 0 to 1: `male`, `age` (young to old), `muscle`, `weight`; `ancestry` as three shares.

    `stature` is a factor on the height.
    """

    male: float
    age: float
    muscle: float
    weight: float
    ancestry: tuple[float, float, float]
    stature: float


@dataclass(frozen=True)
class Gait:
    """How a person moves, in degrees: lean of the trunk, swing of the arms, bend of the elbows, stance of the legs."""

    lean: float
    swing: float
    elbow: float
    stance: float


@dataclass(frozen=True)
class Body:
    """What stays when the clothes change. Captions name gender and hair alone; `detail`: seed of smaller traits."""

    gender: str
    hair_style: str
    hair_color: Color
    build: Build
    gait: Gait
    skin: RGB
    beard: bool
    glasses: bool
    detail: int


@dataclass(frozen=True)
class Outfit:
    """Clothes and what is carried. None: not worn. Captions name all but those of `NOT_IN_CAPTIONS`."""

    upper: str
    upper_color: Color
    sleeves: str
    pattern: str
    pattern_color: Color
    inner_color: Color | None  # of what an open upper shows
    lower: str | None  # None under a dress
    lower_color: Color
    shoes: str
    shoes_color: Color
    hat: str | None
    hat_color: Color
    bag: str | None
    bag_color: Color

    scarf_color: Color | None
    bag_side: str
    sole_color: Color
    accent_color: Color
    detail: int  # seed of cut and fabric: lengths, width, the form of a logo


# Attributes that images show and captions never name.
NOT_IN_CAPTIONS = ("scarf_color", "bag_side", "sole_color", "accent_color", "detail")


@dataclass(frozen=True)
class Person:
    """One identity."""

    body: Body
    outfit: Outfit


@dataclass(frozen=True)
class Crowd:
    """The number of look-alikes: of every `size` people the last `copies` wear almost the clothes of the one before."""

    size: int = 5
    copies: int = 1


def random_stream(seed: int, *key: object) -> Random:
    """The random numbers of a key under a seed: equal on every machine, different for every key."""
    return Random(":".join(str(value) for value in (seed, *key)))


def make_person(seed: int, group: str, index: int, crowd: Crowd = Crowd(), season: str = "mild") -> Person:
    """Draws an identity; a pure function of its arguments.

    Args:
        seed (`int`): Seed of the world.
        group (`str`): "train", "test", "other" or "distractor".
        index (`int`): Number of the identity in its group, from 0.
        crowd (`Crowd`): The number of look-alikes.
        season (`str`): One of `SEASONS`.

    Returns:
        `Person`: The attributes.
    """
    position = index % crowd.size
    copies_before = position - (crowd.size - crowd.copies)
    rng = random_stream(seed, group, "person", index)
    if copies_before < 0:
        return random_person(rng, season)
    original = make_person(seed, group, index - copies_before - 1, crowd, season)
    return look_alike(rng, original, copies_before)


def random_person(rng: Random, season: str = "mild") -> Person:
    """Draws a person."""
    body = random_body(rng)
    return Person(body, random_outfit(rng, body.gender, season))


def random_body(rng: Random, gender: str | None = None) -> Body:
    """Draws a body; of a gender, if one is given."""
    gender = gender or rng.choice(GENDERS)
    age = rng.choices((rng.uniform(0, 0.25), rng.uniform(0.2, 0.9)), (7, 3))[0]
    shares = [rng.gammavariate(0.5, 1) + 1e-6 for _ in range(3)]
    african, asian, caucasian = (share / sum(shares) for share in shares)
    styles = HAIR_STYLES[gender]
    old = age > 0.55 and rng.random() < 0.7
    color = "gray" if old else rng.choices(tuple(HAIR), (48, 32, 11, 4, 5))[0]
    return Body(
        gender=gender,
        hair_style=rng.choices(tuple(styles), tuple(styles.values()))[0],
        hair_color=shade_of(rng, HAIR, color),
        build=Build(
            male=0.97 if gender == "man" else 0.03,
            age=age,
            muscle=rng.uniform(0.35, 0.75),
            weight=min(max(rng.gauss(0.5, 0.18), 0.08), 0.98),
            ancestry=(african, asian, caucasian),
            stature=min(max(rng.gauss(1, 0.05), 0.88), 1.12),
        ),
        gait=Gait(rng.gauss(3, 3), rng.uniform(10, 30), rng.uniform(5, 28), rng.uniform(0.5, 3)),
        skin=_skin(rng, african),
        beard=gender == "man" and rng.random() < 0.3,
        glasses=rng.random() < 0.12,
        detail=rng.getrandbits(32),
    )


def random_outfit(rng: Random, gender: str, season: str = "mild") -> Outfit:
    """Draws clothes; the colours of pattern and upper, and of upper and lower, have different names."""
    wear, which = SEASONS[season], GENDERS.index(gender)
    upper = _drawn(rng, {name: weights[which] for name, weights in wear.uppers.items()})
    lowers = {name: weights[which] for name, weights in wear.lowers.items()}
    if upper in ("coat", "dress"):  # which would hide them
        lowers |= {"shorts": 0, "skirt": 0}
    bare_legs = upper == "dress" and rng.random() < 0.7
    outdoor = upper in ("coat", "puffer", "jacket")
    upper_color = cloth_color(rng, WORN if outdoor or rng.random() < 0.4 else BRIGHT)
    lower = None if bare_legs else "leggings" if upper == "dress" else _drawn(rng, lowers)
    lower_color = cloth_color(rng, WORN, (upper_color.name,))
    if lower == "jeans" and rng.random() < 0.7 and upper_color.name != "blue":
        lower_color = cloth_color(rng, {"blue": 1})
    pattern = "plain" if upper == "puffer" or (outdoor and rng.random() < 0.5) else _drawn(rng, PATTERNS)
    opened = rng.random() < OPEN.get(upper, 0)
    scarf = rng.random() < wear.scarf
    return Outfit(
        upper=upper,
        upper_color=upper_color,
        sleeves=rng.choice(SLEEVES[upper]),
        pattern=pattern,
        pattern_color=cloth_color(rng, BRIGHT, (upper_color.name,)),
        inner_color=cloth_color(rng, BRIGHT, (upper_color.name,)) if opened else None,
        lower=lower,
        lower_color=lower_color,
        shoes=_drawn(rng, SHOES),
        shoes_color=cloth_color(rng, WORN),
        hat=rng.choices((None, *HATS), wear.hats)[0],
        hat_color=cloth_color(rng),
        bag=rng.choices((None, *BAGS), (42, *BAGS.values()))[0],
        bag_color=cloth_color(rng, BRIGHT if rng.random() < 0.4 else WORN, (upper_color.name,)),
        scarf_color=cloth_color(rng, BRIGHT, (upper_color.name,)) if scarf else None,
        bag_side=rng.choice(SIDES),
        sole_color=cloth_color(rng, {"white": 5, "black": 3, "gray": 1, "brown": 1}),
        accent_color=cloth_color(rng, BRIGHT, (upper_color.name, lower_color.name)),
        detail=rng.getrandbits(32),
    )


def change_clothes(seed: int, group: str, index: int, person: Person, season: str = "mild") -> Person:
    """The same person in other clothes."""
    rng = random_stream(seed, group, "clothes", index)
    return replace(person, outfit=random_outfit(rng, person.body.gender, season))


def look_alike(rng: Random, person: Person, number: int) -> Person:
    """Another body of the same gender in almost the same clothes; copy `number` (from 0) changes its own attribute."""
    outfit = person.outfit
    changes: list[Callable[[], dict[str, Any]]] = [
        lambda: {"upper_color": cloth_color(rng, BRIGHT, (outfit.upper_color.name, outfit.pattern_color.name))},
        lambda: {"lower_color": cloth_color(rng, WORN, (outfit.lower_color.name, outfit.upper_color.name))},
        lambda: {"bag": rng.choice([bag for bag in (None, *BAGS) if bag != outfit.bag])},
        lambda: {"shoes_color": cloth_color(rng, WORN, (outfit.shoes_color.name,))},
        lambda: {"hat": rng.choice([hat for hat in (None, *HATS) if hat != outfit.hat])},
    ]
    if outfit.lower is None:
        del changes[1]
    rng_order = Random(outfit.detail)
    change = rng_order.sample(changes, len(changes))[number % len(changes)]
    return Person(random_body(rng, person.body.gender), replace(outfit, **change(), detail=rng.getrandbits(32)))


def _drawn(rng: Random, weights: dict[str, int]) -> str:
    """One of the names, by weight."""
    return rng.choices(tuple(weights), tuple(weights.values()))[0]


def _skin(rng: Random, african: float) -> RGB:
    """A skin tone, mostly darker with more African ancestry."""
    tone = min(len(SKINS) - 1, max(0, round(6 * african + rng.gauss(0, 1.2))))
    light = rng.uniform(0.94, 1.05)
    red, green, blue = (min(1.0, light * channel) for channel in SKINS[tone])
    return (red, green, blue)
