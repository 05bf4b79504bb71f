"""MllmReIDProcessor: whole crops, fixed prefixes, the same target in both branches."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mllmreid.model import MllmReIDProcessor, MllmReIDVisionProcessor

PIXELS = np.random.default_rng(0).integers(0, 256, (80, 30, 3), dtype=np.uint8)
TENSOR = torch.from_numpy(PIXELS)
GRAY = PIXELS[:, :, 0]


@pytest.fixture(params=["full", "vision"])
def processor(request, tiny_processor):
    """The processor of either form."""
    return tiny_processor if request.param == "full" else MllmReIDVisionProcessor(tiny_processor.image_processor)


@pytest.fixture
def image_file(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    return tmp_path / "a.png"


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


def test_both_branches_share_instruction_and_target(tiny_processor):
    image, text = tiny_processor.image_prompt_ids(), tiny_processor.text_prompt_ids("a red bag .")
    caption = tiny_processor.target_ids("a red bag .")
    prefix = tiny_processor.image_prefix_ids
    assert image[: len(prefix)] == text[: len(prefix)] == prefix
    assert image[len(prefix) : len(prefix) + 8] == [tiny_processor.image_token_id] * 8
    assert text[len(prefix) : len(prefix) + len(caption)] == caption
    assert text[len(prefix) + len(caption) :] == image[len(prefix) + 8 :]
    target = tiny_processor.target_ids("she has long hair .")
    inputs = tiny_processor.build_inputs([image, text], [target, target])
    assert all(labels[labels != -100].tolist() == target for labels in inputs["labels"])
    assert inputs["attention_mask"].sum(1).tolist() == [len(image) + len(target), len(text) + len(target)]


def test_an_image_token_in_a_caption_is_refused(tiny_processor):
    with pytest.raises(ValueError, match="holds the image token '<image>'; remove it"):
        tiny_processor.text_prompt_ids("a man <image> with a bag")


def test_a_reloaded_processor_keeps_every_setting(tiny_processor, tmp_path):
    tiny_processor.save_pretrained(tmp_path)
    again = MllmReIDProcessor.from_pretrained(tmp_path)
    assert again.num_image_tokens == 8 and again.unit == 16
    assert again.text_prompt_ids("a bag .", "Go on.") == tiny_processor.text_prompt_ids("a bag .", "Go on.")


def test_from_a_native_llava(make_llava, tiny_processor, tmp_path):
    make_llava().save_pretrained(tmp_path)
    tiny_processor.tokenizer.save_pretrained(tmp_path)
    tiny_processor.image_processor.save_pretrained(tmp_path)
    processor = MllmReIDProcessor.from_mllm_pretrained(tmp_path, height=48, width=32)
    assert (processor.height, processor.width, processor.num_image_tokens) == (48, 32, 6)
    assert processor.image_prefix_ids == tiny_processor.image_prefix_ids


def test_a_call_without_images_and_text_is_an_error(tiny_processor):
    with pytest.raises(ValueError, match="give images, text, or both"):
        tiny_processor()


def test_every_kind_of_image_gives_the_same_pixels(processor, image_file):
    expected = processor(images=Image.fromarray(PIXELS))["pixel_values"]
    kinds = {
        "path": image_file,
        "text": str(image_file),
        "HWC uint8": PIXELS,
        "CHW uint8": PIXELS.transpose(2, 0, 1),
        "HWC tensor": TENSOR,
        "CHW tensor": TENSOR.permute(2, 0, 1),
        "CHW float": TENSOR.permute(2, 0, 1) / 255,
        "HWC double": PIXELS / 255,
        "half": (TENSOR.permute(2, 0, 1) / 255).half(),
        "with gradient": (TENSOR.permute(2, 0, 1) / 255).requires_grad_(),
        "RGBA": np.dstack([PIXELS, np.full(GRAY.shape, 255, np.uint8)]),
    }
    for kind, image in kinds.items():
        for images, count in ((image, 1), ([image, image], 2), ((image,), 1)):
            pixels = processor(images=images, return_tensors="pt")["pixel_values"]
            assert torch.equal(pixels, expected.repeat(count, 1, 1, 1)), kind
    # As Hugging Face's users say that pixels are in 0..1 already.
    assert torch.equal(processor(images=kinds["CHW float"], do_rescale=False)["pixel_values"], expected)
    for batch in (np.stack([PIXELS] * 3), torch.stack([kinds["CHW float"]] * 3)):
        assert torch.equal(processor(images=batch)["pixel_values"], expected.repeat(3, 1, 1, 1))


def test_grayscale_and_sixteen_bits(processor):
    expected = processor(images=Image.fromarray(GRAY))["pixel_values"]
    for image in (GRAY, GRAY[None], GRAY[:, :, None], torch.from_numpy(GRAY) / 255):
        assert torch.equal(processor(images=image)["pixel_values"], expected)
    wide = Image.fromarray(GRAY.astype(np.uint16) * 257)
    assert torch.equal(processor(images=wide)["pixel_values"], expected)


def test_common_arguments_of_hugging_face_processors_are_accepted(processor, image_file):
    batch = processor(images=[image_file], return_tensors="pt", padding=True, truncation=True, device="cpu")
    assert batch.to(torch.bfloat16)["pixel_values"].dtype == torch.bfloat16
    assert processor(images=image_file, device="meta")["pixel_values"].is_meta
    assert isinstance(processor(images=image_file, return_tensors="np")["pixel_values"], np.ndarray)
    with pytest.raises(ValueError, match="return_tensors is 'tf'; give 'pt' or 'np'"):
        processor(images=image_file, return_tensors="tf")
    for nothing in ([], (), np.zeros((0, 3, 5, 5))):
        assert processor(images=nothing)["pixel_values"].shape == (0, 3, 64, 32)


def test_no_text(tiny_processor):
    batch = tiny_processor(text=[])
    assert {name: (tuple(values.shape), values.dtype) for name, values in batch.items()} == {
        "input_ids": ((0, 0), torch.long),
        "attention_mask": ((0, 0), torch.long),
        "caption_mask": ((0, 0), torch.bool),
    }
    with pytest.raises(ValueError, match="text 1: of type int: give a caption, a string"):
        tiny_processor(text=["a bag .", 3])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (3, "image 0: of type int: give a path, a PIL image, a NumPy array or a tensor"),
        ([PIXELS, None], "image 1: of type NoneType: give"),
        ([[PIXELS]], "image 0: of type list: give"),
        (b"x", "image 0: of type bytes: give"),
        ([PIXELS, PIXELS.astype(np.int64)], "image 1: pixels of type int64: give uint8, or floats in 0..1"),
        (PIXELS.astype(np.uint16) * 257, "image 0: pixels of type uint16: give uint8"),
        (PIXELS > 99, "image 0: pixels of type bool: give uint8"),
        (PIXELS.astype(np.float32), "image 0: pixels of 0 to 255: give floats in 0..1, or uint8"),
        (torch.full((3, 8, 8), -1.0), "image 0: pixels of -1 to -1: give floats in 0..1"),
        (np.full((8, 8, 3), np.nan), "image 0: pixels of nan to nan: give floats in 0..1"),
        (
            PIXELS[:, :, :2],
            r"image 0: an array of shape \(80, 30, 2\): neither the first nor the last is the 1",
        ),
        (PIXELS[:3], r"image 0: an array of shape \(3, 30, 3\): both the first and the last could be the 1, 3 or 4"),
        (PIXELS[:0], r"image 0: an array of shape \(0, 30, 3\): give \(H, W\), \(H, W, C\) or \(C, H, W\)"),
        ([PIXELS[None]], r"image 0: an array of shape \(1, 80, 30, 3\): give"),
        (np.zeros(5), r"image 0: an array of shape \(5,\): give"),
        ("https://127.0.0.1:9/a.jpg", "image 0, https://127.0.0.1:9/a.jpg: .*refused"),
    ],
)
def test_images_that_cannot_be_used_are_named_by_their_position(processor, images, message):
    with pytest.raises(ValueError, match=f"^{message}") as error:
        processor(images=images)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_used(processor, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"image 1, .*none.png: no such image: restore the file or correct"):
        processor(images=[PIXELS, tmp_path / "none.png"])
    # Pillow would hand this one to an outside program.
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(ValueError, match=r"image 0, .*a.jpg: not an image of a known format"):
        processor(images=tmp_path / "a.jpg")


def test_an_address_is_downloaded_and_opened_safely(processor, image_file):
    import functools
    import http.server
    import threading

    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=image_file.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        pixels = processor(images=f"{address}/a.png")["pixel_values"]
        with pytest.raises(ValueError, match="none.png: HTTP Error 404"):
            processor(images=f"{address}/none.png")
        server.shutdown()
    assert torch.equal(pixels, processor(images=PIXELS)["pixel_values"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"unit": "16"}, "unit is '16'; give a whole number, 1 or more"),
        ({"unit": 24}, "height x width is 64 x 32; both must be multiples of 24.* give 72 x 24"),
        ({"extra_image_tokens": None}, "extra_image_tokens is None; give a whole number"),
        ({"extra_image_tokens": -8}, "extra_image_tokens is -8; a crop of this size has no image token left"),
        ({"image_template": [1]}, r"image_template is \[1\]; give text"),
        ({"image_template": "a"}, r"image_template is 'a'; give a text with {image} once, it has 0"),
        (
            {"image_template": "{instruction} {image}"},
            "image_template .* give a text with {image} before {instruction}",
        ),
        ({"text_template": "{caption} {caption}"}, r"text_template is .*; give a text with {caption} once, it has 2"),
        ({"image_token": "<picture>"}, "tokenizer.json has no token '<picture>', which stands for an image; take the"),
        # Of older versions.
        ({"patch_size": "16"}, "unit is '16'; give a whole number, 1 or more"),
        ({"prompt_suffix": [1]}, r"prompt_suffix is \[1\]; give text"),
        ({"vision_feature_select_strategy": "x"}, "vision_feature_select_strategy is 'x'; give 'default' or 'full'"),
        ({"num_additional_image_tokens": -1}, "num_additional_image_tokens is -1; give a whole number, 0 or more"),
        ({"image_processor": 3}, ""),
        ({"size": {"shortest_edge": 336}}, "image_processor.size is .*; give height and width"),
        ({"size": {"height": 10**9, "width": 10**9}}, "image_processor.size is .*; give height and width"),
        ({"image_std": [0, 0, 0]}, r"its pixels are \(1, 3, 64, 32\), from -inf to -inf: they must be finite"),
        ({"do_center_crop": True}, r"its pixels are \(1, 3, 224, 224\), .*and 3 x 64 x 32"),
        ({"resample": 99}, ""),
    ],
)
def test_foreign_processor_files(tiny_processor, tmp_path, fields, message):
    tiny_processor.save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    settings = json.loads(file.read_text())
    inner = settings["image_processor"]
    image_fields = {name: value for name, value in fields.items() if name in (*inner, "size")}
    own = {name: value for name, value in fields.items() if name not in image_fields}
    settings |= {"image_processor": {**inner, **image_fields}, **own}
    if "patch_size" in fields:
        del settings["unit"]
    file.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=f"{tmp_path}: the processor's files: {message}"):
        MllmReIDProcessor.from_pretrained(tmp_path)


def test_a_foreign_template_is_not_a_format_string(tiny_processor, tmp_path):
    tiny_processor.save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    template = "{image} {instruction:>9999999999}"
    file.write_text(json.dumps({**json.loads(file.read_text()), "image_template": template}))
    assert len(MllmReIDProcessor.from_pretrained(tmp_path).image_prompt_ids()) < 30


@pytest.mark.parametrize(
    ("old", "tokens"),
    [
        ({}, 8),
        ({"vision_feature_select_strategy": "full"}, 9),
        ({"num_additional_image_tokens": 0, "vision_feature_select_strategy": "full"}, 8),
        ({"num_additional_image_tokens": 3}, 10),
    ],
)
def test_a_processor_of_an_older_version(tiny_processor, tmp_path, old, tokens):
    """Prefix and suffix are read as templates, and the fields of LLaVA as the rule that counts image tokens."""
    tiny_processor.save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    settings = json.loads(file.read_text())
    for name in ("unit", "extra_image_tokens", "image_template", "text_template"):
        del settings[name]
    settings |= {"patch_size": 16, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    settings |= {"prompt_prefix": "a man ", "prompt_suffix": " {instruction} a bag", **old}
    file.write_text(json.dumps(settings))
    processor = MllmReIDProcessor.from_pretrained(tmp_path)
    assert processor.num_image_tokens == tokens
    parts = [
        processor.tokenizer(text, add_special_tokens=False).input_ids
        for text in ("a man", "red shoes", "continue the following text. a bag")
    ]
    start = [processor.tokenizer.bos_token_id, *parts[0]]
    assert processor.image_prefix_ids == start
    assert processor.image_prompt_ids() == [*start, *[processor.image_token_id] * tokens, *parts[2]]
    assert processor.text_prompt_ids("red shoes") == [*start, *parts[1], *parts[2]]
    processor.save_pretrained(tmp_path / "new")
    stored = json.loads((tmp_path / "new" / "processor_config.json").read_text())
    assert stored["image_template"] == "a man {image} {instruction} a bag" and "prompt_prefix" not in stored
    again = MllmReIDProcessor.from_pretrained(tmp_path / "new")
    assert again.image_prompt_ids("a bag") == processor.image_prompt_ids("a bag")
