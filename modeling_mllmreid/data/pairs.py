"""The pair sampler: shuffled images with captions, without regard to people."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from ..utils.errors import UserError


class PairSampler(Sampler[tuple[int, int, int]]):
    """Yields (image index, epoch, position in the epoch) of the images with a caption, shuffled in every epoch.

    It is for the language loss alone; the ReID losses need `PKSampler`. The order depends only on the seed and the
    epoch. An epoch has as many whole steps as the images fill. The images that are left over are others in each epoch.

    Args:
        captioned (`Sequence[bool]` of length N): whether each image has a caption.
        pairs_per_batch (`int`): the images of a batch.
        seed (`int`, defaults to 0): the seed of the order.
        world_size (`int`, defaults to 1): the number of processes that train together.

    Raises:
        UserError: there are fewer images with a caption than one step has.

    Example:

    ```python
    >>> from modeling_mllmreid.data.pairs import PairSampler

    >>> sampler = PairSampler([True, False, True, True], pairs_per_batch=3)
    >>> sorted(index for index, epoch, position in sampler)
    [0, 2, 3]

    ```
    """

    def __init__(self, captioned: Sequence[bool], *, pairs_per_batch: int, seed: int = 0, world_size: int = 1) -> None:
        self.indices = np.flatnonzero(captioned)
        self.pairs_per_step = pairs_per_batch * world_size
        self.seed = seed
        self.epoch = 0
        self.steps = len(self.indices) // self.pairs_per_step
        if self.steps < 1:
            raise UserError(
                f"{len(self.indices)} images with a caption, but pairs_per_batch {pairs_per_batch} x world_size "
                f"{world_size} needs {self.pairs_per_step}: lower pairs_per_batch or give more captions"
            )

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.pairs_per_step

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        return self.epoch_order(self.epoch)

    def epoch_order(self, epoch: int) -> Iterator[tuple[int, int, int]]:
        """Yields the samples of an epoch, without a change of the current epoch.

        Args:
            epoch (`int`): the epoch, from 0.

        Returns:
            `Iterator[tuple[int, int, int]]`: (image index, epoch, position in the epoch).
        """
        # The spawn key separates this random stream from those of the augmentation.
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, epoch], spawn_key=(1,)))
        for position, index in enumerate(rng.permutation(self.indices)[: len(self)].tolist()):
            yield index, epoch, position
