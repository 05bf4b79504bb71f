"""The vision form: the same feature as the whole model's, a fraction of its weights, and loading with one line."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from published_models import transreid_weights
from transformers import AutoModel, AutoProcessor
from without_package import run_without_package

import modeling_mllmreid.model
from modeling_mllmreid.hub.convert import LAYOUTS, convert
from modeling_mllmreid.hub.layouts.layout import LayoutOptions
from modeling_mllmreid.model import MllmReIDVisionModel, MllmReIDVisionProcessor


@pytest.mark.parametrize(
    ("fields", "depth"),
    [
        ({}, 3),
        ({"vision_layer": -2}, 2),
        ({"vision_layer": 1}, 1),
        ({"bnneck": False}, 3),
        ({"feature_after_bn": False}, 3),
        ({"reid_on": "llm"}, 3),
    ],
)
def test_the_same_feature_and_no_block_that_is_not_read(make_model, make_batch, fields, depth):
    model, pixels = make_model(**fields).eval(), make_batch()["pixel_values"]
    for head in model.reid_head.values():
        if model.config.bnneck:  # statistics that show when they are lost
            torch.nn.init.uniform_(head.bottleneck.running_mean)
            torch.nn.init.uniform_(head.bottleneck.weight, 0.5, 2.0)
    form = MllmReIDVisionModel.from_reid_model(model)
    expected = model.image_features(pixels, ("vision",))["vision"]
    torch.testing.assert_close(form.encode_images(pixels), expected, atol=1e-6, rtol=0)
    assert form.config.vision_config.num_hidden_layers == depth
    assert not [name for name, _ in form.named_parameters() if "classifier" in name or "language_model" in name]
    with pytest.raises(ValueError, match="a vision form has the feature 'vision' alone, not llm"):
        form.image_features(pixels, ("llm",))


# Files that a form without a language model does not need.
WITH_LANGUAGE_MODEL = {
    "__init__.py",
    "backbone_loading.py",
    "checkpoints.py",
    "configuration_mllmreid.py",
    "language_branches.py",
    "mllm_forward.py",
    "pairs.py",
    "modeling_mllmreid.py",
    "processing_mllmreid.py",
    "prompts.py",
    "registered.py",
}
CLEAN_PROCESS = """
import sys
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor
for folder in sys.argv[1:]:
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    assert type(model).__name__ == "MllmReIDVisionModel" and type(processor).__name__ == "MllmReIDVisionProcessor"
    image = Image.linear_gradient("L").convert("RGB").resize((50, 90))
    torch.save(model.encode_images(processor(images=[image])["pixel_values"]), folder + "/got.pt")
"""


def test_it_loads_by_one_line_with_and_without_the_package(make_model, tiny_processor, tmp_path):
    model = make_model().eval()
    MllmReIDVisionModel.from_reid_model(model).save_pretrained(tmp_path)
    MllmReIDVisionProcessor(tiny_processor.image_processor).save_pretrained(tmp_path)
    files = {path.name for path in Path(modeling_mllmreid.model.__file__).parent.glob("*.py")}
    assert {path.name for path in tmp_path.glob("*.py")} == files - WITH_LANGUAGE_MODEL
    image = Image.linear_gradient("L").convert("RGB").resize((50, 90))
    expected = model.image_features(tiny_processor(images=[image])["pixel_values"], ("vision",))["vision"]
    here, processor = AutoModel.from_pretrained(tmp_path).eval(), AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(here, MllmReIDVisionModel) and isinstance(processor, MllmReIDVisionProcessor)
    torch.testing.assert_close(here.encode_images(processor(images=image)["pixel_values"]), expected, atol=1e-6, rtol=0)
    # The encoder of a converted checkpoint is not in transformers: its own code travels too.
    options = LayoutOptions(camera="1")
    weights = transreid_weights(210, cameras=2, parts=True)
    converted, its_processor = convert(weights, LAYOUTS["transreid"], options)
    for part in (converted, its_processor):
        part.save_pretrained(tmp_path / "converted")
    folders = [str(tmp_path), str(tmp_path / "converted")]
    run_without_package(CLEAN_PROCESS, *folders, folder=tmp_path)
    torch.testing.assert_close(torch.load(tmp_path / "got.pt"), expected, atol=1e-6, rtol=0)
    expected = converted.encode_images(its_processor(images=image)["pixel_values"])
    torch.testing.assert_close(torch.load(tmp_path / "converted" / "got.pt"), expected, atol=1e-6, rtol=0)
