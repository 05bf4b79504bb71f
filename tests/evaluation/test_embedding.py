"""Embedding many images in one pass, and the protocol on query and gallery parts."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from modeling_mllmreid.data.contract import Sample, make_split
from modeling_mllmreid.evaluation import torch_embedding
from modeling_mllmreid.evaluation.embedding import embed_images
from modeling_mllmreid.evaluation.protocol import (
    draw_queries,
    embed_query_gallery,
    evaluate_model,
    evenly_spaced,
    histogram_metrics,
    same_person,
)
from modeling_mllmreid.model import MllmReIDModel
from modeling_mllmreid.research.tiny_llava import build_processor, build_tiny_llava
from modeling_mllmreid.retrieval.ranking import rank_gallery
from modeling_mllmreid.utils.errors import UserError


@pytest.fixture(scope="module")
def processor():
    return build_processor(["a red shirt"], height=64, width=32, patch_size=16)


@pytest.fixture
def model(processor):
    llava = build_tiny_llava(processor, hidden_size=32, tower_layers=1, lm_layers=1, seed=0)
    fields = {"height": 64, "width": 32, "image_prefix_ids": processor.image_prefix_ids}
    return MllmReIDModel.from_mllm(llava, **fields)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Seven noise images; of the last one only the first half of the bytes is there."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(7):
        Image.fromarray(rng.integers(0, 256, (40 + number, 20, 3), dtype=np.uint8)).save(root / f"{number}.png")
    last = root / "6.png"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    return root


def split(root, rows):
    """rows: (image number, person, camera)."""
    return make_split(
        [Sample(f"{number}.png", person, camera) for number, person, camera in rows], root=root, source="t"
    )


def test_batches_and_workers_change_nothing_and_modes_come_back(model, processor, root):
    paths = [root / f"{number}.png" for number in (3, 0, 5, 1, 4)]
    model.train()
    model.mllm.eval()
    whole = embed_images(model, processor, paths, progress=False)
    assert model.training and model.reid_head.training and not model.mllm.training
    assert list(whole) == ["llm", "vision", "concat"] and whole["concat"].shape == (5, 64)
    parts = embed_images(model, processor, paths, batch_size=2, num_workers=2, progress=False)
    model.eval()
    with torch.inference_mode():
        single = [model.image_features(processor(images=[path])["pixel_values"]) for path in paths]
    for name, rows in whole.items():
        assert rows.dtype == np.float32
        np.testing.assert_allclose(parts[name], rows, atol=1e-5)
        np.testing.assert_allclose(np.concatenate([features[name] for features in single]), rows, atol=1e-5)


def test_vision_alone_leaves_the_language_model_out(model, processor, root):
    model.mllm.model.language_model = None
    features = embed_images(model, processor, [root / "0.png"], names=("vision",), progress=False)
    assert list(features) == ["vision"]


def test_flip_test_is_the_mean_of_image_and_mirror_image(model, processor, root, tmp_path):
    paths = [root / f"{number}.png" for number in range(3)]
    mirrored = [tmp_path / path.name for path in paths]
    for path, mirrored_path in zip(paths, mirrored, strict=True):
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(mirrored_path)
    plain, mirror, flipped, back = (
        embed_images(model, processor, images, flip_test=flip, progress=False)
        for images, flip in ((paths, False), (mirrored, False), (paths, True), (mirrored, True))
    )
    assert list(flipped) == ["llm", "vision", "concat"]
    for name, rows in flipped.items():
        mean = plain[name] + mirror[name]
        np.testing.assert_allclose(rows, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-4)
        np.testing.assert_allclose(rows, back[name], atol=1e-4)
        assert np.abs(plain[name] - mirror[name]).max() > 1e-2, name


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_image_is_one_line_that_names_it_and_modes_come_back(model, processor, root, workers):
    model.train()
    paths = [root / "0.png", root / "6.png"]
    with pytest.raises(UserError, match="6.png: broken image") as error:
        embed_images(model, processor, paths, num_workers=workers, progress=False)
    assert "\n" not in str(error.value) and model.training
    with pytest.raises(UserError, match="no image to embed"):
        embed_images(model, processor, [], progress=False)


def test_same_image_under_another_camera_is_found_and_under_its_own_is_dropped(model, processor, root):
    gallery = split(root, [(0, 1, 1), (1, 2, 1), (2, 3, 1), (3, 1, 2)])
    found = evaluate_model(model, processor, split(root, [(0, 1, 2), (1, 2, 2)]), gallery, progress=False)
    assert {name: row.mAP for name, row in found.items()} == {"llm": 1.0, "vision": 1.0, "concat": 1.0}
    own = evaluate_model(model, processor, split(root, [(0, 1, 1), (1, 2, 1)]), gallery, progress=False)
    assert own["llm"].num_valid == 1 and own["llm"].num_queries == 2
    query = split(root, [(0, 1, 2), (1, 2, 2)])
    assert histogram_metrics(query, gallery, same_person(query, gallery)).cmc[1] == 1.0


def test_parts_that_cannot_be_evaluated_are_refused(model, processor, root):
    gallery = split(root, [(0, 1, -1), (1, 2, -1)])
    with pytest.raises(UserError, match="query image 0.png is in the gallery too, of unknown camera"):
        evaluate_model(model, processor, split(root, [(0, 1, -1)]), gallery)
    with pytest.raises(UserError, match="the gallery split has no image"):
        histogram_metrics(gallery, gallery.select([]), same_person(gallery, gallery))
    with pytest.raises(UserError, match="exclude: the query split has no column clothes_id"):
        same_person(gallery, gallery, ("camera_id", "clothes_id"))


def test_examples_are_spread_over_the_queries(model, processor, root, tmp_path):
    query = split(root, [(number, number, 1) for number in range(5)])
    gallery = split(root, [(number, number, 2) for number in range(5)])
    rows = [features["llm"] for features in embed_query_gallery(model, processor, query, gallery, progress=False)]
    ranking = rank_gallery(*rows, 3)
    draw_queries(tmp_path / "sheet.png", ranking, evenly_spaced(len(query), 2), query, gallery)
    few = Image.open(tmp_path / "sheet.png").height
    draw_queries(tmp_path / "sheet.png", ranking, evenly_spaced(len(query)), query, gallery)
    assert Image.open(tmp_path / "sheet.png").height - few > 2 * 192


def test_no_more_processes_than_batches(make_model, tiny_processor, tmp_path, monkeypatch):
    Image.new("RGB", (8, 16)).save(tmp_path / "a.png")
    asked = []

    class Loader(DataLoader):
        def __init__(self, *args, num_workers, **options):
            asked.append(num_workers)
            super().__init__(*args, num_workers=0, **options)

    monkeypatch.setattr(torch_embedding, "DataLoader", Loader)
    images = [tmp_path / "a.png"] * 5
    rows = embed_images(make_model(), tiny_processor, images, batch_size=2, num_workers=100, progress=False)
    assert asked == [3] and len(rows["llm"]) == 5
