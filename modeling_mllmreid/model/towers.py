"""Vision towers: calls a vision encoder of transformers, and knows its sizes from its configuration."""

import inspect
import math
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import PreTrainedConfig

# The default crop is twice as high as wide: at least this wide, and with at least this many units in a row.
DEFAULT_WIDTH, LEAST_COLUMNS = 126, 4
# Encoders without a state in front of the patches.
NO_CLASS_TOKEN = ("siglip_vision_model", "siglip2_vision_model")


# Fields that name blocks, for encoders that can also be a backbone of a detector.
STAGES = ("out_features", "out_indices", "stage_names")


class TowerOutput(NamedTuple):
    """The output of a vision tower.

    Args:
        states (`tuple[torch.Tensor | None, ...]`):
            Hidden states before the first block and after each block, each (B, prefix + N, D); None for a state that
            nothing reads.
        last (`torch.Tensor` of shape `(B, prefix + N, D)`):
            The final output, after the last norm if the encoder has one.
        grid (`tuple[int, int]`):
            Rows and columns of the N patches.
        projected (`tuple[torch.Tensor, ...]`):
            Features of the image tokens, each (B, T, D'), if the tower computes them itself.
    """

    states: tuple[Tensor | None, ...]
    last: Tensor
    grid: tuple[int, int]
    projected: tuple[Tensor, ...] = ()

    def state(self, layer: int | None) -> Tensor:
        """Returns a hidden state or the final output (None), (B, prefix + N, D)."""
        state = self.last if layer is None else self.states[layer]
        if state is None:
            raise ValueError(f"the tower was run without its hidden state {layer}")
        return state

    def patches(self, layer: int | None) -> Tensor:
        """Returns the states of the patches alone, (B, N, D)."""
        states, (rows, columns) = self.state(layer), self.grid
        return states[:, states.shape[1] - rows * columns :]


class Tower:
    """What differs between the vision encoders of transformers. It holds no weights.

    This class fits encoders that take pixels and return states of shape (B, prefix + N, D).

    Args:
        config (`PreTrainedConfig`):
            Configuration of the encoder, the `vision_config` of a multimodal model.
    """

    # Field of the configuration with the number of blocks.
    depth_field = "num_hidden_layers"
    # Whether the encoder returns hidden states of one size.
    has_states = True
    # Whether it is faster on a CPU with the channels last in memory: benchmarks/layout.py.
    prefers_channels_last = False

    def __init__(self, config: PreTrainedConfig):
        self.config = config

    @property
    def depth(self) -> int:
        """Number of blocks. There are `depth + 1` hidden states."""
        depth: int = getattr(self.config, self.depth_field)
        return depth

    @property
    def size(self) -> int:
        """Size D of a patch's state."""
        size: int = self.config.hidden_size
        return size

    @property
    def patch(self) -> int:
        """Pixels of a patch's side."""
        patch = self.config.patch_size
        side: int = patch[0] if isinstance(patch, (list, tuple)) else patch
        return side

    @property
    def unit(self) -> int:
        """Number of pixels that the height and the width of a crop must be multiples of."""
        return self.patch

    @property
    def default_size(self) -> tuple[int, int]:
        """Default height and width of a crop in pixels."""
        return default_size(self.unit)

    @property
    def prefix_tokens(self) -> int:
        """Number of states in front of the patches: class token and registers."""
        without = self.config.model_type in NO_CLASS_TOKEN
        return 0 if without else 1 + (getattr(self.config, "num_register_tokens", 0) or 0)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Returns rows and columns of the patches of a crop of height x width pixels."""
        return height // self.patch, width // self.patch

    def run(self, tower: nn.Module, pixel_values: Tensor, layers: list[int]) -> TowerOutput:
        """Runs the encoder on crops of any size.

        Args:
            tower (`nn.Module`):
                The encoder, of this configuration.
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`):
                Crops on the encoder's device and in its number format.
            layers (`list[int]`):
                Indices of the hidden states to return. All of them would take memory at inference.

        Returns:
            [`TowerOutput`]
        """
        options: dict[str, Any] = {"output_hidden_states": layers} if layers else {}
        if "interpolate_pos_encoding" in inspect.signature(tower.forward).parameters:
            options["interpolate_pos_encoding"] = True
        output = tower(pixel_values, **options)
        height, width = pixel_values.shape[2:]
        states = output.hidden_states if layers else ()
        return TowerOutput(states, output.last_hidden_state, self.grid(height, width))

    def traceable(self, tower: Any, height: int, width: int) -> nn.Module:
        """Returns a module for `run` in place of the encoder, which it may change, that torch can trace."""
        # Every encoder has it, and it can be traced.
        tower.set_attn_implementation("eager")
        return tower  # type: ignore[no-any-return]

    def cut(self, blocks: int) -> PreTrainedConfig:
        """Returns a copy of the configuration with the first `blocks` blocks alone."""
        fields = {name: value for name, value in self.config.to_dict().items() if name not in STAGES}
        return type(self.config).from_dict({**fields, self.depth_field: blocks})


def default_size(unit: int, least_columns: int = LEAST_COLUMNS) -> tuple[int, int]:
    """Returns the default height and width of a crop whose sides are multiples of `unit` pixels."""
    columns = max(least_columns, math.ceil(DEFAULT_WIDTH / unit))
    return 2 * columns * unit, columns * unit
