"""OSNet, the omni-scale network for re-identification, which neither transformers nor timm has."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput

from .towers import Tower, TowerOutput


class ReIDOSNetConfig(PreTrainedConfig):
    r"""Configuration of [`ReIDOSNetModel`].

    Args:
        channels (`list[int]`, *optional*, defaults to `[64, 256, 384, 512]`):
            Channels of the first convolution and of the three stages: those of the width x1.0.
        blocks (`list[int]`, *optional*, defaults to `[2, 2, 2]`):
            Blocks of each stage.
        feature_size (`int`, *optional*, defaults to 512):
            Size of the feature.

    Source: Zhou et al. 2019, "Omni-Scale Feature Learning for Person Re-Identification".
    """

    model_type = "reid_osnet"

    channels: list[int] | tuple[int, ...] = (64, 256, 384, 512)
    blocks: list[int] | tuple[int, ...] = (2, 2, 2)
    feature_size: int = 512


def conv(inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, relu: bool = True) -> nn.Sequential:
    """Returns a convolution without bias, its batch norm and ReLU."""
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([nn.ReLU()] if relu else []))


def light_conv(channels: int) -> nn.Sequential:
    """Returns a point-wise and a depth-wise 3 x 3 convolution, with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


class OmniScaleBlock(nn.Module):
    """Four streams of one to four light convolutions, mixed by one channel gate, with a residual connection."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        middle = outputs // 4
        self.reduce = conv(inputs, middle)
        self.streams = nn.ModuleList(nn.Sequential(*(light_conv(middle) for _ in range(t))) for t in (1, 2, 3, 4))
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(middle, middle // 16, 1),
            nn.ReLU(),
            nn.Conv2d(middle // 16, middle, 1),
            nn.Sigmoid(),
        )
        self.expand = conv(middle, outputs, relu=False)
        self.shortcut = conv(inputs, outputs, relu=False) if inputs != outputs else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """Transforms a map (B, C, h, w)."""
        reduced = self.reduce(features)
        streams = [stream(reduced) for stream in self.streams]
        mixed = sum((self.gate(stream) * stream for stream in streams), torch.zeros_like(reduced))
        return torch.relu(self.expand(mixed) + self.shortcut(features))


class ReIDOSNetModel(PreTrainedModel):
    """OSNet up to its feature. Its output is one state, that of the whole crop.

    Args:
        config ([`ReIDOSNetConfig`]):
            Configuration of the model. The weights are random.
    """

    config_class = ReIDOSNetConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ReIDOSNetConfig):
        super().__init__(config)
        first, *outputs = config.channels
        self.stem = conv(3, first, 7, stride=2)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = nn.ModuleList()
        for index, (count, size) in enumerate(zip(config.blocks, outputs, strict=True)):
            inputs = [config.channels[index], *[size] * (count - 1)]
            stage = nn.Sequential(*(OmniScaleBlock(channels, size) for channels in inputs))
            if index < len(outputs) - 1:
                stage.append(nn.Sequential(conv(size, size), nn.AvgPool2d(2)))
            self.stages.append(stage)
        self.last = conv(outputs[-1], outputs[-1])
        size = config.feature_size
        self.fc = nn.Sequential(nn.Linear(outputs[-1], size), nn.BatchNorm1d(size), nn.ReLU())
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            # He et al. 2015, as OSNet's authors do.
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutput:
        """Encodes crops (B, 3, H, W). Returns `last_hidden_state` of shape (B, 1, D)."""
        features = self.pool(self.stem(pixel_values))
        for stage in self.stages:
            features = stage(features)
        feature = self.fc(self.last(features).mean(dim=(2, 3)))
        return BaseModelOutput(last_hidden_state=feature[:, None])


class ReIDOSNetTower(Tower):
    """[`ReIDOSNetModel`], without hidden states. The whole crop is its only patch."""

    prefix_tokens = 0
    prefers_channels_last = True
    # Two strides in the stem, and two stages that halve the map.
    patch = 16

    @property
    def depth(self) -> int:
        """Number of stages."""
        return len(self.config.blocks)

    @property
    def size(self) -> int:
        """Size D of the feature."""
        return int(self.config.feature_size)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Returns (1, 1): the output is one state."""
        return 1, 1

    def run(self, tower: nn.Module, pixel_values: Tensor, layers: list[int]) -> TowerOutput:
        """As in [`Tower`], without hidden states."""
        return TowerOutput((), tower(pixel_values).last_hidden_state, (1, 1))


AutoConfig.register(ReIDOSNetConfig.model_type, ReIDOSNetConfig, exist_ok=True)
AutoModel.register(ReIDOSNetConfig, ReIDOSNetModel, exist_ok=True)
