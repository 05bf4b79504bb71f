"""`convert`: makes a vision form of a published ReID checkpoint, once."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..hub.convert import LAYOUTS, convert, find_layout, read_checkpoint
from ..hub.export import write_export
from ..hub.layouts.layout import LayoutOptions
from ..options.data_arguments import LicenceArguments
from ..options.parser import parse
from ..utils.outputs import check_output_folder
from ..utils.ranges import NotNegative, Pixels, Share


@dataclass
class ConvertArguments:
    """The checkpoint, and the folder for the vision form."""

    file: str = field(metadata={"help": "Checkpoint of a published ReID model: a pickle of torch, or safetensors."})
    to: str = field(metadata={"help": "Folder for the vision form; it must be new or empty."})
    layout: str | None = field(
        default=None, metadata={"help": f"{', '.join(LAYOUTS)}. Default: by the names of the weights."}
    )
    trained_on: list[str] = field(
        default_factory=list,
        metadata={"help": "Data sets that it was trained on, for the checks of seen people."},
    )
    feature_after_bn: bool | None = field(
        default=None, metadata={"help": "Take the feature after the batch norm. Default: as its project tests."}
    )


@dataclass
class ConvertedModel:
    """What the weights do not say. Default: what the project's published configurations have."""

    height: Pixels | None = field(default=None, metadata={"help": "Height of the crops in its training."})
    width: Pixels | None = field(default=None, metadata={"help": "Width of the crops in its training."})
    stride: Pixels | None = field(default=None, metadata={"help": "Stride of the patches of a vision transformer."})
    camera: str | None = field(
        default=None,
        metadata={"help": "Camera whose side information (SIE) every crop gets: a number, or mean. Default: mean."},
    )
    sie_coefficient: NotNegative | None = field(
        default=None, metadata={"help": "Factor of the side information. Default: 3 (TransReID), 1 (CLIP-ReID)."}
    )
    semantic_weight: Share | None = field(
        default=None, metadata={"help": "Share of semantics in SOLIDER's stages. Default: 0.2, as its authors test."}
    )
    image_mean: list[float] = field(
        default_factory=list, metadata={"help": "Mean of red, green and blue, of pixels 0 to 1."}
    )
    image_std: list[float] = field(
        default_factory=list, metadata={"help": "Standard deviation of red, green and blue, of pixels 0 to 1."}
    )

    def __post_init__(self) -> None:
        for name in ("image_mean", "image_std"):
            values = getattr(self, name)
            if len(values) not in (0, 3) or not all(map(math.isfinite, values)):
                raise ValueError(f"{name}: {values}: give three numbers, for red, green and blue")
        if 0 in self.image_std:
            raise ValueError("image_std: has a 0, and pixels are divided by it: give another number")


def main(argv: list[str]) -> None:
    """Writes the vision form. The folder appears once it is complete."""
    if argv and not argv[0].startswith("-") and Path(argv[0]).suffix not in (".yaml", ".yml"):
        argv = ["--file", *argv]
    args, model_args, licence_args = parse((ConvertArguments, ConvertedModel, LicenceArguments), argv, "convert")
    file, output = Path(args.file), Path(args.to)
    check_output_folder(output)
    weights = read_checkpoint(file)
    layout = find_layout(weights, args.layout)
    values = asdict(model_args)
    fields = {name: values.pop(name) for name in ("image_mean", "image_std")}
    fields = {name: value for name, value in fields.items() if value}
    if args.feature_after_bn is not None:
        fields["feature_after_bn"] = args.feature_after_bn
    model, processor = convert(
        weights,
        layout,
        LayoutOptions(**values),
        trained_on=sorted(set(args.trained_on)) or None,
        base_licence=licence_args.licence,
        **fields,
    )
    form = write_export(model, processor, output, to="vision", name=output.name)
    count = sum(parameter.numel() for parameter in form.parameters())
    size = f"crops of {processor.height} x {processor.width}, feature of {model.feature_size} numbers"
    print(f"{layout.name}, {count:,} parameters, {size}: {output}")
