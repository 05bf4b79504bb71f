"""What the server and the page do with a gallery: plain functions, without HTTP and without layout."""

import contextlib
import io
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from ..data.images import open_image
from ..evaluation.pair_fusion import PairFusion
from ..gallery.audit import Audit, query_digest
from ..gallery.decisions import Decision, confirm, decisions, rename, split, undo
from ..gallery.filters import Where
from ..gallery.gallery import EVERYTHING, Gallery, Limit
from ..gallery.groups import UnknownPeople
from ..gallery.person import rows_of_person
from ..gallery.pictures import check_proportions, openers
from ..gallery.results import Erased, Found, Hit
from ..gallery.rows import Rows
from ..gallery.unknown_people import gallery_groups
from ..model.images import open_image as decode
from ..retrieval.overlay import draw_relevance
from ..text.reasons import Reason, compare_descriptions
from ..utils.errors import NotFound, TooLarge, Unavailable, UserError
from .batching import BatchingEncoder
from .uploads import MIB, Memory, pixel_count

MOST_PHOTOS, MOST_RESULTS, MOST_VERIFIED = 10, 1000, 100
PHOTO_BYTES = 20 * MIB
# Of all photos of a request together.
MOST_PIXELS = 25_000_000
# Photos that are decoded: Pillow takes 4 bytes for a pixel. All requests share this.
PHOTO_MEMORY, PIXEL_BYTES = 512 * MIB, 4
# Decoding takes several copies of a picture: one picture at a time. In many threads, each would keep freed memory.
DECODER = ThreadPoolExecutor(1, "decoder")
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
            raise TooLarge(f"{self.name}: has more than {PHOTO_BYTES // MIB} MiB: send a crop of one person")
        try:
            image = DECODER.submit(decode, io.BytesIO(self.content), max_pixels=MOST_PIXELS).result()
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
        pair_probability (`float`, *optional*): That both are one person, by the distance and by the pair score of the
            model, which reads both crops together; see `probability_note`.
        pair_top (`int`, *optional*): Number of nearest images for which this probability was calibrated.
        pair_gallery (`int`, *optional*): Number of images that they were the nearest of: those of val.
        reason ([`Reason`], *optional*): What the model's descriptions of both share, where it was asked for.
    """

    distance: float
    threshold: float | None
    probability: float | None
    pair_probability: float | None = None
    pair_top: int | None = None
    pair_gallery: int | None = None
    reason: Reason | None = None


class GalleryService:
    """A gallery whose model is loaded once, for many users at the same time.

    Args:
        gallery ([`Gallery`]): The gallery.
        audit ([`Audit`]): Gets a line for each search, deletion and decision.
    """

    def __init__(self, gallery: Gallery, audit: Audit):
        self.audit = audit
        self.gallery = Gallery(gallery.store.place, BatchingEncoder(gallery.encoder), gallery.store.options)
        self.memory = Memory(PHOTO_MEMORY)
        self._grouping, self._writing = threading.Lock(), threading.Lock()

    @contextlib.contextmanager
    def opened(self, photos: Sequence[Photo]) -> Iterator[list[Image.Image]]:
        """Decodes photos, which share `PHOTO_MEMORY` with those of other requests until the end of the block.

        Raises UserError if there are too many or one cannot be used, and TooLarge if they have too many pixels.
        """
        if len(photos) > MOST_PHOTOS:
            raise UserError(f"photos: {len(photos)} were sent: send at most {MOST_PHOTOS} of one person")
        pixels = sum(DECODER.map(pixel_count, [photo.content for photo in photos if len(photo.content) <= PHOTO_BYTES]))
        if pixels > MOST_PIXELS:
            names = ", ".join(photo.name for photo in photos)[:200]
            raise TooLarge(f"{names}: more than {MOST_PIXELS // 10**6} million pixels: send crops of one person")
        with self.memory.held(PIXEL_BYTES * pixels):
            yield [photo.open() for photo in photos]

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
        verify_top: int = 0,
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
            verify_top (`int`): Number of nearest rows that the model compares with the photos, at most 100.
            who (`str`, *optional*): The user.

        Returns:
            [`Found`]

        Raises:
            UserError: There is no query or several, a photo cannot be used, or a number is out of range.
        """
        if not 1 <= k <= MOST_RESULTS:
            raise UserError(f"top_k {k}: give 1 to {MOST_RESULTS}")
        if not 0 <= verify_top <= MOST_VERIFIED:
            raise UserError(f"verify_top {verify_top}: give 0 to {MOST_VERIFIED}")
        options: dict[str, Any] = {"words": words or None, "id": id or None, "where": where, "threshold": threshold}
        with self.opened(photos) as images:
            found = self.gallery.search(images or None, k, rerank=rerank, verify_top=verify_top, **options)
        digest = query_digest([photo.content for photo in photos], words or id or "")
        results = len(found.hits)
        self.audit.write("search", query=digest, where=where, results=results, who=who, verify_top=verify_top)
        return found

    def compare(self, first: Photo, second: Photo, *, reasons: bool = False, who: str | None = None) -> Comparison:
        """Compares two crops, and writes an audit line.

        Args:
            first, second (`Photo`): The crops.
            reasons (`bool`): Whether the model describes both.
            who (`str`, *optional*): The user.

        Raises:
            UserError: A crop cannot be used, or the model has no language model to describe it.
        """
        with self.opened([first, second]) as images:
            texts = self.gallery.encoder.describe(images) if reasons else None
            features = self.gallery.encoder.encode(images).astype(np.float64)
            fusion = self.pair_fusion()
            score = None if fusion is None else self.gallery.encoder.pair_scores(images[:1], images[1:])[0, 0]
        one, other = features / np.linalg.norm(features, axis=1, keepdims=True)
        distance = float(((one - other) ** 2).sum() / 2)
        calibration = self.gallery.encoder.calibration()
        probability = None if calibration is None else float(calibration.pair_probability(distance))
        self.audit.write("compare", query=query_digest([first.content, second.content]), results=2, who=who)
        reason = None if texts is None else compare_descriptions(*texts)
        compared = Comparison(distance, self.gallery.encoder.threshold(), probability, reason=reason)
        if fusion is None or score is None:
            return compared
        # Two crops were not found in a gallery: the statement is that of the calibration, about the gallery of val.
        fused = float(fusion.pair_probability(np.array(distance), np.array(score), fusion.gallery))
        return replace(compared, pair_probability=fused, pair_top=fusion.top, pair_gallery=fusion.gallery)

    def pair_fusion(self) -> PairFusion | None:
        """Returns what pair scores and distances mean together; None if the model compares no pairs."""
        try:
            return self.gallery.encoder.pair_fusion()
        except UserError:
            return None

    def describes(self) -> bool:
        """Whether the model can describe crops."""
        try:
            return self.gallery.encoder.describe([]) == []
        except UserError:
            return False

    def explain(self, id: str, photos: Sequence[Photo] = (), words: str | None = None) -> list[Image.Image]:
        """Draws which places of a row and of a query add to their similarity, and which make them differ.

        Args:
            id (`str`): A row.
            photos (`Sequence[Photo]`): The photos that were searched with.
            words (`str`, *optional*): The words that were searched with, instead of photos.

        Returns:
            `list[Image.Image]`: The photos and the row, with one scale of colours; the row alone for words.

        Raises:
            UserError: The row is gone, there is no query, a photo cannot be used, or the model is an ONNX file, which
                has no gradients.
        """
        picture = self.picture(id)
        if not photos:
            return self._drawn([picture], [self.gallery.query_feature(words=words or None)])
        with self.opened(photos) as images:
            return self.overlay(images, picture)

    def overlay(self, pictures: Sequence[Image.Image], other: Image.Image) -> list[Image.Image]:
        """Draws on crops which places add to their similarity with another one, and which make them differ.

        Args:
            pictures (`Sequence[Image.Image]`): One crop or several of one person, whose mean feature is compared.
            other (`Image.Image`): Another crop.

        Returns:
            `list[Image.Image]`: All of them, the other one last, with one scale of colours.

        Raises:
            UserError: The model is an ONNX file, which has no gradients.
        """
        *own, last = self.gallery.encoder.encode([*pictures, other])
        return self._drawn([*pictures, other], [last] * len(own) + [np.mean(own, axis=0)])

    def _drawn(self, pictures: Sequence[Image.Image], features: Sequence[np.ndarray]) -> list[Image.Image]:
        """Draws on each picture how much its places add to the similarity with a feature."""
        pairs = list(zip(pictures, features, strict=True))
        found = [self.gallery.encoder.relevance(picture, feature) for picture, feature in pairs]
        limit = max(float(np.abs(relevance).max()) for relevance in found) or 1.0
        drawn = zip(pictures, found, strict=True)
        return [draw_relevance(picture, relevance, limit=limit) for picture, relevance in drawn]

    def overlay_photos(
        self, photos: Sequence[Photo], id: str | None = None, *, who: str | None = None
    ) -> list[Image.Image]:
        """Draws the overlay of two photos, or of a photo and a row, as `overlay` does, and writes an audit line.

        Raises UserError for another number of photos, or a photo that cannot be used, and NotFound for the row.
        """
        if len(photos) != (2 if id is None else 1):
            raise UserError(f"photos: {len(photos)} were sent: send two, or one and the id of a row")
        with self.opened(photos) as images:
            first, second = [*images, *([] if id is None else [self.row_picture(id)])]
            drawn = self.overlay([first], second)
        digest = query_digest([photo.content for photo in photos], id or "")
        self.audit.write("overlay", query=digest, results=2, who=who)
        return drawn

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

    def find_person(
        self,
        photos: Sequence[Photo],
        *,
        where: Where = EVERYTHING,
        threshold: Limit = "model",
        who: str | None = None,
    ) -> tuple[list[Hit], list[Hit]]:
        """Returns the two lists of `rows_of_person` for photos, and writes an audit line."""
        with self.opened(photos) as images:
            hits, beyond = rows_of_person(self.gallery, images or None, where, threshold)
        digest = query_digest([photo.content for photo in photos])
        self.audit.write("search", query=digest, where=where, results=len(hits), who=who)
        return hits, beyond

    def delete(self, ids: Sequence[str], *, query: str | None = None, who: str | None = None) -> Erased:
        """Erases rows for good, and writes an audit line. `find` and `find_person` show them first.

        Args:
            ids (`Sequence[str]`): The rows.
            query (`str`, *optional*): Digest of the photos by which they were found.
            who (`str`, *optional*): The user.

        Returns:
            [`Erased`]

        Raises:
            UserError: The gallery or its audit trail cannot be written.
        """
        where = Where(ids=list(ids))
        with self._writing:
            self.audit.check()
            erased = self.gallery.delete(where)
        self.audit.write("delete", query=query, where=where, results=erased.rows, who=who)
        return erased

    def picture(self, id: str) -> Image.Image:
        """Returns the picture of a row, at most 256 x 512 pixels. Raises UserError if there is none."""
        hits = self.gallery.find(Where(ids=[id]))
        if not hits:
            raise NotFound(f"id {id[:16]}: is not in the gallery")
        image = open_image(openers(self.gallery, hits)[0]())
        image.thumbnail(PICTURE)
        return image

    def row_picture(self, id: str) -> Image.Image:
        """Returns the picture of a row, as `picture` does. Its errors do not name the folders of the server."""
        try:
            return self.picture(id)
        except (NotFound, Unavailable):
            raise
        except UserError as error:
            raise NotFound(
                f"id {id[:16]}: its image file is missing, broken or not the one that was added: restore it on the "
                "server, or erase the row"
            ) from error

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
