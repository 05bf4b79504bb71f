"""Swin as SOLIDER trains it: windows that are padded at crops of any size, and a semantic weight after each stage.

transformers' Swin shrinks its windows where a stage is smaller, and fails if only one side is.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput

from .reid_vit import attend
from .towers import Tower, TowerOutput

PATCH = 4
# What is added to the attention between patches that a shift has brought into one window.
FAR = -100.0


class ReIDSwinConfig(PreTrainedConfig):
    r"""Configuration of [`ReIDSwinModel`].

    Args:
        embed_dim (`int`, *optional*, defaults to 96):
            Size of a patch's state in the first stage; each further stage doubles it.
        depths (`list[int]`, *optional*, defaults to `[2, 2, 6, 2]`):
            Layers of each stage.
        num_heads (`list[int]`, *optional*, defaults to `[3, 6, 12, 24]`):
            Attention heads of each stage.
        window_size (`int`, *optional*, defaults to 7):
            Patches of a window's side.
        semantic_weight (`float`, *optional*):
            Share of semantics against appearance, 0 to 1, at which stages are scaled. Defaults to no scaling.

    Source: Chen et al. 2023, "Beyond Appearance: a Semantic Controllable Self-Supervised Learning Framework for
    Human-Centric Visual Tasks" (SOLIDER); Liu et al. 2021, "Swin Transformer".
    """

    model_type = "reid_swin"

    embed_dim: int = 96
    depths: list[int] | tuple[int, ...] = (2, 2, 6, 2)
    num_heads: list[int] | tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    semantic_weight: float | None = None


class ShiftedWindows(nn.Module):
    """Self-attention within windows of a padded map, with a bias for the relative position."""

    def __init__(self, config: ReIDSwinConfig, size: int, heads: int, shift: int):
        super().__init__()
        self.config, self.heads, self.window, self.shift = config, heads, config.window_size, shift
        window = self.window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(size, 3 * size)
        self.proj = nn.Linear(size, size)

    def forward(self, features: Tensor) -> Tensor:
        """Transforms a map (B, h, w, D)."""
        rows, columns = features.shape[1:3]
        window, shift = self.window, self.shift
        features = F.pad(features, (0, 0, 0, -columns % window, 0, -rows % window))
        padded = features.shape[1:3]
        if shift:
            features = features.roll((-shift, -shift), dims=(1, 2))
        windows = self._windows(features)
        query, key, value = self.qkv(windows).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self._bias()
        if shift:
            mask = self._mask(padded, features.device).repeat(features.shape[0], 1, 1)
            bias = bias + mask[:, None].to(bias.dtype)
        windows = self.proj(attend(self.config, query, key, value, bias.to(query.dtype)))
        grid = (padded[0] // window, padded[1] // window)
        features = windows.unflatten(1, (window, window)).unflatten(0, (-1, *grid)).transpose(2, 3)
        features = features.flatten(3, 4).flatten(1, 2)
        if shift:
            features = features.roll((shift, shift), dims=(1, 2))
        cropped: Tensor = features[:, :rows, :columns]
        return cropped

    def _windows(self, features: Tensor) -> Tensor:
        """Splits a map (B, h, w, D) into windows (B * number, window ** 2, D)."""
        split: Tensor = features.unflatten(2, (-1, self.window)).unflatten(1, (-1, self.window))
        return split.transpose(2, 3).flatten(0, 2).flatten(1, 2)

    def _bias(self) -> Tensor:
        """Returns the bias of each pair of a window's patches, (1, heads, window ** 2, window ** 2)."""
        device = self.relative_position_bias_table.device
        row, column = torch.meshgrid(*2 * [torch.arange(self.window, device=device)], indexing="ij")
        rows, columns = ((side.flatten()[:, None] - side.flatten()) + self.window - 1 for side in (row, column))
        return self.relative_position_bias_table[rows * (2 * self.window - 1) + columns].permute(2, 0, 1)[None]

    def _mask(self, sides: torch.Size, device: torch.device) -> Tensor:
        """Returns `FAR` for each pair of patches of a shifted window that are no neighbours, else 0."""
        # On each side: the whole windows, the rest of the last one, and the part that the shift brought there.
        areas = []
        for side in sides:
            place = torch.arange(side, device=device)
            areas.append((place >= side - self.window).int() + (place >= side - self.shift).int())
        area = self._windows((3 * areas[0][:, None] + areas[1])[None, :, :, None])[..., 0]
        return (area[:, :, None] != area[:, None]).float() * FAR


class ReIDSwinLayer(GradientCheckpointingLayer):
    """Pre-norm window attention and MLP."""

    def __init__(self, config: ReIDSwinConfig, size: int, heads: int, shift: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(size)
        self.attention = ShiftedWindows(config, size, heads, shift)
        self.norm2 = nn.LayerNorm(size)
        self.fc1 = nn.Linear(size, 4 * size)
        self.fc2 = nn.Linear(4 * size, size)

    def forward(self, features: Tensor) -> Tensor:
        """Transforms a map (B, h, w, D)."""
        features = features + self.attention(self.norm1(features))
        transformed: Tensor = features + self.fc2(F.gelu(self.fc1(self.norm2(features))))
        return transformed


class ReIDSwinStage(nn.Module):
    """The layers of a stage, and the merging of 2 x 2 patches for the next one."""

    def __init__(self, config: ReIDSwinConfig, size: int, depth: int, heads: int, last: bool):
        super().__init__()
        shifts = [config.window_size // 2 if index % 2 else 0 for index in range(depth)]
        self.layers = nn.ModuleList(ReIDSwinLayer(config, size, heads, shift) for shift in shifts)
        self.merge_norm = None if last else nn.LayerNorm(4 * size)
        self.reduction = None if last else nn.Linear(4 * size, 2 * size, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Transforms a map (B, h, w, D). Returns (B, h / 2, w / 2, 2 D), or (B, h, w, D) of the last stage."""
        for layer in self.layers:
            features = layer(features)
        if self.merge_norm is None or self.reduction is None:
            return features
        features = F.pad(features, (0, 0, 0, features.shape[2] % 2, 0, features.shape[1] % 2))
        # The four patches of each channel are neighbours, as `torch.nn.Unfold` returns them.
        merged = features.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 5, 2, 4).flatten(3)
        reduced: Tensor = self.reduction(self.merge_norm(merged))
        return reduced


class ReIDSwinModel(PreTrainedModel):
    """Swin with padded windows and SOLIDER's semantic weight.

    Args:
        config ([`ReIDSwinConfig`]):
            Configuration of the model. The weights are random.
    """

    config_class = ReIDSwinConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["ReIDSwinLayer"]

    def __init__(self, config: ReIDSwinConfig):
        super().__init__(config)
        size, count = config.embed_dim, len(config.depths)
        sizes = [size * 2**index for index in range(count)]
        self.patch_embedding = nn.Conv2d(3, size, PATCH, PATCH)
        self.patch_norm = nn.LayerNorm(size)
        self.stages = nn.ModuleList(
            ReIDSwinStage(config, sizes[index], depth, heads, index == count - 1)
            for index, (depth, heads) in enumerate(zip(config.depths, config.num_heads, strict=True))
        )
        self.norm = nn.LayerNorm(sizes[-1])
        # The last stage's output is read before its scaling.
        with_weight = sizes[1:] if config.semantic_weight is not None else []
        self.semantic_scale = nn.ModuleList(nn.Linear(2, size) for size in with_weight)
        self.semantic_shift = nn.ModuleList(nn.Linear(2, size) for size in with_weight)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ShiftedWindows):
            init.trunc_normal_(module.relative_position_bias_table, std=0.02)

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutput:
        """Encodes crops (B, 3, H, W). Returns `last_hidden_state` of shape (B, N, D)."""
        height, width = pixel_values.shape[2:]
        pixel_values = F.pad(pixel_values, (0, -width % PATCH, 0, -height % PATCH))
        features = self.patch_norm(self.patch_embedding(pixel_values).permute(0, 2, 3, 1))
        for index, stage in enumerate(self.stages):
            features = stage(features)
            if self.config.semantic_weight is not None and index < len(self.semantic_scale):
                weight = self.config.semantic_weight
                weights = torch.tensor([weight, 1 - weight], device=features.device, dtype=features.dtype)
                scale = F.softplus(self.semantic_scale[index](weights))
                features = features * scale + self.semantic_shift[index](weights)
        return BaseModelOutput(last_hidden_state=self.norm(features).flatten(1, 2))


class ReIDSwinTower(Tower):
    """[`ReIDSwinModel`], without hidden states. A patch is what one position of the last stage covers."""

    prefix_tokens = 0

    @property
    def depth(self) -> int:
        """Number of stages."""
        return len(self.config.depths)

    @property
    def size(self) -> int:
        """Size D of a position in the last stage."""
        return int(self.config.embed_dim * 2 ** (self.depth - 1))

    @property
    def patch(self) -> int:
        """Pixels that a position of the last stage covers."""
        return int(PATCH * 2 ** (self.depth - 1))

    def run(self, tower: nn.Module, pixel_values: Tensor, layers: list[int]) -> TowerOutput:
        """As in [`Tower`], without hidden states."""
        return TowerOutput((), tower(pixel_values).last_hidden_state, self.grid(*pixel_values.shape[2:]))


AutoConfig.register(ReIDSwinConfig.model_type, ReIDSwinConfig, exist_ok=True)
AutoModel.register(ReIDSwinConfig, ReIDSwinModel, exist_ok=True)
