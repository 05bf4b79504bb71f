"""Parameters: which ones are trained, with which learning rate and weight decay."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import regex
from torch import nn
from transformers import PreTrainedModel

from ..model import MllmReIDModel
from ..utils.errors import UserError

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


def freeze_unused_parameters(model: MllmReIDModel) -> list[str]:
    """Freezes the parameters that no loss reaches under the model's configuration.

    DDP and activation checkpointing need them frozen, and weight decay would shrink them. Frozen parameters stay
    frozen.

    Args:
        model (`MllmReIDModel`): The model, changed in place.

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


def _used_parameters(model: MllmReIDModel) -> Iterable[nn.Parameter]:
    """Yields the parameters that a loss reaches."""
    config, llava = model.config, model.mllm.model
    has_reid_weight = config.id_weight > 0 or config.triplet_weight > 0
    language, reid = config.loss_lambda < 1, config.loss_lambda > 0 and has_reid_weight
    llm_head, vision_head = (reid and name in config.reid_heads for name in ("llm", "vision"))
    hidden_states: list[int] = []
    if reid and config.id_weight > 0:
        # Only the ID loss comes after the batch norm.
        yield from model.reid_head.parameters()
    if language:
        yield from model.mllm.lm_head.parameters()
        yield from llava.language_model.parameters()
    elif llm_head:
        yield from model.get_input_embeddings().parameters()
        blocks = llava.language_model.layers
        depth = config.llm_layer if config.llm_layer >= 0 else len(blocks) + 1 + config.llm_layer
        yield from blocks[:depth].parameters()
        if depth == len(blocks):
            yield from llava.language_model.norm.parameters()
    if language or llm_head:
        yield from llava.multi_modal_projector.parameters()
        layers = config.mllm_config.vision_feature_layer
        hidden_states += [layers] if isinstance(layers, int) else layers
    if vision_head:
        hidden_states.append(model.vision_layer)
    if hidden_states:
        yield from tower_parameters(llava.vision_tower, hidden_states)


def tower_parameters(tower: PreTrainedModel, hidden_states: list[int]) -> Iterable[nn.Parameter]:
    """Yields the parameters of a vision tower that compute some of its hidden states.

    Args:
        tower (`PreTrainedModel`): A CLIP or SigLIP vision tower.
        hidden_states (`list[int]`): Indices of the hidden states; negative ones count from the end.
    """
    blocks: nn.ModuleList = tower.encoder.layers  # type: ignore[union-attr, assignment]
    depth = max(layer if layer >= 0 else len(blocks) + 1 + layer for layer in hidden_states)
    # Modules after the last block (a final norm, a pooling head) are in no hidden state.
    unused = {
        id(p)
        for name, child in tower.named_children()
        if name.startswith(("post_", "head"))
        for p in child.parameters()
    }
    unused |= {id(p) for p in blocks[depth:].parameters()}
    yield from (p for p in tower.parameters() if id(p) not in unused)


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
