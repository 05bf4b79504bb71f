"""`align`: the image tokens of a LLaVA learn to name the words of captions."""

import json

import numpy as np
import pytest
import torch
from halves import write_language_model, write_tower
from PIL import Image
from transformers import LlavaForConditionalGeneration

from modeling_mllmreid.commands import align, compose
from modeling_mllmreid.model import MllmReIDModel
from modeling_mllmreid.research import alignment
from modeling_mllmreid.research.alignment import WordReader, align_words, caption_words
from modeling_mllmreid.research.tiny_llava import TinyArguments, build_tiny
from modeling_mllmreid.synthetic.write import write_pedestrians
from modeling_mllmreid.utils.errors import UserError

COLORS = {"red": (200, 30, 30), "green": (30, 160, 40), "blue": (30, 50, 200), "white": (230, 230, 230)}


def plain_images(count: int, seed: int) -> tuple[list[Image.Image], list[str]]:
    """Images of one colour, of varied brightness, and the name of each colour."""
    rng = np.random.default_rng(seed)
    names = [str(name) for name in rng.choice(list(COLORS), size=count)]
    shades = [np.clip(np.array(COLORS[name]) * rng.uniform(0.8, 1.1), 0, 255).astype(int) for name in names]
    return [Image.new("RGB", (32, 64), tuple(shade.tolist())) for shade in shades], names


@pytest.fixture(scope="module")
def tiny():
    """model, processor: a LLaVA that has learned nothing."""
    args = TinyArguments(hidden_size=32, tower_layers=1, lm_layers=1)
    processor, mllm = build_tiny(args, height=64, width=32, seed=0)
    return MllmReIDModel.from_mllm(mllm, height=64, width=32), processor


def test_image_tokens_name_what_people_never_seen_wear(tiny):
    model, processor = tiny
    images, names = plain_images(120, seed=0)
    captions = [[f"a person in a {name} coat"] for name in names]
    before = {name: value.clone() for name, value in model.mllm.state_dict().items()}
    settings = {"learning_rate": 1e-2, "tower_learning_rate": 1e-3, "seed": 0}
    chance, learned = align_words(model, processor, images, captions, steps=60, batch_size=32, **settings)
    assert learned < 0.2 * chance
    # Only what lies before the language model has changed.
    changed = {name for name, value in model.mllm.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all("vision_tower" in name or "projector" in name for name in changed)
    assert not model.training

    others, colors = plain_images(40, seed=1)
    words = caption_words(captions, processor.tokenizer)
    reader = WordReader(model.get_input_embeddings().weight[words.ids].detach(), words.present.float().mean(0))
    with torch.inference_mode():
        tokens = model.project_image(model.run_tower(processor(images=others)["pixel_values"])).embeddings
    read = words.ids[(tokens.mean(1) @ reader.directions.T).argmax(1)]
    assert [processor.tokenizer.decode([int(word)]).strip() for word in read] == colors
    # As long as the embeddings of words, which the language model knows.
    assert tokens.norm(dim=-1).mean().item() == pytest.approx(reader.length, rel=0.5)


def test_words_of_all_or_of_too_few_images_say_nothing(tiny):
    _, processor = tiny
    captions = [["a red coat"], ["a blue coat", "a person in blue"], ["a blue coat"], ["a white coat"]]
    words = caption_words(captions, processor.tokenizer)
    read = [processor.tokenizer.decode([word]).strip() for word in words.ids.tolist()]
    assert {"red", "blue", "white"} <= set(read) and not {"a", "coat"} & set(read)
    assert words.present[:, read.index("blue")].tolist() == [False, True, True, False]
    # Of 400 images, one is too few and two are enough.
    rare = [*([["a red coat"], ["a blue coat"]] * 198), ["a white hat"], ["a green bag"], ["a green bag"], ["a coat"]]
    read = [processor.tokenizer.decode([word]).strip() for word in caption_words(rare, processor.tokenizer).ids]
    assert {"red", "blue", "green", "bag"} == set(read)
    with pytest.raises(UserError, match="no word is in 0.5% to 50% of the 3 images"):
        caption_words([["a red coat"]] * 3, processor.tokenizer)


def test_the_chance_is_that_of_the_shares(tiny, monkeypatch):
    model, processor = tiny
    monkeypatch.setattr(alignment, "optimize", lambda step_loss, *args, **kwargs: [step_loss() for _ in range(2)])
    images, names = plain_images(100, seed=2)
    captions = [[f"a {name} coat"] for name in names]
    rates = {"learning_rate": 1e-3, "tower_learning_rate": 1e-3}
    chance, _ = align_words(model, processor, images, captions, steps=2, batch_size=16, seed=0, **rates)
    shares = np.array([names.count(name) / 100 for name in COLORS if names.count(name) <= 50])
    entropy = -(shares * np.log(shares) + (1 - shares) * np.log(1 - shares)).sum()
    assert chance == pytest.approx(entropy, rel=1e-4)


@pytest.fixture(scope="module")
def composed(tmp_path_factory):
    """root: `llava`, composed of tiny halves, and `data`, rendered people with captions."""
    root = tmp_path_factory.mktemp("align")
    write_tower(root / "tower", "dinov2")
    write_language_model(root / "language", "llama", tie_word_embeddings=True)
    halves = ["--tower", str(root / "tower"), "--language_model", str(root / "language")]
    compose.main([*halves, "--output", str(root / "llava")])
    sizes = {"train_identities": 6, "test_identities": 1, "images_per_camera": 2, "cameras": 2}
    write_pedestrians(root / "data", **sizes)
    return root


def command(root, output, *flags, model="llava"):
    data = ["--dataset", "market1501", "--data_dir", str(root / "data"), "--steps", "2", "--batch_size", "4"]
    size = ["--height", "32", "--width", "16"]
    align.main(["--model", str(root / model), *data, *size, "--output", str(output), *flags])


def captions(root):
    return ["--captions_file", str(root / "data" / "reid_raw.json")]


def test_the_command_writes_a_native_llava_that_records_its_data(composed, tmp_path, capsys):
    command(composed, tmp_path / "aligned", *captions(composed))
    said = capsys.readouterr().out
    assert "24 training images with captions" in said and "nats an image from their shares alone" in said
    config = json.loads((tmp_path / "aligned" / "config.json").read_text())
    assert config["trained_on"] == ["market1501"]
    before, after = (
        LlavaForConditionalGeneration.from_pretrained(folder).state_dict()
        for folder in (composed / "llava", tmp_path / "aligned")
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("projector" in name for name in changed) and any("vision_tower" in name for name in changed)
    assert not any("language_model" in name or "lm_head" in name for name in changed)
    assert "aligned with the words of captions" in (tmp_path / "aligned" / "README.md").read_text()


def test_mistakes_are_one_line(composed, tmp_path):
    with pytest.raises(UserError, match="dtype bf16: trained weights are float32"):
        command(composed, tmp_path / "new", "--dtype", "bf16")
    with pytest.raises(UserError, match="is not a LLaVA: give the folder that compose has written"):
        command(composed, tmp_path / "new", *captions(composed), model="tower")
    with pytest.raises(UserError, match="no training image has a caption: give --captions_file"):
        command(composed, tmp_path / "new")
    with pytest.raises(UserError, match="learning_rate 1e\\+30: the loss is (nan|inf): lower it"):
        command(composed, tmp_path / "new", *captions(composed), "--learning_rate", "1e30", "--steps", "4")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="full"):
        command(composed, tmp_path / "full")
    assert not (tmp_path / "new").exists() and (tmp_path / "full" / "mine.txt").read_text() == "mine"
