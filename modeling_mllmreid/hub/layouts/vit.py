"""The vision transformers of TransReID, PersonViT and CLIP-ReID."""

from typing import Any

from ...model.reid_vit import PARTS, ReIDViTConfig
from ...utils.errors import UserError
from .layout import (
    Converted,
    Layout,
    LayoutOptions,
    Weights,
    camera_information,
    joined_batch_norms,
    numbered,
    required,
)

# Of the published configurations: (height, width) of the crops, and strides of the patches.
SIZES, STRIDES = ((256, 128), (384, 128), (224, 224)), (16, 12)
# Every published transformer has heads of this size.
HEAD = 64
PIXELS = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
LAYER = (
    (r"norm([12])\.(weight|bias)", r"norm\1.\2"),
    (r"attn\.(qkv|proj)\.(weight|bias)", r"\1.\2"),
    (r"mlp\.fc([12])\.(weight|bias)", r"fc\1.\2"),
)


def layer_names(old: str, new: str) -> tuple[tuple[str, str], ...]:
    """Returns the names of a layer of timm's early transformers, after a prefix with one group for its number."""
    shifted = [(pattern, name.replace(r"\2", r"\3").replace(r"\1", r"\2")) for pattern, name in LAYER]
    return tuple((f"{old}{pattern}", f"{new}{name}") for pattern, name in shifted)


def encoder_names(prefix: str) -> tuple[tuple[str, str], ...]:
    """Returns the names of an encoder without its last layer's variants."""
    return (
        (rf"{prefix}cls_token", "tower.class_token"),
        (rf"{prefix}pos_embed", "tower.positions"),
        (rf"{prefix}sie_embed", "camera_information"),
        (rf"{prefix}patch_embed\.proj\.(weight|bias)", r"tower.patch_embedding.\1"),
        *layer_names(rf"{prefix}blocks\.(\d+)\.", r"tower.layers.\1."),
        (rf"{prefix}norm\.(weight|bias)", r"tower.norm.\1"),
    )


HEAD_NAMES = ((r"bottleneck(_\d)?\.(\w+)", r"bottleneck\1.\2"),)


def sizes(positions: int, patch: int, options: LayoutOptions, layout: str) -> dict[str, Any]:
    """Returns height, width, stride and grid of the patches by the number of positions.

    Raises:
        UserError: if no published size, or several, have so many patches.
    """
    given = (options.height or 0, options.width or 0)
    both = (
        [given]
        if all(given)
        else [size for size in SIZES if all(g in (0, s) for g, s in zip(given, size, strict=True))]
    )
    found = []
    for height, width in both:
        for stride in STRIDES if options.stride is None else (options.stride,):
            grid = [(side - patch) // stride + 1 for side in (height, width)]
            if grid[0] * grid[1] == positions:
                found.append({"height": height, "width": width, "stride": stride, "grid": grid})
    if len(found) != 1:
        raise UserError(
            f"layout {layout}: the checkpoint has positions for {positions} patches: give the --height, --width and "
            "--stride of its training"
        )
    return found[0]


def build(weights: Weights, options: LayoutOptions, layout: str, coefficient: float, **settings: Any) -> Converted:
    """Makes the encoder of renamed weights; settings: fields of its configuration.

    Side information of the cameras is part of the positions (TransReID) or of the class token (CLIP-ReID) then.
    """
    options.refuse(layout, "semantic_weight")
    embedding, positions = (required(weights, f"tower.{name}") for name in ("patch_embedding.weight", "positions"))
    size, patch = embedding.shape[0], embedding.shape[2]
    chosen = sizes(positions.shape[1] - 1, patch, options, layout)
    if "tower.layers.0.qkv.bias" not in weights or size % HEAD:
        raise UserError(f"layout {layout}: attention of another kind: only heads of {HEAD} with a bias are known")
    target = "tower.class_token" if settings.get("pre_norm") else "tower.positions"
    weights[target] = weights[target] + camera_information(weights, options, layout, coefficient)
    config = ReIDViTConfig(
        hidden_size=size,
        intermediate_size=required(weights, "tower.layers.0.fc1.weight").shape[0],
        num_hidden_layers=numbered(weights, r"tower\.layers\.(\d+)\."),
        num_attention_heads=size // HEAD,
        patch_size=patch,
        stride=chosen["stride"],
        grid=chosen["grid"],
        patch_bias="tower.patch_embedding.bias" in weights,
        **settings,
    )
    pooling = "mean" if config.parts else "class"
    fields = {"height": chosen["height"], "width": chosen["width"], "pooling": pooling, "feature_after_bn": False}
    fields["bnneck"] = "reid_head.bottleneck.weight" in weights
    return Converted(config, fields, weights)


def transreid(weights: Weights, options: LayoutOptions) -> Converted:
    """TransReID. With the part features (JPM), copies of the last layer replace it and make the parts."""
    parts = any(name.startswith("tower.part_layer.") for name in weights)
    last = numbered(weights, r"tower\.layers\.(\d+)\.") - 1
    if parts:
        # The encoder's own last layer and norm are not run.
        for name in list(weights):
            if name.startswith("global_layer."):
                weights[f"tower.layers.{last}.{name.removeprefix('global_layer.')}"] = weights.pop(name)
            elif name.startswith("global_norm."):
                weights[f"tower.norm.{name.removeprefix('global_norm.')}"] = weights.pop(name)
    heads = ["bottleneck", *(f"bottleneck_{number}" for number in range(1, 1 + PARTS))] if parts else ["bottleneck"]
    joined_batch_norms(weights, heads)
    if parts and "reid_head.bottleneck.weight" in weights:
        _divide_parts(weights)
    return build(weights, options, "transreid", 3.0, parts=parts)


def _divide_parts(weights: Weights) -> None:
    """Adapts the batch norm to part features that are divided by 4 before it, not after it, in place.

    TransReID divides the normalised features; the head here normalises features that are divided already. Only its
    epsilon has another effect then.
    """
    size = len(weights["reid_head.bottleneck.weight"]) // (1 + PARTS)
    for name, factor in (("weight", 1 / PARTS), ("running_mean", 1 / PARTS), ("running_var", 1 / PARTS**2)):
        values = weights[f"reid_head.bottleneck.{name}"].clone()
        values[size:] *= factor
        weights[f"reid_head.bottleneck.{name}"] = values


def personvit(weights: Weights, options: LayoutOptions) -> Converted:
    """PersonViT: a fine-tuned checkpoint has TransReID's layout without side information and parts."""
    joined_batch_norms(weights, ["bottleneck"])
    return build(weights, options, "personvit", 3.0)


def clip_reid(weights: Weights, options: LayoutOptions) -> Converted:
    """CLIP-ReID's image encoder: the feature is the class token followed by its projection."""
    for name in ("class_token", "positions"):
        value = required(weights, f"tower.{name}")
        weights[f"tower.{name}"] = value.reshape(1, -1, value.shape[-1])
    projection = required(weights, "tower.projection.weight").transpose(0, 1)
    weights["tower.projection.weight"] = projection
    joined_batch_norms(weights, ["bottleneck", "bottleneck_proj"])
    settings = {"pre_norm": True, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    return build(weights, options, "clip_reid", 1.0, projection_size=len(projection), **settings)


JPM = (
    *((f"b1\\.0\\.{old}", f"global_layer.{new}") for old, new in LAYER),
    (r"b1\.1\.(weight|bias)", r"global_norm.\1"),
    *((f"b2\\.0\\.{old}", f"tower.part_layer.{new}") for old, new in LAYER),
    (r"b2\.1\.(weight|bias)", r"tower.part_norm.\1"),
)
CLASSIFIERS = (r"(base\.)?(fc|head|classifier(_\w+)?)\..*",)

TRANSREID = Layout(
    name="transreid",
    source="https://github.com/damo-cv/TransReID",
    marks=(r"base\.cls_token", r"base\.patch_embed\.proj\.weight", r"base\.blocks\.0\.attn\.qkv\.weight"),
    names=(*encoder_names(r"base\."), *HEAD_NAMES, *JPM),
    left_out=CLASSIFIERS,
    build=transreid,
    pixels=PIXELS,
)
PERSONVIT = Layout(
    name="personvit",
    source="https://github.com/hustvl/PersonViT",
    marks=(r"(backbone\.)?cls_token", r"(backbone\.)?pos_embed", r"(backbone\.)?blocks\.0\.attn\.qkv\.weight"),
    names=(*encoder_names(r"(?:base\.|backbone\.)?"), *HEAD_NAMES),
    left_out=(*CLASSIFIERS, r"(backbone\.)?(fc|head)\..*"),
    build=personvit,
    shared=True,
    pixels=PIXELS,
)
CLIP_REID = Layout(
    name="clip_reid",
    source="https://github.com/Syliz517/CLIP-ReID",
    marks=(r"image_encoder\.class_embedding", r"image_encoder\.transformer\.resblocks\.0\.attn\.in_proj_weight"),
    names=(
        (r"image_encoder\.class_embedding", "tower.class_token"),
        (r"image_encoder\.positional_embedding", "tower.positions"),
        (r"image_encoder\.conv1\.weight", "tower.patch_embedding.weight"),
        (r"image_encoder\.ln_pre\.(weight|bias)", r"tower.pre_norm.\1"),
        (r"image_encoder\.ln_post\.(weight|bias)", r"tower.norm.\1"),
        (r"image_encoder\.proj", "tower.projection.weight"),
        (r"cv_embed", "camera_information"),
        *(
            (rf"image_encoder\.transformer\.resblocks\.(\d+)\.{old}", rf"tower.layers.\1.{new}")
            for old, new in (
                (r"ln_([12])\.(weight|bias)", r"norm\2.\3"),
                (r"attn\.in_proj_(weight|bias)", r"qkv.\2"),
                (r"attn\.out_proj\.(weight|bias)", r"proj.\2"),
                (r"mlp\.c_fc\.(weight|bias)", r"fc1.\2"),
                (r"mlp\.c_proj\.(weight|bias)", r"fc2.\2"),
            )
        ),
        (r"bottleneck(_proj)?\.(\w+)", r"bottleneck\1.\2"),
    ),
    left_out=(r"classifier(_proj)?\..*", r"(prompt_learner|text_encoder)\..*"),
    build=clip_reid,
    pixels=PIXELS,
)
