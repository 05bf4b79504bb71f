"""The engine on a tiny random LLaVA: batching, order, fixed length, no special token, everything left as found."""

import random

import pytest
import torch
from transformers import GenerationConfig

from modeling_mllmreid.text.generation import generate_texts
from modeling_mllmreid.utils.errors import UserError

LENGTHS = (3, 11, 5, 5, 17, 1, 8, 30, 2)


@pytest.fixture(scope="module")
def prompts():
    rng = random.Random(0)
    return [[1, *(rng.randrange(5, 90) for _ in range(length))] for length in LENGTHS]


def naive_greedy(mllm, vocabulary, prompt, count):
    """Token by token, the whole text anew each time, no padding, no cache; ids 0-4 are special."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            logits = mllm(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            ids.append(5 + int(logits[5 : len(vocabulary)].argmax()))
    return [vocabulary[index] for index in ids[len(prompt) :]]


def test_batches_equal_naive_generation_one_by_one_in_the_prompts_order(mllm, processor, prompts):
    tokenizer = processor.tokenizer
    vocabulary = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    expected = [naive_greedy(mllm, vocabulary, prompt, 6) for prompt in prompts]
    assert len({tuple(words) for words in expected}) == len(prompts)  # the texts do depend on the prompts
    for batch_size in (1, 4, 64):
        texts = generate_texts(mllm, tokenizer, prompts, max_new_tokens=6, batch_size=batch_size)
        assert [text.split() for text in texts] == expected
    assert generate_texts(mllm, tokenizer, []) == []


@pytest.mark.parametrize("do_sample", [False, True])
def test_one_length_and_no_special_token_even_where_the_model_wants_nothing_else(mllm, processor, prompts, do_sample):
    bias = torch.zeros(mllm.lm_head.out_features)
    bias[:5] = bias[len(processor.tokenizer) :] = 1e4  # special ids, and those that no token has
    hook = mllm.lm_head.register_forward_hook(lambda module, args, logits: logits + bias)
    try:
        texts = generate_texts(mllm, processor.tokenizer, prompts, max_new_tokens=9, do_sample=do_sample)
    finally:
        hook.remove()
    for text in texts:
        ids = processor.target_ids(text)
        assert len(ids) == 9 and min(ids) >= 5


def test_special_tokens_spelled_out_are_removed(mllm, processor, prompts, monkeypatch):
    decoded = ["<ima<image>ge>a </s>b", "c"]
    monkeypatch.setattr(processor.tokenizer, "batch_decode", lambda *args, **kwargs: decoded)
    assert generate_texts(mllm, processor.tokenizer, [[1, 7, 8], [1, 9]], max_new_tokens=2) == ["a b", "c"]


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
    assert len(set(sample(prompts[:1] * 400, batch_size=400, **hot))) > 50  # no top-k
    assert len(set(sample(prompts, batch_size=1, **hot))) > 1  # each batch has its own draws
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
