"""Vision encoders without a language model: which ones there are, and what differs from a plain vision transformer."""

import copy
import inspect
import json
import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_MAPPING,
    AutoModel,
    PreTrainedConfig,
    TimmWrapperConfig,
)

from .reid_osnet import ReIDOSNetTower
from .reid_resnet import ReIDResNetTower
from .reid_swin import ReIDSwinTower
from .reid_vit import ReIDViTTower
from .tensors import at_least_float32
from .towers import Tower, TowerOutput, default_size

# Arguments with which models of timm take crops of any size. Each class of timm knows some of them.
ANY_SIZE = {"dynamic_img_size": True, "strict_img_size": False}


class ClipTower(Tower):
    """CLIP. The model normalises the class token alone; the final output here is normalised as a whole."""

    def run(self, tower: Any, pixel_values: Tensor, layers: list[int]) -> TowerOutput:
        """As in [`Tower`]."""
        output = super().run(tower, pixel_values, layers)
        return output._replace(last=tower.post_layernorm(output.last))


class NaFlexTower(Tower):
    """SigLIP2 NaFlex: its embeddings take flattened patches, and positions for any number of rows and columns."""

    prefix_tokens = 0

    def run(self, tower: Any, pixel_values: Tensor, layers: list[int]) -> TowerOutput:
        """As in [`Tower`], with all hidden states. The pooling head of the model does not run."""
        rows, columns = grid = self.grid(*pixel_values.shape[2:])
        patches = pixel_values.unflatten(3, (columns, self.patch)).unflatten(2, (rows, self.patch))
        # To (B, row, column, y, x, channel).
        patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        table = tower.embeddings.position_embedding.weight
        side = math.isqrt(len(table))
        # The model resizes them for each crop, by sizes that tracing cannot read. Here all crops have one size.
        positions = F.interpolate(
            at_least_float32(table).T.unflatten(1, (side, side))[None], size=grid, mode="bilinear", antialias=True
        )
        state = tower.embeddings.patch_embedding(patches) + positions.flatten(2).transpose(1, 2).to(table.dtype)
        states = [state]
        for block in tower.encoder.layers:
            states.append(block(states[-1], None))
        return TowerOutput(tuple(states) if layers else (), tower.post_layernorm(states[-1]), grid)


class StageTower(Tower):
    """Convolutional nets, Swin and other encoders whose stages halve rows and columns. Only their last output is read.

    A patch is what one position of the last stage covers.
    """

    has_states = False
    prefix_tokens = 0

    @property
    def prefers_channels_last(self) -> bool:
        """Whether it is faster on a CPU with the channels last in memory. Transformers' ConvNeXt is not."""
        return bool(self.config.model_type == "resnet")

    @property
    def depth(self) -> int:
        """Number of stages."""
        return len(self.config.depths)

    @property
    def size(self) -> int:
        """Size D of a position in the last stage."""
        if isinstance(size := getattr(self.config, "hidden_size", None), int):
            return size
        if isinstance(first := getattr(self.config, "embed_dim", None), int):
            return int(first * 2 ** (self.depth - 1))
        return int(self.config.hidden_sizes[-1])

    @property
    def patch(self) -> int:
        """Pixels that a position of the last stage covers; the first stage starts with patches or strides of 4."""
        first = getattr(self.config, "patch_size", None)
        return int((first if isinstance(first, int) else 4) * 2 ** (self.depth - 1))

    def run(self, tower: nn.Module, pixel_values: Tensor, layers: list[int]) -> TowerOutput:
        """As in [`Tower`], without hidden states. A map (B, D, h, w) becomes states (B, h * w, D)."""
        output = super().run(tower, pixel_values, [])
        return output._replace(last=flat_map(output.last))


class SwinTower(StageTower):
    """Swin. Its last stage must have a whole window in each row."""

    @property
    def default_size(self) -> tuple[int, int]:
        """Default height and width of a crop in pixels."""
        return default_size(self.unit, self.config.window_size)


class TimmTower(Tower):
    """An encoder of timm in transformers' `TimmWrapperModel`. Only its last output is read."""

    has_states = False

    @property
    def _sizes(self) -> "TimmSizes":
        return timm_sizes(self.config.architecture, json.dumps(self.config.model_args or {}, sort_keys=True))

    @property
    def depth(self) -> int:
        """Number of blocks or stages."""
        return self._sizes.depth

    @property
    def size(self) -> int:
        """Size D of a state."""
        return self._sizes.size

    @property
    def patch(self) -> int:
        """Pixels of a patch's side, or that a position of the last map covers."""
        return self._sizes.patch

    @property
    def prefix_tokens(self) -> int:
        """Number of states in front of the patches."""
        return self._sizes.prefix_tokens

    def run(self, tower: nn.Module, pixel_values: Tensor, layers: list[int]) -> TowerOutput:
        """As in [`Tower`], without hidden states. A map becomes states (B, h * w, D)."""
        last = tower(pixel_values, do_pooling=False).last_hidden_state
        last = last.flatten(1, 2) if last.ndim == 4 and self._sizes.channels_last else flat_map(last)
        return TowerOutput((), last, self.grid(*pixel_values.shape[2:]))


class TimmSizes(NamedTuple):
    """Sizes of a model of timm, which its configuration does not hold."""

    depth: int
    size: int
    patch: int
    prefix_tokens: int
    channels_last: bool
    any_size: tuple[str, ...]


@lru_cache(maxsize=32)
def timm_sizes(architecture: str, arguments: str) -> TimmSizes:
    """Returns the sizes of a model of timm, from the model without memory for weights. arguments: JSON."""
    config = TimmWrapperConfig(architecture=architecture, model_args=json.loads(arguments))
    with torch.device("meta"):
        model: Any = AutoModel.from_config(config).timm_model
    known = inspect.signature(type(model).__init__).parameters
    return TimmSizes(
        depth=len(model.feature_info),
        size=model.num_features,
        patch=model.feature_info[-1]["reduction"],
        prefix_tokens=getattr(model, "num_prefix_tokens", 0),
        channels_last=getattr(model, "output_fmt", "NCHW") == "NHWC",
        any_size=tuple(name for name in ANY_SIZE if name in known),
    )


def flat_map(states: Tensor) -> Tensor:
    """Returns a map (B, D, h, w) as states (B, h * w, D), and states unchanged."""
    return states.flatten(2).transpose(1, 2) if states.ndim == 4 else states


ENCODERS: dict[str, type[Tower]] = {
    "clip_vision_model": ClipTower,
    "reid_osnet": ReIDOSNetTower,
    "reid_resnet": ReIDResNetTower,
    "reid_swin": ReIDSwinTower,
    "reid_vit": ReIDViTTower,
    "siglip2_vision_model": NaFlexTower,
    "swin": SwinTower,
    "timm_wrapper": TimmTower,
}


def encoder_tower(config: PreTrainedConfig) -> Tower:
    """Returns the description of a vision encoder by its configuration."""
    staged = isinstance(getattr(config, "depths", None), (list, tuple))
    return ENCODERS.get(config.model_type, StageTower if staged else Tower)(config)


def encoder_class(config: PreTrainedConfig) -> Any:
    """Returns the class of transformers that `AutoModel` builds for a configuration, or None."""
    return MODEL_MAPPING.get(type(config), None)


def build_encoder(config: PreTrainedConfig) -> Any:
    """Builds a vision encoder with random weights, without a pooling layer where its class allows that."""
    return AutoModel.from_config(config, **without_pooler(config))


def without_pooler(config: PreTrainedConfig) -> dict[str, bool]:
    """Returns the argument that leaves out an encoder's pooling layer, which many checkpoints do not hold."""
    known = inspect.signature(encoder_class(config).__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in known else {}


def vision_part(config: PreTrainedConfig) -> PreTrainedConfig:
    """Returns the configuration of the vision encoder in a native checkpoint: the whole, or one of two encoders.

    Args:
        config (`PreTrainedConfig`):
            A native configuration, such as CLIP's or DINOv2's.

    Returns:
        `PreTrainedConfig`: a copy, which takes crops of any size.

    Raises:
        ValueError: for a model that encodes no images, and for a multimodal LLM.
    """
    kind = config.model_type
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ValueError(f"{kind!r} is a multimodal LLM of no known family: give a vision encoder or a known one")
    nested = getattr(config, "vision_config", None)
    vision_config = config if nested is None else nested
    model_class = encoder_class(vision_config)
    if model_class is None or model_class.main_input_name != "pixel_values":
        raise ValueError(f"{kind!r} encodes no images: give a vision encoder, such as CLIP, SigLIP, DINOv2 or ViT")
    vision_config = copy.deepcopy(vision_config)
    if kind == "timm_wrapper":
        arguments = vision_config.model_args or {}
        known = timm_sizes(vision_config.architecture, json.dumps(arguments, sort_keys=True)).any_size
        vision_config.model_args = {**{name: ANY_SIZE[name] for name in known}, **arguments}
    tower = encoder_tower(vision_config)
    try:
        sizes = (tower.patch, tower.size, tower.depth)
    except (AttributeError, TypeError):
        sizes = ()
    if not all(type(size) is int and size > 0 for size in sizes) or not sizes:
        raise ValueError(f"{kind!r} has no patches of one size: give another vision encoder, or the same one of timm")
    return vision_config


def check_encoder(config: PreTrainedConfig, height: int, width: int) -> int:
    """Checks that an encoder takes crops of a size and returns one state for each patch, without computing anything.

    Args:
        config (`PreTrainedConfig`):
            Configuration of the encoder.
        height, width (`int`):
            Size of a crop in pixels.

    Returns:
        `int`: number of states in front of the patches.

    Raises:
        ImportError: for an encoder of timm where timm is not installed.
        ValueError: with the reason.
    """
    tower = encoder_tower(config)
    kind = getattr(config, "architecture", config.model_type)
    try:
        # Not fake tensors on the CPU: DINOv3 caches its positions by device, and would give them to the next real run.
        with torch.device("meta"), torch.no_grad():
            output = tower.run(build_encoder(config).eval(), torch.empty(1, 3, height, width), [])
    except ImportError:
        raise
    except Exception as error:  # an encoder that is not made for crops fails in any way
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(
            f"{kind!r} does not encode crops of {height} x {width} ({reason}): give another size or encoder"
        ) from error
    states, (rows, columns) = output.last, output.grid
    if states.ndim != 3 or states.shape[1] < rows * columns or states.shape[2] != tower.size:
        raise ValueError(
            f"{kind!r} gives {tuple(states.shape[1:])} for a crop of {height} x {width}, not one state of size "
            f"{tower.size} for each of {rows} x {columns} patches: give another encoder"
        )
    prefix: int = states.shape[1] - rows * columns
    return prefix
