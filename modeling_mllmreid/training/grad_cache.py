"""Cached gradients: a batch of any P x K in the memory of a few images, with the gradient of the whole batch.

Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (GradCache).
"""

from collections.abc import Callable, Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..model import MllmReIDConfig, MllmReIDModel
from ..model.heads import MllmReIDOutput
from ..model.losses import reid_loss

Batch = Mapping[str, Tensor]


def cached_backward(
    model: MllmReIDModel,
    inputs: Batch,
    *,
    chunk: int,
    language_part: Callable[[dict[str, Tensor]], Tensor],
    reid_weight: float,
    backward: Callable[[Tensor], None],
    scale: float = 1.0,
) -> tuple[Tensor, MllmReIDOutput]:
    """Adds the gradient of one batch to the parameters' own; returns its loss and what `forward` would, detached.

    Three passes: features of every chunk of images without a graph; the ReID losses and their gradient at the features
    of all images and all processes, which the head gets its own gradient from; every chunk once more with a graph,
    where the features' gradient and the chunk's language loss flow on. A chunk's second pass draws the random numbers
    of its first, so that dropout is the same.

    model: not wrapped, for the backward passes must not be reduced one by one: see `average_gradients`. inputs: as of
    `MllmReIDModel.forward`, each (B, ...). chunk: images at once. language_part: what the summed losses of a chunk's
    branches add to the total loss. reid_weight: of the ReID losses in the total. backward: computes gradients, having
    multiplied by `scale` where losses are scaled for float16.
    """
    config: MllmReIDConfig = model.config  # type: ignore[assignment]
    people = inputs["person_ids"].to(model.device)
    chunks = list(_split({name: rows for name, rows in inputs.items() if name != "person_ids"}, chunk))
    states = [_random_state(people.device)] * len(chunks)
    parts: dict[str, Tensor] = {}
    total, reid, id_logits = torch.zeros((), device=people.device), None, None
    leaves: dict[str, Tensor] = {}
    if config.loss_lambda > 0:
        with torch.no_grad():
            found = []
            for number, rows in enumerate(chunks):
                states[number] = _random_state(people.device)
                # The text rows come after the image rows, so leaving them out changes no random number of these.
                kept = {k: v for k, v in rows.items() if config.reid_text or not k.startswith("text_")}
                found.append(_features(model(**kept)))
        leaves = {name: rows.requires_grad_() for name, rows in _joined(found).items()}
        captioned = inputs["text_caption_mask"].any(dim=1).to(people.device) if "text" in leaves else None
        reid, id_logits = reid_loss(config, model.reid_head, leaves, leaves.get("text"), people, parts, captioned)
        backward(reid_weight * reid)
        total = total + reid_weight * reid.detach()
    gradients = {name: leaf.grad / scale for name, leaf in leaves.items() if leaf.grad is not None}

    found = []
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for number, rows in enumerate(chunks):
        if leaves:
            _set_random_state(people.device, states[number])
        output = model(**rows)
        features, terms = _features(output), []
        if output.language_loss_sums:
            terms.append(language_part(output.language_loss_sums))
            total = total + terms[0].detach()
        first = number * chunk
        for name, gradient in gradients.items():
            if features[name].requires_grad:
                terms.append((features[name] * gradient[first : first + chunk]).sum())
        if terms:
            backward(torch.stack(terms).sum())
        found.append({name: feature.detach() for name, feature in features.items()})
        for name, value in (output.language_loss_sums or {}).items():
            sums[name] = sums.get(name, 0) + value.detach()
            counts[name] = counts.get(name, 0) + output.label_counts[name]
    parts |= {f"lm_{name}": value / counts[name] for name, value in sums.items() if counts[name]}
    joined = _joined(found)
    texts = joined.pop("text", None)
    return total, MllmReIDOutput(
        features=joined,
        text_features=texts,
        captioned=None if texts is None else inputs["text_caption_mask"].any(dim=1).to(people.device),
        id_logits=id_logits,
        reid_loss=None if reid is None else reid.detach(),
        loss_parts=parts,
        language_loss_sums=sums or None,
        label_counts=counts or None,
    )


@torch.no_grad()
def average_gradients(model: nn.Module) -> None:
    """The mean over processes of every gradient, as DDP takes it in a plain step; nothing in one process.

    A parameter without a gradient counts as zero where another process has one.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad /= dist.get_world_size()
    waiting = [dist.all_reduce(parameter.grad, async_op=True) for parameter in trained]
    for work in waiting:
        work.wait()


def _features(output: MllmReIDOutput) -> dict[str, Tensor]:
    """By name what the ReID losses read, the captions' feature as "text"."""
    features = dict(output.features or {})
    return features if output.text_features is None else {**features, "text": output.text_features}


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _split(inputs: Batch, chunk: int) -> Iterator[dict[str, Tensor]]:
    for first in range(0, len(inputs["pixel_values"]), chunk):
        yield {name: tensor[first : first + chunk] for name, tensor in inputs.items()}


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(device: torch.device, state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
