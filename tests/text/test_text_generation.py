"""The engine on a tiny random LLaVA: batching, order, end of text, no special token, everything left as found."""

import random
from contextlib import contextmanager

import pytest
import torch
from transformers import GenerationConfig

from modeling_mllmreid.text.generation import generate_texts
from modeling_mllmreid.utils.errors import UserError

LENGTHS = (3, 11, 5, 5, 17, 1, 8, 30, 2)
END = 2


@pytest.fixture(scope="module")
def prompts():
    rng = random.Random(0)
    return [[1, *(rng.randrange(5, 90) for _ in range(length))] for length in LENGTHS]


@contextmanager
def biased(mllm, values):
    """Adds a value to the logit of each of these ids."""
    bias = torch.zeros(mllm.lm_head.out_features)
    for token, value in values.items():
        bias[token] = value
    hook = mllm.lm_head.register_forward_hook(lambda module, args, logits: logits + bias)
    try:
        yield
    finally:
        hook.remove()


def naive_greedy(mllm, size, prompt, count):
    """Token by token, the whole text anew each time, no padding, no cache; ids 0-4 are special, 2 ends the text."""
    ids = list(prompt)
    with torch.inference_mode():
        for number in range(count):
            logits = mllm(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            allowed = [*range(5, size), *([END] if number >= 3 else [])]
            ids.append(max(allowed, key=lambda token: float(logits[token])))
            if ids[-1] == END:
                break
    return ids[len(prompt) :]


def test_batches_equal_naive_generation_one_by_one_in_the_prompts_order(mllm, processor, prompts):
    tokenizer = processor.tokenizer
    for pad in ("<pad>", "</s>", None):
        tokenizer.pad_token = pad
        try:
            with biased(mllm, {END: 3.0}):
                expected = [naive_greedy(mllm, len(tokenizer), prompt, 9) for prompt in prompts]
                written = [
                    generate_texts(mllm, tokenizer, prompts, max_new_tokens=9, batch_size=size) for size in (1, 4, 64)
                ]
        finally:
            tokenizer.pad_token = "<pad>"
        assert len({tuple(ids) for ids in expected}) == len(prompts)  # the texts do depend on the prompts
        ends = {len(ids) for ids in expected if ids[-1] == END}
        assert len(ends) > 1 and min(ends) > 3 and any(len(ids) == 9 and ids[-1] != END for ids in expected)
        words = [tokenizer.convert_ids_to_tokens([token for token in ids if token != END]) for ids in expected]
        for texts in written:
            assert [ids for _, ids in texts] == expected
            assert [text.split() for text, _ in texts] == words
    assert generate_texts(mllm, tokenizer, []) == []


@pytest.mark.parametrize("do_sample", [False, True])
def test_a_text_ends_after_the_shortest_length_where_the_model_wants_nothing_else(mllm, processor, prompts, do_sample):
    settings = {"do_sample": do_sample, "max_new_tokens": 9}
    with biased(mllm, {END: 1e4}):
        written = generate_texts(mllm, processor.tokenizer, prompts, **settings)
        short = generate_texts(mllm, processor.tokenizer, prompts, **{**settings, "max_new_tokens": 2})
    assert all(len(ids) == 4 and ids[-1] == END and min(ids[:3]) >= 5 for _, ids in written)
    assert all(len(text.split()) == 3 for text, _ in written)
    assert all(len(ids) == 2 and min(ids) >= 5 for _, ids in short)


@pytest.mark.parametrize("do_sample", [False, True])
def test_no_other_special_token_even_where_the_model_wants_nothing_else(mllm, processor, prompts, do_sample):
    # Special ids, and those that no token has.
    unwanted = [token for token in (*range(5), *range(len(processor.tokenizer), mllm.lm_head.out_features))]
    with biased(mllm, {token: 1e4 for token in unwanted if token != END} | {END: -1e4}):
        written = generate_texts(mllm, processor.tokenizer, prompts, max_new_tokens=9, do_sample=do_sample)
    for text, ids in written:
        assert len(ids) == 9 and min(ids) >= 5 and processor.target_ids(text) == ids


def test_a_text_ends_with_any_end_of_text_token_of_the_models_files(mllm, processor, prompts, monkeypatch):
    """A chat model ends its turn with another token than its tokenizer; an ordinary id ends nothing."""
    monkeypatch.setattr(mllm.generation_config, "eos_token_id", [0, 50])
    with biased(mllm, {0: 1e4}):
        written = generate_texts(mllm, processor.tokenizer, prompts, max_new_tokens=9)
    assert all(len(ids) == 4 and ids[-1] == 0 for _, ids in written)
    with biased(mllm, {50: 1e4}):
        written = generate_texts(mllm, processor.tokenizer, prompts, max_new_tokens=9)
    assert all(ids == [50] * 9 for _, ids in written)


def test_special_tokens_spelled_out_are_removed(mllm, processor, prompts, monkeypatch):
    monkeypatch.setattr(processor.tokenizer, "decode", lambda *args, **kwargs: "<ima<image>ge>a </s>b")
    assert generate_texts(mllm, processor.tokenizer, [[1, 7, 8]], max_new_tokens=2)[0].text == "a b"


def test_sampling_depends_on_the_seed_and_the_batch_alone(mllm, processor, prompts):
    def sample(chosen, **settings):
        return generate_texts(mllm, processor.tokenizer, chosen, do_sample=True, **{"batch_size": 3, **settings})

    state = torch.get_rng_state()
    whole = sample(prompts)
    assert torch.equal(torch.get_rng_state(), state)
    order = sorted(range(len(prompts)), key=lambda index: -LENGTHS[index])
    assert sample([prompts[index] for index in order[3:]]) == [whole[index] for index in order[3:]]
    assert sample(prompts, seed=1) != whole
    hot = {"temperature": 1e6, "max_new_tokens": 1}
    assert len({text for text, _ in sample(prompts[:1] * 400, batch_size=400, **hot)}) > 50  # no top-k
    assert len({text for text, _ in sample(prompts, batch_size=1, **hot)}) > 1  # each batch has its own draws
    assert sample(prompts, temperature=1e-4) == generate_texts(mllm, processor.tokenizer, prompts)


def test_modes_and_settings_are_left_as_found_and_the_checkpoints_own_play_no_part(mllm, processor, prompts):
    expected = generate_texts(mllm, processor.tokenizer, prompts)
    own = GenerationConfig(num_beams=2, repetition_penalty=5.0, eos_token_id=list(range(5, 50)), max_length=4)
    original, mllm.generation_config = mllm.generation_config, own
    mllm.train()
    mllm.model.vision_tower.eval()
    modes = [module.training for module in mllm.modules()]
    try:
        assert generate_texts(mllm, processor.tokenizer, prompts) == expected
        assert [module.training for module in mllm.modules()] == modes and mllm.generation_config is own
        with pytest.raises(IndexError):
            generate_texts(mllm, processor.tokenizer, [[10_000]])
        assert [module.training for module in mllm.modules()] == modes and mllm.generation_config is own
    finally:
        mllm.generation_config = original
        mllm.eval()


@pytest.mark.parametrize("setting", [{"max_new_tokens": 0}, {"batch_size": 0}, {"temperature": 0.0}])
def test_settings_out_of_range_are_named(mllm, processor, setting):
    with pytest.raises(UserError, match=f"{next(iter(setting))} is 0"):
        generate_texts(mllm, processor.tokenizer, [[1]], **setting)
