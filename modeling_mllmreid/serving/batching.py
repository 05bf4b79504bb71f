"""An encoder for many threads: what they ask for at the same time is computed in one forward pass."""

import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from ..evaluation.pair_fusion import PairFusion
from ..gallery.model import EncoderSettings, GalleryEncoder

# Images of one forward pass, at most.
BATCH = 64


class BatchingEncoder:
    """A [`GalleryEncoder`] whose `encode` may be called by many threads.

    While a forward pass runs, the images of other calls wait; the next pass takes all of them. A call whose images
    cannot be embedded gets the error alone.

    Args:
        encoder ([`GalleryEncoder`]): The model.
    """

    def __init__(self, encoder: GalleryEncoder):
        self.encoder = encoder
        self.passes = 0
        self._waiting: queue.SimpleQueue[tuple[list[Any], Future[np.ndarray]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name="encoder").start()

    def settings(self) -> EncoderSettings:
        """Returns the model and its settings."""
        return self.encoder.settings()

    def encode(self, images: Sequence[Any]) -> np.ndarray:
        """Embeds images. Returns (N, D) float32."""
        future: Future[np.ndarray] = Future()
        self._waiting.put((list(images), future))
        return future.result()

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """Embeds descriptions. Returns (N, D) float32."""
        return self.encoder.encode_text(texts)

    def relevance(self, image: Any, feature: np.ndarray) -> np.ndarray:
        """Returns how much each place of an image adds to its similarity with a feature."""
        return self.encoder.relevance(image, feature)

    def calibration(self) -> Any:
        """Returns what distances mean; None if the checkpoint has no calibration."""
        return self.encoder.calibration()

    def threshold(self) -> float | None:
        """Returns the distance beyond which nobody is found; None if there is none."""
        return self.encoder.threshold()

    def pair_fusion(self) -> PairFusion:
        """Returns what pair scores and distances mean together. Raises UserError if the model compares no pairs."""
        return self.encoder.pair_fusion()

    def pair_scores(self, photos: Sequence[Any], pictures: Sequence[Any]) -> np.ndarray:
        """Compares each photo with each picture. One call at a time runs, and no pass of images meanwhile."""
        return self.encoder.pair_scores(photos, pictures)

    def describe(self, images: Sequence[Any]) -> list[str]:
        """Writes a text about each image, with the same order of calls."""
        return self.encoder.describe(images)

    def _work(self) -> None:
        """Embeds what waits, again and again."""
        while True:
            # A call of its own: while it waits for the next images, no variable holds the last ones.
            self._pass(self._waiting.get())

    def _pass(self, first: tuple[list[Any], Future[np.ndarray]]) -> None:
        """Embeds the images of a call, and of others that wait."""
        calls = [first]
        while sum(len(images) for images, _ in calls) < BATCH:
            try:
                calls.append(self._waiting.get_nowait())
            except queue.Empty:
                break
        self.passes += 1
        try:
            features = self.encoder.encode([image for images, _ in calls for image in images])
        except Exception as error:
            if len(calls) == 1:
                first[1].set_exception(error)
            else:
                for images, future in calls:
                    self._alone(images, future)
            return
        start = 0
        for images, future in calls:
            future.set_result(features[start : start + len(images)])
            start += len(images)

    def _alone(self, images: list[Any], future: Future[np.ndarray]) -> None:
        """Embeds the images of one call, after a pass of several has failed."""
        try:
            future.set_result(self.encoder.encode(images))
        except Exception as error:
            future.set_exception(error)
