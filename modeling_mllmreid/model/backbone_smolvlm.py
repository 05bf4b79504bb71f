"""SmolVLM and Idefics3: a connector that joins squares of patches (pixel shuffle)."""

from torch import nn

from .backbone import Backbone, Image, merged
from .tensors import in_format_of
from .towers import Tower, TowerOutput


class SmolVLMTower(Tower):
    """The SigLIP of SmolVLM: positions are fractions of the image's sides, so any ratio fits."""

    prefix_tokens = 0


class SmolVLMBackbone(Backbone):
    """SmolVLM and Idefics3 with one view of the crop.

    Source: Marafioti et al. 2025, "SmolVLM: Redefining small and efficient multimodal models".
    """

    model_types = ("smolvlm", "idefics3")
    towers = {"smolvlm_vision": SmolVLMTower, "idefics3_vision": SmolVLMTower}
    tower_path = "model.vision_model"
    projector_paths = ("model.connector",)
    language_path = "model.text_model"
    image_begin = "<fake_token_around_image><global-img>"
    image_end = "<fake_token_around_image>"

    @property
    def merge(self) -> int:
        """Patches in a row of one image token."""
        scale: int = self.config.scale_factor
        return scale

    def project(self, mllm: nn.Module, output: TowerOutput) -> Image:
        """Joins squares of patches and projects them; the connector's own pixel shuffle expects a square image."""
        projection = mllm.get_submodule("model.connector.modality_projection")
        patches, grid = merged(output.patches(None), output.grid, self.merge)
        return Image(projection(in_format_of(projection, patches)), grid)
