"""P x K sampling: batches of P people with K images each, for the batch-hard triplet loss (Hermans et al. 2017)."""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from ..utils.errors import UserError
from .contract import display_label

logger = logging.getLogger(__name__)


class PKSampler(Sampler[tuple[int, int, int]]):
    """Yields (image index, epoch, position in the epoch) in runs of P x K: P people, K images of each in succession.

    Position and epoch let the data set seed its augmentation without any state. One step is `world_size` runs, one for
    each process, and no person comes twice within a step. People come in shuffled passes over all of them; a person's
    images come without replacement until all were used, other cameras first, with replacement within a run only where
    the person has fewer than K. The order is a pure function of (seed, epoch). An epoch has as many whole steps as
    there are images for, at least one.

    person_ids, camera_ids: one per image; an unknown camera (-1) counts as one camera. sources: the set of each image;
    given, every pass has as many people of each set as the smallest set has, drawn anew, the sets taking turns, so that
    a large set does not drown a small one. names: what warnings call the person of each image; by default the number.
    Raises UserError for P, K or world_size below 1, a negative seed, fewer people than P x world_size, and a K that is
    more than any person's images.
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
    ) -> None:
        settings = {
            "identities_per_batch": (identities_per_batch, 1),
            "images_per_identity": (images_per_identity, 1),
            "world_size": (world_size, 1),
            "seed": (seed, 0),
        }
        for name, (value, low) in settings.items():
            if value < low:
                raise UserError(f"{name} is {value}: give at least {low}")
        images: dict[int, list[int]] = defaultdict(list)
        for index, person_id in enumerate(person_ids):
            images[int(person_id)].append(index)
        self.identities = sorted(images)
        of_set: dict[str, list[int]] = defaultdict(list)
        for person_id in self.identities:
            of_set["" if sources is None else sources[images[person_id][0]]].append(person_id)
        self.sets = [of_set[name] for name in sorted(of_set)]
        self.images = images
        self._names = names
        self.cameras = [int(camera) for _, camera in zip(person_ids, camera_ids, strict=True)]
        self.identities_per_step = identities_per_batch * world_size
        self.images_per_identity = images_per_identity
        self.seed = seed
        self.epoch = 0
        people = min(map(len, self.sets), default=0) * len(self.sets)
        if people < self.identities_per_step:
            raise UserError(
                f"{people} people to train on, but identities_per_batch {identities_per_batch} x world_size "
                f"{world_size} needs {self.identities_per_step}: lower identities_per_batch or give more people"
            )
        self.steps = max(1, len(self.cameras) // (self.identities_per_step * images_per_identity))
        most = max(map(len, images.values()))
        if most < images_per_identity:
            raise UserError(
                f"images_per_identity is {images_per_identity}, but no person has more than {most} images: "
                f"lower it to {most} or less"
            )
        self._warn_of_few_images()

    def _warn_of_few_images(self) -> None:
        counts = {person_id: len(self.images[person_id]) for person_id in self.identities}
        few = [person_id for person_id, n in counts.items() if 1 < n < self.images_per_identity]
        single = [person_id for person_id, n in counts.items() if n == 1]
        if few:
            logger.warning(
                "%d people have fewer images than images_per_identity %d (first: %s has %d): "
                "theirs are repeated within a batch",
                *(len(few), self.images_per_identity, self._called(few[0]), counts[few[0]]),
            )
        if single and self.images_per_identity > 1:
            logger.warning(
                "%d people have a single image (first: %s): they give the triplet loss no true positive; "
                "add images of them or leave them out",
                *(len(single), self._called(single[0])),
            )

    def _called(self, person_id: int) -> str:
        return display_label(
            "person", str(person_id) if self._names is None else self._names[self.images[person_id][0]]
        )

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps * self.identities_per_step * self.images_per_identity

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        return self.of_epoch(self.epoch)

    def of_epoch(self, epoch: int) -> Iterator[tuple[int, int, int]]:
        """What an epoch yields, whichever is set."""
        position = 0
        # The spawn key keeps this stream apart from those of the augmentation.
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
        """(the people of one step, those left of the pass). A new pass defers those whom the step has already."""
        need = self.identities_per_step
        if len(waiting) >= need:
            return waiting[:need], waiting[need:]
        shuffled = [[people[i] for i in rng.permutation(len(people))] for people in self.sets]
        fresh = [person_id for turn in zip(*shuffled, strict=False) for person_id in turn]
        have = set(waiting)
        added = [person_id for person_id in fresh if person_id not in have][: need - len(waiting)]
        taken = set(added)
        return waiting + added, [person_id for person_id in fresh if person_id not in taken]

    def _draw_images(self, person_id: int, pool: list[int], rng: np.random.Generator) -> list[int]:
        """K images of one person, taken out of the person's pool, which is filled again whenever it is empty."""
        drawn: list[int] = []
        cameras: list[int] = []
        while len(drawn) < self.images_per_identity:
            if not pool:
                images = self.images[person_id]
                pool.extend(images[i] for i in rng.permutation(len(images)))
            place = min(range(len(pool)), key=lambda i: (drawn.count(pool[i]), cameras.count(self.cameras[pool[i]])))
            index = pool.pop(place)
            drawn.append(index)
            cameras.append(self.cameras[index])
        return drawn
