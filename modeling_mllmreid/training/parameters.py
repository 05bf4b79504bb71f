"""Which parameters are trained, and with which learning rate and weight decay."""

from collections import defaultdict
from collections.abc import Iterable

import regex
from torch import nn
from transformers import PreTrainedModel

from ..model import MllmReIDModel
from ..utils.errors import UserError

SECONDS = 2.0


def check_pattern(pattern: str, option: str) -> None:
    """Raises UserError, naming the option, for what is no regular expression."""
    try:
        regex.compile(pattern)
    except regex.error as error:
        raise UserError(f"{option}: {pattern!r} is no regular expression ({error}): correct it") from None


def matches(pattern: str, name: str, option: str, *, whole: bool = False) -> bool:
    """Whether the pattern is found in a module's or parameter's name, or where `whole` is it from end to end.

    Raises UserError, naming the option, where this takes longer than `SECONDS`.
    """
    match = regex.fullmatch if whole else regex.search
    try:
        return match(pattern, name, timeout=SECONDS) is not None
    except TimeoutError:
        raise UserError(
            f"{option}: {pattern!r} takes longer than {SECONDS:g} s on one name: write it without nested repetitions"
        ) from None


def freeze_unused_parameters(model: MllmReIDModel) -> list[str]:
    """Freezes every parameter that no loss reaches under the model's lambda, heads, weights and layers.

    DDP and activation checkpointing want them frozen, and an optimiser would let weight decay shrink them. Parameters
    that were frozen before stay so. Returns the names that this call froze.
    """
    used = {id(parameter) for parameter in _used(model)}
    frozen = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in used:
            parameter.requires_grad_(False)
            frozen.append(name)
    return frozen


def _used(model: MllmReIDModel) -> Iterable[nn.Parameter]:
    config, llava = model.config, model.mllm.model
    weighted = config.id_weight > 0 or config.triplet_weight > 0
    language, reid = config.loss_lambda < 1, config.loss_lambda > 0 and weighted
    on_llm, on_vision = (reid and name in config.reid_heads for name in ("llm", "vision"))
    layers_read: list[int] = []
    if reid and config.id_weight > 0:
        # Only the ID loss comes after the batch norm.
        yield from model.reid_head.parameters()
    if language:
        yield from model.mllm.lm_head.parameters()
        yield from llava.language_model.parameters()
    elif on_llm:
        yield from model.get_input_embeddings().parameters()
        blocks = llava.language_model.layers
        depth = config.llm_layer if config.llm_layer >= 0 else len(blocks) + 1 + config.llm_layer
        yield from blocks[:depth].parameters()
        if depth == len(blocks):
            yield from llava.language_model.norm.parameters()
    if language or on_llm:
        yield from llava.multi_modal_projector.parameters()
        layers = config.mllm_config.vision_feature_layer
        layers_read += [layers] if isinstance(layers, int) else layers
    if on_vision:
        layers_read.append(model.vision_layer)
    if layers_read:
        yield from tower_up_to(llava.vision_tower, layers_read)


def tower_up_to(tower: PreTrainedModel, hidden_states: list[int]) -> Iterable[nn.Parameter]:
    """Embeddings and blocks that the given hidden states of a vision tower are computed by."""
    blocks: nn.ModuleList = tower.encoder.layers  # type: ignore[union-attr, assignment]
    depth = max(layer if layer >= 0 else len(blocks) + 1 + layer for layer in hidden_states)
    # What comes after the last block (a final norm, a pooling head) is in no hidden state.
    after = {
        id(p)
        for name, child in tower.named_children()
        if name.startswith(("post_", "head"))
        for p in child.parameters()
    }
    unread = {id(p) for p in blocks[depth:].parameters()}
    yield from (p for p in tower.parameters() if id(p) not in after | unread)


def parameter_groups(
    model: nn.Module, *, learning_rate: float, weight_decay: float, learning_rates: dict[str, float]
) -> list[dict]:
    """Optimiser groups of the trained parameters.

    learning_rates: pattern -> rate; the first pattern found in a parameter's name counts, `learning_rate` where none
    is. Biases, norms and other vectors get no weight decay. Raises UserError for a pattern that matches no trained
    parameter.
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
        raise UserError(f"learning_rates: {sorted(unmatched)[0]!r} matches no trained parameter: mend or remove it")
    return [{"params": rows, "lr": rate, "weight_decay": decay} for (rate, decay), rows in groups.items()]
