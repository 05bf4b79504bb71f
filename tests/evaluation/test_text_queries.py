"""Captions as queries: their features, every caption a query, and the mean with the image."""

import numpy as np
import pytest
import torch

from modeling_mllmreid.data.contract import Sample, make_split
from modeling_mllmreid.evaluation.text_queries import caption_queries, embed_captions, image_and_text, text_to_image
from modeling_mllmreid.utils.errors import UserError


def test_captions_in_batches_as_one_by_one(tiny_processor, make_model):
    model = make_model()
    captions = ["a man", "a woman in a red shirt and blue trousers", "a red shirt"]
    got = embed_captions(model, tiny_processor, captions, batch_size=2, progress=False)
    assert got.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)
    model.eval()
    with torch.inference_mode():
        single = [model.encode_text(**tiny_processor(text=[caption])) for caption in captions]
    np.testing.assert_allclose(got, np.concatenate(single), atol=1e-5)
    with pytest.raises(UserError, match="there is no caption to embed"):
        embed_captions(model, tiny_processor, [])


def test_every_caption_is_a_query_without_a_camera_rule(tmp_path):
    query = make_split(
        [Sample("a.jpg", 1, 1, ("one", "two")), Sample("b.jpg", 2, 1), Sample("c.jpg", 3, 2, ("three",))],
        root=tmp_path,
        source="t",
    )
    rows = [Sample("d.jpg", 1, 1), Sample("e.jpg", 1, 2), Sample("f.jpg", 3, 1)]
    gallery = make_split(rows, root=tmp_path, source="t")
    captions, of_row = caption_queries(query)
    assert captions == ["one", "two", "three"] and of_row.tolist() == [0, 0, 2]
    texts = np.eye(3, dtype=np.float32)[[0, 1, 0]]
    images = np.eye(3, dtype=np.float32)
    words = text_to_image(texts, of_row, images, query, gallery)
    # The first caption's nearest image is of the query's own camera, and counts.
    assert [ranks.tolist() for ranks in words.match_ranks] == [[1, 3], [1, 3], [3]]
    own = np.eye(3, dtype=np.float32)[[1, 0, 2]]
    both = image_and_text(texts, of_row, own, images, query, gallery)
    assert [ranks.tolist() for ranks in both.match_ranks] == [[1], [1], [2]]
