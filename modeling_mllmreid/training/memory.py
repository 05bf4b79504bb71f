"""Memory: the estimate for a training step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..model import ImageEncoder, MllmReIDConfig, MllmReIDModel, MllmReIDVisionConfig, MllmReIDVisionModel
from ..model.pairs import recorder
from .adapters import AdapterArguments, apply_adapters
from .arguments import ReIDTrainingArguments
from .batch_arguments import BatchArguments
from .encoder_training import prepare_encoder
from .fake_runs import fake_run
from .modules import module_of
from .parameters import freeze_unused_parameters

# Bytes of a weight. nf4: blocks of 64 weights with an 8-bit scale, and a float32 for 256 scales. 8 bits: a float32 for
# each row of the matrix.
QUANTISED_BYTES = {"4bit": 0.5 + 1 / 64 + 4 / (64 * 256), "8bit": 1.001}
# Bytes of optimiser state for a trained parameter, by a part of the optimiser's name. The first match counts.
OPTIMIZER_STATE_BYTES = {"8bit": 2, "adafactor": 0, "sgd": 0, "lion": 4, "adam": 8}
# Values of `every_n_layers` that an estimate shows too; 0 is no activation checkpointing.
OTHER_EVERY = (2, 3, 4, 0)
# Tokens of the prompt template, and of a long caption in the published caption sets.
PROMPT_TOKENS, CAPTION_TOKENS, PAIR_TOKENS = 24, 64, 24
# A positive and a negative.
PAIRS_OF_IMAGE = 2


@dataclass
class Memory:
    """Memory of a training step on one device.

    Args:
        parameters (`int`): Number of parameters.
        trained (`int`): Number of trained parameters.
        trained_by_module (`dict[str, int]`): Number of trained parameters by module.
        weights, gradients, optimizer, activations, logits (`int`): Bytes.
        other_activations (`dict[int, int]`): Bytes of the activations with other values of `every_n_layers` in
            `activation_checkpointing_kwargs`, and with 0 for no activation checkpointing; empty if it is off.
    """

    parameters: int
    trained: int
    trained_by_module: dict[str, int]
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    other_activations: dict[int, int]

    @property
    def total(self) -> int:
        """Sum in bytes, without the context of the device and without fragmentation."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits

    def format(self) -> str:
        """Returns a table for the terminal."""
        lines = [f"{name:<12} {count:>15,} trained" for name, count in self.trained_by_module.items()]
        lines.append(f"{'parameters':<12} {self.parameters:>15,}, {self.trained:,} trained")
        for name in ("weights", "gradients", "optimizer", "activations", "logits", "total"):
            lines.append(f"{name:<12} {getattr(self, name) / 2**30:>15.2f} GiB")
        for every, activations in self.other_activations.items():
            total = (self.total - self.activations + activations) / 2**30
            setting = f"every_n_layers {every}" if every else "activation_checkpointing false"
            lines.append(f"a faster step with {setting}: {total:.2f} GiB in total")
        return "\n".join(lines)


def estimate_memory(
    config: MllmReIDConfig | MllmReIDVisionConfig,
    adapters: AdapterArguments,
    args: ReIDTrainingArguments,
    batches: BatchArguments,
    *,
    dtype: torch.dtype,
) -> Memory:
    """Estimates the memory of one training step on one device, without allocating weights.

    The activations are the tensors that autograd saves in a forward pass over fake tensors. Passes with one and two
    images separate the part that grows with the batch. With activation checkpointing they are the inputs of the blocks
    that are computed again, the activations of the others, and those of one block.

    Args:
        config (`MllmReIDConfig` or `MllmReIDVisionConfig`): Configuration of the model.
        adapters (`AdapterArguments`): What is trained.
        args (`ReIDTrainingArguments`): Training arguments.
        batches (`BatchArguments`): Settings of the batches.
        dtype (`torch.dtype`): Format of the frozen weights.

    Returns:
        `Memory`: The estimate.

    Raises:
        UserError: As in `apply_adapters` and `prepare_encoder`.
    """
    model = model_without_weights(config, adapters, dtype)
    freeze_unused_parameters(model)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    by_module = dict.fromkeys(("llm", "vision", "projector", "heads", "lm_head"), 0)
    for name, parameter in trained:
        by_module[module_of(model, name)] += parameter.numel()
    count = sum(p.numel() for _, p in trained)
    read = round(batches.language_share * args.per_device_train_batch_size)
    labels = batches.max_target_tokens * read * (2 if batches.text_branch else 1)
    language = config.loss_lambda < 1
    activations = _activation_bytes(model, args, batches)
    settings = dict(args.activation_checkpointing_kwargs or {})  # type: ignore[arg-type]
    every = int(settings.get("every_n_layers", 1)) if args.activation_checkpointing else 0
    return Memory(
        parameters=sum(p.numel() for p in model.parameters()),
        trained=count,
        trained_by_module={module: number for module, number in by_module.items() if number},
        weights=_weight_bytes(model, adapters.quantize),
        gradients=4 * count,
        optimizer=optimizer_state_bytes(args) * count,
        activations=activations(every),
        # In the format of the model, in float32 for the loss, and the gradient.
        logits=labels * config.get_text_config().vocab_size * (2 + 4 + 4) if language else 0,
        other_activations={n: activations(n) for n in OTHER_EVERY if n != every} if every else {},
    )


def run_without_weights(config: MllmReIDConfig | MllmReIDVisionConfig) -> None:
    """Builds a model on the meta device and runs it on a fake crop. Sizes that do not fit raise errors of any kind."""
    model = _build(config)
    with fake_run(model):
        _saved_bytes(model, 1, [config.num_image_tokens + PROMPT_TOKENS], half=False)


def _build(config: MllmReIDConfig | MllmReIDVisionConfig) -> ImageEncoder:
    """Returns the model on the meta device."""
    with torch.device("meta"):
        if isinstance(config, MllmReIDVisionConfig):
            return MllmReIDVisionModel(config)
        # The image stands at the start of the sequences that are measured. No token has a meaning here.
        ids = {"image_prefix_ids": [], "pair_question_ids": [0] * PAIR_TOKENS, "pair_answer_ids": [0, 1]}
        return MllmReIDModel(MllmReIDConfig.from_dict({**config.to_dict(), **ids}))


def model_without_weights(config: Any, adapters: AdapterArguments, dtype: torch.dtype) -> ImageEncoder:
    """Returns the model on the meta device, with a LoRA and frozen weights as in the training.

    Args:
        config (`MllmReIDConfig` or `MllmReIDVisionConfig`): Configuration of the model.
        adapters (`AdapterArguments`): What is trained.
        dtype (`torch.dtype`): Format of the frozen weights.
    """
    model = _build(config)
    with torch.device("meta"):
        if isinstance(model, MllmReIDVisionModel):
            prepare_encoder(model, adapters)
        else:
            apply_adapters(model, adapters, dtype)
    return model


def optimizer_state_bytes(args: ReIDTrainingArguments) -> int:
    """Returns the bytes of optimiser state for a trained parameter."""
    name = str(getattr(args.optim, "value", args.optim))
    return next((size for key, size in OPTIMIZER_STATE_BYTES.items() if key in name), 8)


def _weight_bytes(model: ImageEncoder, quantize: str | None) -> int:
    """Returns the bytes of all weights."""
    size, counted = 0.0, set[nn.Parameter]()
    for name, module in model.named_modules():
        linear = type(module) is nn.Linear and ".lora_" not in name
        quantised = quantize and linear and module_of(model, name) == "llm"
        # A tied weight belongs to two modules. Its first one, the embeddings, is never quantised.
        for parameter in set(module.parameters(recurse=False)) - counted:
            counted.add(parameter)
            weight_bytes = QUANTISED_BYTES[str(quantize)] if quantised else parameter.element_size()
            size += parameter.numel() * weight_bytes
    return int(size)


def _activation_bytes(
    model: ImageEncoder, args: ReIDTrainingArguments, batches: BatchArguments
) -> Callable[[int], int]:
    """Returns a function: the bytes that autograd saves for the backward pass of one batch, by `every_n_layers`.

    That is 1 if every block is computed again in the backward pass, n if every n-th one is, 0 if none is.
    """
    config: Any = model.config
    batch_size, pairs = args.per_device_train_batch_size, getattr(config, "pair_weight", 0) > 0
    terms = step_terms(config, batches, batch_size)
    all_bytes = dict.fromkeys(("tower", "language_model") if isinstance(model, MllmReIDModel) else ("tower",), 0.0)
    for term in terms:
        asked = pairs and term is terms[0]
        with fake_run(model):
            one, two = (_saved_bytes(model, n, term.lengths, args.bf16 or args.fp16, pairs=asked) for n in (1, 2))
        for name in all_bytes:
            all_bytes[name] += term.sign * (one[name] + (term.images - 1) * (two[name] - one[name]))
    sequences = [term.images * length for term in terms for length in term.lengths]
    tower = model.backbone.tower if isinstance(model, MllmReIDModel) else config.tower
    rows, columns = tower.grid(config.height, config.width)
    patches = rows * columns + tower.prefix_tokens
    block_inputs = {"tower": patches * tower.size * 4}
    depth = {"tower": tower.depth}
    if isinstance(model, MllmReIDModel):
        text_config = config.get_text_config()
        depth["language_model"] = text_config.num_hidden_layers
        block_inputs["language_model"] = sum(sequences) / batch_size * text_config.hidden_size * 2
        if pairs:
            # What a question sees is made in the block, so that its input is the question alone.
            block_inputs["language_model"] += PAIRS_OF_IMAGE * PAIR_TOKENS * text_config.hidden_size * 2
    # The backward pass recomputes one block at a time, and one branch after the other. Questions take more than that.
    share = {"tower": 1.0, "language_model": max(sequences) / sum(sequences) if sequences and not pairs else 1.0}
    readings = _reading_bytes(config, args.bf16 or args.fp16) if pairs else 0
    largest = max(int(all_bytes[name] * share[name]) // depth[name] for name in all_bytes)

    def of(every: int) -> int:
        if not every:
            return int(sum(all_bytes.values()))
        again = {name: -(-depth[name] // every) for name in all_bytes}
        inputs = sum(batch_size * again[name] * block_inputs[name] for name in all_bytes if all_bytes[name])
        whole = sum((depth[name] - again[name]) * all_bytes[name] // depth[name] for name in all_bytes)
        return int(inputs + whole + largest + batch_size * readings)

    return of


class StepTerm(NamedTuple):
    """A pass over some images of a batch, added to the cost of a step or subtracted from it.

    Args:
        sign (`int`): 1 or -1.
        images (`float`): Number of images.
        lengths (`list[int]`): Tokens of each sequence that the language model reads: of the image, then of the text.
        language (`bool`): Whether the language loss is computed.
    """

    sign: int
    images: float
    lengths: list[int]
    language: bool


def step_terms(config: Any, batches: BatchArguments, images: int) -> list[StepTerm]:
    """Returns the passes whose costs add up to that of a step.

    With a `language_share`, the texts run apart from the features, without the tower.

    Args:
        config (`MllmReIDConfig` or `MllmReIDVisionConfig`): Configuration of the model.
        batches (`BatchArguments`): Settings of the batches.
        images (`int`): Number of images in the batch.
    """
    language, read = config.loss_lambda < 1, batches.language_share * images
    texts, features = (_sequence_lengths(config, batches, language=reads) for reads in (language, False))
    if not language or batches.language_share == 1:
        return [StepTerm(1, images, texts, language)]
    return [StepTerm(1, images, features, False), StepTerm(1, read, texts, True), StepTerm(-1, read, [], False)]


def _sequence_lengths(config: Any, batches: BatchArguments, *, language: bool) -> list[int]:
    """Returns the tokens of each sequence of an image that the language model reads."""
    image_length = config.num_image_tokens + PROMPT_TOKENS + (batches.max_target_tokens if language else 0)
    pairs = getattr(config, "pair_weight", 0) > 0
    runs_llm = language or "llm" in config.reid_heads or pairs
    text_length = 0
    if language and batches.text_branch:
        text_length = CAPTION_TOKENS + PROMPT_TOKENS + batches.max_target_tokens
    elif config.reid_text:
        text_length = CAPTION_TOKENS + PROMPT_TOKENS
    return ([image_length] if runs_llm else []) + ([text_length] if text_length else [])


def _reading_bytes(config: Any, half: bool) -> int:
    """Returns the bytes of the keys and values that the language model keeps of a crop for pairs."""
    text_config = config.get_text_config()
    heads = text_config.num_attention_heads
    width = getattr(text_config, "head_dim", None) or text_config.hidden_size // heads
    kept = 2 * (getattr(text_config, "num_key_value_heads", None) or heads) * width * (2 if half else 4)
    positions = config.num_image_tokens + PROMPT_TOKENS
    return int(text_config.num_hidden_layers * positions * kept)


def _saved_bytes(
    model: ImageEncoder, images: int, lengths: list[int], half: bool, *, pairs: bool = False
) -> dict[str, int]:
    """Returns the bytes saved in tower and projector, and in the language model, for sequences of these lengths.

    With `pairs`, a question about two pairs of each image follows.
    """
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    saved: dict[int, Tensor] = {}  # holds the tensors, so that no other tensor reuses a storage

    def save(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in weights:
            saved.setdefault(key, tensor)
        return tensor

    def saved_size() -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())

    config: Any = model.config
    pixels = torch.empty(images, 3, config.height, config.width)
    hooks = torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor)
    if isinstance(model, MllmReIDVisionModel):
        with hooks, torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            model.pool_vision(model.run_tower(pixels))
        return {"tower": saved_size()}
    embeddings: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    width = config.get_text_config().hidden_size
    with hooks, torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        image = model.project_image(model.run_tower(pixels))
        # A fake run cannot select positions by a mask, as deepstack does. Its sums save nothing for the backward pass.
        image = image._replace(deepstack=())
        tower = saved_size()
        for index, length in enumerate(lengths):
            sequences = torch.empty(images, length, width, dtype=embeddings.dtype)
            if index == 0:
                tokens = image.embeddings.to(sequences.dtype)
                sequences = torch.cat([tokens, sequences[:, tokens.shape[1] :]], dim=1)
            elif embeddings.requires_grad:
                sequences.requires_grad_(True)
            mask = torch.ones(images, length, dtype=torch.long)
            record = recorder(model.language_model.layers) if pairs and index == 0 else None  # type: ignore[arg-type]
            model.run_language_model(sequences, mask, image if index == 0 else None, whole=True, record=record)
            if record is not None:
                first = torch.arange(images).repeat(PAIRS_OF_IMAGE)
                model.score_pairs(model.reading_of(record, image), first, first)
    return {"tower": tower, "language_model": saved_size() - tower}
