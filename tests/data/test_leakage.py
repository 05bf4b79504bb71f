"""The leakage check: data sets with shared images, and people that two splits share."""

import pytest
from datasets import Value

from modeling_mllmreid.data import leakage
from modeling_mllmreid.data.contract import Sample, make_split
from modeling_mllmreid.data.leakage import (
    overlaps,
    refuse_overlaps,
    refuse_shared_people,
    shared_people,
    shared_people_lines,
)
from modeling_mllmreid.utils.errors import UserError


def test_leaks():
    assert overlaps(["market1501"], ["market1501", "msmt17"]) == []
    assert overlaps(["rendered_summer", "rendered_winter"], ["rendered_uniforms", "rendered_lookalikes"]) == []
    assert overlaps(["market1501:all"], ["market1501"]) == ["market1501's own test people are trained on"]
    assert overlaps(["cuhk_pedes"], ["market1501"]) == ["cuhk_pedes and market1501 share images of market1501"]
    assert overlaps(["icfg_pedes", "rstpreid"], ["msmt17"]) == [
        "icfg_pedes and msmt17 share images of msmt17",
        "rstpreid and msmt17 share images of msmt17",
    ]
    assert overlaps(["icfg_pedes"], ["rstpreid"]) == ["icfg_pedes and rstpreid share images of msmt17"]
    assert overlaps(["cuhk03:all"], ["viper"]) == []
    with pytest.raises(UserError, match="leak: cuhk_pedes and viper share images of viper: leave out that set"):
        refuse_overlaps(["cuhk_pedes"], ["viper"], allow=False)
    assert len(refuse_overlaps(["cuhk_pedes"], ["viper"], allow=True)) == 1
    assert refuse_overlaps(["market1501"], ["msmt17"], allow=False) == []


# By the papers of the sets: CUHK-PEDES (Li et al. 2017), ICFG-PEDES (Ding et al. 2021), RSTPReid (Zhu et al. 2021),
# Occluded-Duke (Miao et al. 2019).
MADE_OF = [
    ("cuhk_pedes", "cuhk01"),
    ("cuhk_pedes", "cuhk03"),
    ("cuhk_pedes", "market1501"),
    ("cuhk_pedes", "viper"),
    ("cuhk_pedes", "cuhk_sysu"),
    ("icfg_pedes", "msmt17"),
    ("rstpreid", "msmt17"),
    ("occluded_duke", "dukemtmc"),
]


@pytest.mark.parametrize(("made", "of"), MADE_OF)
def test_sets_with_shared_images_leak_in_both_directions(made, of):
    assert overlaps([made], [of]) == [f"{made} and {of} share images of {of}"]
    assert overlaps([f"{of}:all"], [made]) == [f"{of} and {made} share images of {of}"]


def test_unrelated_sets_share_nothing(monkeypatch):
    apart = ["market1501", "msmt17", "cuhk01", "cuhk02", "cuhk03", "cuhk_sysu", "dukemtmc", "viper", "prid", "grid"]
    assert overlaps(apart, apart) == []
    assert overlaps(["market1501:all", "market1501"], ["market1501"]) == ["market1501's own test people are trained on"]
    monkeypatch.setitem(leakage.IMAGE_ORIGINS, "both", ("viper", "grid"))
    monkeypatch.setitem(leakage.IMAGE_ORIGINS, "others", ("grid", "viper"))
    assert overlaps(["both"], ["others"]) == ["both and others share images of grid, viper"]


def split(people, source="own", named=True):
    rows = [Sample(f"{number}.jpg", number, 1) for number, _ in people]
    split = make_split(rows, root="/x", source=source)
    names = [name for _, name in people]
    return split.add_column("person_name", names, feature=Value("string")) if named else split


def test_people_shared_with_train():
    train = split([(0, "anna"), (1, "ben"), (2, "cleo"), (3, "dan")])
    numbered_anew = split([(7, "dan"), (8, "cleo"), (9, "anna")])
    dataset = {"train": train, "val": split([(3, "eve")]), "query": numbered_anew, "gallery": split([(0, "anna")])}
    assert shared_people(dataset) == {"train and query": ["anna", "cleo", "dan"], "train and gallery": ["anna"]}
    assert shared_people_lines(dataset) == [
        "anna, cleo and 1 more are in train and query",
        "anna is in train and gallery",
    ]
    assert shared_people({"query": numbered_anew, "gallery": train}) == {}
    # Names of two sets, and numbers where they mean nothing, are no people in common.
    assert shared_people({"train": train, "query": split([(0, "anna")], source="other")}) == {}
    plain = [(5, None)]
    for source, found in (("market1501", ["5"]), ("own", ["5"]), ("msmt17", []), ("rstpreid", [])):
        both = {"train": split(plain, source, named=False), "query": split(plain, source, named=False)}
        assert shared_people(both).get("train and query", []) == found
    one = {"train": split(plain, "a", named=False), "query": split(plain, "b", named=False)}
    assert shared_people(one) == {}


# Each numbers the people of its splits by itself, or may.
APART = ["msmt17", "cuhk02", "cuhk03", "cuhk_sysu", "cuhk_pedes", "icfg_pedes", "rstpreid", "personx", "randperson"]
APART += ["viper", "prid", "grid", "ilids"]


@pytest.mark.parametrize("source", [*APART, "market1501", "dukemtmc", "occluded_duke", "own"])
def test_equal_numbers_mean_one_person_if_numbers_are_global(source):
    train, query = (split([(n, None) for n in numbers], source, named=False) for numbers in ((3, 5, 40), (40, 5, 6)))
    assert shared_people({"train": train, "val": query}) == ({} if source in APART else {"train and val": ["5", "40"]})


def test_shared_people_are_refused_by_name_and_allowed_without():
    anna, ben, both = (split([(0, name) for name in names]) for names in (["anna"], ["ben"], ["anna", "ben"]))
    dataset = {"train": both, "val": anna, "query": both, "gallery": ben}
    with pytest.raises(UserError) as stop:
        refuse_shared_people(dataset, remedy="draw anew", where="splits.json: ")
    assert str(stop.value) == (
        "splits.json: anna is in train and val; anna, ben are in train and query; ben is in train and gallery: "
        "draw anew"
    )
    with pytest.raises(UserError, match="^anna is in train and val: draw anew$"):
        refuse_shared_people({"train": both, "val": anna}, remedy="draw anew")
    assert refuse_shared_people(dataset, remedy="draw anew", allow=True) == [
        "1 person is in train and val",
        "2 people are in train and query",
        "1 person is in train and gallery",
    ]
    assert refuse_shared_people({"train": anna, "query": ben}, remedy="draw anew") == []
