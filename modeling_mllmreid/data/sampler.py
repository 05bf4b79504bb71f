"""The P x K sampler: batches of P people with K images each, for the batch-hard triplet loss."""

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
from torch.utils.data import Sampler

from ..utils.errors import UserError
from .contract import display_label

logger = logging.getLogger(__name__)


class PKSampler(Sampler[tuple[int, int, int]]):
    """Yields (image index, epoch, position in the epoch) in batches of P people with K consecutive images each.

    The data set seeds its augmentation with the epoch and the position, and needs no state. A step has `world_size`
    batches, one per process, and no person occurs twice in a step. The sampler goes through all people in a shuffled
    order and then shuffles again. It draws the images of a person without replacement until all are used, and prefers
    cameras that the batch does not have yet; an image repeats in a batch only if the person has fewer than K images.
    The order depends only on the seed and the epoch. An epoch has as many whole steps as the images fill, at least one.

    With `similar`, a batch has P / group_size groups of similar people. A pass has everybody in one group, and the
    groups in a shuffled order; those that do not fill its last step are left out.

    Source: Hermans et al., In Defense of the Triplet Loss for Person Re-Identification, 2017; for batches of similar
    people Liao and Shao, Graph Sampling Based Deep Metric Learning for Generalizable Person Re-Identification, 2022.

    Args:
        person_ids (`Sequence[int]` of length N): the person of each image.
        camera_ids (`Sequence[int]` of length N): the camera of each image. The unknown one (-1) counts as one camera.
        identities_per_batch (`int`): P, the people of a batch.
        images_per_identity (`int`): K, the images of each person in a batch.
        seed (`int`, defaults to 0): the seed of the order.
        world_size (`int`, defaults to 1): the number of processes that train together.
        sources (`Sequence[str]` of length N, *optional*): the data set of each image. If given, each pass draws as many
            people of each data set as the smallest one has, in turn, so that a large data set does not dominate.
        names (`Sequence[str]` of length N, *optional*): the person's name of each image, for warnings. The default is
            the number.
        similar (`Mapping[int, Sequence[int]]`, *optional*): the other people by person, the most similar first.
        group_size (`int`, defaults to 1): people of a group of similar ones; P is a multiple of it.

    Raises:
        UserError: P, K or `world_size` is below 1, P is no multiple of `group_size`, it is above 1 with `sources`, the
            seed is negative, there are fewer people than P x `world_size`, or K exceeds the images of every person.

    Example:

    ```python
    >>> from modeling_mllmreid.data.sampler import PKSampler

    >>> person_ids, camera_ids = [7, 7, 8, 8, 9, 9], [1, 2, 1, 2, 1, 2]
    >>> sampler = PKSampler(person_ids, camera_ids, identities_per_batch=3, images_per_identity=2)
    >>> indices = [index for index, epoch, position in sampler]
    >>> sorted(indices), len({person_ids[index] for index in indices[:2]})
    ([0, 1, 2, 3, 4, 5], 1)

    ```
    """

    def __init__(
        self,
        person_ids: Sequence[int],
        camera_ids: Sequence[int],
        *,
        identities_per_batch: int,
        images_per_identity: int,
        seed: int = 0,
        world_size: int = 1,
        sources: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
        similar: Mapping[int, Sequence[int]] | None = None,
        group_size: int = 1,
    ) -> None:
        minimums = {
            "similar_people": (group_size, 1),
            "identities_per_batch": (identities_per_batch, 1),
            "images_per_identity": (images_per_identity, 1),
            "world_size": (world_size, 1),
            "seed": (seed, 0),
        }
        for name, (value, minimum) in minimums.items():
            if value < minimum:
                raise UserError(f"{name} is {value}: give at least {minimum}")
        if identities_per_batch % group_size:
            raise UserError(
                f"similar_people {group_size}: give a number that divides identities_per_batch ({identities_per_batch})"
            )
        if group_size > 1 and sources is not None:
            raise UserError("similar_people: draws people of all data sets: leave balance_sets out, or similar_people")
        images: dict[int, list[int]] = defaultdict(list)
        for index, person_id in enumerate(person_ids):
            images[int(person_id)].append(index)
        self.identities = sorted(images)
        identities_by_source: dict[str, list[int]] = defaultdict(list)
        for person_id in self.identities:
            identities_by_source["" if sources is None else sources[images[person_id][0]]].append(person_id)
        self.identities_by_source = [identities_by_source[source] for source in sorted(identities_by_source)]
        self.images = images
        self._names = names
        self.cameras = [int(camera) for _, camera in zip(person_ids, camera_ids, strict=True)]
        self.identities_per_step = identities_per_batch * world_size
        self.images_per_identity = images_per_identity
        self.similar, self.group_size = similar or {}, group_size
        self.seed = seed
        self.epoch = 0
        num_people = min(map(len, self.identities_by_source), default=0) * len(self.identities_by_source)
        if num_people < self.identities_per_step:
            raise UserError(
                f"{num_people} people to train on, but identities_per_batch {identities_per_batch} x world_size "
                f"{world_size} needs {self.identities_per_step}: lower identities_per_batch or give more people"
            )
        self.steps = max(1, len(self.cameras) // (self.identities_per_step * images_per_identity))
        max_images = max(map(len, images.values()))
        if max_images < images_per_identity:
            raise UserError(
                f"images_per_identity is {images_per_identity}, but no person has more than {max_images} images: "
                f"lower it to {max_images} or less"
            )
        self._warn_about_few_images()

    def _warn_about_few_images(self) -> None:
        """Warns about people with fewer than K images, and about people with a single one."""
        counts = {person_id: len(self.images[person_id]) for person_id in self.identities}
        few = [person_id for person_id, n in counts.items() if 1 < n < self.images_per_identity]
        single = [person_id for person_id, n in counts.items() if n == 1]
        if few:
            logger.warning(
                "%d people have fewer images than images_per_identity %d (first: %s has %d): "
                "these repeat within a batch",
                *(len(few), self.images_per_identity, self._label(few[0]), counts[few[0]]),
            )
        if single and self.images_per_identity > 1:
            logger.warning(
                "%d people have a single image (first: %s): the triplet loss has no true positive for them; "
                "add images of them or leave them out",
                *(len(single), self._label(single[0])),
            )

    def _label(self, person_id: int) -> str:
        """Returns the person's label for a warning."""
        return display_label(
            "person", str(person_id) if self._names is None else self._names[self.images[person_id][0]]
        )

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.identities_per_step * self.images_per_identity

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        return self.epoch_order(self.epoch)

    def epoch_order(self, epoch: int) -> Iterator[tuple[int, int, int]]:
        """Yields the samples of an epoch, without a change of the current epoch.

        Args:
            epoch (`int`): the epoch, from 0.

        Returns:
            `Iterator[tuple[int, int, int]]`: (image index, epoch, position in the epoch).
        """
        position = 0
        # The spawn key separates this random stream from those of the augmentation.
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, epoch], spawn_key=(1,)))
        pools: dict[int, list[int]] = defaultdict(list)
        waiting: list[int] = []
        for _ in range(self.steps):
            people, waiting = self._draw_people(waiting, rng)
            for person_id in people:
                for index in self._draw_images(person_id, pools[person_id], rng):
                    yield index, epoch, position
                    position += 1

    def _draw_people(self, waiting: list[int], rng: np.random.Generator) -> tuple[list[int], list[int]]:
        """Returns the people of one step and the rest of the pass. A new pass defers people that the step has."""
        count = self.identities_per_step
        if len(waiting) >= count:
            return waiting[:count], waiting[count:]
        shuffled = [[people[i] for i in rng.permutation(len(people))] for people in self.identities_by_source]
        next_pass = [person_id for turn in zip(*shuffled, strict=False) for person_id in turn]
        if self.group_size > 1:
            waiting, next_pass = [], self._grouped(next_pass, rng)
        already_drawn = set(waiting)
        added = [person_id for person_id in next_pass if person_id not in already_drawn][: count - len(waiting)]
        drawn = set(added)
        return waiting + added, [person_id for person_id in next_pass if person_id not in drawn]

    def _grouped(self, people: list[int], rng: np.random.Generator) -> list[int]:
        """Returns the people in groups: the first who is left, and the most similar to this one of those who are."""
        left, grouped = dict.fromkeys(people), []
        for person_id in people:
            if person_id not in left:
                continue
            others = (other for other in self.similar.get(person_id, ()) if other in left and other != person_id)
            group = [person_id, *islice(others, self.group_size - 1)]
            if len(group) == self.group_size:
                grouped.append(group)
                for member in group:
                    del left[member]
        # The others, whose neighbours are all taken.
        rest = list(left)
        grouped += [rest[start : start + self.group_size] for start in range(0, len(rest), self.group_size)]
        # A group that is not whole comes last, where it is left out.
        whole = len(people) // self.group_size
        return [member for place in rng.permutation(whole) for member in grouped[place]]

    def _draw_images(self, person_id: int, pool: list[int], rng: np.random.Generator) -> list[int]:
        """Draws K images from the person's pool, which is refilled when it is empty."""
        drawn: list[int] = []
        cameras: list[int] = []
        while len(drawn) < self.images_per_identity:
            if not pool:
                images = self.images[person_id]
                pool.extend(images[i] for i in rng.permutation(len(images)))
            best = min(range(len(pool)), key=lambda i: (drawn.count(pool[i]), cameras.count(self.cameras[pool[i]])))
            index = pool.pop(best)
            drawn.append(index)
            cameras.append(self.cameras[index])
        return drawn
