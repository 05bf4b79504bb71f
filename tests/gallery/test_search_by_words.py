"""Words instead of a photo, with a model that was trained for them."""

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mllmreid.gallery.gallery import Gallery
from modeling_mllmreid.retrieval.ranking import rank_gallery
from modeling_mllmreid.utils.errors import UserError


@pytest.mark.parametrize("reid_text", [True, False])
def test_words(make_model, tiny_processor, tmp_path, reid_text):
    model = make_model(reid_text=reid_text, test_feature="llm").eval()
    model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    images = []
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 32, 3), dtype=np.uint8)
        images.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(pixels).save(images[-1])
    gallery = Gallery.create(tmp_path / "gallery", str(tmp_path / "model"))
    gallery.add(images)
    if not reid_text:
        with pytest.raises(UserError, match="was not trained to search by words: give a photo, or a model that was"):
            gallery.search(words="a bag .")
        return
    for words in ("a bag .", "a red coat ."):
        with torch.inference_mode():
            query = model.encode_text(**tiny_processor(text=[words])).numpy()
        rows = gallery.rows()
        np.testing.assert_allclose(gallery.query_feature(words=words), query[0], atol=1e-5)
        ranking = rank_gallery(query, rows.features, 6)
        found = gallery.search(words=words, threshold=None)
        assert [hit.id for hit in found.hits] == list(rows.ids[ranking.indices[0]])
        np.testing.assert_allclose([hit.distance for hit in found.hits], ranking.distances[0], atol=1e-5)
