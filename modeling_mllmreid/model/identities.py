"""The ID classifiers of a model: made for the training identities, and left out of what is published."""

import contextlib
from collections.abc import Iterator
from typing import Any


class IdentityClassifiers:
    """Methods of both models around their ID classifiers; a base class of them."""

    config: Any
    device: Any

    @property
    def heads(self) -> Any:
        """The [`ReIDHead`] of each feature that the ReID losses act on, by name."""
        raise NotImplementedError

    def set_num_identities(self, num_identities: int, identities_digest: str | None = None) -> None:
        """Replaces the ID classifiers by new ones for other identities.

        Args:
            num_identities (`int`):
                Number of identities; 0 removes the classifiers.
            identities_digest (`str`, *optional*):
                Digest of the identities in label order, stored in the configuration.
        """
        self.config.num_identities = num_identities
        self.config.identities_digest = identities_digest if num_identities else None
        for head in self.heads.values():
            head.remake_classifier(num_identities, self.device)

    @contextlib.contextmanager
    def without_classifier(self) -> Iterator[None]:
        """Removes the ID classifiers within the block: their weights are templates of real people."""
        count, digest = self.config.num_identities, self.config.identities_digest
        classifiers = {name: head.classifier for name, head in self.heads.items()}
        self.config.num_identities, self.config.identities_digest = 0, None
        for head in self.heads.values():
            head.classifier = None
        try:
            yield
        finally:
            self.config.num_identities, self.config.identities_digest = count, digest
            for name, classifier in classifiers.items():
                self.heads[name].classifier = classifier
