"""Rendered crops: functions of their seeds, the same on every machine, and captions that are true of them."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from modeling_mllmreid.synthetic.body.dressed import Dressed
from modeling_mllmreid.synthetic.body.mesh import Layer
from modeling_mllmreid.synthetic.people.attributes import (
    BAGS,
    HATS,
    NOT_IN_CAPTIONS,
    SEASONS,
    Crowd,
    make_person,
    random_outfit,
    random_stream,
)
from modeling_mllmreid.synthetic.people.captions import LEAST, WORDS, attribute_words, seen_items, write_captions
from modeling_mllmreid.synthetic.people.colors import CLOTH, Color, cloth_color
from modeling_mllmreid.synthetic.rendering.albedo import albedo
from modeling_mllmreid.synthetic.rendering.crops import render
from modeling_mllmreid.synthetic.rendering.scenes import make_scene
from modeling_mllmreid.synthetic.rendering.shots import Obstacle, PasserBy, plan_shot, plan_track, view_of

# Means of a grid of 4 x 2 cells, of three crops.
EXPECTED = [
    [159, 114, 141, 118, 128, 117, 176, 166],
    [121, 124, 133, 127, 133, 136, 108, 105],
    [204, 161, 205, 192, 189, 154, 194, 215],
]
# Colours that are None where the item is not worn.
FIELDS = {"neck": "scarf_color", "inner": "inner_color"}
GREEN = Color("green", (0.05, 0.95, 0.1))


PASSERS_BY = (PasserBy(3, -6, 20, 30, 1), PasserBy(9, 5, -8, 200, 2))


def digest(image):
    return hashlib.sha256(image.tobytes()).hexdigest()


def crop(index, size=(128, 64), seed=0, season="mild", **changes):
    person, scene = make_person(seed, "train", index, season=season), make_scene(seed, index)
    shot = replace(plan_shot(random_stream(seed, "shot", index), scene), **changes)
    return person, shot, scene, render(person, shot, scene, seed=seed, size=size)


def cells(image):
    pixels = np.asarray(image, float).mean(2)
    return pixels.reshape(4, pixels.shape[0] // 4, 2, pixels.shape[1] // 2).mean((1, 3)).ravel()


def test_crops_are_what_they_always_were():
    found = [np.round(cells(crop(index)[3].image)).astype(int).tolist() for index in (1, 2, 3)]
    # Another processor adds up in another order; another person, scene or camera differs by tens.
    np.testing.assert_allclose(found, EXPECTED, atol=3)


def test_a_crop_does_not_depend_on_what_was_rendered_before():
    """Passers-by too: a new process that renders nothing else gives the same bytes."""
    for index in (2, 4, 5):
        here = crop(index, passers_by=PASSERS_BY)[3].image
    program = "from test_crops import *; print(digest(crop(5, passers_by=PASSERS_BY)[3].image))"
    here_path = Path(__file__).parent
    environ = {**os.environ, "PYTHONPATH": f"{here_path}{os.pathsep}{here_path.parents[1]}"}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environ)
    assert run.stdout.strip() == digest(here), run.stderr


def recolored(person, item):
    """The person with one item in bright green."""
    field = FIELDS.get(item, f"{item}_color")
    if item == "hair":
        return replace(person, body=replace(person.body, hair_color=GREEN))
    return replace(person, outfit=replace(person.outfit, **{field: GREEN}))


def test_what_counts_as_visible_changes_the_image_and_nothing_else_does():
    seen = {item: [0, 0] for item in ("upper", "lower", "inner", "shoes", "hair", "hat", "bag", "neck")}
    for index in range(18):
        person, shot, scene, drawn = crop(index, season="winter")
        plain = np.asarray(drawn.image, int)
        for item, counts in seen.items():
            if item in FIELDS and getattr(person.outfit, FIELDS[item]) is None:
                continue
            other = render(recolored(person, item), shot, scene, seed=0)
            share = drawn.visible[item]
            changed = (np.abs(np.asarray(other.image, int) - plain).max(2) > 12).mean()
            if share >= LEAST[item]:
                counts[0] += 1
                assert changed > 0.03 * share, (index, item, share, changed)
            elif share == 0 and item != "hair":  # brows and beards have its colour
                counts[1] += 1
                assert changed < 0.002, (index, item)
    assert all(visible >= 2 for visible, _ in seen.values()) and sum(hidden for _, hidden in seen.values()) > 10


def test_a_pattern_counts_where_its_colour_shows_and_nowhere_else():
    hidden = shown = 0
    for index in range(28, 50):
        person, shot, scene, drawn = crop(index)
        if person.outfit.pattern == "plain":
            assert drawn.visible["pattern"] == 0
        # Some logos are on one side alone, some have the accent's colour alone, and straps cover others.
        outfit = replace(person.outfit, upper="sweater", pattern="logo", pattern_color=GREEN, bag="backpack")
        logo, other = (replace(person, outfit=replace(outfit, pattern_color=c)) for c in (GREEN, Color("r", (1, 0, 0))))
        share = (drawn := render(logo, shot, scene, seed=0)).visible["pattern"]
        changed = np.abs(np.asarray(drawn.image, int) - np.asarray(render(other, shot, scene, seed=0).image, int))
        changed = (changed.max(2) > 12).mean()
        if share == 0:
            hidden += 1
            assert changed < 0.002, index
        elif share >= LEAST["pattern"]:
            shown += 1
            assert changed > 0.1 * share, (index, share, changed)
    assert hidden >= 3 and shown >= 3


def test_sleeves_of_another_cloth_show_no_pattern():
    person = make_person(0, "train", 0)
    outfits = (replace(person.outfit, upper="sweater", pattern="logo", bag=None, detail=n) for n in range(20, 40))
    dressed = (Dressed(replace(person, outfit=outfit)) for outfit in outfits)
    plain = next(each for each in dressed if each.sleeves is not each.textures[Layer.UPPER])
    everywhere = np.stack(np.meshgrid(np.linspace(-5, 5, 60), np.linspace(-2, 6, 60), (-1, 0, 1)), -1).reshape(-1, 3)
    upper = np.full(len(everywhere), Layer.UPPER)
    for on_arm, shown in ((False, True), (True, False)):
        assert albedo(plain, upper, everywhere, np.full(len(upper), on_arm))[1].any() == shown


def test_captions_mention_what_is_seen_alone():
    for index in range(36):
        person, scene = make_person(1, "train", index, season="winter"), make_scene(1, index % 7)
        shot = plan_shot(random_stream(1, "shot", index), scene)
        visible = render(person, shot, scene, seed=1).visible
        assert set(visible) == set(LEAST)
        seen = seen_items(visible)
        outfit = person.outfit
        texts = write_captions(person, seen, view_of(shot), 12, random_stream(index))
        words = set().union(*map(attribute_words, texts))
        assert all(15 <= len(text.split()) <= 31 for text in texts), texts
        for item, names in (("bag", BAGS), ("hat", HATS), ("shoes", ("sneakers", "boots"))):
            named = {word for name in names for word in WORDS.get(name, name).split()} - {"hat", "bag"}
            worn = getattr(outfit, item)
            if worn is None or item not in seen:
                assert not words & (named - {"shoulder"}), (item, texts)
        if "shoes" in seen:
            assert outfit.shoes in words
        if "lower" in seen and outfit.lower:
            assert outfit.lower in words and outfit.lower_color.name in words
        if "upper" in seen:
            assert outfit.upper_color.name in words


def test_what_an_obstacle_hides_or_a_view_does_not_show_is_in_no_caption():
    person, shot, scene, _ = crop(1, passers_by=(), obstacle=None, fill=0.95, shift=(0.0, 0.0))
    outfit = replace(person.outfit, upper="dress", lower=None, hat=None, pattern="logo", pattern_color=GREEN)
    person = replace(person, body=replace(person.body, hair_style="bald"), outfit=replace(outfit, sleeves="short"))
    wall, beam = Obstacle("low wall", 0.5, 4.0, 0), Obstacle("low wall", 0.0, 4.0, 0)
    free, low, high = (render(person, replace(shot, obstacle=o), scene, seed=0).visible for o in (None, wall, beam))
    assert free["legs"] > 0.1 and free["scalp"] > 0.01
    assert low["legs"] < LEAST["legs"] and low["scalp"] == free["scalp"] and high["scalp"] == 0

    def words(seen, view, **body):
        other = replace(person, body=replace(person.body, **body))
        return " ".join(write_captions(other, frozenset(seen), view, 12, random_stream(0)))

    assert "bare legs" in words(LEAST, "side") and "bald" in words(LEAST, "side")
    assert "bare legs" not in words(LEAST.keys() - {"legs"}, "side")
    assert "bald" not in words(LEAST.keys() - {"scalp"}, "side")
    assert "bun" in words(LEAST, "back", hair_style="bun") and "bun" not in words(LEAST, "front", hair_style="bun")


def test_a_colour_has_its_article():
    person, orange = make_person(0, "train", 0), Color("orange", (0.9, 0.5, 0.1))
    for pattern in ("logo", "block"):
        outfit = replace(person.outfit, upper="sweater", pattern=pattern, pattern_color=orange)
        texts = " ".join(
            write_captions(replace(person, outfit=outfit), frozenset(LEAST), "front", 12, random_stream(0))
        )
        assert f"with an orange {pattern}" in texts and "a orange" not in texts


def test_names_of_colors_do_not_overlap():
    ranges = list(CLOTH.items())
    for number, (name, one) in enumerate(ranges):
        for other_name, other in ranges[number + 1 :]:
            hue, saturation, value = (max(a[0], b[0]) <= min(a[1], b[1]) for a, b in zip(one, other, strict=True))
            gray = {name, other_name} & {"black", "gray", "white"}
            assert not (saturation and value and (hue or gray)), (name, other_name)
    assert {cloth_color(random_stream(number)).name for number in range(400)} == set(CLOTH)


def test_seasons_dress_people():
    summer, winter = (
        [random_outfit(random_stream(s, n), "woman", s) for n in range(200)] for s in ("summer", "winter")
    )
    assert not {outfit.upper for outfit in summer} & {"coat", "puffer", "jacket", "sweater"}
    assert {outfit.upper for outfit in winter} <= set(SEASONS["winter"].uppers)
    assert sum(outfit.hat == "beanie" for outfit in winter) > 30 > sum(outfit.hat == "beanie" for outfit in summer)


def test_look_alikes_differ_in_one_named_attribute_and_in_their_body():
    crowd = Crowd(size=5, copies=4)
    for first in range(0, 60, 5):
        original, *copies = (make_person(7, "test", index, crowd) for index in range(first, first + 5))
        changes = set()
        for copy in copies:
            assert copy.body.detail != original.body.detail and copy.body.gender == original.body.gender
            named = [
                name
                for name, value in vars(copy.outfit).items()
                if name not in NOT_IN_CAPTIONS and value != getattr(original.outfit, name)
            ]
            assert len(named) == 1, named
            changes.add(named[0])
        assert len(changes) >= 3
    assert make_person(7, "test", 4, Crowd(copies=0)) != make_person(7, "test", 4, crowd)


def test_a_track_is_one_walk():
    scene = make_scene(0, 3)
    shots = plan_track(random_stream(0, "walk"), scene, 6)
    assert len({(shot.yaw, shot.posture, shot.passers_by) for shot in shots}) == 1
    assert len({shot.phase for shot in shots}) == 6
    places = np.array(
        [[s.distance * np.sin(np.radians(s.angle)), s.distance * np.cos(np.radians(s.angle))] for s in shots]
    )
    steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
    assert (steps < 5).all() and (steps > 4).sum() >= 3


@pytest.mark.parametrize("size", [(256, 128), (128, 64), (120, 48)])
def test_every_size_is_rendered(size):
    drawn = crop(2, size)[3]
    assert drawn.image.size == (size[1], size[0]) and drawn.visible["upper"] > 0.1
    assert sum(drawn.visible.values()) - drawn.visible["pattern"] <= 1 + 1e-6
