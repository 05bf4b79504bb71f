"""Text generation: prompt ids in, texts of equal length out, in the order of the prompts."""

import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from transformers import GenerationConfig, LlavaForConditionalGeneration, PreTrainedModel, PreTrainedTokenizerBase

from ..utils.errors import UserError


def generate_texts(
    mllm: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    *,
    max_new_tokens: int = 32,
    do_sample: bool = False,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
) -> list[str]:
    """Writes exactly `max_new_tokens` ordinary tokens after each prompt.

    The longest prompts come first, so that a lack of memory shows at once. The generation settings of the checkpoint
    are not used. Special tokens and ids without a token are never written; a special token spelled with ordinary ones
    is removed from the text. Modes, settings and the random state are restored afterwards.

    Args:
        mllm (`LlavaForConditionalGeneration`): The model; its language model writes.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts (`list[list[int]]`): N lists of ids, of any length; prompts of similar length share a batch.
        max_new_tokens (`int`): Length of every text, in tokens.
        do_sample (`bool`): Whether to sample from the whole distribution; the default is greedy.
        temperature (`float`): Temperature of sampling.
        seed (`int`): Seed of sampling; a batch only depends on it and on its prompts.
        batch_size (`int`): Prompts in a batch.

    Returns:
        `list[str]`: N texts, without the prompts.

    Raises:
        UserError: For a setting out of range.
    """
    check_generation_settings(max_new_tokens=max_new_tokens, temperature=temperature, batch_size=batch_size)
    special = special_tokens(mllm, tokenizer)
    unnamed = range(len(tokenizer), mllm.config.get_text_config().vocab_size)
    # Without an end-of-text id no text stops before its full length.
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=do_sample,
        suppress_tokens=[*sorted(special), *unnamed],
        pad_token_id=tokenizer.pad_token_id,
        **({"temperature": temperature, "top_k": 0} if do_sample else {}),
    )
    texts = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    with ready_to_generate(mllm), torch.inference_mode():
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            batch = [prompts[index] for index in indices]
            ids, mask = _left_padded(batch, tokenizer.pad_token_id or 0)
            with own_random_state(mllm.device, _batch_seed(seed, batch)):
                written = mllm.generate(  # type: ignore[misc]
                    input_ids=ids.to(mllm.device), attention_mask=mask.to(mllm.device), generation_config=settings
                )
            decoded = tokenizer.batch_decode(written[:, ids.shape[1] :], clean_up_tokenization_spaces=False)
            for index, text in zip(indices, decoded, strict=True):
                texts[index] = _without(special.values(), text)
    return texts


def check_generation_settings(*, max_new_tokens: int, temperature: float, batch_size: int) -> None:
    """Raises UserError naming the setting that is out of range."""
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name} is {value}: give 1 or more")
    if not temperature > 0:
        raise UserError(f"temperature is {temperature}: give a number above 0, or turn do_sample off for greedy texts")


def special_tokens(mllm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The text of every special token by its id, including the image token."""
    tokens = {index: token.content for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    tokens.update(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    image = getattr(mllm.config, "image_token_id", None)  # a text model has none
    if image is not None and 0 <= image < len(tokenizer):
        tokens[image] = str(tokenizer.convert_ids_to_tokens(image))
    return tokens


def _left_padded(prompts: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, each (B, T); padded on the left, so that every text continues its prompt's last id."""
    longest = max(map(len, prompts))
    padded = torch.tensor([[pad_id] * (longest - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
    return padded, mask


def _batch_seed(seed: int, batch: list[list[int]]) -> int:
    """A seed from the user's seed and the prompts of a batch."""
    return int.from_bytes(hashlib.sha256(repr((seed, batch)).encode()).digest()[:8], "big")


@contextmanager
def own_random_state(device: torch.device, seed: int) -> Iterator[None]:
    """Seeds torch within the block; restores the random state afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _without(literals: Collection[str], text: str) -> str:
    """The text without the literals."""
    while any(literal in text for literal in literals):  # a removal can join the halves of another literal
        for literal in literals:
            text = text.replace(literal, "")
    return text


@contextmanager
def ready_to_generate(mllm: LlavaForConditionalGeneration) -> Iterator[None]:
    """Sets eval mode and empty generation defaults within the block; restores both afterwards."""
    modes = [(module, module.training) for module in mllm.modules()]
    defaults = mllm.generation_config
    mllm.eval()
    mllm.generation_config = GenerationConfig()  # `generate` would take unset values from the checkpoint
    try:
        yield
    finally:
        mllm.generation_config = defaults
        for module, training in modes:
            module.training = training
