"""Agreement of both branches: equal to a loop over samples, for every batch size; the sheet of best and worst."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_mllmreid.data.contract import Sample, image_sources, make_split
from modeling_mllmreid.data.images import open_image
from modeling_mllmreid.research.agreement import (
    TEXT,
    TEXT_WIDTH,
    Agreement,
    _font,
    branch_agreement,
    draw_agreement,
    wrapped,
)
from modeling_mllmreid.research.language_gain import image_helps, images_of_others
from modeling_mllmreid.utils.errors import UserError
from modeling_mllmreid.utils.outputs import write_json

INSTRUCTION = "continue the text"
CAPTIONS = [
    "a man with a red shirt and blue jeans .",
    "a woman in a long green coat carries a black bag .",
    "short black hair and a yellow hat .",
    "a person with white shoes .",
    "a man with a yellow hat .",
]
TEXTS = [
    "he walks with a brown bag and grey shoes .",
    "she has long hair .",
    "the person wears a red skirt .",
    "a bag .",
    "he walks .",
]
PEOPLE = [3, 3, 7, 5, 5]


@pytest.fixture
def split(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(5):
        Image.fromarray(rng.integers(0, 256, (70, 30, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    samples = [Sample(f"{number}.png", PEOPLE[number], captions=(CAPTIONS[number], "x")) for number in range(5)]
    return make_split(samples, root=tmp_path, source="own")


@pytest.fixture
def model(make_model):
    model = make_model()
    # Larger weights, so that images and prompts make a difference that is no rounding.
    with torch.no_grad():
        for parameter in model.mllm.parameters():
            parameter.mul_(4)
    return model


def agree(model, processor, split, **options):
    return branch_agreement(model, processor, split, TEXTS, instruction=INSTRUCTION, **options)


def naive_nats(model, processor, prompt, target, image=None) -> list[float]:
    """The target's nats token by token, a row of one, by the LLaVA's own forward."""
    inputs = processor.build_inputs([prompt], [target])
    inputs.pop("labels")
    if image is None:
        logits = model.mllm(**inputs).logits[0]
    else:
        pixels = processor(images=[open_image(image)])["pixel_values"]
        embeddings = model.embed_with_image(inputs["input_ids"], model.project_image(model.run_tower(pixels)))
        logits = model.mllm(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"]).logits[0]
    shares = logits[len(prompt) - 1 : -1].double().log_softmax(-1)
    return [-float(share[token]) for share, token in zip(shares, target, strict=True)]


def naive_text(model, processor, prompt, count, image, forbidden) -> list[int]:
    """Greedy ids, the whole sequence run anew for each token."""
    written = []
    pixels = processor(images=[open_image(image)])["pixel_values"]
    for _ in range(count):
        ids = torch.tensor([prompt + written])
        embeddings = model.embed_with_image(ids, model.project_image(model.run_tower(pixels)))
        logits = model.mllm(inputs_embeds=embeddings).logits[0, -1]
        logits[forbidden] = -math.inf
        written.append(int(logits.argmax()))
    return written


@pytest.mark.parametrize("batch_size", [1, 2, 64])
@torch.inference_mode()
def test_against_a_loop_over_samples(model, tiny_processor, split, batch_size):
    got = agree(model, tiny_processor, split, max_target_tokens=6, batch_size=batch_size)
    model.eval()
    images, prompt = image_sources(split), tiny_processor.image_prompt_ids(INSTRUCTION)
    assert got.person_ids.tolist() == PEOPLE and got.texts == tuple(TEXTS)
    total = 0.0
    for row, (caption, text) in enumerate(zip(CAPTIONS, TEXTS, strict=True)):
        target = tiny_processor.target_ids(text, 6)
        assert got.num_tokens[row] == len(target)
        own = naive_nats(model, tiny_processor, prompt, target, images[row])
        other = naive_nats(model, tiny_processor, prompt, target, images[[2, 2, 3, 0, 0][row]])
        given = naive_nats(model, tiny_processor, tiny_processor.text_prompt_ids(caption, INSTRUCTION), target)
        assert got.image_perplexity[row] == pytest.approx(math.exp(sum(own) / len(own)), rel=1e-4)
        assert got.text_perplexity[row] == pytest.approx(math.exp(sum(given) / len(given)), rel=1e-4)
        assert got.other_image_nats[row] == pytest.approx(sum(other), rel=1e-4)
        assert abs(sum(own) - sum(other)) > 1e-3  # else the order of the images would not be tested
        total += sum(own)
        written = naive_text(model, tiny_processor, prompt, 6, images[row], tiny_processor.tokenizer.all_special_ids)
        assert got.written[row] == tiny_processor.tokenizer.decode(written)
        assert got.equal_tokens[row] == sum(a == b for a, b in zip(written, target, strict=False))
    assert got.means()["image_perplexity"] == pytest.approx(math.exp(total / got.num_tokens.sum()), rel=1e-4)


def test_image_helps_is_the_same_losses(model, tiny_processor, split):
    options = {"instruction": tiny_processor.instruction, "max_target_tokens": 4}
    means = branch_agreement(model, tiny_processor, split, TEXTS, **options).means()
    own, other = image_helps(model, tiny_processor, split, TEXTS, max_target_tokens=4, batch_size=2)
    assert (own, other) == pytest.approx((means["image_loss"], means["other_image_loss"]), rel=1e-5)


def test_a_target_that_the_image_branch_writes_matches(model, tiny_processor, split):
    written = list(agree(model, tiny_processor, split, max_target_tokens=5).written)
    texts = [written[0], *TEXTS[1:4], " ".join(written[4].split()[:2])]
    got = branch_agreement(model, tiny_processor, split, texts, instruction=INSTRUCTION, max_target_tokens=5)
    assert got.exact[[0, 4]].all() and got.num_tokens[[0, 4]].tolist() == [5, 2]
    assert got.equal_share[[0, 4]].tolist() == [1, 1] and not got.exact[1:4].all()


def test_modes_and_settings_are_left_as_found(model, tiny_processor, split):
    model.train()
    model.mllm.model.vision_tower.eval()
    modes, settings = [part.training for part in model.modules()], model.mllm.generation_config
    settings.num_beams = 3
    agree(model, tiny_processor, split, max_target_tokens=2)
    assert [part.training for part in model.modules()] == modes
    assert model.mllm.generation_config is settings and settings.num_beams == 3


def made(nats, tokens, people=None, texts=None) -> Agreement:
    """An agreement without a model; the text branch has half the nats, another image twice."""
    nats, tokens = np.array(nats, dtype=float), np.array(tokens)
    texts = tuple(texts or [f"text {row}" for row in range(len(nats))])
    people = np.arange(len(nats)) if people is None else np.array(people)
    return Agreement(people, texts, texts, tokens, nats, nats / 2, nats * 2, tokens - (np.arange(len(nats)) > 0))


def test_means_weigh_tokens(tmp_path):
    got = made([2, 6, 3], [4, 2, 3], people=[9, 9, 1])
    means = got.means()
    assert (means["rows"], means["image_loss"], means["text_loss"], means["other_image_loss"]) == (
        3,
        11 / 9,
        5.5 / 9,
        22 / 9,
    )
    assert means["image_perplexity"] == pytest.approx(math.exp(11 / 9))
    assert (means["exact_match"], means["equal_tokens"]) == (pytest.approx(1 / 3), 7 / 9)
    assert list(got.by_person()) == [1, 9] and got.by_person()[9]["image_loss"] == 8 / 6
    write_json(tmp_path / "agreement.json", got.to_dict())
    content = json.loads((tmp_path / "agreement.json").read_text())
    assert content["overall"] == means and content["by_person"]["1"]["rows"] == 1
    assert content["rows"][1] == {
        "person_id": 9,
        "text": "text 1",
        "written": "text 1",
        "num_tokens": 2,
        "image_perplexity": pytest.approx(math.exp(3)),
        "text_perplexity": pytest.approx(math.exp(1.5)),
        "exact_match": False,
        "equal_tokens": 0.5,
    }
    assert made([1e6], [1]).to_dict()["overall"]["image_perplexity"] is None


def test_bad_input(model, tiny_processor, split, tmp_path):
    def refused(message, samples=split, texts=TEXTS, **options):
        with pytest.raises(UserError, match=message):
            branch_agreement(model, tiny_processor, samples, texts, instruction=INSTRUCTION, **options)

    refused("texts: 2 for 5 samples: give one for each", texts=TEXTS[:2])
    refused("2.png: its text is empty: leave out", texts=[*TEXTS[:2], " ", *TEXTS[3:]])
    refused("0.png: the text .* holds the image token", texts=["<image>", *TEXTS[1:]])
    refused(
        "all 2 samples are of one person: give samples of at least two", samples=split.select([0, 1]), texts=TEXTS[:2]
    )
    refused("max_new_tokens is 0: give 1 or more", max_target_tokens=0)
    bare = make_split([Sample("0.png", 1, captions=("a bag",)), Sample("1.png", 2)], root=tmp_path, source="own")
    refused("1.png: has no caption for the text branch", samples=bare, texts=TEXTS[:2])


def test_the_other_row_is_the_next_of_another_person():
    assert images_of_others([3, 3, 7, 5, 5]) == [2, 2, 3, 0, 0]


def test_sheet_shows_the_best_and_the_worst(split, tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(
        "modeling_mllmreid.research.agreement.open_image",
        lambda image: opened.append(image) or open_image(image),
    )
    got = made([5, 1, 3, 9, 2], [1, 1, 1, 1, 1])
    draw_agreement(tmp_path / "new/sheet.png", split, got, CAPTIONS, examples=9)
    images = image_sources(split)
    assert opened == [images[row] for row in (1, 4, 3, 0)]
    draw_agreement(tmp_path / "new/sheet.png", split.select([0]), made([5], [1]), CAPTIONS[:1])
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["sheet.png"]


def test_sheet_cuts_nothing_off(split, tmp_path):
    texts = ["a rather long text " * 30, "w" * 300, "", "short", "b"]
    draw_agreement(tmp_path / "sheet.png", split, made([1, 2, 3, 4, 5], [1] * 5, texts=texts), texts)
    pixels = np.asarray(Image.open(tmp_path / "sheet.png").convert("L"))
    margins = pixels[:, :20], pixels[:, -20:], pixels[-20:]
    assert all((margin == 255).all() for margin in margins)
    for text in texts:
        lines = wrapped(text)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
        assert all(_font(TEXT).getlength(line) <= TEXT_WIDTH for line in lines)


def test_sheet_bad_input(split, tmp_path):
    with pytest.raises(UserError, match="captions: 1 for 5 samples of the agreement"):
        draw_agreement(tmp_path / "sheet.png", split, made([1] * 5, [1] * 5), CAPTIONS[:1])
    with pytest.raises(UserError, match="examples is 0: give 1 or more"):
        draw_agreement(tmp_path / "sheet.png", split, made([1] * 5, [1] * 5), CAPTIONS, examples=0)
    assert not (tmp_path / "sheet.png").exists()
