"""Vision transformers of published ReID models: overlapping patches, a grid of positions that is not square, parts.

transformers' ViT and CLIP have patches that do not overlap and learn positions on a square.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput

from .towers import Tower, TowerOutput

# Part features of TransReID's JPM: their number, the patches that are moved to the end, the groups that are mixed.
PARTS, SHIFT, GROUPS = 4, 5, 2


class ReIDViTConfig(PreTrainedConfig):
    r"""Configuration of [`ReIDViTModel`].

    Args:
        hidden_size, intermediate_size, num_hidden_layers, num_attention_heads (`int`):
            Sizes of the transformer.
        patch_size (`int`, *optional*, defaults to 16):
            Pixels of a patch's side.
        stride (`int`, *optional*, defaults to 16):
            Pixels from a patch to the next. Less than `patch_size` if patches overlap.
        grid (`list[int]`, *optional*, defaults to `[16, 8]`):
            Rows and columns of patches in training, for which there are positions.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the MLP.
        layer_norm_eps (`float`, *optional*, defaults to 1e-6):
            Epsilon of the norms.
        patch_bias (`bool`, *optional*, defaults to `True`):
            Whether the patch embedding has a bias.
        pre_norm (`bool`, *optional*, defaults to `False`):
            Whether there is a norm before the first layer, as in CLIP.
        projection_size (`int`, *optional*, defaults to 0):
            Size of a projection of the final states, which follows them in the output. 0: none.
        parts (`bool`, *optional*, defaults to `False`):
            Whether the output is one feature: the class token, and that of four groups of patches, each divided by 4.

    Source: He et al. 2021, "TransReID" (overlapping patches, parts: JPM); Li et al. 2023, "CLIP-ReID" (projection).
    """

    model_type = "reid_vit"

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    patch_size: int = 16
    stride: int = 16
    grid: list[int] | tuple[int, ...] = (16, 8)
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-6
    patch_bias: bool = True
    pre_norm: bool = False
    projection_size: int = 0
    parts: bool = False


def attend(config: PreTrainedConfig, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes softmax attention, plainly if the configuration asks for "eager", which an export to ONNX can trace.

    Args:
        config (`PreTrainedConfig`):
            Configuration of the model.
        query, key, value (`torch.Tensor` of shape `(B, heads, N, D / heads)`):
            Projected states.
        bias (`torch.Tensor` of shape `(B or 1, heads, N, N)`, *optional*):
            Added to the scores.

    Returns:
        `torch.Tensor` of shape `(B, N, D)`
    """
    if config._attn_implementation == "eager":
        scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5
        attended = (scores if bias is None else scores + bias).softmax(dim=3) @ value
    else:
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    states: Tensor = attended.transpose(1, 2).flatten(2)
    return states


class ReIDViTLayer(GradientCheckpointingLayer):
    """Pre-norm self-attention and MLP."""

    def __init__(self, config: ReIDViTConfig):
        super().__init__()
        self.config, size, self.heads = config, config.hidden_size, config.num_attention_heads
        self.norm1 = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.qkv = nn.Linear(size, 3 * size)
        self.proj = nn.Linear(size, size)
        self.norm2 = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, size)

    def forward(self, states: Tensor) -> Tensor:
        """Transforms states (B, N, D)."""
        query, key, value = self.qkv(self.norm1(states)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        states = states + self.proj(attend(self.config, query, key, value))
        transformed: Tensor = states + self.fc2(self.activation(self.fc1(self.norm2(states))))
        return transformed


class ReIDViTModel(PreTrainedModel):
    """A vision transformer with overlapping patches and rectangular positions.

    Args:
        config ([`ReIDViTConfig`]):
            Configuration of the model. The weights are random.
    """

    config_class = ReIDViTConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["ReIDViTLayer"]

    def __init__(self, config: ReIDViTConfig):
        super().__init__(config)
        size = config.hidden_size
        rows, columns = config.grid
        self.patch_embedding = nn.Conv2d(3, size, config.patch_size, config.stride, bias=config.patch_bias)
        self.class_token = nn.Parameter(torch.zeros(1, 1, size))
        self.positions = nn.Parameter(torch.zeros(1, 1 + rows * columns, size))
        self.pre_norm = nn.LayerNorm(size, eps=config.layer_norm_eps) if config.pre_norm else nn.Identity()
        self.layers = nn.ModuleList(ReIDViTLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.projection = nn.Linear(size, config.projection_size, bias=False) if config.projection_size else None
        self.part_layer = ReIDViTLayer(config) if config.parts else None
        self.part_norm = nn.LayerNorm(size, eps=config.layer_norm_eps) if config.parts else None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.trunc_normal_(self.class_token, std=0.02)
            init.trunc_normal_(self.positions, std=0.02)

    def forward(self, pixel_values: Tensor, layers: list[int] | None = None, **kwargs: Any) -> BaseModelOutput:
        """Encodes crops.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`):
                Crops of any size. At another grid of patches the positions are interpolated.
            layers (`list[int]`, *optional*):
                Indices of the hidden states to return.

        Returns:
            `BaseModelOutput`: `last_hidden_state` (B, 1 + N, D), or (B, 1, D) with `parts`.
        """
        patches = self.patch_embedding(pixel_values)
        positions = self._positions(patches.shape[-2:])
        tokens = self.class_token.expand(patches.shape[0], -1, -1)
        state = self.pre_norm(torch.cat([tokens, patches.flatten(2).transpose(1, 2)], dim=1) + positions)
        states = [state]
        for layer in self.layers:
            states.append(layer(states[-1]))
        last = self.norm(states[-1])
        if self.part_layer is not None:
            last = torch.cat([last[:, :1], *self._parts(states[-2])], dim=-1)
        elif self.projection is not None:
            last = torch.cat([last, self.projection(last)], dim=-1)
        kept = {range(len(states))[index] for index in layers or ()}
        hidden = tuple(state if index in kept else None for index, state in enumerate(states)) if kept else None
        return BaseModelOutput(last_hidden_state=last, hidden_states=hidden)

    def _positions(self, grid: torch.Size) -> Tensor:
        """Returns the positions of the class token and of a grid of patches, (1, 1 + N, D)."""
        rows, columns = self.config.grid
        if tuple(grid) == (rows, columns):
            return self.positions
        patches = self.positions[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))
        patches = F.interpolate(patches.float(), size=tuple(grid), mode="bilinear").to(self.positions.dtype)
        return torch.cat([self.positions[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)

    def _parts(self, states: Tensor) -> list[Tensor]:
        """Returns the features of the parts, each (B, 1, D), from the states (B, 1 + N, D) before the last layer."""
        assert self.part_layer is not None and self.part_norm is not None
        token, length = states[:, :1], (states.shape[1] - 1) // PARTS
        # As published: the first patches go to the end; an odd number of patches is filled with the last but one.
        mixed = torch.cat([states[:, SHIFT:], states[:, 1:SHIFT]], dim=1)
        if mixed.shape[1] % GROUPS:
            mixed = torch.cat([mixed, mixed[:, -2:-1]], dim=1)
        mixed = mixed.unflatten(1, (GROUPS, -1)).transpose(1, 2).flatten(1, 2)
        parts = (mixed[:, start : start + length] for start in range(0, PARTS * length, length))
        return [self.part_norm(self.part_layer(torch.cat([token, part], dim=1))[:, :1]) / PARTS for part in parts]


class ReIDViTTower(Tower):
    """[`ReIDViTModel`]. With `parts` the output is one state, that of the whole crop."""

    @property
    def size(self) -> int:
        """Size D of a final state."""
        size: int = self.config.hidden_size
        return size * (1 + PARTS) if self.config.parts else size + int(self.config.projection_size)

    @property
    def unit(self) -> int:
        """Multiples of a patch's side, or any size if patches overlap."""
        return self.patch if self.config.stride == self.patch else 1

    @property
    def prefix_tokens(self) -> int:
        """The class token, except in the one state of `parts`."""
        return 0 if self.config.parts else 1

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Returns rows and columns of the final states."""
        if self.config.parts:
            return 1, 1
        rows, columns = ((side - self.patch) // self.config.stride + 1 for side in (height, width))
        return rows, columns

    def run(self, tower: nn.Module, pixel_values: Tensor, layers: list[int]) -> TowerOutput:
        """As in [`Tower`]."""
        output = tower(pixel_values, layers)
        return TowerOutput(output.hidden_states or (), output.last_hidden_state, self.grid(*pixel_values.shape[2:]))


AutoConfig.register(ReIDViTConfig.model_type, ReIDViTConfig, exist_ok=True)
AutoModel.register(ReIDViTConfig, ReIDViTModel, exist_ok=True)
