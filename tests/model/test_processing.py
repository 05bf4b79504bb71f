"""MllmReIDProcessor: whole crops, fixed prefixes, the same target in both branches."""

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mllmreid.model import MllmReIDProcessor


def test_nothing_of_a_tall_crop_is_cut(tiny_processor):
    image = Image.new("RGB", (40, 120))
    image.paste((255, 0, 0), (0, 0, 40, 30))
    image.paste((0, 0, 255), (0, 90, 40, 120))
    pixels = tiny_processor(images=[image])["pixel_values"]
    assert pixels.shape == (1, 3, 64, 32)
    assert pixels[0, 0, 0].min() > 1.5 and pixels[0, 2, -1].min() > 1.5


def test_paths_and_images_give_the_same_pixels(tiny_processor, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 30, 3), dtype=np.uint8))
    image.save(tmp_path / "a.png")
    from_path = tiny_processor(images=tmp_path / "a.png")["pixel_values"]
    assert torch.equal(from_path, tiny_processor(images=image)["pixel_values"])


def test_both_branches_share_prefix_suffix_and_target(tiny_processor):
    image, text = tiny_processor.image_prompt_ids(), tiny_processor.text_prompt_ids("a red bag .")
    caption = tiny_processor.caption_ids("a red bag .")
    prefix = tiny_processor.image_prefix_ids
    assert image[: len(prefix)] == text[: len(prefix)] == prefix
    assert image[len(prefix) : len(prefix) + 8] == [tiny_processor.image_token_id] * 8
    assert text[len(prefix) + len(caption) :] == image[len(prefix) + 8 :]
    target = tiny_processor.target_ids("she has long hair .")
    rows = tiny_processor.rows([image, text], [target, target])
    assert all(row[row != -100].tolist() == target for row in rows["labels"])
    assert rows["attention_mask"].sum(1).tolist() == [len(image) + len(target), len(text) + len(target)]


def test_an_image_token_in_a_caption_is_refused(tiny_processor):
    with pytest.raises(ValueError, match="holds the image token '<image>'; remove it"):
        tiny_processor.text_prompt_ids("a man <image> with a bag")


def test_a_reloaded_processor_keeps_every_setting(tiny_processor, tmp_path):
    tiny_processor.save_pretrained(tmp_path)
    again = MllmReIDProcessor.from_pretrained(tmp_path)
    assert again.num_image_tokens == 8 and again.patch_size == 16
    assert again.text_prompt_ids("a bag .", "Go on.") == tiny_processor.text_prompt_ids("a bag .", "Go on.")


def test_from_a_native_llava(make_llava, tiny_processor, tmp_path):
    make_llava().save_pretrained(tmp_path)
    tiny_processor.tokenizer.save_pretrained(tmp_path)
    tiny_processor.image_processor.save_pretrained(tmp_path)
    processor = MllmReIDProcessor.from_mllm_pretrained(tmp_path, height=48, width=32)
    assert (processor.height, processor.width, processor.num_image_tokens) == (48, 32, 6)
    assert processor.image_prefix_ids == tiny_processor.image_prefix_ids


def test_nothing_given_is_an_error(tiny_processor):
    with pytest.raises(ValueError, match="give images, text, or both"):
        tiny_processor()
