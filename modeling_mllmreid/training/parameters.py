"""Parameters: which ones are trained, with which learning rate and weight decay."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import regex
from torch import nn

from ..model import ImageEncoder, MllmReIDModel
from ..utils.errors import UserError
from .fake_runs import image_parameters

# Time limit of matching a pattern on one name.
PATTERN_SECONDS = 2.0


def check_pattern(pattern: str, option: str) -> None:
    """Raises UserError that names the option if its pattern is not a regular expression."""
    try:
        regex.compile(pattern)
    except regex.error as error:
        raise UserError(f"{option}: {pattern!r} is not a regular expression ({error}): correct it") from None


def matches(pattern: str, name: str, option: str, *, whole: bool = False) -> bool:
    """Whether a pattern matches the name of a module or parameter.

    Args:
        pattern (`str`): Regular expression.
        name (`str`): Full name of a module or parameter.
        option (`str`): Option that holds the pattern, for the message.
        whole (`bool`): Whether the pattern must match the whole name, not only a part of it.

    Raises:
        UserError: Matching takes longer than `PATTERN_SECONDS`.
    """
    match = regex.fullmatch if whole else regex.search
    try:
        return match(pattern, name, timeout=PATTERN_SECONDS) is not None
    except TimeoutError:
        raise UserError(
            f"{option}: {pattern!r} takes longer than {PATTERN_SECONDS:g} s on one name: write it without nested "
            "repetitions"
        ) from None


def freeze_unused_parameters(model: ImageEncoder) -> list[str]:
    """Freezes the parameters that no loss reaches under the model's configuration.

    DDP and activation checkpointing need them frozen, and weight decay would shrink them. Frozen parameters stay
    frozen.

    Args:
        model (`MllmReIDModel` or `MllmReIDVisionModel`): The model, changed in place.

    Returns:
        `list[str]`: Names of the parameters that this call froze.
    """
    used = {id(parameter) for parameter in _used_parameters(model)}
    frozen = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in used:
            parameter.requires_grad_(False)
            frozen.append(name)
    return frozen


def _used_parameters(model: ImageEncoder) -> Iterable[nn.Parameter]:
    """Yields the parameters that a loss reaches."""
    config: Any = model.config
    has_reid_weight = config.id_weight > 0 or config.triplet_weight > 0
    reid = config.loss_lambda > 0 and has_reid_weight
    # The question about pairs passes the whole language model, as targets do.
    language = config.loss_lambda < 1 or getattr(config, "pair_weight", 0) > 0
    llm_head, vision_head = (reid and name in config.reid_heads for name in ("llm", "vision"))
    if reid and config.id_weight > 0:
        # Only the ID loss comes after the batch norm.
        yield from model.reid_head.parameters()
    if isinstance(model, MllmReIDModel):
        yield from _used_by_language_model(model, language=language, llm_head=llm_head)
    if language or llm_head or vision_head:
        reached = image_parameters(model, image=language or llm_head, vision=vision_head)
        yield from (parameter for name, parameter in model.named_parameters() if base_name(name) in reached)


def _used_by_language_model(model: MllmReIDModel, *, language: bool, llm_head: bool) -> Iterable[nn.Parameter]:
    """Yields the parameters of the language model that language, pairs or the LLM's ReID head reach."""
    config: Any = model.config
    language_model: Any = model.language_model
    if language:
        yield from model.get_output_embeddings().parameters()
        yield from language_model.parameters()
    elif llm_head:
        yield from model.get_input_embeddings().parameters()
        blocks = language_model.layers
        depth = config.llm_layer if config.llm_layer >= 0 else len(blocks) + 1 + config.llm_layer
        yield from blocks[:depth].parameters()
        if depth == len(blocks):
            yield from language_model.norm.parameters()


def base_name(name: str) -> str:
    """Returns the name of the weight that a LoRA adds to; other names stay as they are."""
    module, lora, _ = name.partition(".lora_")
    return f"{module}.weight" if lora else name.replace(".base_layer.", ".")


def parameter_groups(
    model: nn.Module, *, learning_rate: float, weight_decay: float, learning_rates: dict[str, float]
) -> list[dict[str, Any]]:
    """Returns the optimiser groups of the trained parameters.

    Args:
        model (`nn.Module`): The model.
        learning_rate (`float`): Learning rate of parameters that no pattern matches.
        weight_decay (`float`): Weight decay of matrices. Biases, norms and other vectors have none.
        learning_rates (`dict[str, float]`): Learning rate by pattern; the first pattern that matches a name counts.

    Returns:
        `list[dict]`: Groups with `params`, `lr` and `weight_decay`.

    Raises:
        UserError: A pattern matches no trained parameter.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    unmatched = set(learning_rates)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        pattern = next((pattern for pattern in learning_rates if matches(pattern, name, "learning_rates")), None)
        unmatched.discard(pattern)
        rate = learning_rate if pattern is None else learning_rates[pattern]
        groups[rate, weight_decay if parameter.ndim > 1 else 0.0].append(parameter)
    if unmatched:
        raise UserError(f"learning_rates: {sorted(unmatched)[0]!r} matches no trained parameter: correct or remove it")
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]
