"""OSNet of torchreid (deep-person-reid), widths x0.25 to x1.0."""

from ...model.reid_osnet import ReIDOSNetConfig
from .layout import Converted, Layout, LayoutOptions, Weights, numbered, required

NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"


def conv_names(old: str, new: str, *, light: bool = False) -> tuple[tuple[str, str], ...]:
    """Returns the names of a convolution with its batch norm; a light one has two convolutions."""
    group = old.count("(") + 1
    first = ((rf"{old}\.conv1\.weight", f"{new}.0.weight"), (rf"{old}\.conv2\.weight", f"{new}.1.weight"))
    convs = first if light else ((rf"{old}\.conv\.weight", f"{new}.0.weight"),)
    return (*convs, (rf"{old}\.bn\.{NORM}", rf"{new}.{len(convs)}.\{group}"))


BLOCK, NEW = r"conv([234])\.(\d)", r"stage_\1.\2"


def osnet(weights: Weights, options: LayoutOptions) -> Converted:
    """OSNet; the feature is that after the fully connected layer."""
    options.refuse("osnet", "camera", "sie_coefficient", "stride", "semantic_weight")
    # conv2 to conv4 are the stages 0 to 2.
    weights = {
        f"tower.stages.{int(name[6]) - 2}.{name[8:]}" if name.startswith("stage_") else name: weight
        for name, weight in weights.items()
    }
    channels = [required(weights, "tower.stem.0.weight").shape[0]]
    channels += [required(weights, f"tower.stages.{stage}.0.expand.0.weight").shape[0] for stage in range(3)]
    blocks = []
    for stage in range(3):
        inner = {name for name in weights if ".reduce." in name}
        blocks.append(numbered(dict.fromkeys(inner), rf"tower\.stages\.{stage}\.(\d+)\.reduce\."))
    config = ReIDOSNetConfig(
        channels=channels, blocks=blocks, feature_size=required(weights, "tower.fc.0.weight").shape[0]
    )
    size = {"height": options.height or 256, "width": options.width or 128}
    return Converted(config, {**size, "pooling": "mean", "bnneck": False}, weights)


OSNET = Layout(
    name="osnet",
    source="https://github.com/KaiyangZhou/deep-person-reid",
    marks=(r"conv1\.conv\.weight", r"conv2\.0\.conv2a\.conv1\.weight", r"fc\.0\.weight"),
    names=(
        *conv_names("conv1", "tower.stem"),
        *conv_names("conv5", "tower.last"),
        *conv_names(rf"{BLOCK}\.conv1", rf"{NEW}.reduce"),
        *conv_names(rf"{BLOCK}\.conv3", rf"{NEW}.expand"),
        *conv_names(rf"{BLOCK}\.downsample", rf"{NEW}.shortcut"),
        *conv_names(rf"{BLOCK}\.conv2a", rf"{NEW}.streams.0.0", light=True),
        *conv_names(rf"{BLOCK}\.conv2b\.(\d)", rf"{NEW}.streams.1.\3", light=True),
        *conv_names(rf"{BLOCK}\.conv2c\.(\d)", rf"{NEW}.streams.2.\3", light=True),
        *conv_names(rf"{BLOCK}\.conv2d\.(\d)", rf"{NEW}.streams.3.\3", light=True),
        (rf"{BLOCK}\.gate\.fc1\.(weight|bias)", rf"{NEW}.gate.1.\3"),
        (rf"{BLOCK}\.gate\.fc2\.(weight|bias)", rf"{NEW}.gate.3.\3"),
        *conv_names(rf"{BLOCK}\.0", rf"{NEW}.0"),
        (rf"fc\.([01])\.{NORM}", r"tower.fc.\1.\2"),
    ),
    left_out=(r"classifier\..*",),
    build=osnet,
    pixels={"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 2},
)
