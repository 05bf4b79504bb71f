"""Prompts: templates by the chat template, one text at a time, the caption's positions, tokens that are refused."""

import pytest
import torch
from chat_tokenizers import SPECIAL, chat_template, chat_tokenizer, llama_tokenizer
from transformers import CLIPImageProcessor, Gemma3ImageProcessor, Gemma3Processor, LlavaProcessor

from modeling_mllmreid.model import MllmReIDProcessor
from modeling_mllmreid.model.prompts import PLAIN_TEMPLATE, check_vocabulary, templates_of, vocabulary_digest
from modeling_mllmreid.training.batch_arguments import BatchArguments
from modeling_mllmreid.training.batches import TrainCollator

MARKS = {
    "qwen": ("<|vision_start|>", "<|vision_end|>"),
    "gemma": ("\n\n<start_of_image>", "<end_of_image>\n\n"),
    "smolvlm": ("<fake_token_around_image><global-img>", "<fake_token_around_image>"),
    "internvl": ("<img>", "</img>"),
}
CHATML = (
    "<|im_start|>system\nYou are {}.<|im_end|>\n"
    "<|im_start|>user\n{}{}{{instruction}}<|im_end|>\n<|im_start|>assistant\n"
)
# The image template and the text template.
TEMPLATES = {
    "qwen": [
        CHATML.format("a helpful assistant", text, between)
        for text, between in (("<|vision_start|>{image}<|vision_end|>", ""), ("{caption}", "\n"))
    ],
    "internvl": [CHATML.format("InternVL", text, "\n") for text in ("<img>{image}</img>", "{caption}")],
    "smollm": [CHATML.format("SmolLM", text, "\n") for text in ("{image}", "{caption}")],
    "gemma": [
        f"<bos><start_of_turn>user\n{text}{{instruction}}<end_of_turn>\n<start_of_turn>model\n"
        for text in ("\n\n<start_of_image>{image}<end_of_image>\n\n", "{caption}\n")
    ],
    "smolvlm": [
        f"<|im_start|>User:{text}{{instruction}}<end_of_utterance>\nAssistant:"
        for text in ("<fake_token_around_image><global-img>{image}<fake_token_around_image>", " {caption}\n")
    ],
    "llava": [PLAIN_TEMPLATE, "USER: {caption}\n{instruction} ASSISTANT:"],
}
CAPTION, INSTRUCTION = "a man in a red coat.", "Continue the following text."


@pytest.fixture(scope="module")
def made():
    """made(family) -> the processor of a 28 x 14 crop with its chat template."""

    def make(family, tokenizer=None, **fields):
        tokenizer = chat_tokenizer(family) if tokenizer is None else tokenizer
        token = SPECIAL[family][0]
        image, text = templates_of(tokenizer, tokenizer.chat_template, token, *MARKS.get(family, ("", "")))
        settings = {"image_token": token, "image_template": image, "text_template": text, "unit": 7, **fields}
        images = CLIPImageProcessor(size={"height": 28, "width": 14}, do_center_crop=False)
        return MllmReIDProcessor(images, tokenizer, **settings)

    return make


@pytest.mark.parametrize("family", TEMPLATES)
def test_templates_are_those_of_the_chat_template(made, family):
    processor = made(family)
    assert [processor.image_template, processor.text_template] == TEMPLATES[family]
    # Each prompt is one text, with the special tokens that the stock tokenizer adds to it.
    marks = SPECIAL[family][0] * 8
    texts = [
        template.replace("{image}", marks).replace("{caption}", CAPTION).replace("{instruction}", INSTRUCTION)
        for template in TEMPLATES[family]
    ]
    expected = [processor.tokenizer(text, add_special_tokens=family not in ("gemma",)).input_ids for text in texts]
    assert [processor.image_prompt_ids(), processor.text_prompt_ids(CAPTION)] == expected
    first = expected[0].index(processor.image_token_id)
    assert processor.image_prefix_ids == expected[0][:first]
    begin = processor.tokenizer.bos_token_id
    assert all(ids.count(begin) == 1 and ids[0] == begin for ids in expected if begin is not None)


def test_without_a_chat_template_the_prompt_is_that_of_llava():
    tokenizer = llama_tokenizer()
    assert templates_of(tokenizer, None, "<image>") == (TEMPLATES["llava"][0], TEMPLATES["llava"][1])
    assert templates_of(tokenizer, {"default": chat_template("llava"), "tool_use": "x"}, "<image>") == (
        tuple(TEMPLATES["llava"])
    )
    assert templates_of(tokenizer, None, "<i>", "<b>", "<e>")[0] == "USER: <b>{image}<e>\n{instruction} ASSISTANT:"


def test_a_chat_template_that_ignores_the_generation_prompt_still_starts_the_answer():
    tokenizer = chat_tokenizer("qwen")
    template = tokenizer.chat_template
    without = template.partition("{%- if add_generation_prompt")[0]
    image = "<|image_pad|>"
    expected = templates_of(tokenizer, template, image, *MARKS["qwen"])
    assert without != template and templates_of(tokenizer, without, image, *MARKS["qwen"]) == expected
    # As in Mistral: the answer follows the user's turn, after a space at most.
    turns = "{% for message in messages %}{{ message.role[0] + ':' + message.content + ' ' }}{% endfor %}"
    answers = turns.replace("message.role[0] + ':' + ", "")
    assert templates_of(tokenizer, answers, image)[1] == "{caption}\n{instruction} "
    assert templates_of(tokenizer, turns, image)[1] == "u:{caption}\n{instruction} a:"
    refusing = "{% if messages|length > 1 %}{{ raise_exception('no answers') }}{% endif %}" + answers
    assert templates_of(tokenizer, refusing, image) == templates_of(tokenizer, answers, image)


def test_a_model_that_thinks_first_is_asked_for_its_answer():
    """As Qwen3's chat template, which takes `enable_thinking`."""
    thinks = "{{ messages[0].content }} A:{% if enable_thinking is false %}<think></think>{% endif %}"
    templates = templates_of(chat_tokenizer("smollm"), thinks, "<image>")
    assert templates == ("{image}\n{instruction} A:<think></think>", "{caption}\n{instruction} A:<think></think>")


def test_image_prompts_are_those_of_the_stock_processors(made):
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": INSTRUCTION}]}]
    pixels = torch.zeros(3, 28, 28, dtype=torch.uint8)

    def stock_ids(processor):
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        add = not text.startswith(processor.tokenizer.bos_token)
        return processor(images=pixels, text=text, add_special_tokens=add)["input_ids"][0]

    # Also a tokenizer that starts every text with a space.
    for tokenizer in (chat_tokenizer("llava"), llama_tokenizer()):
        tokenizer.chat_template = chat_template("llava")
        square = CLIPImageProcessor(size={"height": 28, "width": 28}, do_center_crop=False)
        stock = LlavaProcessor(
            square,
            tokenizer,
            patch_size=7,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=tokenizer.chat_template,
        )
        ours = MllmReIDProcessor(square, tokenizer, unit=7)
        assert ours.image_prompt_ids() == list(stock_ids(stock)) and ours.num_image_tokens == 16
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = chat_tokenizer("gemma", **names)
    images = Gemma3ImageProcessor(size={"height": 28, "width": 28})
    stock = Gemma3Processor(images, tokenizer, chat_template=tokenizer.chat_template, image_seq_length=8)
    assert made("gemma", tokenizer).image_prompt_ids() == list(stock_ids(stock))


@pytest.mark.parametrize("family", [*TEMPLATES, "llama"])
def test_positions_of_the_caption(made, family):
    processor = made("llava", llama_tokenizer()) if family == "llama" else made(family)
    tokenizer = processor.tokenizer
    captions = [CAPTION, "a", "", "a red  coat.\n"]
    for caption, prompt in zip(captions, processor.text_prompts(captions), strict=True):
        covered = tokenizer.decode(prompt.ids[prompt.start : prompt.end])
        assert caption.strip() in covered and len(covered) <= len(caption) + 9
        before, after = tokenizer.decode(prompt.ids[: prompt.start]), tokenizer.decode(prompt.ids[prompt.end :])
        assert CAPTION not in before + after and (caption or prompt.start == prompt.end)
        assert INSTRUCTION[9:] in after and INSTRUCTION not in before
    # The full stop of a caption joins the line break after it, and the first word the space before it.
    joined = tokenizer.convert_ids_to_tokens(processor.text_prompt_ids(CAPTION))
    assert {".Ċ", ".\n"} & {*joined}


def test_the_same_positions_in_training_and_in_encode_text(made):
    processor = made("smolvlm")
    samples = [
        {"pixel_values": torch.zeros(3, 28, 14), "person_ids": 0, "instruction": 0, "caption": text, "target": [7, 8]}
        for text in (CAPTION, "a coat.", "")
    ]
    both, alone = (
        TrainCollator(processor, BatchArguments(), language=language, reid_text=True)(samples)
        for language in (True, False)
    )
    encoded = processor(text=[sample["caption"] for sample in samples])
    for row in range(3):
        mask = both["text_caption_mask"][row]
        length = int(mask.nonzero()[-1]) + 1 if mask.any() else int(alone["text_attention_mask"][row].sum())
        for inputs in (alone, {f"text_{name}": values for name, values in encoded.items()}):
            assert inputs["text_attention_mask"][row].sum() == length
            assert torch.equal(inputs["text_input_ids"][row, :length], both["text_input_ids"][row, :length])
            assert torch.equal(inputs["text_caption_mask"][row, :length], mask[:length])
    assert not both["text_caption_mask"][2].any() and both["text_labels"][2].ne(-100).sum() == 2


@pytest.mark.parametrize("family", TEMPLATES)
def test_special_tokens_in_texts_are_refused(made, family):
    processor = made(family)
    image, special = SPECIAL[family]
    for token, kind in ((image, "image"), *((token, "special") for token in special)):
        for call in (processor.text_prompt_ids, processor.target_ids, lambda text: processor(text=[text])):
            with pytest.raises(ValueError, match=f"the text 'a {kind_of(token)} coat' holds the {kind} token"):
                call(f"a {token} coat")


def kind_of(token):
    return token.replace("|", r"\|")


def test_settings_that_make_no_prompt(made):
    with pytest.raises(ValueError, match="has 9 image tokens '<image>', not 8 in a row; remove the token from"):
        made("llava", image_template="<image>{image}").image_prompt_ids()
    with pytest.raises(ValueError, match="has 9 image tokens '<image>', not 8 in a row"):
        made("llava").image_prompt_ids("Look at <image>")
    with pytest.raises(ValueError, match="the prompt of 'a coat' holds the image token '<image>'; remove it"):
        made("llava").text_prompt_ids("a coat", "Look at <image>")
    # A chat template that takes no image, and one that raises.
    tokenizer = chat_tokenizer("qwen")
    for template, reason in (
        ("{{ 'no messages' }}", "once each; correct it, or give image_template"),
        ("{{ raise_exception('no user') }}", r"once each \(no user\); correct it"),
    ):
        with pytest.raises(ValueError, match=f"the chat template does not write the image '<i>', .*{reason}"):
            templates_of(tokenizer, template, "<i>")


def test_half_of_a_character_is_refused(made):
    for call in (made("qwen").text_prompt_ids, made("qwen").target_ids):
        with pytest.raises(ValueError, match=r"^the text 'a .udc80 coat' holds half of a character; correct it$"):
            call("a \udc80 coat")


def test_a_token_without_an_embedding_is_refused_where_a_text_or_padding_may_have_it(made):
    tokenizer = chat_tokenizer("smollm")
    size = len(tokenizer)
    processor = made("smollm", tokenizer)
    check_vocabulary(processor, size)
    check_vocabulary(processor, size - 1)  # the image replaces the embedding of the last token, <image>
    tokenizer.add_tokens(["<|pad|>"], special_tokens=True)
    check_vocabulary(processor, size)  # no text has it
    tokenizer.add_tokens(["coats"])
    with pytest.raises(ValueError, match=f"'coats' of id {size + 1}, and config.json a vocab_size of {size}; take"):
        check_vocabulary(processor, size)
    tokenizer.pad_token = "<|pad|>"
    with pytest.raises(ValueError, match=rf"has the token '<\|pad\|>' of id {size}, .*or resize the embeddings$"):
        check_vocabulary(processor, size)


def test_a_tokenizer_without_offsets_is_refused(made, monkeypatch):
    processor = made("llava")
    monkeypatch.setattr(type(processor.tokenizer), "is_fast", False)
    with pytest.raises(ValueError, match="which gives no character offsets; give one with a tokenizer.json"):
        processor.text_prompt_ids("a coat")


def test_the_digest_of_a_vocabulary(tmp_path):
    tokenizer = chat_tokenizer("qwen")
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert vocabulary_digest(again) == vocabulary_digest(tokenizer) != vocabulary_digest(chat_tokenizer("gemma"))
    again.add_tokens(["coats"])
    assert vocabulary_digest(again) != vocabulary_digest(tokenizer)


def test_a_tokenizer_may_have_no_token_for_padding(made):
    processor = made("qwen", chat_tokenizer("qwen", pad_token=None, eos_token=None))
    assert processor.build_inputs([[5, 6], [5]], [[7], [8]])["input_ids"].tolist() == [[5, 6, 7], [5, 8, 0]]
