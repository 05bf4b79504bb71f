"""Backbone: the interface between the ReID model and a family of multimodal LLMs."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from .fields import check_layer, check_multiples
from .tensors import in_format_of, on_device_of
from .towers import Tower, TowerOutput, default_size


class Image(NamedTuple):
    """Images in the language model's space.

    Args:
        embeddings (`torch.Tensor` of shape `(B, T, D)`):
            Embeddings that replace the image tokens.
        grid (`tuple[int, int]`):
            Rows and columns of the image tokens.
        deepstack (`tuple[torch.Tensor, ...]`):
            Features that the first layers of the language model add to the image tokens, each (B, T, D).
    """

    embeddings: Tensor
    grid: tuple[int, int]
    deepstack: tuple[Tensor, ...] = ()

    def to(self, other: Tensor) -> "Image":
        """Returns the image on the device and in the number format of a tensor."""
        return Image(self.embeddings.to(other), self.grid, tuple(features.to(other) for features in self.deepstack))

    def at(self, rows: Tensor) -> "Image":
        """Returns some of the images, by their positions in the batch (N,)."""
        embeddings, *deepstack = (features[rows.to(features.device)] for features in (self.embeddings, *self.deepstack))
        return Image(embeddings, self.grid, tuple(deepstack))


class Backbone:
    """What the ReID model needs to know of a multimodal LLM. A sub-class describes one family. It holds no weights.

    This class fits a family whose projector takes the patches' states one by one, and whose language model needs
    nothing but embeddings. docs/backbones.md shows how to add a family.

    Args:
        config (`PreTrainedConfig`):
            Configuration of the multimodal LLM.
        tower ([`Tower`]):
            Describes its vision tower.
    """

    # Values of `config.model_type`, and the classes of the family's own towers by their `model_type`.
    model_types: tuple[str, ...] = ()
    towers: dict[str, type[Tower]] = {}
    # Names of the modules within the multimodal LLM. A projector may lie within the tower.
    tower_path = "model.vision_tower"
    projector_paths: tuple[str, ...] = ("model.multi_modal_projector",)
    language_path = "model.language_model"
    # Text before and after the image tokens.
    image_begin = image_end = ""
    # Image tokens in addition to the grid, such as a class token.
    extra_image_tokens = 0

    def __init__(self, config: PreTrainedConfig, tower: Tower):
        self.config, self.tower = config, tower

    # ---- sizes ---------------------------------------------------------------------------------------------------

    @property
    def merge(self) -> int:
        """Number of patches in a row of one image token."""
        return 1

    @property
    def unit(self) -> int:
        """Pixels of an image token's side; the height and the width of a crop are multiples of it."""
        return self.tower.patch * self.merge

    @property
    def default_size(self) -> tuple[int, int]:
        """Default height and width of a crop in pixels."""
        return default_size(self.unit)

    def num_image_tokens(self, height: int, width: int) -> int:
        """Returns the number of image tokens of a crop of height x width pixels."""
        return (height // self.unit) * (width // self.unit) + self.extra_image_tokens

    def check(self, height: int, width: int) -> None:
        """Raises ValueError for a crop size or a layer that the configuration does not allow."""
        for name, depth in (("text", self.config.get_text_config().num_hidden_layers), ("vision", self.tower.depth)):
            if type(depth) is not int or depth < 1:
                raise ValueError(f"mllm_config.{name}_config.num_hidden_layers is {depth!r}; give 1 or more")
        check_multiples(height, width, self.unit)
        for layer in self.projected_layers:
            if layer is not None:
                check_layer("mllm_config.vision_feature_layer", layer, self.tower.depth)

    # ---- images --------------------------------------------------------------------------------------------------

    @property
    def projected_layers(self) -> list[int | None]:
        """Layers of the tower that the projector reads: indices of hidden states, or None for the final output."""
        return [None]

    @property
    def dropped_states(self) -> int | None:
        """Number of first states that the vision feature, a mean, leaves out; None: all that are not patches."""
        return None

    def pooled_states(self, output: TowerOutput, layer: int | None) -> Tensor:
        """Returns the states that the vision feature is the mean of, (B, N, D)."""
        return output.patches(layer) if self.dropped_states is None else output.state(layer)[:, self.dropped_states :]

    def project(self, mllm: nn.Module, output: TowerOutput) -> Image:
        """Projects the tower's output into the language model's space.

        Args:
            mllm (`nn.Module`):
                The multimodal LLM.
            output ([`TowerOutput`]):
                Output for B crops, with the states of `projected_layers`.

        Returns:
            [`Image`]
        """
        projector = mllm.get_submodule(self.projector_paths[0])
        patches = [on_device_of(projector, output.patches(layer)) for layer in self.projected_layers]
        embeddings = projector(in_format_of(projector, torch.cat(patches, dim=-1)))
        return Image(embeddings, output.grid)

    # ---- language model ------------------------------------------------------------------------------------------

    def language_inputs(
        self, mllm: nn.Module, embeddings: Tensor, attention_mask: Tensor | None, image: Image, start: int
    ) -> dict[str, Any]:
        """Returns the arguments of the language model for sequences with an image, in addition to the embeddings.

        Args:
            mllm (`nn.Module`):
                The multimodal LLM.
            embeddings (`torch.Tensor` of shape `(B, T, D)`):
                Embeddings with the image in place.
            attention_mask (`torch.Tensor` of shape `(B, T)`, *optional*):
                0 at padding on the right.
            image ([`Image`]):
                The image.
            start (`int`):
                Position of the first image token.
        """
        return {"attention_mask": attention_mask}

    def positions_after(self, grid: tuple[int, int], start: int, length: int) -> Tensor:
        """Returns the positions of a text after an image, (..., length), with further axes as `language_inputs` has.

        Args:
            grid (`tuple[int, int]`):
                Rows and columns of the image tokens.
            start (`int`):
                Position of the first image token.
            length (`int`):
                Number of tokens of the text.
        """
        end = start + grid[0] * grid[1] + self.extra_image_tokens
        return torch.arange(end, end + length)

    def hidden_state(self, states: tuple[Tensor, ...], layer: int, image: Image, start: int) -> Tensor:
        """Returns the hidden state (B, T, D) after `layer` layers, out of those that the language model reports."""
        return states[layer]

    def generation_inputs(self, input_ids: Tensor, embeddings: Tensor, image: Image) -> dict[str, Any]:
        """Returns the arguments of `generate` for prompts with an image, in addition to the ids (B, T)."""
        # Not features of the image: SmolVLM converts them to the format of its tower.
        return {"inputs_embeds": embeddings}


def merged(states: Tensor, grid: tuple[int, int], merge: int) -> tuple[Tensor, tuple[int, int]]:
    """Joins each square of merge x merge patches into one state (pixel shuffle), for a grid of any ratio.

    Args:
        states (`torch.Tensor` of shape `(B, N, D)`):
            States of the patches, row by row.
        grid (`tuple[int, int]`):
            Rows and columns of the patches, multiples of `merge`.
        merge (`int`):
            Side of a square in patches.

    Returns:
        `tuple[torch.Tensor, tuple[int, int]]`: states (B, N / merge^2, D * merge^2), a square's patches row by row,
        and rows and columns.
    """
    rows, columns = grid[0] // merge, grid[1] // merge
    squares = states.unflatten(1, (rows, merge, columns, merge)).transpose(2, 3)
    return squares.flatten(3, 5).flatten(1, 2), (rows, columns)
