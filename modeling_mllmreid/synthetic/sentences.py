"""Sentences of captions: templates that are filled with phrases about a person."""

import re

Phrases = dict[str, str]


def article(phrase: str) -> str:
    """The phrase after "a" or "an"."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def listed(*phrases: str | None) -> str:
    """The phrases, without None, joined by commas and a last "and"."""
    present = [phrase for phrase in phrases if phrase]
    return present[0] if len(present) == 1 else f"{', '.join(present[:-1])} and {present[-1]}"


def if_given(phrases: Phrases, name: str, wording: str) -> str:
    """The wording with the phrase of a name; empty without this phrase."""
    return wording.format(phrases[name]) if name in phrases else ""


def tidy(text: str) -> str:
    """The text without double spaces, and without spaces before commas and full stops."""
    return re.sub(r" ([.,])", r"\1", re.sub(r" +", " ", text)).strip()


def _plain_report(p: Phrases) -> str:
    head, bag, view = (
        if_given(p, "head", "with {}"),
        if_given(p, "bag", "and carries {}"),
        if_given(p, "view", "seen {}"),
    )
    return f"a {p['who']} {head} {view} wears {listed(p['upper'], p['lower'], p.get('shoes'))} {bag}."


def _bottom_up(p: Phrases) -> str:
    shoes, head = if_given(p, "shoes", "and {}"), if_given(p, "head", "the head shows {}.")
    bag, view = if_given(p, "bag", "and carries {}"), if_given(p, "view", "is shown {} and")
    return f"the {p['who']} {view} walks in {p['lower']} {shoes} below {p['upper']} {bag}. {head}"


def _two_sentences(p: Phrases) -> str:
    extras = [p[name] for name in ("head", "bag", "shoes") if name in p]
    has = f"this {p['who']} also has {listed(*extras)}." if extras else ""
    return f"{if_given(p, 'view', 'seen {},')} a {p['who']} is dressed in {p['upper']} and {p['lower']}. {has}"


def _bag_first(p: Phrases) -> str:
    bag, view = if_given(p, "bag", "carrying {}"), if_given(p, "view", "photographed {}")
    head, shoes = if_given(p, "head", "and has {}"), if_given(p, "shoes", "the feet are in {}.")
    return f"a {p['who']} {view} {bag} wears {p['upper']} and {p['lower']} {head}. {shoes}"


def _head_first(p: Phrases) -> str:
    head, bag = if_given(p, "head", "with {},"), if_given(p, "bag", "and holds {}")
    shoes, view = if_given(p, "shoes", "on the feet are {}."), if_given(p, "view", "photographed {}")
    return f"{head} the {p['who']} {view} is wearing {p['upper']} over {p['lower']} {bag}. {shoes}"


def _inventory(p: Phrases) -> str:
    items = listed(p["upper"], p["lower"], p.get("shoes"), p.get("head"), p.get("bag"))
    return f"this picture {if_given(p, 'view', 'taken {}')} shows a {p['who']}. one can see {items}."


TEMPLATES = (_plain_report, _bottom_up, _two_sentences, _bag_first, _head_first, _inventory)
