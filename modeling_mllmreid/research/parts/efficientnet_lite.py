"""EfficientNet-Lite0 out of a checkpoint of torch: an ONNX file, which `--model` takes as it is."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ...evaluation.onnx_settings import SETTINGS_KEY, TRAINED_ON_KEY
from ...hub.convert import read_checkpoint

# The blocks that halve height and width. Kernels and widths are in the shapes of the weights.
HALVING = (1, 3, 5, 11)
BLOCKS = 16
EPSILON = 1e-3
# How the weights take images: the published configuration of `timm/tf_efficientnet_lite0.in1k`.
IMAGE_PROCESSOR = {
    "size": {"height": 256, "width": 128},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


class _Graph:
    """The nodes and weights of an ONNX graph; each method adds a layer and returns the name of its output."""

    def __init__(self, weights: Mapping[str, Tensor]):
        self.stored = {name: weight.double().numpy() for name, weight in weights.items()}
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """Adds a node."""
        from onnx import helper

        output = output or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def constant(self, name: str, value: np.ndarray) -> str:
        """Adds a weight in float32."""
        from onnx import numpy_helper

        self.weights.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    def conv(self, state: str, name: str, norm: str, *, stride: int = 1, activation: bool = True) -> str:
        """Adds a convolution that contains its batch norm, padded as TensorFlow does, and ReLU6."""
        weight = self.stored[f"{name}.weight"]
        mean, variance, scale, shift = (
            self.stored[f"{norm}.{field}"] for field in ("running_mean", "running_var", "weight", "bias")
        )
        scale = scale / np.sqrt(variance + EPSILON)
        inputs = [
            self.constant(f"{name}.weight", weight * scale[:, None, None, None]),
            self.constant(f"{name}.bias", shift - mean * scale),
        ]
        # A depthwise convolution has one input channel for each output channel.
        groups = len(weight) if "_depthwise_conv" in name else 1
        state = self.add("Conv", state, *inputs, strides=[stride] * 2, group=groups, auto_pad="SAME_UPPER")
        return self.add("Clip", state, "zero", "six") if activation else state

    def block(self, state: str, number: int) -> str:
        """Adds an inverted residual block."""
        name, before = f"_blocks.{number}", state
        stride = 2 if number in HALVING else 1
        if f"{name}._expand_conv.weight" in self.stored:
            state = self.conv(state, f"{name}._expand_conv", f"{name}._bn0")
        state = self.conv(state, f"{name}._depthwise_conv", f"{name}._bn1", stride=stride)
        state = self.conv(state, f"{name}._project_conv", f"{name}._bn2", activation=False)
        first = self.stored.get(f"{name}._expand_conv.weight", self.stored[f"{name}._depthwise_conv.weight"])
        width_before = first.shape[1] if first.shape[1] > 1 else len(first)
        same = stride == 1 and width_before == len(self.stored[f"{name}._project_conv.weight"])
        return self.add("Add", state, before) if same else state


def convert_efficientnet(file: Path, folder: Path) -> None:
    """Writes `model.onnx`: crops of any size to the mean of the last map, without the classifier.

    Args:
        file (`Path`): A pickle of torch with the weights of EfficientNet-Lite0.
        folder (`Path`): An existing folder.
    """
    import onnx
    from onnx import TensorProto, helper

    graph = _Graph(read_checkpoint(file))
    for name, value in (("zero", 0.0), ("six", 6.0)):
        graph.constant(name, np.array(value))
    state = graph.conv("pixel_values", "_conv_stem", "_bn0", stride=2)
    for number in range(BLOCKS):
        state = graph.block(state, number)
    state = graph.conv(state, "_conv_head", "_bn1")
    graph.add("Flatten", graph.add("GlobalAveragePool", state), output="embedding")
    size = len(graph.stored["_conv_head.weight"])
    image = helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, "height", "width"])
    feature = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", size])
    model = helper.make_model(
        helper.make_graph(graph.nodes, "efficientnet_lite0", [image], [feature], graph.weights),
        opset_imports=[helper.make_opsetid("", 17)],
        # The lowest that has this opset, so that older runtimes read the file.
        ir_version=8,
    )
    helper.set_model_props(model, {SETTINGS_KEY: json.dumps(IMAGE_PROCESSOR), TRAINED_ON_KEY: "[]"})
    onnx.checker.check_model(model)
    onnx.save(model, folder / "model.onnx")
