"""Composes a native LLaVA from a vision tower and a causal language model, with a new projector between them."""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from transformers.tokenization_utils_base import AddedToken
from transformers.utils import logging as transformers_logging

from ..model import MllmReIDConfig
from ..model.prompts import templates_of
from ..model.publishing import is_local
from ..model.weights import load_whole, read_config
from ..utils.errors import UserError, is_our_fault
from .native import NativeLlava, count_prefix_tokens

IMAGE_TOKEN = "<image>"
# Matrix products on a GPU are faster with a multiple of this number of words.
VOCABULARY_MULTIPLE = 64
# Heads of a tower that a LLaVA does not run. Checkpoints for classification lack them.
UNUSED_HEADS = ("pooler.", "head.")
CHECKED_TOKENS = 16
# The first paragraph of the card.
COMPOSED = """
A LLaVA that MLLMReID composed of a vision tower and a language model. Its projector is untrained: train it on images
with captions first (`mllmreid train projector`), and continue from the model that `mllmreid export --to native` writes.
"""


@dataclass
class Half:
    """One half of a LLaVA: a vision tower or a language model.

    Args:
        option (`str`): The option that names it, for errors.
        name (`str`): A folder or a name on the Hub.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
    """

    option: str
    name: str
    revision: str | None = None

    @property
    def hub(self) -> dict[str, Any]:
        """Arguments of `from_pretrained` that locate its files."""
        return {} if self.revision is None else {"revision": self.revision}

    @property
    def origin(self) -> str:
        """Its name on the Hub; empty for a folder."""
        return "" if os.path.isdir(self.name) or is_local(self.name) else self.name

    def error(self, problem: str) -> UserError:
        """Returns the error of this half."""
        return UserError(f"{self.option} {self.name}: {problem}")

    def refuse_quantised(self, config: PreTrainedConfig) -> None:
        """Raises UserError for stored weights of 4 or 8 bits, which neither grow by a token nor convert."""
        if getattr(config, "quantization_config", None) is not None:
            raise self.error("has quantised weights: give the model that it was made of")

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Turns the exceptions of a broken or foreign model within the block into UserError."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            expected = isinstance(error, OSError | ValueError | ImportError)
            if not expected and is_our_fault(error):
                raise
            reason = " ".join(str(error).split())[:300].removeprefix(f"{self.name}: ")
            raise self.error(reason if expected else f"{type(error).__name__}: {reason}") from error


# ---- the tower -----------------------------------------------------------------------------------------------------


def tower_config(half: Half) -> PreTrainedConfig:
    """Reads the configuration of a vision tower; of a dual encoder, that of its vision half.

    Raises:
        UserError: The name is unknown, or the model has no vision encoder.
    """
    with half.loading():
        stored = read_config(AutoConfig, half.name, half.hub, trust_remote_code=False)
    config: PreTrainedConfig = getattr(stored, "vision_config", stored)
    half.refuse_quantised(stored)
    if stored.model_type.startswith(MllmReIDConfig.model_type):
        raise half.error("is a checkpoint of this package: give a vision encoder of transformers")
    if stored.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise half.error(f"is a multimodal LLM ({stored.model_type}) already: give a vision encoder such as CLIP")
    sizes = [getattr(config, name, None) for name in ("image_size", "patch_size")]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise half.error(
            f"of type {stored.model_type!r} has no square image of square patches: give a vision transformer such as "
            "CLIP, SigLIP, DINOv2 or ViT"
        )
    return copy.deepcopy(config)


def load_tower(half: Half, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Loads a vision tower; of a dual encoder, its vision half alone."""
    with torch.device("meta"):
        tower_class = type(AutoModel.from_config(config))
    with half.loading():
        options = {**half.hub, "config": config, "dtype": dtype}
        return load_whole(
            tower_class.from_pretrained,
            *(half.name, half.hub, options),
            stored=config,
            new=UNUSED_HEADS,
            left=[""],
        )[0]


# ---- the language model --------------------------------------------------------------------------------------------


def language_config(half: Half) -> PreTrainedConfig:
    """Reads the configuration of a causal language model.

    Raises:
        UserError: The name is unknown, the model is no causal language model, or a LLaVA cannot hold its modules.
    """
    remedy = "give a causal language model such as SmolLM2, Llama, Qwen3 or Gemma"
    with half.loading():
        config: PreTrainedConfig = read_config(AutoConfig, half.name, half.hub, trust_remote_code=False)
    half.refuse_quantised(config)
    if config.is_encoder_decoder:
        raise half.error(f"of type {config.model_type!r} is an encoder-decoder: {remedy}")
    if config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES or hasattr(config, "vision_config"):
        raise half.error(f"of type {config.model_type!r} is a vision-language model, no language model: {remedy}")
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise half.error(f"of type {config.model_type!r} is no language model: {remedy}")
    with half.loading(), torch.device("meta"):
        model, base = AutoModelForCausalLM.from_config(config), AutoModel.from_config(config)
    output = model.get_output_embeddings()
    fits = type(model.base_model) is type(base) and isinstance(output, nn.Linear) and output.bias is None
    parts = dict(base.named_children())
    if not fits or not {"embed_tokens", "layers", "norm"} <= parts.keys() or not len(base.layers):
        raise half.error(
            f"of type {config.model_type!r} has other modules than a LLaVA can hold (embed_tokens, layers, norm and an "
            f"output layer without bias): {remedy}"
        )
    return config


def load_language_model(half: Half, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Loads a causal language model."""
    with half.loading():
        options = {**half.hub, "dtype": dtype}
        loaded = load_whole(
            AutoModelForCausalLM.from_pretrained, half.name, half.hub, options, stored=config, left=[""]
        )
    return loaded[0]


def load_tokenizer(half: Half) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a language model and adds the image token; the chat template stays."""
    with half.loading():
        tokenizer = AutoTokenizer.from_pretrained(half.name, **half.hub, trust_remote_code=False)
    tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)
    if tokenizer(f"a{IMAGE_TOKEN}{IMAGE_TOKEN}", add_special_tokens=False).input_ids[-2:] != [image_id(tokenizer)] * 2:
        raise half.error(f"its tokenizer cannot take the token {IMAGE_TOKEN}: give another language model")
    with half.loading():
        # The prompts of a training: a chat template that cannot be rendered shows here.
        templates_of(tokenizer, tokenizer.chat_template, IMAGE_TOKEN)
    return tokenizer


def image_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the id of the image token."""
    index: int = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)  # type: ignore[assignment]
    return index


# ---- the LLaVA -----------------------------------------------------------------------------------------------------


def stored_dtype(config: PreTrainedConfig) -> torch.dtype:
    """Returns the number format of a checkpoint's weights; float32 if its configuration does not name it."""
    dtype = getattr(config, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def composed_bytes(tower: Half, language_model: Half, dtype: torch.dtype | None) -> int:
    """Returns the bytes that the weights of both halves take on the disk. Raises UserError as `compose_llava`."""
    text_config = language_config(language_model)
    vision_config = tower_config(tower)
    with torch.device("meta"):
        with tower.loading():
            vision = AutoModel.from_config(vision_config)
        with language_model.loading():
            text = AutoModelForCausalLM.from_config(text_config)
    size: int = sum(weight.numel() for half in (vision, text) for weight in half.parameters())
    return size * (dtype or stored_dtype(text_config)).itemsize


def compose_llava(
    tower: Half,
    language_model: Half,
    *,
    dtype: torch.dtype | None = None,
    vision_feature_layer: int = -2,
    seed: int = 0,
) -> NativeLlava:
    """Makes a LLaVA out of a vision tower and a causal language model.

    The projector is new. The embeddings grow by the image token; new rows are drawn around the mean of the old ones,
    as in transformers. Tied weights stay tied. For text, the logits are those of the language model.

    Args:
        tower (`Half`): A vision encoder (CLIP, SigLIP, DINOv2, ViT, ...). A dual encoder gives its vision half.
        language_model (`Half`): A causal language model.
        dtype (`torch.dtype`, *optional*): Format of all weights. Defaults to that of the language model.
        vision_feature_layer (`int`): Index into the hidden states of the tower of the layer that the projector reads.
        seed (`int`): Seed of the projector and of new rows; the random state of torch is restored.

    Returns:
        `NativeLlava`: The model; its projector is untrained.

    Raises:
        UserError: A half cannot be loaded, or does not fit into a LLaVA.

    Source: Liu et al. 2023, "Visual Instruction Tuning".
    """
    vision_config, text_config = tower_config(tower), language_config(language_model)
    depth = vision_config.num_hidden_layers
    if not -depth - 1 <= vision_feature_layer <= depth:
        raise UserError(
            f"vision_feature_layer {vision_feature_layer}: the tower has {depth} blocks: give {-depth - 1} to {depth}"
        )
    try:
        prefix_tokens = count_prefix_tokens(vision_config)
    except ValueError as error:
        raise tower.error(str(error)) from error
    dtype = stored_dtype(text_config) if dtype is None else dtype
    tokenizer = load_tokenizer(language_model)
    with tower.loading():
        image_processor = AutoImageProcessor.from_pretrained(tower.name, **tower.hub, trust_remote_code=False)
    vision = load_tower(tower, vision_config, dtype)
    text = load_language_model(language_model, text_config, dtype)
    # A folder would be a path of this machine; the licence of a published model is known by its name.
    vision.config._name_or_path, text.config._name_or_path = tower.origin, language_model.origin
    ids = torch.arange(CHECKED_TOKENS)[None] * 7 % text.config.vocab_size
    expected = _logits(text, ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if image_id(tokenizer) >= text.config.vocab_size:
            text.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=VOCABULARY_MULTIPLE)
        side = _side(image_processor, vision_config)
        config = LlavaConfig(
            vision_config=vision.config,
            text_config=text.config,
            image_token_index=image_id(tokenizer),
            image_seq_length=(side // vision_config.patch_size) ** 2 + max(prefix_tokens - 1, 0),
            vision_feature_select_strategy="default" if prefix_tokens else "full",
            vision_feature_layer=vision_feature_layer,
            dtype=dtype,
        )
        mllm = _assemble(config, vision, text)
    logits = _logits(mllm, ids)[..., : expected.shape[-1]]
    if not torch.allclose(logits, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise language_model.error(
            f"of type {text_config.model_type!r} scales its logits, which a LLaVA does not: give another language model"
        )
    return NativeLlava(mllm, tokenizer, image_processor, prefix_tokens)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Suppresses what transformers says within the block.

    It lists the weights of the other half of a dual encoder, and describes the new embeddings.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _assemble(config: LlavaConfig, vision: PreTrainedModel, text: PreTrainedModel) -> LlavaForConditionalGeneration:
    """Builds a LLaVA around the loaded halves, with a new projector."""
    with torch.device("meta"):
        mllm = LlavaForConditionalGeneration(config)
    mllm.model.vision_tower, mllm.model.language_model = vision, text.base_model
    mllm.lm_head = text.get_output_embeddings()
    projector = mllm.model.multi_modal_projector.to_empty(device="cpu").to(text.dtype)
    projector.apply(mllm._init_weights)
    mllm.tie_weights()
    mllm.generation_config = text.generation_config
    return mllm


def _side(image_processor: Any, config: PreTrainedConfig) -> int:
    """Returns the side in pixels of the square images that an image processor makes."""
    size = getattr(image_processor, "crop_size", None) if getattr(image_processor, "do_center_crop", False) else None
    size = dict(size or image_processor.size)
    side: int = size.get("height") or config.image_size
    return side


@torch.inference_mode()
def _logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Returns the logits of a text in float32."""
    logits: Tensor = model.eval()(input_ids=ids).logits
    return logits.float()
