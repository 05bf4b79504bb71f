"""Text generation: prompt ids in, texts and their ids out, in the order of the prompts."""

import hashlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..utils.errors import UserError

# No text ends before this number of tokens.
MIN_NEW_TOKENS = 3


class WrittenText(NamedTuple):
    """A text that a language model wrote.

    Args:
        text (`str`): The text.
        ids (`list[int]`): The ids that the model wrote, with the end-of-text id if it wrote one.
    """

    text: str
    ids: list[int]


def generate_texts(
    mllm: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    *,
    max_new_tokens: int = 32,
    do_sample: bool = False,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
) -> list[WrittenText]:
    """Writes a text after each prompt, up to the end-of-text token of the model.

    The longest prompts come first, so that a lack of memory shows at once. The generation settings of the checkpoint
    are not used, apart from its end-of-text tokens. Other special tokens and ids without a token are never written; a
    special token spelled with ordinary ones is removed from the text. Modes, settings and the random state are restored
    afterwards.

    Args:
        mllm (`PreTrainedModel`): A multimodal LLM; its language model writes.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts (`list[list[int]]`): N lists of ids, of any length; prompts of similar length share a batch.
        max_new_tokens (`int`): Longest text, in tokens.
        do_sample (`bool`): Whether to sample from the whole distribution; the default is greedy.
        temperature (`float`): Temperature of sampling.
        seed (`int`): Seed of sampling; a batch only depends on it and on its prompts.
        batch_size (`int`): Prompts in a batch.

    Returns:
        `list[WrittenText]`: N texts without the prompts, and their ids.

    Raises:
        UserError: For a setting out of range.
    """
    check_generation_settings(max_new_tokens=max_new_tokens, temperature=temperature, batch_size=batch_size)
    settings = generation_settings(mllm, tokenizer, max_new_tokens, temperature if do_sample else None)
    special = special_tokens(mllm, tokenizer)
    written: list[WrittenText] = [WrittenText("", [])] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    with ready_to_generate(mllm), torch.inference_mode():
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            batch = [prompts[index] for index in indices]
            ids, mask = _left_padded(batch, tokenizer.pad_token_id or 0)
            with own_random_state(mllm.device, random_state(seed, batch)):
                output = mllm.generate(
                    input_ids=ids.to(mllm.device), attention_mask=mask.to(mllm.device), generation_config=settings
                )
            for index, sequence in zip(indices, output[:, ids.shape[1] :].tolist(), strict=True):
                new_ids = up_to_end(sequence, settings.eos_token_id)
                written[index] = WrittenText(decoded(tokenizer, new_ids, special), new_ids)
    return written


def generation_settings(
    mllm: Any, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, temperature: float | None
) -> GenerationConfig:
    """Returns the settings of generation: ordinary tokens, then the end of the text after the shortest length.

    Args:
        mllm (`PreTrainedModel`): The model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        max_new_tokens (`int`): Longest text, in tokens.
        temperature (`float`, *optional*): Temperature of sampling; None for the likeliest text.

    Returns:
        `GenerationConfig`
    """
    ends = end_tokens(mllm, tokenizer)
    unnamed = range(len(tokenizer), mllm.config.get_text_config().vocab_size)
    pad = tokenizer.pad_token_id
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        suppress_tokens=[*sorted(special_tokens(mllm, tokenizer).keys() - ends.keys()), *unnamed],
        eos_token_id=list(ends) or None,
        min_new_tokens=min(MIN_NEW_TOKENS, max_new_tokens) if ends else None,
        pad_token_id=next(iter(ends), None) if pad is None else pad,
        **(
            {"do_sample": False} if temperature is None else {"do_sample": True, "temperature": temperature, "top_k": 0}
        ),
    )


def up_to_end(ids: list[int], ends: Collection[int] | None) -> list[int]:
    """Returns the ids up to the first end-of-text id, which is included."""
    length = next((index + 1 for index, token in enumerate(ids) if token in (ends or ())), len(ids))
    return ids[:length]


def decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int], special: dict[int, str]) -> str:
    """Returns the text of ids without special tokens, also without those spelled with ordinary ones."""
    ordinary = [token for token in ids if token not in special]
    text: str = tokenizer.decode(ordinary, clean_up_tokenization_spaces=False)  # type: ignore[assignment]
    return without(special.values(), text)


def check_generation_settings(*, max_new_tokens: int, temperature: float, batch_size: int) -> None:
    """Raises UserError naming the setting that is out of range."""
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name} is {value}: give 1 or more")
    if not temperature > 0:
        raise UserError(f"temperature is {temperature}: give a number above 0, or turn do_sample off for greedy texts")


def special_tokens(mllm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The text of every special token by its id, including the image token."""
    tokens = tokenizer_special_tokens(tokenizer)
    image = getattr(mllm.config, "image_token_id", None)  # a text model has none
    if image is not None and 0 <= image < len(tokenizer):
        tokens[image] = str(tokenizer.convert_ids_to_tokens(image))
    return tokens


def tokenizer_special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The text of every special token of a tokenizer by its id."""
    tokens = {index: token.content for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    tokens.update(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    return tokens


def end_tokens(mllm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The text of every end-of-text token by its id: that of the tokenizer, and those that the model's files name.

    A model may end its turn with another token than its tokenizer ends a text with. An id that is no special token is
    none of the model's own: transformers has default ids for every language model.
    """
    special = special_tokens(mllm, tokenizer)
    own = mllm.generation_config.eos_token_id
    ids = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    return {token: special[token] for token in dict.fromkeys(ids) if token in special}


def _left_padded(prompts: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, each (B, T); padded on the left, so that every text continues its prompt's last id."""
    longest = max(map(len, prompts))
    padded = torch.tensor([[pad_id] * (longest - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
    return padded, mask


def random_state(seed: int, content: object) -> int:
    """Returns a seed from the user's seed and what is written, so that a resumed run writes the same texts."""
    return int.from_bytes(hashlib.sha256(repr((seed, content)).encode()).digest()[:8], "big")


@contextmanager
def own_random_state(device: torch.device, seed: int) -> Iterator[None]:
    """Seeds torch within the block; restores the random state afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def without(literals: Collection[str], text: str) -> str:
    """Returns the text without the literals."""
    while any(literal in text for literal in literals):  # a removal can join the halves of another literal
        for literal in literals:
            text = text.replace(literal, "")
    return text


@contextmanager
def ready_to_generate(mllm: Any) -> Iterator[None]:
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
