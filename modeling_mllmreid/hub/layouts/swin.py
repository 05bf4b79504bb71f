"""The Swin transformers of SOLIDER and MegaDescriptor."""

import math
from typing import Any

from transformers import SwinConfig

from ...model.reid_swin import ReIDSwinConfig
from ...utils.errors import UserError
from .layout import Converted, Layout, LayoutOptions, Weights, joined_batch_norms, numbered, required

BLOCK, NEW = r"base\.stages\.(\d)\.blocks\.(\d+)", r"tower.stages.\1.layers.\2"
# What SOLIDER's authors test with.
SEMANTIC_WEIGHT = 0.2


def stages(weights: Weights, prefix: str, block: str, table: str) -> dict[str, Any]:
    """Returns depths, heads and window size by the tables of relative positions."""
    depths = [numbered(weights, rf"{prefix}\.{stage}\.{block}\.(\d+)\.") for stage in range(4)]
    plain = prefix.replace("\\", "")
    tables = [required(weights, f"{plain}.{stage}.{block}.0.{table}") for stage in range(4)]
    window = (math.isqrt(tables[0].shape[0]) + 1) // 2
    return {"depths": depths, "num_heads": [table.shape[1] for table in tables], "window_size": window}


def solider(weights: Weights, options: LayoutOptions) -> Converted:
    """SOLIDER: the feature is the mean of the last stage after its norm."""
    options.refuse("solider", "camera", "sie_coefficient", "stride")
    weight = None
    if any(name.startswith("tower.semantic_scale.") for name in weights):
        weight = SEMANTIC_WEIGHT if options.semantic_weight is None else options.semantic_weight
    else:
        options.refuse("solider", "semantic_weight")
    shape = stages(weights, r"tower\.stages", "layers", "attention.relative_position_bias_table")
    joined_batch_norms(weights, ["bottleneck"])
    config = ReIDSwinConfig(
        embed_dim=required(weights, "tower.patch_embedding.weight").shape[0], semantic_weight=weight, **shape
    )
    fields = {"height": options.height or 384, "width": options.width or 128, "pooling": "mean"}
    fields |= {"feature_after_bn": False, "bnneck": "reid_head.bottleneck.weight" in weights}
    return Converted(config, fields, weights)


def megadescriptor(weights: Weights, options: LayoutOptions) -> Converted:
    """MegaDescriptor: timm's Swin, which is transformers' too; the feature is the mean of the last states."""
    options.refuse("megadescriptor", "camera", "sie_coefficient", "stride", "semantic_weight")
    # Since 0.9, timm merges patches at the start of a stage; before, as transformers, at the end of the one before.
    merging = [name for name in weights if name.startswith("merging.")]
    at_start = not any(name.startswith("merging.0.") for name in merging)
    for name in merging:
        _, stage, rest = name.split(".", 2)
        weights[f"tower.encoder.layers.{int(stage) - at_start}.downsample.{rest}"] = weights.pop(name)
    table = "attention.relative_position_bias.relative_position_bias_table"
    shape = stages(weights, r"tower\.encoder\.layers", "blocks", table)
    for name in list(weights):
        if ".qkv." in name:
            for part, value in zip("qkv", weights.pop(name).chunk(3), strict=True):
                weights[name.replace(".qkv.", f".{part}_proj.")] = value
    side = 32 * shape["window_size"]
    height, width = options.height or side, options.width or side
    if (height, width) != (side, side):
        raise UserError(f"height x width {height} x {width}: a window of this checkpoint fits {side} x {side}: give it")
    dim = required(weights, "tower.embeddings.patch_embeddings.projection.weight").shape[0]
    config = SwinConfig(image_size=side, embed_dim=dim, drop_path_rate=0.0, **shape)
    return Converted(config, {"height": side, "width": side, "pooling": "mean", "bnneck": False}, weights)


SOLIDER = Layout(
    name="solider",
    source="https://github.com/tinyvision/SOLIDER-REID",
    marks=(r"base\.patch_embed\.projection\.weight", r"base\.stages\.0\.blocks\.0\.attn\.w_msa\.qkv\.weight"),
    names=(
        (r"base\.patch_embed\.projection\.(weight|bias)", r"tower.patch_embedding.\1"),
        (r"base\.patch_embed\.norm\.(weight|bias)", r"tower.patch_norm.\1"),
        (rf"{BLOCK}\.norm([12])\.(weight|bias)", rf"{NEW}.norm\3.\4"),
        (rf"{BLOCK}\.attn\.w_msa\.relative_position_bias_table", rf"{NEW}.attention.relative_position_bias_table"),
        (rf"{BLOCK}\.attn\.w_msa\.(qkv|proj)\.(weight|bias)", rf"{NEW}.attention.\3.\4"),
        (rf"{BLOCK}\.ffn\.layers\.0\.0\.(weight|bias)", rf"{NEW}.fc1.\3"),
        (rf"{BLOCK}\.ffn\.layers\.1\.(weight|bias)", rf"{NEW}.fc2.\3"),
        (r"base\.stages\.(\d)\.downsample\.norm\.(weight|bias)", r"tower.stages.\1.merge_norm.\2"),
        (r"base\.stages\.(\d)\.downsample\.reduction\.weight", r"tower.stages.\1.reduction.weight"),
        (r"base\.norm3\.(weight|bias)", r"tower.norm.\1"),
        (r"base\.semantic_embed_w\.([012])\.(weight|bias)", r"tower.semantic_scale.\1.\2"),
        (r"base\.semantic_embed_b\.([012])\.(weight|bias)", r"tower.semantic_shift.\1.\2"),
        (r"bottleneck\.(\w+)", r"bottleneck.\1"),
    ),
    # Norms of the first stages, and the scaling after the last one, are read by segmentation alone.
    left_out=(
        r"base\.norm[012]\..*",
        r"base\.semantic_embed_[wb]\.3\..*",
        r".*relative_position_index",
        r"classifier.*",
    ),
    build=solider,
    pixels={"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3},
)
TIMM, OURS = r"layers\.(\d)\.blocks\.(\d+)", r"tower.encoder.layers.\1.blocks.\2"
MEGADESCRIPTOR = Layout(
    name="megadescriptor",
    source="https://huggingface.co/BVRA/MegaDescriptor-L-384",
    marks=(r"patch_embed\.proj\.weight", r"layers\.0\.blocks\.0\.attn\.relative_position_bias_table"),
    names=(
        (r"patch_embed\.proj\.(weight|bias)", r"tower.embeddings.patch_embeddings.projection.\1"),
        (r"patch_embed\.norm\.(weight|bias)", r"tower.embeddings.norm.\1"),
        (rf"{TIMM}\.norm1\.(weight|bias)", rf"{OURS}.layernorm_before.\3"),
        (rf"{TIMM}\.norm2\.(weight|bias)", rf"{OURS}.layernorm_after.\3"),
        (
            rf"{TIMM}\.attn\.relative_position_bias_table",
            rf"{OURS}.attention.relative_position_bias.relative_position_bias_table",
        ),
        (rf"{TIMM}\.attn\.qkv\.(weight|bias)", rf"{OURS}.attention.qkv.\3"),
        (rf"{TIMM}\.attn\.proj\.(weight|bias)", rf"{OURS}.attention.o_proj.\3"),
        (rf"{TIMM}\.mlp\.fc([12])\.(weight|bias)", rf"{OURS}.mlp.fc\3.\4"),
        (r"layers\.(\d)\.downsample\.(norm|reduction)\.(weight|bias)", r"merging.\1.\2.\3"),
        (r"norm\.(weight|bias)", r"tower.layernorm.\1"),
    ),
    left_out=(r"head\..*", r".*\.(relative_position_index|attn_mask)"),
    build=megadescriptor,
    shared=True,
    pixels={"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2},
)
