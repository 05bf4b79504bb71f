"""fast-reid's SBS with ResNet-50: GeM, non-local blocks, optional IBN; the feature is that after the batch norm."""

from ...model.reid_resnet import ReIDResNetConfig
from .layout import Converted, Layout, LayoutOptions, Weights, joined_batch_norms, numbered, required

NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
BLOCK, NEW = r"backbone\.layer(\d)\.(\d+)", r"layer_\1.\2"


def fast_reid(weights: Weights, options: LayoutOptions) -> Converted:
    """SBS-R50. layer1 to layer4 are the stages 0 to 3, NL_1 to NL_4 the non-local blocks after them."""
    options.refuse("fast_reid", "camera", "sie_coefficient", "stride", "semantic_weight")
    for name in list(weights):
        for old, new in (("layer_", "stages"), ("non_local_", "non_local")):
            if name.startswith(old):
                stage = int(name[len(old)]) - 1
                weights[f"tower.{new}.{stage}{name[len(old) + 1 :]}"] = weights.pop(name)
    required(weights, "tower.stages.3.0.conv1.weight")
    config = ReIDResNetConfig(
        width=required(weights, "tower.conv.weight").shape[0],
        blocks=[numbered(weights, rf"tower\.stages\.{stage}\.(\d+)\.") for stage in range(4)],
        non_local=[numbered(weights, rf"tower\.non_local\.{stage}\.(\d+)\.") for stage in range(4)],
        ibn="tower.stages.0.0.norm1.instance.weight" in weights,
    )
    joined_batch_norms(weights, ["bottleneck"])
    pooling = "gem" if "pooling.p" in weights else "mean"
    fields = {"height": options.height or 384, "width": options.width or 128, "pooling": pooling}
    fields |= {"feature_after_bn": True, "bnneck": "reid_head.bottleneck.weight" in weights}
    return Converted(config, fields, weights)


FAST_REID = Layout(
    name="fast_reid",
    source="https://github.com/JDAI-CV/fast-reid",
    marks=(r"backbone\.layer1\.0\.conv1\.weight", r"heads\.pool_layer\.p", r"heads\.bottleneck\.0\.running_mean"),
    names=(
        (r"backbone\.conv1\.weight", "tower.conv.weight"),
        (rf"backbone\.bn1\.{NORM}", r"tower.norm.\1"),
        (rf"{BLOCK}\.conv([123])\.weight", rf"{NEW}.conv\3.weight"),
        (rf"{BLOCK}\.bn1\.IN\.(weight|bias)", rf"{NEW}.norm1.instance.\3"),
        (rf"{BLOCK}\.bn1\.BN\.{NORM}", rf"{NEW}.norm1.batch.\3"),
        (rf"{BLOCK}\.bn([123])\.{NORM}", rf"{NEW}.norm\3.\4"),
        (rf"{BLOCK}\.downsample\.([01])\.{NORM}", rf"{NEW}.shortcut.\3.\4"),
        (r"backbone\.NL_(\d)\.(\d+)\.(theta|phi)\.(weight|bias)", r"non_local_\1.\2.\3.\4"),
        (r"backbone\.NL_(\d)\.(\d+)\.g\.(weight|bias)", r"non_local_\1.\2.value.\3"),
        (rf"backbone\.NL_(\d)\.(\d+)\.W\.([01])\.{NORM}", r"non_local_\1.\2.expand.\3.\4"),
        (r"heads\.pool_layer\.p", "pooling.p"),
        (rf"heads\.bottleneck\.0\.{NORM}", r"bottleneck.\1"),
    ),
    left_out=(r"heads\.(weight|classifier.*|cls_layer.*)", r"pixel_(mean|std)"),
    build=fast_reid,
    # Mean and standard deviation of the pixels 0 to 255, divided by 255.
    pixels={"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3},
)
