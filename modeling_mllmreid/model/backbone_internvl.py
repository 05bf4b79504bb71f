"""InternVL: a projector that joins squares of patches (pixel shuffle)."""

from torch import nn

from .backbone import Backbone, Image, merged
from .tensors import in_format_of
from .towers import TowerOutput


class InternVLBackbone(Backbone):
    """InternVL 2.5 to 3.5 in transformers' own format, with one tile.

    Source: Zhu et al. 2025, "InternVL3: Exploring Advanced Training and Test-Time Recipes for Open-Source Multimodal
    Models".
    """

    model_types = ("internvl",)
    image_begin, image_end = "<img>", "</img>"

    @property
    def merge(self) -> int:
        """Patches in a row of one image token."""
        ratio: float = self.config.downsample_ratio
        return round(1 / ratio)

    @property
    def projected_layers(self) -> list[int | None]:
        """The final output for -1, as in InternVL, and a hidden state for another layer."""
        layer = self.config.vision_feature_layer
        if type(layer) is not int:
            raise ValueError(f"mllm_config.vision_feature_layer is {repr(layer)[:60]}; give one layer, a whole number")
        return [None if layer == -1 else layer]

    def project(self, mllm: nn.Module, output: TowerOutput) -> Image:
        """Joins squares of patches and projects them; InternVL's own code expects a square image."""
        projector = mllm.get_submodule(self.projector_paths[0])
        patches, grid = merged(output.patches(self.projected_layers[0]), output.grid, self.merge)
        return Image(projector(in_format_of(projector, patches)), grid)
