"""`Gallery`: person crops that can be added, searched, and erased for good."""

import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ..data.images import open_image
from ..retrieval.scan import SHORTLIST, Scan, reranked
from ..utils.errors import UserError
from ..utils.processes import on_main
from .adding import changed_rows, digest, known_by_digest, known_values, new_rows, thumbnail
from .erasure import bytes_of, find_traces, shared_bytes, stored_bytes
from .filters import Where, live
from .indexing import shortlist
from .model import FORMAT, METADATA, GalleryEncoder, GalleryModel, check_same, check_unchanged, read_metadata
from .query import feature_of_query
from .results import Erased, Found, Hit, hit_of, summary
from .rows import CropInfo, Rows, row_schema
from .store import Store
from .verification import check_verifiable, verified

EVERYTHING = Where()
BATCH = 1024
# A threshold: a distance, none, or that of the model.
Limit = float | None | Literal["model"]


class Gallery:
    """A gallery of person crops in a folder or in a bucket.

    Several processes and threads may search and change it at the same time. What `add` has written stays if the process
    is killed afterwards, and what `delete` has erased does not come back.

    Args:
        place (`str` or `os.PathLike`): A folder, or an address such as `s3://bucket/gallery`.
        model (`str` or [`GalleryEncoder`], *optional*): The model, or its new place if it was moved. By default it is
            loaded from the place in the gallery's metadata when it is needed.
        options (`Mapping[str, str]`, *optional*): Options of the bucket.

    Raises:
        UserError: There is no gallery, a newer version wrote it, or another model computed its features.

    Example:
        >>> import os
        >>> from PIL import Image
        >>> from modeling_mllmreid import CropInfo, Gallery, Where
        >>> for color in ("red", "blue"):
        ...     Image.new("RGB", (64, 128), color).save(f"{color}.png")
        >>> gallery = Gallery.create("gallery", "pedestrians-small")
        >>> gallery.add(["red.png", "blue.png"], CropInfo(camera_id=1))
        2
        >>> [os.path.basename(hit.file_name) for hit in gallery.search("red.png", k=1).hits]
        ['red.png']
        >>> erased = gallery.delete(Where(cameras=[1]))
        >>> erased.rows, erased.traces.count
        (2, 0)
    """

    def __init__(
        self,
        place: str | os.PathLike[str],
        model: str | GalleryEncoder | None = None,
        options: Mapping[str, str] | None = None,
    ):
        self.store = Store(place, options)
        self.metadata = read_metadata(self.store.schema.metadata, f"gallery {self.store.place}")
        self._encoder: GalleryEncoder | None = None
        self._lock = threading.Lock()
        self._loaded: tuple[int, Rows, Scan] | None = None
        if isinstance(model, str):
            from .encoder import load_encoder

            model = load_encoder(self.metadata, model)
        if model is not None:
            self._use(model)

    @classmethod
    def create(
        cls,
        place: str | os.PathLike[str],
        model: str | GalleryEncoder,
        *,
        keep: Literal["file_name", "thumbnail"] = "file_name",
        options: Mapping[str, str] | None = None,
    ) -> "Gallery":
        """Creates an empty gallery.

        Args:
            place (`str` or `os.PathLike`): A folder that is missing or empty, or an address in a bucket.
            model (`str` or [`GalleryEncoder`]): The model: a folder, a Hub name, an ONNX file or "pedestrians-small".
            keep (`str`): "file_name": rows name the image files. "thumbnail": rows hold a small copy of the image.
            options (`Mapping[str, str]`, *optional*): Options of the bucket.

        Returns:
            [`Gallery`]

        Raises:
            UserError: The place is in use.
        """
        store = Store(place, options)
        store.check_writable()
        if store.exists() or (not store.remote and os.path.isdir(place) and os.listdir(place)):
            raise UserError(f"gallery {store.place}: exists and is not empty: give another place")
        if isinstance(model, str):
            from .encoder import named_encoder

            model = named_encoder(model)
        metadata = GalleryModel(format=FORMAT, keep=keep, **model.settings().model_dump())
        with store.writer():
            store.create(row_schema(metadata.numbers, {METADATA: metadata.model_dump_json()}))
        return cls(place, model, options)

    @classmethod
    def is_at(cls, place: str | os.PathLike[str], options: Mapping[str, str] | None = None) -> bool:
        """Returns whether there is a gallery at a place."""
        return Store(place, options).exists()

    # ---- the model -------------------------------------------------------------------------------------------------

    @property
    def encoder(self) -> GalleryEncoder:
        """The model, loaded at its first use."""
        with self._lock:
            if self._encoder is None:
                from .encoder import load_encoder  # a search by id or feature needs no model

                self._encoder = load_encoder(self.metadata)
            return self._encoder

    def _use(self, encoder: GalleryEncoder) -> None:
        """Sets the model. Raises UserError if it is not the one that computes the features of this gallery."""
        check_same(self.metadata, encoder.settings(), f"gallery {self.store.place}")
        self._encoder = encoder

    def _check_metadata(self) -> None:
        """Raises Unavailable if another process has given the gallery another format or model since it was opened."""
        check_unchanged(self.metadata, self.store.schema.metadata, f"gallery {self.store.place}")

    # ---- rows ------------------------------------------------------------------------------------------------------

    def rows(self) -> Rows:
        """Returns all rows of the newest version, expired ones too."""
        return self._load()[1]

    def _load(self) -> tuple[int, Rows, Scan]:
        """Returns the newest version, its rows, and the features prepared for searches."""
        with self._lock:
            if self._loaded is None or self._loaded[0] != self.store.version:
                self._loaded = None  # frees the memory first
                self._check_metadata()
                version, table, features = self.store.read_searched()
                rows = Rows.from_table(table, features)
                self._loaded = version, rows, Scan.of(rows.features)
            return self._loaded

    def add(
        self,
        images: Sequence[str | os.PathLike[str]],
        crops: CropInfo | Sequence[CropInfo] = CropInfo(),  # noqa: B008 - it is frozen
        *,
        batch_size: int = BATCH,
    ) -> int:
        """Adds images. An image that is there already, byte for byte, stays one row and is not embedded again.

        What is known about it is added to what the row has. Rows are written in batches: an interrupted call can be
        repeated. If several processes run, all of them call this with the same images, and share the work.

        Args:
            images (`Sequence[str]`): N image files.
            crops ([`CropInfo`] or `Sequence[CropInfo]`): What is known about all or each of them.
            batch_size (`int`): Images of one batch.

        Returns:
            `int`: Number of new rows.

        Raises:
            UserError: An image is broken, or the gallery cannot be written.
        """
        crops = [crops] * len(images) if isinstance(crops, CropInfo) else list(crops)
        if len(crops) != len(images):
            raise UserError(f"crops: {len(crops)} for {len(images)} images: give one for each image")
        self.store.check_writable()
        new = 0
        for start in range(0, len(images), batch_size):
            share = slice(start, start + batch_size)
            new += self._add_batch([os.path.abspath(image) for image in images[share]], crops[share])
        on_main(self._tidy)
        return new

    def _add_batch(self, images: Sequence[str], crops: Sequence[CropInfo]) -> int:
        """Embeds the images that are not there, and writes a batch in one commit; returns the number of new rows."""
        digests = [digest(image) for image in images]
        known = known_by_digest(digests, crops)
        there = on_main(self._there, digests)
        new = {name: image for name, image in zip(digests, images, strict=True) if name not in there}
        # On process 0; the others get no rows.
        features = self.encoder.encode(list(new.values())) if new else np.empty((0, self.metadata.numbers), np.float32)
        described = [{"id": name, **known[name], **self._kept(image)} for name, image in new.items()]
        return on_main(self.add_features, features, described, {name: known[name] for name in known.keys() & there})

    def add_features(
        self,
        features: np.ndarray,
        described: Sequence[Mapping[str, Any]],
        known: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> int:
        """Writes rows whose features are there already, in one commit.

        Args:
            features (`np.ndarray`): (N, D) float32.
            described (`Sequence[Mapping]`): N rows: `id`, and any columns that describe a crop.
            known (`Mapping`, *optional*): For rows that are there, new values of columns, by id.

        Returns:
            `int`: Number of new rows.

        Raises:
            UserError: A feature is not finite or has another width, or an id is no SHA-256 digest.
        """
        new = new_rows(self.store.schema, features, described)

        def added(version: int) -> int | None:
            # Another process may have added some of them in the meantime.
            there = self._there([row["id"] for row in described])
            changes = {row["id"]: known_values(row) for row in described if row["id"] in there} | dict(known or {})
            changed = changed_rows(self.store.read(new.schema.names, list(changes))[1], changes)
            absent = pa.array([row["id"] not in there for row in described], pa.bool_())
            table = pa.concat_tables([changed, new.filter(absent)])
            # In a bucket, rows that another process changes in the meantime are read again.
            return self.store.merge(table, version if len(changed) else None) if len(table) else 0

        with self.store.writer():
            self._check_metadata()
            self._finish_erasure()
            return self.store.commit(added)

    def _there(self, ids: Sequence[str]) -> set[str]:
        """Returns the ids of rows that are there."""
        return set(self.store.read(["id"], ids)[1]["id"].to_pylist())

    def _tidy(self) -> None:
        """Joins the files of many additions."""
        with self.store.writer():
            self.store.tidy()

    def _kept(self, image: str) -> dict[str, Any]:
        """Returns what a row keeps of an image: its name, or a small copy."""
        return (
            {"file_name": image} if self.metadata.keep == "file_name" else {"thumbnail": thumbnail(open_image(image))}
        )

    # ---- search ----------------------------------------------------------------------------------------------------

    def search(
        self,
        query: Any = None,
        k: int = 10,
        *,
        words: str | None = None,
        id: str | None = None,
        where: Where = EVERYTHING,
        threshold: Limit = "model",
        rerank: bool = False,
        verify_top: int = 0,
        approximate: bool = False,
    ) -> Found:
        """Finds the rows that are most similar to a person.

        Args:
            query (`str`, `PIL.Image.Image`, or a sequence of them, or `np.ndarray`): One photo or several of one
                person, whose mean is searched for, or a feature (D,).
            k (`int`): Number of rows.
            words (`str`, *optional*): A description, instead of a photo.
            id (`str`, *optional*): A row of the gallery, instead of a photo; it is not found itself.
            where ([`Where`]): Which rows are searched.
            threshold (`float`, *optional*): Cosine distance beyond which nobody is found; None for no threshold. By
                default that of the model, chosen on validation people.
            rerank (`bool`): Order the nearest rows by k-reciprocal re-ranking; distances stay those to the query.
            verify_top (`int`): Number of nearest rows that the model compares with the photo, in pairs. They get a
                probability, and its order, see `verified`.
            approximate (`bool`): Compare only the rows that the index finds, see `build_index`. Features are then not
                read into memory.

        Returns:
            [`Found`]

        Raises:
            UserError: There is no query or several, an image is broken, there is no index, or the model cannot verify.
        """
        if k < 1:
            raise UserError(f"k {k}: give 1 or more")
        if verify_top:
            check_verifiable(self, query, id, verify_top, rerank)
        feature = self.query_feature(query, words=words, id=id)
        listed = max(k, verify_top, SHORTLIST if rerank else 0)
        if approximate:
            self._check_metadata()
            rows, searched = shortlist(self, feature, listed, where, without=id)
            scan = Scan.of(rows.features)
        else:
            _, rows, scan = self._load()
        kept = where.mask(rows) & live(rows)
        if id is not None:
            kept[rows.places([id])] = False
        limit = self.encoder.threshold() if threshold == "model" else threshold
        ((places, distances),) = scan.nearest(feature[None], kept, listed)
        if rerank:
            order = reranked(feature, rows.features[places])[:k]
            places, distances = places[order], distances[order]
        hits = [hit_of(rows, int(place), distance, limit) for place, distance in zip(places, distances, strict=True)]
        found = Found(hits, limit, searched if approximate else int(kept.sum()))
        if verify_top:
            found = verified(self, found, query, id, verify_top)
        return replace(found, hits=found.hits[:k])

    def query_feature(self, query: Any = None, *, words: str | None = None, id: str | None = None) -> np.ndarray:
        """Returns the feature (D,) of a query; see `search`."""
        return feature_of_query(self, query, words, id)

    def find(self, where: Where = EVERYTHING) -> list[Hit]:
        """Returns the rows that meet conditions, sorted by id, expired ones too."""
        rows = self.rows()
        return [hit_of(rows, int(place), float("nan"), None) for place in np.flatnonzero(where.mask(rows))]

    # ---- erase -----------------------------------------------------------------------------------------------------

    def delete(self, where: Where, *, files: bool = False) -> Erased:
        """Erases rows for good: they are in no file of the gallery afterwards.

        Args:
            where ([`Where`]): Which rows; at least one condition. `find` shows them.
            files (`bool`): Whether their image files are deleted too.

        Returns:
            [`Erased`]: With the traces that are left, 0 in a folder.

        Raises:
            UserError: There is no condition, or the gallery cannot be written.
        """
        if not where:
            raise UserError("delete: give a condition, such as person=NAME: no condition would mean all rows")
        return self._erase(where, files)

    def expire(self, now: datetime | None = None, *, files: bool = False) -> Erased:
        """Erases the rows whose time has come, as `delete` does, and what killed processes left. Run it daily."""
        rows = self.rows()
        return self._erase(Where(ids=list(rows.ids[~live(rows, now)])), files)

    def _erase(self, where: Where, files: bool) -> Erased:
        """Erases the rows that meet conditions."""
        with self.store.writer():
            rows = self.rows()
            gone = where.mask(rows)
            ids = list(rows.ids[gone])
            named = sorted({name for name in rows.columns["file_name"][gone] if name})
            patterns = bytes_of(rows, gone) | stored_bytes(self.store, ids)
            shared = shared_bytes(patterns, rows, ~gone)
            self.store.erase(ids)
            traces = find_traces(patterns - shared, self.store.files() if ids else [], len(shared))
        deleted = []
        for name in named if files else []:
            if os.path.isfile(name):
                os.unlink(name)
                deleted.append(name)
        return Erased(len(ids), deleted, traces)

    def _finish_erasure(self) -> None:
        """Finishes the erasure of a process that was killed."""
        if self.store.unfinished():
            self.store.finish_erasure()

    # ---- report ----------------------------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """Returns the counts and the model of the gallery.

        Returns:
            `dict[str, Any]`: `rows`, `expired`, `persons` that are named, `cameras` with their rows, `first` and `last`
            time, `bytes` on disk, parts that a search of the `index` reads, `unfinished_erasure` and `model`.
        """
        return {
            **summary(self.rows()),
            "bytes": self.store.size(),
            "index": self.store.probes(),
            "unfinished_erasure": self.store.unfinished(),
            "model": self.metadata.model_dump(),
        }
