"""The P x K sampler: length, distinct people in a step, cameras, replacement, order by seed and epoch."""

import logging
from collections import Counter

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from modeling_mllmreid.data.sampler import PKSampler
from modeling_mllmreid.utils.errors import UserError

PERSONS = [person for person in range(11) for _ in range(3 + person % 5)]
CAMERAS = [i % 4 for i in range(len(PERSONS))]
# Of the first two epochs, see below.
FIRST, SECOND = [6, 5, 1, 0, 7, 7, 3, 4], [0, 1, 2, 4, 6, 5, 7, 7]


def sampler(persons=PERSONS, cameras=None, p=3, k=4, **options):
    cameras = [1] * len(persons) if cameras is None else cameras
    return PKSampler(persons, cameras, identities_per_batch=p, images_per_identity=k, **options)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_batches_have_p_people_with_k_images(world_size):
    made = sampler(world_size=world_size)
    step = 12 * world_size
    for epoch in range(30):  # long enough to cross many borders of passes
        made.set_epoch(epoch)
        rows = list(made)
        assert len(rows) == len(made) == max(1, len(PERSONS) // step) * step
        assert [position for _, _, position in rows] == list(range(len(rows)))
        assert {e for _, e, _ in rows} == {epoch}
        people = np.array([PERSONS[index] for index, _, _ in rows]).reshape(-1, 3 * world_size, 4)
        assert (people == people[:, :, :1]).all()
        assert all(len(set(of_step)) == 3 * world_size for of_step in people[:, :, 0])


def test_passes_over_all_people_continue_across_steps():
    made = sampler([person for person in range(7) for _ in range(60)], p=3, k=2)
    drawn = [int(index) // 60 for index, _, _ in list(made)[::2]]
    for done in range(len(drawn)):
        counts = Counter(drawn[: done + 1])
        # A person deferred at a border is drawn within the same pass: nobody is ever two ahead.
        assert max(counts.values()) - min(counts[person] for person in range(7)) <= 2
    assert set(Counter(drawn[: len(drawn) // 7 * 7]).values()) == {len(drawn) // 7}
    assert drawn[:7] != sorted(drawn[:7])


def test_images_repeat_only_after_all_are_used():
    made = sampler([1] * 10 + [2] * 3, p=2, k=4)
    made.steps = 25
    runs = np.array([index for index, _, _ in made]).reshape(-1, 4)
    many = [run for run in runs if run[0] < 10]
    assert all(len(set(run)) == 4 for run in many)
    assert set(Counter(np.concatenate(many)).values()) == {10}
    assert all(set(run) == {10, 11, 12} for run in runs if run[0] >= 10)


def test_other_cameras_are_preferred():
    made = sampler([1] * 16 + [2] * 16, cameras=[i % 4 for i in range(32)], p=1, k=4)
    assert all(len({index % 4 for index in run}) == 4 for run in np.array([i for i, _, _ in made]).reshape(-1, 4))
    made = sampler([1] * 8 + [2] * 8, cameras=([1] * 6 + [2, 3]) * 2, p=2, k=3)
    first_runs = np.array([index for index, _, _ in made]).reshape(-1, 3)[:2]
    assert all(len({([1] * 6 + [2, 3])[index % 8] for index in run}) == 3 for run in first_runs)


def test_order_is_a_pure_function_of_seed_and_epoch():
    first, second = sampler(seed=4), sampler(seed=4)
    first.set_epoch(2)
    list(second)
    second.set_epoch(2)
    assert list(first) == list(first) == list(second)
    images = {(seed, epoch): None for seed in (4, 5) for epoch in (2, 3)}
    for seed, epoch in images:
        made = sampler(seed=seed)
        made.set_epoch(epoch)
        images[seed, epoch] = tuple(index for index, _, _ in made)
    assert len(set(images.values())) == 4


def test_people_with_few_images_are_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        made = sampler([1, 2, 2, 3, 3, 3, 3, 4], p=2, k=4)
        list(made)
        list(made)
    assert [record.getMessage() for record in caplog.records] == [
        "1 people have fewer images than images_per_identity 4 (first: person 2 has 2): these repeat within a batch",
        "2 people have a single image (first: person 1): the triplet loss has no true positive for them; "
        "add images of them or leave them out",
    ]
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        sampler([3, 3, 3, 3, 1, 1, 2], p=2, k=4, names=list("xxxxyyz"))
    assert "(first: y has 2)" in caplog.text and "(first: z)" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 6, "world_size": 2}, "11 people to train on, but identities_per_batch 6 x world_size 2 needs 12: lower"),
        ({"p": 0}, "identities_per_batch is 0: give at least 1"),
        ({"k": 0}, "images_per_identity is 0: give at least 1"),
        ({"world_size": 0}, "world_size is 0: give at least 1"),
        ({"seed": -1}, "seed is -1: give at least 0"),
        ({"persons": []}, "0 people to train on, but identities_per_batch 3 x world_size 1 needs 3: lower"),
        ({"k": 99}, "images_per_identity is 99, but no person has more than [0-9]+ images: lower it to"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(UserError, match=message):
        sampler(**options)


class Echo(Dataset):
    """Returns the key that it was asked for."""

    def __getitem__(self, key):
        return key


def test_order_does_not_depend_on_workers():
    made = sampler(PERSONS, CAMERAS)
    made.set_epoch(1)

    def keys(workers):
        loader = DataLoader(Echo(), batch_size=12, sampler=made, num_workers=workers, collate_fn=list)
        assert len(loader) == len(made) // 12
        return [key for batch in loader for key in batch]

    assert keys(0) == keys(2) == list(made)


def test_sources_take_turns():
    """A set of 40 people beside one of 6: half of every batch is of each, and all of the large one come in time."""
    persons = [person for person in range(46) for _ in range(2)]
    sources = ["large" if person < 40 else "small" for person in persons]
    options = {"identities_per_batch": 4, "images_per_identity": 2}
    sampler = PKSampler(persons, [0] * 92, **options, sources=sources)
    seen = set()
    for epoch in range(12):
        sampler.set_epoch(epoch)
        order = [persons[index] for index, _, _ in sampler]
        assert len(order) == len(sampler) == 88
        for start in range(0, 88, 8):
            batch = set(order[start : start + 8])
            assert len(batch) == 4 and sum(person >= 40 for person in batch) == 2
        seen |= set(order)
    assert seen == set(range(46))
    with pytest.raises(UserError, match="12 people to train on, but identities_per_batch 13"):
        PKSampler(persons, [0] * 92, identities_per_batch=13, images_per_identity=2, sources=sources)


def test_single_images_are_a_warning(caplog):
    for k, num_warnings in ((1, 0), (2, 1)):
        caplog.clear()
        sampler([1, 2, 2], p=2, k=k)
        assert len(caplog.records) == num_warnings


def test_as_many_cameras_as_images():
    with pytest.raises(ValueError, match="shorter"):
        sampler([1, 1, 2, 2], cameras=[1, 1, 2], p=2, k=2)


def test_order_is_stable_across_versions():
    """A run goes on after an upgrade with the images that it has not seen yet."""
    made = sampler([0, 0, 1, 1, 1, 2, 2, 3], cameras=[1, 2, 1, 1, 2, 1, 2, 1], p=2, k=2)
    assert made.seed == 0 and {epoch for _, epoch, _ in made} == {0}
    assert [index for index, _, _ in made] == FIRST
    made.set_epoch(1)
    assert [index for index, _, _ in made] == SECOND == [index for index, _, _ in made.epoch_order(1)]
    assert made.epoch == 1 and [index for index, _, _ in made.epoch_order(0)] == FIRST
    # A stream of its own: not that of an augmentation.
    people = sampler([0, 1, 2, 3, 4, 5], p=6, k=1)
    assert [index for index, _, _ in people] != list(np.random.default_rng([0, 0]).permutation(6))


def test_sources_in_sorted_order():
    persons, sources = [0, 1, 2, 3], ["a", "b", "a", "b"]
    made = PKSampler(persons, [0] * 4, identities_per_batch=2, images_per_identity=1, sources=sources)
    assert made.identities_by_source == [[0, 2], [1, 3]] and made.steps == 2
    order = [index for index, _, _ in made]
    assert {sources[index] for index in order[:2]} == {sources[index] for index in order[2:]} == {"a", "b"}
    assert PKSampler(persons, [0] * 4, identities_per_batch=2, images_per_identity=1).identities_by_source == [persons]


def neighbours(groups: list[list[int]]) -> dict[int, list[int]]:
    """By person, the others of its group first, then everybody else."""
    everybody = [person for group in groups for person in group]
    found = {}
    for group in groups:
        for person in group:
            near = [other for other in group if other != person]
            found[person] = near + [other for other in everybody if other not in group]
    return found


def test_batches_have_groups_of_similar_people():
    # Similar are those with the same remainder, so that no order of numbers gives the groups.
    groups = [list(range(start, 24, 6)) for start in range(6)]
    made = sampler([p for p in range(24) for _ in range(4)], p=8, k=2, similar=neighbours(groups), group_size=4)
    firsts = []
    for epoch in range(6):
        made.set_epoch(epoch)
        people = np.array([index // 4 for index, _, _ in made])[::2].reshape(-1, 8)
        assert all(len(set(step)) == 8 for step in people.tolist())
        assert (people.reshape(-1, 4) % 6 == people.reshape(-1, 4)[:, :1] % 6).all()
        # A pass has everybody once.
        for start in range(0, len(people) // 3 * 3, 3):
            assert sorted(people[start : start + 3].flatten()) == list(range(24))
        firsts.append(int(people[0, 0]))
    assert len(set(firsts)) > 2


@pytest.mark.parametrize("world_size", [1, 2])
def test_groups_stay_within_a_process_and_nobody_is_left_out_for_good(world_size):
    # 11 people in groups of two: a pass leaves one of them out, and its last step others.
    alike = neighbours([[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10]])
    made = sampler(
        [p for p in range(11) for _ in range(8)], p=2, k=4, world_size=world_size, similar=alike, group_size=2
    )
    seen, pairs = Counter(), Counter()
    for epoch in range(200):
        made.set_epoch(epoch)
        people = np.array([index // 8 for index, _, _ in made])[::4]
        seen.update(people.tolist())
        pairs.update(map(frozenset, people.reshape(-1, 2).tolist()))
    assert seen.keys() == set(range(11)) and min(seen.values()) > 0.5 * max(seen.values())
    assert sum(count for pair, count in pairs.items() if max(pair) < 10 and len({p // 2 for p in pair}) == 1) > (
        0.75 * sum(pairs.values())
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 2}, "similar_people 2: give a number that divides identities_per_batch .3."),
        ({"group_size": 0}, "similar_people is 0: give at least 1"),
        ({"group_size": 3, "sources": ["a"] * len(PERSONS)}, "similar_people: draws people of all data sets"),
    ],
)
def test_groups_that_cannot_be_drawn(options, message):
    with pytest.raises(UserError, match=message):
        sampler(**options)
