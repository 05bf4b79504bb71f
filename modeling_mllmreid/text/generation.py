"""The one generation engine: prompt ids in, texts of one length out, in the order of the prompts."""

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
    """What the language model writes after each prompt: exactly `max_new_tokens` ordinary tokens, decoded.

    prompts: lists of ids, of any lengths; those of like length share a batch, the longest first, so that memory runs
    out at once or not at all. Greedy, or with `do_sample` from the whole distribution at `temperature`: then a batch's
    draws depend on `seed` and its prompts alone. The checkpoint's own generation settings have no part. Special
    tokens, and ids that the tokenizer has no token for, are never written; a special token spelled out of ordinary
    ones is removed from the text, where it would be read as special. The model's modes, settings and the random state
    are left as found.
    Raises UserError for a setting that is out of range.
    """
    check_generation_settings(max_new_tokens=max_new_tokens, temperature=temperature, batch_size=batch_size)
    special = special_tokens(mllm, tokenizer)
    unnamed = range(len(tokenizer), mllm.config.get_text_config().vocab_size)
    # No end-of-text id: nothing can stop a row before its full length.
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
            rows = tokenizer.batch_decode(written[:, ids.shape[1] :], clean_up_tokenization_spaces=False)
            for index, text in zip(indices, rows, strict=True):
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
    """Id -> text of every special token, the image token among them."""
    tokens = {index: token.content for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    tokens.update(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    image = getattr(mllm.config, "image_token_id", None)  # a language model alone has none
    if image is not None and 0 <= image < len(tokenizer):
        tokens[image] = str(tokenizer.convert_ids_to_tokens(image))
    return tokens


def _left_padded(rows: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and attention mask, each (B, T); padding on the left, so that every row's text goes on from its last id."""
    longest = max(map(len, rows))
    ids = torch.tensor([[pad_id] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def _batch_seed(seed: int, batch: list[list[int]]) -> int:
    return int.from_bytes(hashlib.sha256(repr((seed, batch)).encode()).digest()[:8], "big")


@contextmanager
def own_random_state(device: torch.device, seed: int) -> Iterator[None]:
    """Within the block draws depend on `seed` alone; afterwards the random state is as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _without(literals: Collection[str], text: str) -> str:
    while any(literal in text for literal in literals):  # again, as a removal can join the halves of another one
        for literal in literals:
            text = text.replace(literal, "")
    return text


@contextmanager
def ready_to_generate(mllm: LlavaForConditionalGeneration) -> Iterator[None]:
    """Eval mode and blank generation defaults; afterwards every module's own mode and the defaults are put back."""
    modes = [(module, module.training) for module in mllm.modules()]
    defaults = mllm.generation_config
    mllm.eval()
    mllm.generation_config = GenerationConfig()  # `generate` would fill our gaps from a checkpoint's beams or penalties
    try:
        yield
    finally:
        mllm.generation_config = defaults
        for module, training in modes:
            module.training = training
