"""DINOv2 out of an ONNX file that torch exported from a model around transformers' `Dinov2Model`."""

import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Dinov2Config

from ...utils.outputs import write_json

# The name of transformers' model inside the exported one.
PREFIX = "backbone."
# The export gives the weights of linear layers new names. The layer is in the name of the node that multiplies by them.
LINEAR = re.compile(r"/backbone/(encoder/layer\.\d+/.+)/MatMul")
CLASS_POSITION, PATCH_POSITIONS = "/backbone/embeddings/Concat", "/backbone/embeddings/Reshape"
HEAD_SIZE = 64
# How DINOv2 takes images: the published `facebook/dinov2-small`.
IMAGE_PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def read_weights(file: Path) -> dict[str, Tensor]:
    """Returns the weights of the encoder by their published names; those of the file's head are left out.

    Args:
        file (`Path`): The ONNX file.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(file).graph
    stored = {tensor.name: torch.tensor(numpy_helper.to_array(tensor)) for tensor in graph.initializer}
    weights = {name.removeprefix(PREFIX): weight for name, weight in stored.items() if name.startswith(PREFIX)}
    positions: dict[str, Tensor] = {}
    for node in graph.node:
        constants = [stored[name] for name in node.input if name in stored]
        if node.op_type == "MatMul" and constants and (layer := LINEAR.fullmatch(node.name)):
            weights[f"{layer[1].replace('/', '.')}.weight"] = constants[0].T.contiguous()
        for start in (CLASS_POSITION, PATCH_POSITIONS):
            if node.name.startswith(start) and constants and constants[0].ndim == 3:
                positions[start] = constants[0]
    weights["embeddings.position_embeddings"] = torch.cat([positions[CLASS_POSITION], positions[PATCH_POSITIONS]], 1)
    # DINOv2's own training puts it in place of hidden patches. An export for inference lacks it, and nothing reads it.
    weights["embeddings.mask_token"] = torch.zeros(1, weights["embeddings.cls_token"].shape[-1])
    return weights


def convert_tower(file: Path, folder: Path) -> None:
    """Writes the folder of a `Dinov2Model` as DINOv2 was published: names of the weights, and image processor.

    Args:
        file (`Path`): The ONNX file.
        folder (`Path`): An existing folder.
    """
    weights = read_weights(file)
    hidden, _, patch, _ = weights["embeddings.patch_embeddings.projection.weight"].shape
    side = round((weights["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    config = Dinov2Config(
        architectures=["Dinov2Model"],
        hidden_size=hidden,
        num_attention_heads=hidden // HEAD_SIZE,
        num_hidden_layers=len([name for name in weights if name.endswith("norm1.weight")]),
        mlp_ratio=len(weights["encoder.layer.0.mlp.fc1.bias"]) // hidden,
        patch_size=patch,
        image_size=side * patch,
        dtype=torch.float32,
    )
    config.save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "preprocessor_config.json", IMAGE_PROCESSOR)
