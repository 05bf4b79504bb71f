"""The pair sampler: every captioned image once in an epoch, an order by seed and epoch, whole steps."""

import pytest

from modeling_mllmreid.data.pairs import PairSampler
from modeling_mllmreid.utils.errors import UserError

CAPTIONED = [index % 3 != 0 for index in range(40)]  # 26 with a caption


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_epoch_has_whole_steps_of_different_captioned_images(world_size):
    sampler = PairSampler(CAPTIONED, pairs_per_batch=5, world_size=world_size)
    drawn = set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        samples = list(sampler)
        indices = [index for index, _, _ in samples]
        assert len(samples) == len(sampler) == 26 // (5 * world_size) * 5 * world_size
        assert len(set(indices)) == len(indices) and all(CAPTIONED[index] for index in indices)
        assert samples == [(index, epoch, position) for position, index in enumerate(indices)]
        drawn |= set(indices)
    # The images left over are others in each epoch.
    assert drawn == {index for index, captioned in enumerate(CAPTIONED) if captioned}


def test_the_order_depends_on_seed_and_epoch_alone():
    orders = [
        [index for index, _, _ in PairSampler(CAPTIONED, pairs_per_batch=4, seed=seed).epoch_order(epoch)]
        for seed, epoch in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    assert orders[0] == orders[1] and orders[0] != orders[2] and orders[0] != orders[3] and orders[2] != orders[3]
    assert sorted(orders[0]) != orders[0]


def test_too_few_captions():
    with pytest.raises(UserError, match="26 images with a caption, but pairs_per_batch 9 x world_size 3 needs 27: low"):
        PairSampler(CAPTIONED, pairs_per_batch=9, world_size=3)
