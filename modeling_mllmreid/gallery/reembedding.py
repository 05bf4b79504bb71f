"""A new model for a gallery: the features of all rows are computed again."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from ..utils.errors import UserError
from .gallery import BATCH, Gallery
from .model import METADATA, GalleryEncoder, GalleryModel
from .pictures import openers
from .rows import row_schema


def reembed(gallery: Gallery, encoder: GalleryEncoder) -> Gallery:
    """Computes all features with another model, and replaces them in one commit. The old ones are erased.

    Args:
        gallery ([`Gallery`]): The gallery.
        encoder ([`GalleryEncoder`]): The new model.

    Returns:
        [`Gallery`]: The gallery with the new model.

    Raises:
        UserError: A picture of a row cannot be opened. Nothing is changed then.
    """
    settings = encoder.settings()
    metadata = GalleryModel(**{**gallery.metadata.model_dump(), **settings.model_dump()})
    schema = row_schema(settings.numbers, {METADATA: metadata.model_dump_json()})
    hits = gallery.find()
    missing = [hit for hit in hits if gallery.metadata.keep == "file_name" and not _opens(gallery, hit)]
    if missing:
        raise UserError(
            f"gallery {gallery.store.place}: {len(missing)} of {len(hits)} image files cannot be opened, the first is "
            f"{missing[0].file_name}: restore them, or delete their rows first"
        )

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(hits), BATCH):
            chosen = hits[start : start + BATCH]
            _, table = gallery.store.read(gallery.store.schema.names, [hit.id for hit in chosen])
            table = table.sort_by("id")  # as the hits are
            features = encoder.encode([open_picture() for open_picture in openers(gallery, chosen)])
            flat = pa.array(np.ascontiguousarray(features, dtype=np.float32).ravel())
            column = pa.FixedSizeListArray.from_arrays(flat, settings.numbers)
            table = table.set_column(table.schema.get_field_index("feature"), "feature", column)
            yield from pa.Table.from_arrays(table.columns, schema=schema).combine_chunks().to_batches()

    with gallery.store.writer():
        gallery.store.replace(pa.RecordBatchReader.from_batches(schema, batches()))
    return Gallery(gallery.store.place, encoder, gallery.store.options)


def _opens(gallery: Gallery, hit: object) -> bool:
    """Returns whether the picture of a row can be opened."""
    try:
        openers(gallery, [hit])[0]()  # type: ignore[list-item]
    except UserError:
        return False
    return True
