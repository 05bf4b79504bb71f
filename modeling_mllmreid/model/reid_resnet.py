"""ResNet-50 as fast-reid trains it: last stride 1, optional instance norms (IBN-a) and non-local blocks."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput

from .towers import Tower, TowerOutput

EXPANSION = 4


class ReIDResNetConfig(PreTrainedConfig):
    r"""Configuration of [`ReIDResNetModel`].

    Args:
        width (`int`, *optional*, defaults to 64):
            Channels of the stem.
        blocks (`list[int]`, *optional*, defaults to `[3, 4, 6, 3]`):
            Blocks of each stage: those of ResNet-50.
        non_local (`list[int]`, *optional*, defaults to `[0, 2, 3, 0]`):
            Number of last blocks of each stage that a non-local block follows.
        ibn (`bool`, *optional*, defaults to `False`):
            Whether half of the channels of the first norm have an instance norm, in all stages but the last.

    Source: He et al. 2020, "FastReID"; Wang et al. 2018, "Non-local Neural Networks"; Pan et al. 2018, "IBN-Net".
    """

    model_type = "reid_resnet"

    width: int = 64
    blocks: list[int] | tuple[int, ...] = (3, 4, 6, 3)
    non_local: list[int] | tuple[int, ...] = (0, 2, 3, 0)
    ibn: bool = False


class InstanceBatchNorm(nn.Module):
    """An instance norm of the first half of the channels, and a batch norm of the others."""

    def __init__(self, channels: int):
        super().__init__()
        self.half = channels // 2
        self.instance = nn.InstanceNorm2d(self.half, affine=True)
        self.batch = nn.BatchNorm2d(channels - self.half)

    def forward(self, features: Tensor) -> Tensor:
        """Normalises a map (B, C, h, w)."""
        first, others = features.split([self.half, features.shape[1] - self.half], dim=1)
        normed = self.instance(first)
        if features.is_contiguous(memory_format=torch.channels_last):
            # An instance norm changes the layout, which slows down what follows.
            normed = normed.contiguous(memory_format=torch.channels_last)
        return torch.cat([normed, self.batch(others)], dim=1)


class NonLocal(nn.Module):
    """Adds to each position a mean over all positions, weighted by their dot products; it has one inner channel."""

    def __init__(self, channels: int):
        super().__init__()
        self.theta, self.phi, self.value = (nn.Conv2d(channels, 1, 1) for _ in range(3))
        self.expand = nn.Sequential(nn.Conv2d(1, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, features: Tensor) -> Tensor:
        """Transforms a map (B, C, h, w)."""
        theta, phi, value = (part(features).flatten(2) for part in (self.theta, self.phi, self.value))
        weights = theta.transpose(1, 2) @ phi / theta.shape[2]
        mean = (weights @ value.transpose(1, 2)).transpose(1, 2).unflatten(2, features.shape[2:])
        added: Tensor = self.expand(mean) + features
        return added


class ReIDResNetBlock(nn.Module):
    """The bottleneck block of ResNet."""

    def __init__(self, inputs: int, middle: int, stride: int, ibn: bool):
        super().__init__()
        outputs = middle * EXPANSION
        self.conv1 = nn.Conv2d(inputs, middle, 1, bias=False)
        self.norm1 = InstanceBatchNorm(middle) if ibn else nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, outputs, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        shortcut = [nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)]
        self.shortcut = nn.Identity() if same else nn.Sequential(*shortcut)

    def forward(self, features: Tensor) -> Tensor:
        """Transforms a map (B, C, h, w)."""
        inner = torch.relu(self.norm1(self.conv1(features)))
        inner = torch.relu(self.norm2(self.conv2(inner)))
        return torch.relu(self.norm3(self.conv3(inner)) + self.shortcut(features))


class ReIDResNetModel(PreTrainedModel):
    """A ResNet whose last stage keeps the size of the map.

    Args:
        config ([`ReIDResNetConfig`]):
            Configuration of the model. The weights are random.
    """

    config_class = ReIDResNetConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ReIDResNetConfig):
        super().__init__(config)
        width, count = config.width, len(config.blocks)
        self.conv = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.stages, self.non_local = nn.ModuleList(), nn.ModuleList()
        inputs = width
        for index, (blocks, non_local) in enumerate(zip(config.blocks, config.non_local, strict=True)):
            middle, stage = width * 2**index, nn.ModuleList()
            for block in range(blocks):
                stride = 2 if block == 0 and 0 < index < count - 1 else 1
                stage.append(ReIDResNetBlock(inputs, middle, stride, config.ibn and index < count - 1))
                inputs = middle * EXPANSION
            self.stages.append(stage)
            self.non_local.append(nn.ModuleList(NonLocal(inputs) for _ in range(non_local)))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            # He et al. 2015; transformers' standard deviation of 0.02 does not depend on the size of a layer.
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutput:
        """Encodes crops (B, 3, H, W). Returns `last_hidden_state` of shape (B, N, D)."""
        features = self.pool(torch.relu(self.norm(self.conv(pixel_values))))
        for stage, non_local in zip(self.stages, self.non_local, strict=True):
            # Of the last blocks, a non-local block follows each.
            followers = [*[None] * (len(stage) - len(non_local)), *non_local]
            for block, follower in enumerate(followers):
                features = stage[block](features)
                features = features if follower is None else follower(features)
        return BaseModelOutput(last_hidden_state=features.flatten(2).transpose(1, 2))


class ReIDResNetTower(Tower):
    """[`ReIDResNetModel`], without hidden states. A patch is what one position of the last stage covers."""

    prefix_tokens = 0
    prefers_channels_last = True

    @property
    def depth(self) -> int:
        """Number of stages."""
        return len(self.config.blocks)

    @property
    def size(self) -> int:
        """Size D of a position in the last stage."""
        return int(self.config.width * 2 ** (self.depth - 1) * EXPANSION)

    @property
    def patch(self) -> int:
        """Pixels that a position of the last stage covers; that stage has a stride of 1."""
        return int(2 ** max(self.depth, 2))

    def run(self, tower: nn.Module, pixel_values: Tensor, layers: list[int]) -> TowerOutput:
        """As in [`Tower`], without hidden states."""
        return TowerOutput((), tower(pixel_values).last_hidden_state, self.grid(*pixel_values.shape[2:]))


AutoConfig.register(ReIDResNetConfig.model_type, ReIDResNetConfig, exist_ok=True)
AutoModel.register(ReIDResNetConfig, ReIDResNetModel, exist_ok=True)
