"""Every entry point of the models moves what it gets to the module that takes it, also under a device map."""

import pytest
import torch
from elsewhere import devices_elsewhere, put, put_with_hook

from modeling_mllmreid.model import MllmReIDVisionModel

TRAINED = {"reid_text": True, "distillation_weight": 0.5, "test_feature": "concat"}


def one_device(model):
    put(model, "cuda:0")


def device_map(model):
    llava = model.mllm.model
    put_with_hook(llava.vision_tower, "cuda:0")
    put_with_hook(llava.multi_modal_projector, "cuda:1")
    put_with_hook(llava.language_model, "cuda:2")
    put_with_hook(llava.language_model.embed_tokens, "cuda:3")
    put_with_hook(model.mllm.lm_head, "cuda:3")
    put(model.reid_head, "cuda:1")


def entries(model, processor, batch):
    """Name -> what a caller gets, from inputs that are on the CPU."""
    text = processor(text=["a bag .", "short black hair and a yellow hat ."])
    prompts = torch.tensor([processor.image_prompt_ids()] * len(batch["pixel_values"]))
    rows = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask", "labels")}

    def step(**more):
        output = model(**{**batch, **more})
        return torch.stack([output.loss.cpu(), *(part.cpu() for part in output.loss_parts.values())])

    return {
        "encode_images": lambda: model.encode_images(batch["pixel_values"]),
        "image_features": lambda: torch.cat([of.cpu() for of in model.image_features(batch["pixel_values"]).values()], 1),
        "encode_text": lambda: model.encode_text(**text),
        "no texts": lambda: model.encode_text(**processor(text=[])),
        "forward": step,
        "forward of pixels": lambda: model(batch["pixel_values"]).image_embeds,
        "image_language_loss": lambda: model.image_language_loss(**rows)[0],
        "generate": lambda: model.generate(
            prompts, batch["pixel_values"], attention_mask=torch.ones_like(prompts), max_new_tokens=3, do_sample=False
        ),
    }


@pytest.mark.parametrize("placed", [one_device, device_map], ids=lambda placed: placed.__name__)
@pytest.mark.parametrize("images", [8, 40])  # many texts run in two halves
def test_every_entry_moves_its_inputs(make_model, make_batch, tiny_processor, placed, images):
    batch = make_batch(images)
    expected = entries(make_model(**TRAINED).eval(), tiny_processor, batch)
    model = make_model(**TRAINED).eval()
    with torch.no_grad():
        expected = {name: entry() for name, entry in expected.items()}
        with devices_elsewhere():
            placed(model)
            for name, entry in entries(model, tiny_processor, batch).items():
                got = entry().cpu()
                torch.testing.assert_close(got, expected[name], msg=lambda said, name=name: f"{name}: {said}")


def test_the_vision_form_moves_its_pixels(make_model, make_batch):
    form, pixels = MllmReIDVisionModel.from_reid_model(make_model().eval()), make_batch(4)["pixel_values"]
    with torch.no_grad(), devices_elsewhere():
        expected = form.encode_images(pixels)
        put(form, "cuda:0")
        got = form(pixels)
    assert got.device == torch.device("cuda:0") and torch.equal(got.cpu(), expected)
