"""What people of a world wear: each dresses a person of random attributes anew."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

from .attributes import SLEEVES, Person

Dress = Callable[[Random, Person], Person]

LIGHT = ("white", "yellow", "pink", "teal", "orange", "red", "green")
DARK = ("black", "gray", "brown", "blue", "purple", "green")
# Upper garment, its colour, pattern and second colour, lower garment, its colour, shoes and their colour.
FIRMS = (
    ("shirt", "blue", "plain", "white", "trousers", "black", "boots", "black"),
    ("jacket", "orange", "block", "gray", "trousers", "gray", "boots", "brown"),
    ("tee", "green", "logo", "yellow", "trousers", "brown", "sneakers", "white"),
    ("sweater", "red", "striped", "white", "jeans", "blue", "sneakers", "black"),
)


def summer(rng: Random, person: Person) -> Person:
    """Short sleeves and bare legs in light colours, few hats and bags."""
    upper = rng.choices(("tee", "top", "shirt"), (4, 3, 2))[0]
    upper_color, pattern_color, lower_color = rng.sample(LIGHT, 3)
    bare = ("shorts", "skirt", "jeans") if person.gender == "woman" else ("shorts", "shorts", "jeans")
    return replace(
        person,
        upper=upper,
        sleeves="none" if upper == "top" else "short",
        upper_color=upper_color,
        pattern_color=pattern_color,
        lower=rng.choice(bare),
        lower_color=lower_color,
        shoes="sneakers",
        hat=rng.choices((None, "cap"), (4, 1))[0],
        bag=rng.choices((None, "shoulder bag", "handbag", "backpack"), (6, 1, 1, 1))[0],
    )


def winter(rng: Random, person: Person) -> Person:
    """Coats and jackets, beanies and boots, in dark colours."""
    upper = rng.choices(("coat", "jacket", "hoodie"), (4, 3, 1))[0]
    upper_color, pattern_color, lower_color = rng.sample(DARK, 3)
    return replace(
        person,
        upper=upper,
        sleeves="long",
        upper_color=upper_color,
        pattern_color=pattern_color,
        lower=rng.choice(("jeans", "trousers")),
        lower_color=lower_color,
        shoes=rng.choices(("boots", "sneakers"), (4, 1))[0],
        hat=rng.choices((None, "beanie"), (1, 2))[0],
        hat_color=rng.choice(DARK),
    )


def uniform(rng: Random, person: Person) -> Person:
    """The dress of one of `FIRMS`: hair, build, hat, bag and small things alone tell its people apart."""
    upper, upper_color, pattern, pattern_color, lower, lower_color, shoes, shoes_color = rng.choice(FIRMS)
    plain = pattern == "plain"
    return replace(
        person,
        upper=upper,
        sleeves=SLEEVES[upper][-1],
        upper_color=upper_color,
        pattern=pattern,
        pattern_color=pattern_color,
        lower=lower,
        lower_color=lower_color,
        shoes=shoes,
        shoes_color=shoes_color,
        emblem_side=person.emblem_side if plain else None,
    )
