"""The pipeline "person-reid": the model's own embeddings and their ranking, with the package and without it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline
from without_package import run_without_package

from modeling_mllmreid.model import MllmReIDVisionModel, MllmReIDVisionProcessor, PersonReIDPipeline


@pytest.fixture
def saved(make_model, tiny_processor, tmp_path):
    """Folder of a vision form with its processor."""
    MllmReIDVisionModel.from_reid_model(make_model()).save_pretrained(tmp_path)
    MllmReIDVisionProcessor(tiny_processor.image_processor).save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.fixture
def images(tmp_path):
    """Seven noisy crops of different sizes: PIL images, a path and a path's string."""
    rng = np.random.default_rng(0)
    crops = [Image.fromarray(rng.integers(0, 256, (60 + 9 * i, 30 + 4 * i, 3), dtype=np.uint8)) for i in range(7)]
    for place in (2, 3):
        crops[place].save(tmp_path / f"{place}.png")
    return [*crops[:2], tmp_path / "2.png", str(tmp_path / "3.png"), *crops[4:]]


def embedded(folder: str, images: list) -> np.ndarray:
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    with torch.no_grad():
        return model.encode_images(processor(images=images)["pixel_values"]).numpy()


def test_embeddings_are_the_models_in_any_batch_and_order(saved, images):
    pipe, expected = pipeline("person-reid", model=saved, device="cpu"), embedded(saved, images)
    assert type(pipe) is PersonReIDPipeline and isinstance(pipe.processor, MllmReIDVisionProcessor)
    one = pipe(images[0])
    assert one.shape == expected[0].shape and one.dtype == np.float32
    for image, wanted in zip(images, expected, strict=True):
        np.testing.assert_allclose(pipe(image), wanted, atol=1e-6)
    for size in (1, 3, 7):
        np.testing.assert_allclose(pipe(images, batch_size=size), expected, atol=1e-6)
        np.testing.assert_allclose(pipe(images[::-1], batch_size=size), expected[::-1], atol=1e-6)
    np.testing.assert_allclose(pipe(tuple(images)), expected, atol=1e-6)
    np.testing.assert_allclose(list(pipe(image for image in images)), expected, atol=1e-6)
    assert pipe([]) == []


def test_a_gallery_is_ranked_by_cosine_and_embedded_once(saved, images, count_calls):
    pipe, embeddings = pipeline("person-reid", model=saved, device="cpu"), embedded(saved, images)
    queries, gallery = images[:2], images[1:]
    cosine = embeddings[:2] @ embeddings[1:].T
    for size in (1, 4):
        for ranking, scores in zip(pipe(queries, gallery=gallery, batch_size=size), cosine, strict=True):
            assert [entry["index"] for entry in ranking] == np.argsort(-scores).tolist()
            np.testing.assert_allclose([entry["score"] for entry in ranking], np.sort(scores)[::-1], atol=1e-6)
    first = pipe(images[1], gallery=gallery, top_k=2)
    assert len(first) == 2 and first[0]["index"] == 0 and first[0]["score"] == pytest.approx(1, abs=1e-6)
    json.dumps(first)
    assert len(pipe(images[0], gallery=gallery, top_k=100)) == 6
    assert len(pipe(images[0], gallery=images * 2)) == 10
    order = [5, 3, 1, 0, 2, 4]
    turned = pipe(queries[0], gallery=[gallery[i] for i in order])
    assert [order[entry["index"]] for entry in turned] == np.argsort(-cosine[0]).tolist()
    assert pipe([], gallery=gallery) == []
    seen = count_calls(pipe.model.tower)
    pipe(queries, gallery=gallery, batch_size=6)
    assert seen.calls == 2  # the queries' batch and the gallery's


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gallery": []}, "the gallery is empty: give at least one image to rank"),
        ({"top_k": 3}, "top_k is how many of a gallery are shown: give gallery=.* too, or leave top_k out"),
        ({"gallery": ["a.png"], "top_k": 0}, "top_k is 0: give 1 or more"),
    ],
)
def test_mistakes_are_reported_in_one_line(saved, images, options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        pipeline("person-reid", model=saved, device="cpu")(images[0], **options)


def test_config_names_the_pipeline_and_stays_equal(saved, images, tmp_path):
    def entry(folder):
        return json.loads((folder / "config.json").read_text())["custom_pipelines"]

    expected = {"impl": "pipeline_mllmreid.PersonReIDPipeline", "pt": ["AutoModel"], "type": "image"}
    assert entry(tmp_path) == {"person-reid": expected}
    config = AutoConfig.from_pretrained(saved)
    assert not hasattr(config, "custom_pipelines") and config == AutoConfig.from_pretrained(saved)
    pipe = pipeline("person-reid", model=saved, device="cpu")
    pipe.save_pretrained(tmp_path / "again")
    assert entry(tmp_path / "again") == entry(tmp_path)
    again = pipeline("person-reid", model=str(tmp_path / "again"), device="cpu")
    np.testing.assert_array_equal(again(images[0]), pipe(images[0]))


CLEAN_PROCESS = """
import sys
import numpy as np
from transformers import pipeline
folder, *images = sys.argv[1:]
for task in (["person-reid"], []):  # named, and from the checkpoint's configuration
    pipe = pipeline(*task, model=folder, trust_remote_code=True, device="cpu")
    assert type(pipe).__name__ == "PersonReIDPipeline" and type(pipe).__module__.startswith("transformers_modules")
np.save(folder + "/embeddings.npy", pipe(images, batch_size=2))
np.save(folder + "/ranking.npy", [entry["index"] for entry in pipe(images[0], gallery=images)])
assert "PersonReIDPipeline" in repr(pipe.model.config)
pipe.save_pretrained(folder + "/again")
try:
    pipeline("person-reid", model=folder)
except ValueError as error:
    assert "trust_remote_code=True" in str(error)
else:
    raise AssertionError("a checkpoint's code ran unasked")
"""


def test_without_the_package_the_checkpoint_brings_the_pipeline(saved, images, tmp_path):
    paths = [str(images[2]), str(images[3])]
    run_without_package(CLEAN_PROCESS, saved, *paths, folder=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "embeddings.npy"), embedded(saved, paths), atol=1e-6)
    assert np.load(tmp_path / "ranking.npy").tolist() == [0, 1]
    assert (tmp_path / "again" / "pipeline_mllmreid.py").is_file()


def test_the_whole_model_ranks_too(make_model, tiny_processor, images):
    model = make_model().eval()
    pipe = pipeline("person-reid", model=model, processor=tiny_processor, device="cpu")
    expected = model.encode_images(tiny_processor(images=images)["pixel_values"]).detach()
    np.testing.assert_allclose(pipe(images, batch_size=3), expected, atol=1e-5)


@pytest.mark.parametrize("form", ["full", "vision"])
def test_the_stock_pipeline_gives_the_embedding(make_model, tiny_processor, images, saved, tmp_path, form):
    folder = saved
    if form == "full":
        folder = str(tmp_path / "full")
        make_model(test_feature="concat").save_pretrained(folder)
        tiny_processor.save_pretrained(folder)
    expected = embedded(folder, images)
    pipe = pipeline("image-feature-extraction", model=folder, device="cpu")
    inputs = [str(image) if isinstance(image, Path) else image for image in images]
    for size in (1, 3):
        for embedding, reference in zip(pipe(inputs, batch_size=size), expected, strict=True):
            np.testing.assert_allclose(np.ravel(embedding), reference, atol=1e-5)
    assert np.ravel(pipe(inputs[0], return_tensors=True)).shape == expected[0].shape


def test_a_pipeline_in_bfloat16_and_of_arrays(saved, images):
    pipe = pipeline("person-reid", model=saved, device="cpu", dtype=torch.bfloat16)
    embedding = pipe(np.asarray(images[0]))
    assert embedding.dtype == np.float32 and embedding @ pipe(images[0]) == pytest.approx(1, abs=1e-6)
    assert embedding @ embedded(saved, images[:1])[0] > 0.99
