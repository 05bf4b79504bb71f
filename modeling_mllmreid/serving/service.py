"""What the server and the page do with a gallery: plain functions, without HTTP and without layout."""

import contextlib
import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..data.images import open_image
from ..gallery.audit import Audit, query_digest
from ..gallery.decisions import Decision, confirm, decisions, rename, split, undo
from ..gallery.filters import Where
from ..gallery.gallery import EVERYTHING, Gallery, Limit
from ..gallery.groups import UnknownPeople
from ..gallery.pictures import check_proportions, openers
from ..gallery.results import Erased, Found, Hit
from ..gallery.rows import Rows
from ..gallery.unknown_people import gallery_groups
from ..model.images import open_image as decode
from ..retrieval.overlay import draw_relevance
from ..utils.errors import UserError
from .batching import BatchingEncoder

MOST_PHOTOS, MOST_RESULTS = 10, 1000
PHOTO_BYTES = 20 * 2**20
# Width and height of the pictures that are sent, at most.
PICTURE = (256, 512)


@dataclass(frozen=True)
class Photo:
    """A photo that somebody sent.

    Args:
        content (`bytes`): The file.
        name (`str`): For messages.
        any_shape (`bool`): Whether it may be wider than a person.
    """

    content: bytes
    name: str = "photo"
    any_shape: bool = False

    def open(self) -> Image.Image:
        """Decodes the photo. Raises UserError if it is too large, broken, or clearly a whole scene."""
        if len(self.content) > PHOTO_BYTES:
            raise UserError(f"{self.name}: has more than {PHOTO_BYTES // 2**20} MiB: send a crop of one person")
        try:
            image = decode(io.BytesIO(self.content))
        except ValueError as error:
            raise UserError(f"{self.name}: {error}") from error
        if not self.any_shape:
            try:
                check_proportions(image)
            except UserError as error:
                raise UserError(str(error).replace("the picture", self.name, 1)) from error
        return image


@dataclass(frozen=True)
class Comparison:
    """Two crops.

    Args:
        distance (`float`): Their cosine distance.
        threshold (`float`, *optional*): The largest distance of one person, chosen on validation people.
        probability (`float`, *optional*): That both are one person, if half of the compared pairs are; calibrated on
            validation people.
    """

    distance: float
    threshold: float | None
    probability: float | None


class GalleryService:
    """A gallery whose model is loaded once, for many users at the same time.

    Args:
        gallery ([`Gallery`]): The gallery.
        audit ([`Audit`]): Gets a line for each search, deletion and decision.
    """

    def __init__(self, gallery: Gallery, audit: Audit):
        self.audit = audit
        self.gallery = Gallery(gallery.store.place, BatchingEncoder(gallery.encoder), gallery.store.options)
        self._grouping, self._writing = threading.Lock(), threading.Lock()

    def search(
        self,
        photos: Sequence[Photo] = (),
        *,
        words: str | None = None,
        id: str | None = None,
        where: Where = EVERYTHING,
        k: int = 10,
        threshold: Limit = "model",
        rerank: bool = False,
        who: str | None = None,
    ) -> Found:
        """Searches as `Gallery.search` does, and writes an audit line.

        Args:
            photos (`Sequence[Photo]`): Photos of one person, at most 10.
            words (`str`, *optional*): A description, instead of photos.
            id (`str`, *optional*): A row, instead of photos.
            where ([`Where`]): Which rows are searched.
            k (`int`): Number of rows, at most 1,000.
            threshold (`float`, *optional*): Distance beyond which nobody is found.
            rerank (`bool`): Order the nearest rows by k-reciprocal re-ranking.
            who (`str`, *optional*): The user.

        Returns:
            [`Found`]

        Raises:
            UserError: There is no query or several, a photo cannot be used, or a number is out of range.
        """
        if len(photos) > MOST_PHOTOS:
            raise UserError(f"photos: {len(photos)} were sent: send at most {MOST_PHOTOS} of one person")
        if k > MOST_RESULTS:
            raise UserError(f"top_k {k}: give at most {MOST_RESULTS}")
        options: dict[str, Any] = {"words": words or None, "id": id or None, "where": where, "rerank": rerank}
        images = [photo.open() for photo in photos]
        found = self.gallery.search(images or None, k, threshold=threshold, **options)
        digest = query_digest([photo.content for photo in photos], words or id or "")
        self.audit.write("search", query=digest, where=where, results=len(found.hits), who=who)
        return found

    def compare(self, first: Photo, second: Photo, *, who: str | None = None) -> Comparison:
        """Compares two crops, and writes an audit line. Raises UserError if one cannot be used."""
        features = self.gallery.encoder.encode([first.open(), second.open()]).astype(np.float64)
        one, other = features / np.linalg.norm(features, axis=1, keepdims=True)
        distance = float(((one - other) ** 2).sum() / 2)
        calibration = self.gallery.encoder.calibration()
        probability = None if calibration is None else float(calibration.pair_probability(distance))
        self.audit.write("compare", query=query_digest([first.content, second.content]), results=2, who=who)
        return Comparison(distance, self.gallery.encoder.threshold(), probability)

    def overlay(self, picture: Image.Image, other: Image.Image) -> tuple[Image.Image, Image.Image]:
        """Draws on two crops which places add to their similarity, and which make them differ.

        Args:
            picture (`Image.Image`): A crop.
            other (`Image.Image`): Another one.

        Returns:
            `tuple[Image.Image, Image.Image]`: Both, with one scale of colours.

        Raises:
            UserError: The model is an ONNX file, which has no gradients.
        """
        encoder = self.gallery.encoder
        features = encoder.encode([picture, other])
        found = [encoder.relevance(image, feature) for image, feature in ((picture, features[1]), (other, features[0]))]
        limit = max(float(np.abs(relevance).max()) for relevance in found) or 1.0
        first, second = (
            draw_relevance(image, relevance, limit=limit)
            for image, relevance in zip((picture, other), found, strict=True)
        )
        return first, second

    def groups(self, where: Where = EVERYTHING, confidence: float | None = None) -> tuple[Rows, UnknownPeople]:
        """Groups unknown people, see `gallery_groups`. One request at a time: it takes all cores."""
        with self._grouping:
            return gallery_groups(self.gallery, where, confidence=confidence)

    def decide(
        self,
        action: str,
        ids: Sequence[str] = (),
        person: str | None = None,
        new: str | None = None,
        *,
        who: str | None = None,
    ) -> Decision:
        """Makes a decision, or takes one back, and writes an audit line.

        Args:
            action (`str`): "confirm" or "split" (`ids`, `person`), "rename" (`person`, `new`), or "undo" (`ids` may
                name one decision).
            ids (`Sequence[str]`): The rows.
            person (`str`, *optional*): A name.
            new (`str`, *optional*): The new name.
            who (`str`, *optional*): The user.

        Returns:
            [`Decision`]

        Raises:
            UserError: The decision is not possible; see `decisions`.
        """
        with self._writing:
            self.audit.check()
            if action == "undo":
                made = undo(self.gallery, next(iter(ids), None))
            elif action == "rename":
                made = rename(self.gallery, person or "", new or "", who=who)
            elif action in ("confirm", "split"):
                made = {"confirm": confirm, "split": split}[action](self.gallery, ids, person or None, who=who)
            else:
                raise UserError(f"action {action[:40]!r}: give confirm, rename, split or undo")
        self.audit.write(action, query=made.id, results=len(made.ids), who=who)
        return made

    def decisions(self) -> list[Decision]:
        """Returns the decisions that can be undone, oldest first."""
        return decisions(self.gallery)

    def find(self, where: Where) -> list[Hit]:
        """Returns the rows that meet conditions. Raises UserError if there is no condition."""
        if not where:
            raise UserError("delete: give a condition, or the ids of rows: no condition would mean all rows")
        return self.gallery.find(where)

    def delete(self, ids: Sequence[str], *, who: str | None = None) -> Erased:
        """Erases rows for good, and writes an audit line. `find` and `search` show them first."""
        where = Where(ids=list(ids))
        with self._writing:
            self.audit.check()
            erased = self.gallery.delete(where)
        self.audit.write("delete", where=where, results=erased.rows, who=who)
        return erased

    def picture(self, id: str) -> Image.Image:
        """Returns the picture of a row, at most 256 x 512 pixels. Raises UserError if there is none."""
        hits = self.gallery.find(Where(ids=[id]))
        if not hits:
            raise UserError(f"id {id[:16]}: is not in the gallery")
        image = open_image(openers(self.gallery, hits)[0]())
        image.thumbnail(PICTURE)
        return image

    def pictures(self, ids: Sequence[str]) -> list[Image.Image]:
        """Returns the pictures of rows; a grey one where the row or its image file is gone."""
        hits = self.gallery.find(Where(ids=list(ids)))
        found = {}
        for hit, open_picture in zip(hits, openers(self.gallery, hits), strict=True):
            with contextlib.suppress(UserError):
                found[hit.id] = open_image(open_picture())
                found[hit.id].thumbnail(PICTURE)
        return [found.get(name) or Image.new("RGB", (64, 128), "lightgray") for name in ids]

    def info(self) -> dict[str, Any]:
        """Returns the counts and the model of the gallery."""
        return self.gallery.info()
