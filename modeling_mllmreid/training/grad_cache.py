"""Cached gradients: the gradient of a P x K batch of any size in the memory of a few images.

Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (GradCache).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..model import ImageEncoder, MllmReIDConfig, MllmReIDModel
from ..model.heads import MllmReIDOutput
from ..model.losses import reid_loss
from ..model.pairs import Reading

Batch = Mapping[str, Tensor]
RandomState = tuple[Tensor, Tensor | None]


def cached_backward(
    model: MllmReIDModel,
    inputs: Batch,
    *,
    chunk: int,
    language_loss: Callable[[dict[str, Tensor]], Tensor],
    reid_weight: float,
    backward: Callable[[Tensor], None],
    scale: float = 1.0,
    pair_weight: float = 0.0,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> tuple[Tensor, MllmReIDOutput]:
    """Adds the gradient of a batch to the parameters' gradients, in three passes.

    1. Compute the features of every chunk without a graph; for the loss of pairs, the readings too.
    2. Compute the ReID losses on the features of all images and processes, and their gradient at the features. The head
       gets its gradient here. So do the loss of pairs and the language model on the readings of this process.
    3. Compute every chunk again with a graph. The gradient at the features and the language loss of the chunk flow back
       from there. The chunk draws the random numbers of its first pass, so dropout is the same.

    Args:
        model (`MllmReIDModel`): The unwrapped model, as DDP would reduce every backward pass (see `average_gradients`).
        inputs (`Mapping[str, Tensor]`): The inputs of `MllmReIDModel.forward` with `person_ids`, each (B, ...).
        chunk (`int`): Number of images computed at a time.
        language_loss (`Callable`): Maps the summed losses of a chunk's branches to their share of the total loss.
        reid_weight (`float`): Weight of the ReID losses in the total loss.
        backward (`Callable`): Computes gradients, after it multiplies a loss by `scale`.
        scale (`float`): Scale of the losses for float16.
        pair_weight (`float`): Weight of the loss of pairs in the total loss.
        autocast (`Callable`): Returns the context of mixed precision, in which the model's forward runs by itself.

    Returns:
        `tuple[Tensor, MllmReIDOutput]`: The loss, a scalar, and the output of `forward`, both detached.
    """
    config: MllmReIDConfig = model.config
    person_ids = inputs["person_ids"].to(model.device)
    captioned = inputs["text_caption_mask"].any(dim=1).to(model.device) if "text_caption_mask" in inputs else None
    batch_wide = ("person_ids", "camera_ids")
    chunks = list(_split({name: tensor for name, tensor in inputs.items() if name not in batch_wide}, chunk))
    loss, reid, id_logits = torch.zeros((), device=person_ids.device), None, None
    loss_parts: dict[str, Tensor] = {}
    cached: dict[str, Tensor] = {}
    states: list[RandomState] = []
    if config.loss_lambda > 0 or pair_weight:
        cached, states = _features_without_graph(model, chunks, pair_weight > 0)
        cached = {name: tensor.requires_grad_() for name, tensor in cached.items()}
        reading, features = _split_off_reading(cached)
    if config.loss_lambda > 0:
        text = features.get("text")
        text_captioned = None if text is None else captioned
        reid, id_logits = reid_loss(config, model.heads, features, text, person_ids, loss_parts, text_captioned)
        backward(reid_weight * reid)
        loss = loss + reid_weight * reid.detach()
    pair = None
    if pair_weight:
        with autocast():
            pair = model.pair_loss(reading, features["llm"], person_ids, inputs.get("camera_ids"), loss_parts)
        backward(pair_weight * pair)
        loss = loss + pair_weight * pair.detach()
    gradients = {name: tensor.grad / scale for name, tensor in cached.items() if tensor.grad is not None}

    chunk_features = []
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for number, chunk_inputs in enumerate(chunks):
        if states:
            _set_random_state(person_ids.device, states[number])
        with heads_at_rest(model):
            output = model(**chunk_inputs, **_options(pair_weight > 0))
        features, terms = _named_features(output), []
        if output.language_loss_sums:
            terms.append(language_loss(output.language_loss_sums))
            loss = loss + terms[0].detach()
        first = number * chunk
        for name, gradient in gradients.items():
            if features[name].requires_grad:
                terms.append((features[name] * gradient[first : first + chunk]).sum())
        if terms:
            backward(torch.stack(terms).sum())
        _, features = _split_off_reading(features)
        chunk_features.append({name: feature.detach() for name, feature in features.items()})
        for name, value in (output.language_loss_sums or {}).items():
            sums[name] = sums.get(name, 0) + value.detach()
            counts[name] = counts.get(name, 0) + output.label_counts[name]
    loss_parts |= {f"lm_{name}": value / counts[name] for name, value in sums.items() if counts[name]}
    features = _concatenated(chunk_features)
    text_features = features.pop("text", None)
    return loss, MllmReIDOutput(
        features=features,
        text_features=text_features,
        captioned=None if text_features is None else captioned,
        id_logits=id_logits,
        reid_loss=None if reid is None else reid.detach(),
        pair_loss=None if pair is None else pair.detach(),
        loss_parts=loss_parts,
        language_loss_sums=sums or None,
        label_counts=counts or None,
    )


@torch.no_grad()
def average_gradients(model: nn.Module) -> None:
    """Averages the gradients over processes, as DDP does in a plain step; does nothing in one process.

    A parameter without a gradient counts as zero.

    Args:
        model (`nn.Module`): The unwrapped model.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad /= dist.get_world_size()
    reductions = [dist.all_reduce(parameter.grad, async_op=True) for parameter in trained]
    for reduction in reductions:
        reduction.wait()


@contextmanager
def heads_at_rest(model: ImageEncoder) -> Iterator[None]:
    """Keeps the batch norms of the ReID heads from seeing batches within the block that no ReID loss is computed on.

    Without person ids the model computes embeddings, by way of its heads.
    """
    training = {name: head.training for name, head in model.heads.items()}
    for head in model.heads.values():
        head.eval()
    try:
        yield
    finally:
        for name, head in model.heads.items():
            head.train(training[name])


@torch.no_grad()
def _features_without_graph(
    model: ImageEncoder, chunks: list[dict[str, Tensor]], pairs: bool
) -> tuple[dict[str, Tensor], list[RandomState]]:
    """Returns the features of all chunks, and the random state before each chunk."""
    states, chunk_features = [], []
    for chunk_inputs in chunks:
        states.append(_random_state(model.device))
        # The text branch runs after the image branch, so that leaving it out changes no random number of the images.
        read = {k: v for k, v in chunk_inputs.items() if model.config.reid_text or not k.startswith("text_")}
        with heads_at_rest(model):
            chunk_features.append(_named_features(model(**read, **_options(pairs))))
    return _concatenated(chunk_features), states


def _options(pairs: bool) -> dict[str, bool]:
    """Returns the options of a forward pass; encoders without a language model have none."""
    return {"return_reading": True} if pairs else {}


def _named_features(output: MllmReIDOutput) -> dict[str, Tensor]:
    """Returns what the losses over all images read: features, the captions' feature as "text", and the readings."""
    features = dict(output.features or {})
    if output.text_features is not None:
        features["text"] = output.text_features
    if output.reading is not None:
        features |= {f"keys {layer}": keys for layer, keys in enumerate(output.reading.keys)}
        features |= {f"values {layer}": values for layer, values in enumerate(output.reading.values)}
    return features


def _split_off_reading(cached: dict[str, Tensor]) -> tuple[Reading, dict[str, Tensor]]:
    """Returns the readings, and the features without them."""
    keys, values = (
        tuple(tensor for name, tensor in cached.items() if name.startswith(f"{kind} ")) for kind in ("keys", "values")
    )
    rest = {name: tensor for name, tensor in cached.items() if not name.startswith(("keys ", "values "))}
    return Reading(keys, values), rest


def _concatenated(chunks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _split(inputs: Batch, chunk: int) -> Iterator[dict[str, Tensor]]:
    for first in range(0, len(inputs["pixel_values"]), chunk):
        yield {name: tensor[first : first + chunk] for name, tensor in inputs.items()}


def _random_state(device: torch.device) -> RandomState:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(device: torch.device, state: RandomState) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
