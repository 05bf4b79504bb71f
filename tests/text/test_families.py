"""Every family through the processor and the texts: files, pixels, prompts, captions, continuations, training."""

import json

import numpy as np
import pytest
import torch
from chat_models import PROCESSORS, write_chat_model
from chat_tokenizers import SPECIAL
from families import CONFIGS
from PIL import Image
from transformers import AutoImageProcessor

from modeling_mllmreid.commands import caption, continuations
from modeling_mllmreid.data.captions import CaptionRecord, read_records
from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.model import MllmReIDProcessor
from modeling_mllmreid.options.arguments import ModelArguments
from modeling_mllmreid.training.batch_arguments import BatchArguments
from modeling_mllmreid.training.batches import TrainCollator, TrainDataset
from modeling_mllmreid.training.loading import load_model

every_family = pytest.mark.parametrize("family", PROCESSORS)
PIXELS = np.random.default_rng(0).integers(0, 256, (80, 30, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """checkpoint(family) -> the folder of a native model, written once."""
    root = tmp_path_factory.mktemp("families")

    def make(family):
        folder = root / family.replace(" ", "")
        if not folder.exists():
            write_chat_model(folder, family)
        return folder

    return make


def test_every_family_is_here():
    assert PROCESSORS.keys() == CONFIGS.keys()


@every_family
def test_processors_are_made_of_the_native_files(checkpoint, family):
    folder = checkpoint(family)
    model, processor = load_model(ModelArguments(str(folder)))
    assert (processor.height, processor.width) == model.backbone.default_size
    assert processor.num_image_tokens == model.config.num_image_tokens
    layout = PROCESSORS[family][0]
    assert processor.image_token == SPECIAL[layout][0] and processor.tokenizer.chat_template is not None
    assert f"{model.backbone.image_begin}{{image}}{model.backbone.image_end}" in processor.image_template

    # Whole crops by the native mean, standard deviation and resampling.
    native = AutoImageProcessor.from_pretrained(folder)
    resized = Image.fromarray(PIXELS).resize((processor.width, processor.height), native.resample)
    expected = (np.asarray(resized) * native.rescale_factor - native.image_mean) / native.image_std
    pixels = processor(images=PIXELS)["pixel_values"]
    np.testing.assert_allclose(pixels[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)

    # The prompt fits the model, which the model checks; a checkpoint of ours keeps it.
    ids = torch.tensor([processor.image_prompt_ids()])
    with torch.inference_mode():
        written = model.eval().generate(ids, pixels, attention_mask=torch.ones_like(ids), max_new_tokens=2)
        assert written.shape == (1, 2) and model.encode_images(pixels).isfinite().all()


@pytest.mark.parametrize("family", ["LLaVA, CLIP", "SmolVLM", "Gemma 3", "Qwen3-VL"])
def test_captions_continuations_and_a_batch(checkpoint, family, disk, tmp_path, capsys):
    """The commands on a native model of the family; training reads the ids that were written."""
    flags = ["--model", str(checkpoint(family)), "--dataset", "market1501", "--data_dir", str(disk.people)]
    few = ["--max_new_tokens", "6", "--batch_size", "4"]
    caption.main([*flags, *few, "--output", str(tmp_path / "captions.jsonl"), "--captions_per_image", "1"])
    records = read_records(tmp_path / "captions.jsonl", CaptionRecord)
    assert len(records) == 8 and all(record.caption for record in records)

    captions = ["--captions_file", str(disk.people / "reid_raw.json")]
    texts = tmp_path / "texts.jsonl"
    continuations.main([*flags, *captions, *few, "--output", str(texts)])
    written = read_records(texts)
    dataset = load_reid_dataset(
        "market1501", data_dir=disk.people, captions_file=str(disk.people / "reid_raw.json"), texts=texts
    )
    model, processor = load_model(ModelArguments(str(checkpoint(family))), {"loss_lambda": 0.0})
    assert written[0].provenance["end_of_text"] and written[0].provenance["prompt"] == (
        processor.text_template.replace("{instruction}", "Continue the following text.")
    )
    samples = TrainDataset(dataset["train"], processor, BatchArguments(), seed=0, language=True)
    targets = {tuple(target) for texts in samples.texts for _, target in texts}
    assert targets == {tuple(record.ids) for record in written}
    batch = TrainCollator(processor, BatchArguments(), language=True, reid_text=False)([samples[0, 0, 0]] * 2)
    output = model(**batch)
    assert output.loss.isfinite() and output.label_counts["image"] == output.label_counts["text"]


def test_pixels_of_llava_are_those_of_its_own_image_processor(checkpoint):
    folder = checkpoint("LLaVA, CLIP")
    size = {"height": 252, "width": 126}
    stock = AutoImageProcessor.from_pretrained(folder, size=size, do_center_crop=False)
    image = Image.fromarray(PIXELS)
    ours = MllmReIDProcessor.from_mllm_pretrained(folder)(images=image)["pixel_values"]
    assert torch.equal(ours, stock(images=image, return_tensors="pt")["pixel_values"])


def test_mistakes_in_native_files(checkpoint, tmp_path):
    folder = tmp_path / "model"
    write_chat_model(folder, "SmolVLM")
    for size, nearest in (((250, 120), "252 x 112"), ((10, 28), "28 x 28")):
        with pytest.raises(ValueError, match=f"^height x width is {size[0]} x {size[1]}; both must be .* {nearest}"):
            MllmReIDProcessor.from_mllm_pretrained(folder, *size)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "image_token_id": 7}))
    with pytest.raises(
        ValueError, match=f"{folder}: .*tokenizer.json has no special token of id 7, the image token of"
    ):
        MllmReIDProcessor.from_mllm_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text("{{ 'no image' }}")
    with pytest.raises(ValueError, match=f"{folder}: .*the chat template does not write the image '<image>'"):
        MllmReIDProcessor.from_mllm_pretrained(folder)
    templates = {"image_template": "{image} {instruction}", "text_template": "{caption} {instruction}"}
    assert MllmReIDProcessor.from_mllm_pretrained(folder, **templates).image_prefix_ids == []
    # The processor's own chat template comes before that of the tokenizer.
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}"}))
    assert MllmReIDProcessor.from_mllm_pretrained(folder).text_template == "{caption}\n{instruction}"
