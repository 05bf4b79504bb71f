"""A model on a GPU: embeddings and texts equal the CPU's, and its checkpoints load on the CPU."""

import pytest
import torch
from PIL import Image
from transformers import AutoModel, pipeline

from modeling_mllmreid.model import MllmReIDModel, MllmReIDVisionModel

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def full_float32():
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@torch.no_grad()
def test_embeddings_losses_and_texts_are_the_cpus(make_model, make_batch, tiny_processor, device):
    model, batch = make_model(reid_text=True, distillation_weight=0.5, test_feature="concat").eval(), make_batch(8)
    text, prompts = tiny_processor(text=["a bag ."]), torch.tensor([tiny_processor.image_prompt_ids()] * 8)

    def values(of):
        output = of(**batch)
        written = of.generate(prompts, batch["pixel_values"], max_new_tokens=4, do_sample=False)
        features = (of.encode_images(batch["pixel_values"]), of.encode_text(**text))
        return [*features, output.loss, *output.loss_parts.values()], written

    expected, ids = values(model)
    vision = MllmReIDVisionModel.from_reid_model(model)
    embeddings = vision.encode_images(batch["pixel_values"])
    got, on_gpu = values(model.to(device))
    for one, other in zip(got, expected, strict=True):
        assert one.is_cuda
        torch.testing.assert_close(one.cpu(), other, atol=1e-4, rtol=1e-4)
    assert torch.equal(on_gpu.cpu(), ids)
    torch.testing.assert_close(
        vision.to(device).encode_images(batch["pixel_values"]).cpu(), embeddings, atol=1e-4, rtol=0
    )
    half = model.bfloat16().encode_images(batch["pixel_values"]).cpu()
    assert torch.nn.functional.cosine_similarity(half, expected[0]).min() > 0.99


def test_the_pipeline_runs_on_the_device(make_model, tiny_processor):
    model, image = make_model().eval(), Image.linear_gradient("L").convert("RGB").resize((50, 90))
    expected = pipeline("person-reid", model=model, processor=tiny_processor, device="cpu")(image)
    got = pipeline("person-reid", model=model, processor=tiny_processor, device=0)(image)
    torch.testing.assert_close(torch.from_numpy(got), torch.from_numpy(expected), atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_checkpoint_of_the_device_loads_there_with_the_same_bits(make_model, make_batch, tmp_path, device):
    model, pixels = make_model(test_feature="concat").eval().to(device), make_batch(8)["pixel_values"]
    expected = model.encode_images(pixels)
    model.save_pretrained(tmp_path)
    for loaded in (
        MllmReIDModel.from_pretrained(tmp_path).eval().to(device),
        AutoModel.from_pretrained(tmp_path, device_map="cuda").eval(),
    ):
        assert torch.equal(loaded.encode_images(pixels), expected)
