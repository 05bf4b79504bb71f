"""`compose`: makes a native LLaVA out of a vision tower and a causal language model, with a new projector."""

import os
from dataclasses import dataclass, field
from typing import Literal

from ..data.licences import licence_of, normal_licence
from ..hub.compose import COMPOSED, Half, compose_llava, composed_bytes, without_warnings
from ..hub.native import Source, write_native
from ..options.arguments import torch_dtype
from ..options.parser import parse
from ..utils.outputs import check_output_folder
from ..utils.ranges import Seed


@dataclass
class ComposeArguments:
    """The two halves of the LLaVA, and the folder that it is written to."""

    tower: str = field(metadata={"help": "Vision encoder (CLIP, SigLIP, DINOv2, ViT, ...): a folder or a Hub name."})
    language_model: str = field(metadata={"help": "Causal language model: a folder or a Hub name."})
    output: str = field(metadata={"help": "Folder for the LLaVA; it must be new or empty."})
    tower_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the tower on the Hub."}
    )
    language_model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of the language model on the Hub."}
    )
    dtype: Literal["float32", "bfloat16", "float16", "bf16", "fp16"] | None = field(
        default=None, metadata={"help": "Format of the weights. Default: that of the language model."}
    )
    vision_feature_layer: int = field(
        default=-2, metadata={"help": "Vision tower layer that the projector reads. -1: the last one."}
    )
    seed: Seed = field(default=0, metadata={"help": "Seed of the projector and of new embeddings."})
    tower_licence: str | None = field(
        default=None, metadata={"help": "Licence of the tower. Default: the licence on its card."}
    )
    language_model_licence: str | None = field(
        default=None, metadata={"help": "Licence of the language model. Default: the licence on its card."}
    )

    def __post_init__(self) -> None:
        for name in ("tower_licence", "language_model_licence"):
            if getattr(self, name) is not None and normal_licence(getattr(self, name)) is None:
                raise ValueError(
                    f"{name} {getattr(self, name)!r}: not a licence: give a name that the Hub uses, such as mit"
                )


def main(argv: list[str]) -> None:
    """Writes the LLaVA. The folder appears once it is complete."""
    (args,) = parse((ComposeArguments,), argv, "compose")
    tower = Half("tower", args.tower, args.tower_revision)
    language_model = Half("language_model", args.language_model, args.language_model_revision)
    dtype = None if args.dtype is None else torch_dtype(args.dtype)
    inputs = [name for name in (args.tower, args.language_model) if os.path.isdir(name)]
    check_output_folder(args.output, inputs=inputs)
    check_output_folder(args.output, inputs=inputs, needs_bytes=composed_bytes(tower, language_model, dtype))
    with without_warnings():
        llava = compose_llava(
            tower, language_model, dtype=dtype, vision_feature_layer=args.vision_feature_layer, seed=args.seed
        )
    sources = [
        Source(role, half.name, normal_licence(licence) or licence_of(half.name, revision=half.revision))
        for role, half, licence in (
            ("vision tower", tower, args.tower_licence),
            ("language model", language_model, args.language_model_licence),
        )
    ]
    write_native(llava, args.output, sources=sources, text=COMPOSED)
    for source in sources:
        print(f"{source.role}: {source.name}, licence {source.licence or 'not recorded'}")
    print(f"{sum(weight.numel() for weight in llava.mllm.parameters()):,} parameters: {args.output}")
