"""Every method moves its pixels and ids to the device of the module that takes them, also with a device map."""

import numpy as np
import pytest
import torch
from elsewhere import devices_elsewhere, put, put_with_hook
from PIL import Image

from modeling_mllmreid.evaluation.embedding import embed_images
from modeling_mllmreid.evaluation.text_queries import embed_captions
from modeling_mllmreid.model import MllmReIDVisionModel
from modeling_mllmreid.research.agreement import write_from_images
from modeling_mllmreid.research.language_gain import image_losses, text_losses
from modeling_mllmreid.text.generation import generate_texts
from modeling_mllmreid.training.diagnostic_measures import generated_and_targets
from modeling_mllmreid.training.grad_cache import cached_backward

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
    inputs = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask", "labels")}

    def step(**more):
        output = model(**{**batch, **more})
        return torch.stack([output.loss.cpu(), *(part.cpu() for part in output.loss_parts.values())])

    return {
        "encode_images": lambda: model.encode_images(batch["pixel_values"]),
        "image_features": lambda: torch.cat(
            [of.cpu() for of in model.image_features(batch["pixel_values"]).values()], 1
        ),
        "encode_text": lambda: model.encode_text(**text),
        "no texts": lambda: model.encode_text(**processor(text=[])),
        "forward": step,
        "forward of pixels": lambda: model(batch["pixel_values"]).image_embeds,
        "image_language_loss": lambda: model.image_language_loss(**inputs)[0],
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
                torch.testing.assert_close(got, expected[name], msg=lambda message, name=name: f"{name}: {message}")


def test_the_vision_form_moves_its_pixels(make_model, make_batch):
    form, pixels = MllmReIDVisionModel.from_reid_model(make_model().eval()), make_batch(4)["pixel_values"]
    with torch.no_grad(), devices_elsewhere():
        expected = form.encode_images(pixels)
        put(form, "cuda:0")
        got = form(pixels).image_embeds
    assert got.device == torch.device("cuda:0") and torch.equal(got.cpu(), expected)


def callers(model, processor, batch, folder):
    """Returns functions of a model by name; their inputs are on the CPU."""
    paths = []
    for number in range(4):
        paths.append(folder / f"{number}.png")
        Image.linear_gradient("L").rotate(90 * number).resize((32, 64)).convert("RGB").save(paths[-1])
    prompt, targets = processor.image_prompt_ids(), [processor.target_ids("a bag .")] * 4
    text = processor.text_prompt_ids("a red shirt .")

    def cached():
        with torch.enable_grad():
            loss, output = cached_backward(
                model,
                batch,
                chunk=3,
                language_loss=lambda sums: model.language_loss(sums, dict.fromkeys(sums, 8)),
                reid_weight=0.7,
                backward=lambda part: None,
            )
        return torch.stack([loss.detach().cpu(), output.text_features.sum().cpu()])

    return {
        "embed_images": lambda: embed_images(model, processor, paths, flip_test=True, progress=False)["concat"],
        "embed_captions": lambda: embed_captions(model, processor, ["a bag .", "white shoes ."], progress=False),
        "image_losses": lambda: image_losses(model, processor, paths, prompt, targets),
        "text_losses": lambda: text_losses(model, processor, [text] * 4, targets),
        "write_from_images": lambda: write_from_images(model, processor, paths, prompt, 3),
        "generate_texts": lambda: len(generate_texts(model.mllm, processor.tokenizer, [text], max_new_tokens=3)),
        "generated_and_targets": lambda: generated_and_targets(model, processor, batch)[0].cpu(),
        "cached_backward": cached,
    }


def test_functions_that_take_a_model_need_no_device(make_model, make_batch, tiny_processor, tmp_path):
    made = [make_model(**TRAINED).eval() for _ in range(2)]
    expected, got = (callers(model, tiny_processor, make_batch(8), tmp_path) for model in made)
    with torch.no_grad():
        values = {name: call() for name, call in expected.items()}
        with devices_elsewhere():
            put(made[1], "xpu:0")
            for name, call in got.items():
                np.testing.assert_allclose(call(), values[name], atol=1e-5, err_msg=name)
