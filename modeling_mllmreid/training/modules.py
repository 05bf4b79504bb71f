"""Modules: the module of the model that a parameter or a layer belongs to, by the family's paths."""

import re
from collections.abc import Iterator
from typing import Literal

from torch import nn

from ..model import ImageEncoder, MllmReIDModel
from ..model.backbone import Backbone
from ..model.checkpoints import within

ModuleName = Literal["llm", "vision", "projector", "heads", "lm_head"]
# A layer within a numbered block.
IN_BLOCK = re.compile(r"\.\d+\.")


def module_of(model: ImageEncoder, name: str) -> ModuleName:
    """Returns the module that a parameter's name within the model belongs to."""
    if not isinstance(model, MllmReIDModel):
        return "vision" if within(name, ["tower"]) else "heads"
    backbone, inner = model.backbone, name.removeprefix("mllm.")
    if name == inner:
        return "heads"
    if within(inner, backbone.projector_paths):
        return "projector"
    if within(inner, [backbone.tower_path]):
        return "vision"
    return "llm" if within(inner, [backbone.language_path]) else "lm_head"


def tower_parameters(model: ImageEncoder) -> Iterator[tuple[str, nn.Parameter]]:
    """Yields names and parameters of the vision tower, without a projector that lies within it."""
    yield from ((name, weight) for name, weight in model.named_parameters() if module_of(model, name) == "vision")


def linear_layers(mllm: nn.Module, backbone: Backbone, path: str) -> list[str]:
    """Returns the names of all linear layers within the numbered blocks of a module.

    Args:
        mllm (`nn.Module`): The multimodal LLM.
        backbone (`Backbone`): Description of its family.
        path (`str`): Name of the module, the family's tower or language model.
    """
    return [
        name
        for name, module in mllm.named_modules()
        if isinstance(module, nn.Linear)
        and within(name, [path])
        and not within(name, backbone.projector_paths)
        and IN_BLOCK.search(name.removeprefix(path))
    ]
