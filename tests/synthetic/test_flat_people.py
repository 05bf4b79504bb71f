"""Synthetic pedestrians: what is written, captions that tell only what is shown, and colours that are not enough."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
from PIL import Image

from modeling_mllmreid.evaluation.metrics import evaluate_retrieval
from modeling_mllmreid.evaluation.protocol import color_histograms
from modeling_mllmreid.synthetic.flat import write
from modeling_mllmreid.synthetic.flat.attributes import (
    LOOKALIKE_EVERY,
    NOT_IN_CAPTIONS,
    SHOES,
    Person,
    make_person,
    random_stream,
)
from modeling_mllmreid.synthetic.flat.cameras import CAMERAS
from modeling_mllmreid.synthetic.flat.captions import (
    attribute_words,
    hidden_items,
    sample_descriptions,
    tokenize,
    write_captions,
)
from modeling_mllmreid.synthetic.flat.shots import OCCLUDERS, plan_shot, render
from modeling_mllmreid.synthetic.flat.write import write_pedestrians
from modeling_mllmreid.utils.errors import UserError

SMALL = {"train_identities": 2, "test_identities": 3, "images_per_camera": 2}
WORDS_OF = {"none": {"sleeveless"}, "striped": {"stripes"}, "checked": {"checks"}, "dotted": {"dots"}}


def people(count=120):
    for index in range(count):
        yield (
            make_person(3, "train", index),
            plan_shot(random_stream(3, "shot", index), index % len(CAMERAS)),
        )


def dressed(**changes) -> Person:
    return replace(make_person(0, "train", 0), **changes)


def shot(**changes):
    return replace(plan_shot(random_stream(0, "one"), 0), **({"occluder": None, "view": "front"} | changes))


def same_pixels(one, other, plan):
    return render(one, plan, seed=0).tobytes() == render(other, plan, seed=0).tobytes()


def words(person, plan):
    texts = write_captions(person, plan, 12, random_stream(0, "words"))
    return set().union(*map(attribute_words, texts))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("written") / "new" / "pedestrians"
    return root, write_pedestrians(root, seed=5, **SMALL)


def test_layout_counts_and_captions_file(written):
    root, summary = written
    names = {folder: sorted(path.name for path in (root / folder).iterdir()) for folder in write.FOLDERS}
    assert [len(names[folder]) for folder in write.FOLDERS] == [16, 12, 12]
    assert (summary.train_images, summary.query_images, summary.gallery_images, summary.captions) == (16, 12, 12, 80)
    assert names["query"][:5] == [f"0003_c{c}s1_000001_01.jpg" for c in (1, 2, 3, 4)] + ["0004_c1s1_000001_01.jpg"]
    assert {name[:4] for name in names["bounding_box_train"]} == {"0001", "0002"}
    assert {name[:4] for name in names["bounding_box_test"]} == {"0003", "0004", "0005"}
    with Image.open(root / "query" / names["query"][0]) as image:
        assert (image.size, image.mode, image.format) == ((64, 128), "RGB", "JPEG")
    records = json.loads((root / "reid_raw.json").read_text())
    assert {r["file_path"] for r in records} == {f"{folder}/{name}" for folder in names for name in names[folder]}
    for record in records:
        folder, name = record["file_path"].split("/")
        assert set(record) == {"split", "captions", "file_path", "processed_tokens", "id"}
        assert record["id"] == int(name[:4]) and record["split"] == ("train" if "train" in folder else "test")
        assert len(record["captions"]) == 2 and record["processed_tokens"] == [tokenize(c) for c in record["captions"]]
    assert [path.name for path in root.parent.iterdir()] == ["pedestrians"]


def test_same_arguments_same_bytes_and_people_do_not_depend_on_counts(written, tmp_path):
    first, _ = written
    write_pedestrians(tmp_path / "again", seed=5, **SMALL)
    files = [path.relative_to(first) for path in first.rglob("*.*")]
    assert len(files) == 41 and all((first / f).read_bytes() == (tmp_path / "again" / f).read_bytes() for f in files)
    write_pedestrians(tmp_path / "fewer", seed=5, train_identities=0, test_identities=1, images_per_camera=1, cameras=2)
    write_pedestrians(tmp_path / "other", seed=6, train_identities=0, test_identities=1, images_per_camera=1, cameras=2)
    name = "c2s1_000001_01.jpg"
    theirs = (first / "query" / f"0003_{name}").read_bytes()
    assert (tmp_path / "fewer" / "query" / f"0001_{name}").read_bytes() == theirs
    assert (tmp_path / "other" / "query" / f"0001_{name}").read_bytes() != theirs


def test_a_folder_in_use_and_wrong_counts_are_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="is not an empty folder: give a new folder"):
        write_pedestrians(tmp_path)
    with pytest.raises(UserError, match="is not an empty folder"):
        write_pedestrians(tmp_path / "mine.txt")
    with pytest.raises(UserError, match="cameras is 7: give 1 to 6"):
        write_pedestrians(tmp_path / "new", cameras=7)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_stopped_run_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(write, "write_captions", stop)
    with pytest.raises(KeyboardInterrupt):
        write_pedestrians(tmp_path / "new", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_captions_tell_only_what_the_image_shows():
    seen = set()
    for person, plan in people():
        hidden = hidden_items(person, plan)
        seen |= hidden
        upper = {person.upper_color, person.upper, person.sleeves, "sleeves", *WORDS_OF.get(person.sleeves, ())}
        if person.pattern != "plain" and not (person.pattern == "logo" and "logo" in hidden):
            upper |= {person.pattern_color, person.pattern, *WORDS_OF.get(person.pattern, ())}
        allowed = upper | {person.lower_color, person.lower, person.hair_color, "hair"}
        allowed |= {person.hair_style} if person.hair_style != "ponytail" or "ponytail" not in hidden else set()
        allowed |= {person.hat, person.hat_color} if person.hat else set()
        allowed |= {person.shoes, person.shoes_color} if "shoes" not in hidden else set()
        allowed |= {person.bag_color, *person.bag.split()} if person.bag and "bag" not in hidden else set()
        told = words(person, plan)
        assert told <= allowed, (told - allowed, person, plan)
        assert {person.upper_color, person.upper, person.lower_color, person.lower} <= told
    assert seen == {"shoes", "logo", "ponytail", "bag"}


@pytest.mark.parametrize(
    ("part", "one", "other", "hidden_by", "shown_by"),
    [
        ("logo", {"pattern_color": "red"}, {"pattern_color": "teal"}, {"view": "back"}, {"view": "front"}),
        ("ponytail", {"hair_style": "ponytail"}, {"hair_style": "short"}, {"view": "front"}, {"view": "left"}),
        ("bag", {"bag_color": "red"}, {"bag_color": "teal"}, {"view": "right"}, {"view": "left"}),
        ("shoes", {"shoes_color": "red"}, {"shoes_color": "teal"}, {"occluder": "bin"}, {"occluder": None}),
    ],
)
def test_hidden_in_the_image_is_hidden_for_captions(part, one, other, hidden_by, shown_by):
    base = dressed(pattern="logo", bag="handbag", bag_side="left", hair_style="ponytail", shoes="boots", hat=None)
    first, second = replace(base, **one), replace(base, **other)
    assert part in hidden_items(base, shot(**hidden_by)) and part not in hidden_items(base, shot(**shown_by))
    assert same_pixels(first, second, shot(**hidden_by))
    assert not same_pixels(first, second, shot(**shown_by))


@pytest.mark.parametrize("field", NOT_IN_CAPTIONS)
def test_untold_cues_are_seen_but_never_told(field):
    base = dressed(
        pattern="plain", lower="trousers", bag="handbag", bag_side="left", emblem_side="left", emblem_color="pink"
    )
    changes = {"skin": 4, "height": 0.9, "girth": 1.1, "bag_side": "right", "emblem_side": None}
    start = {"skin": 0, "height": 1.0, "girth": 0.9}
    one = replace(base, **{field: start.get(field, getattr(base, field))})
    other = replace(one, **{field: changes.get(field, "purple")})
    texts = [write_captions(person, shot(), 6, random_stream(0, "c")) for person in (one, other)]
    assert texts[0] == texts[1] and not same_pixels(one, other, shot())


def test_look_alikes_are_near_and_others_are_not():
    def differences(one, other):
        return sum(getattr(one, f.name) != getattr(other, f.name) for f in fields(Person))

    persons = [make_person(1, "test", index) for index in range(20 * LOOKALIKE_EVERY)]
    counts = np.array([differences(one, other) for one, other in zip(persons, persons[1:], strict=False)])
    near = counts[LOOKALIKE_EVERY - 2 :: LOOKALIKE_EVERY]
    assert near.size == 20 and near.min() >= 2 and near.max() <= 4
    far = np.delete(counts, np.s_[LOOKALIKE_EVERY - 2 :: LOOKALIKE_EVERY])
    assert far.min() > near.max()


def test_descriptions_are_many_captions_of_other_people_in_few_words(written):
    groups = sample_descriptions(300, seed=0)
    assert groups == sample_descriptions(300, seed=0) and groups[0] != sample_descriptions(1, seed=1)[0]
    assert all(len(set(group)) == 3 for group in groups)
    lengths = {len(tokenize(text)) for group in groups for text in group}
    assert min(lengths) >= 15 and max(lengths) <= 30
    vocabulary = {word for group in groups for text in group for word in tokenize(text)}
    records = json.loads((written[0] / "reid_raw.json").read_text())
    assert len(vocabulary) < 200
    assert {word for record in records for tokens in record["processed_tokens"] for word in tokens} <= vocabulary


def test_attribute_words():
    text = "A man in a red striped shirt with long sleeves, blue jeans and black boots holds a shoulder bag."
    expected = {"red", "striped", "shirt", "long", "sleeves", "blue", "jeans", "black", "boots", "shoulder", "bag"}
    assert attribute_words(text) == expected
    assert attribute_words("this picture shows a person") == set()


@pytest.mark.parametrize("occluder", OCCLUDERS)
def test_occluders_cover_a_part_only(occluder):
    person = dressed(upper_color="white", lower_color="white", pattern="plain", shoes="boots", shoes_color="white")
    clear, covered = (np.asarray(render(person, shot(occluder=kind), seed=0), int) for kind in (None, occluder))
    changed = (np.abs(clear - covered).max(axis=2) > 40).mean()
    assert 0.02 < changed < 0.4
    assert set(SHOES) & words(person, shot(occluder=occluder)) == (
        set() if occluder in ("railing", "bin") else {"boots"}
    )


def test_colour_finds_people_within_a_camera_but_not_across(tmp_path):
    write_pedestrians(tmp_path / "set", train_identities=0, test_identities=40, images_per_camera=2)
    parts = []
    for folder in ("query", "bounding_box_test"):
        paths = sorted((tmp_path / "set" / folder).iterdir())
        features = color_histograms(Image.open(path) for path in paths)
        parts.append((features, [int(p.name[:4]) for p in paths], [int(p.name[6]) for p in paths]))
    (query, query_ids, query_cameras), (gallery, gallery_ids, gallery_cameras) = parts
    across = evaluate_retrieval(query, gallery, query_ids, gallery_ids, query_cameras, gallery_cameras)
    within = evaluate_retrieval(query, gallery, query_ids, gallery_ids)
    assert across.mAP < 0.15 and within.cmc[1] > 0.4
