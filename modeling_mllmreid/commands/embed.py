"""`embed`: the embeddings of a folder of person crops, for search."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from ..evaluation.embedding import embed_images, eval_mode
from ..model import ImageEncoder, ImageEncoderProcessor
from ..processes import on_main, this_process
from ..retrieval import save_embeddings
from .arguments import EmbeddingArguments, MethodArguments, ModelArguments
from .loading import load_encoder, to_device
from .options import parse

SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass
class EmbedArguments:
    """What is embedded, and where to."""

    images: str = field(metadata={"help": "Folder of person crops (jpg, png), with its sub-folders."})
    output: str = field(metadata={"help": "Folder for the embeddings and their file names."})


def main(argv: list[str]) -> None:
    """Writes the configured feature of every image under a folder, ordered by name; processes share the images."""
    groups = (ModelArguments, MethodArguments, EmbeddingArguments, EmbedArguments)
    model_args, method_args, embedding_args, args = parse(groups, argv, "embed")
    folder = Path(args.images)
    names = image_names(folder)
    model, processor = load_encoder(model_args, method_args.given())
    to_device(model)
    paths = [folder / name for name in names]
    features = embed_feature(model, processor, paths, **asdict(embedding_args))
    facts = {
        **asdict(model_args),
        "fields": method_args.given(),
        "images": str(folder.resolve()),
        "test_feature": model.config.test_feature,
        "height": processor.height,
        "width": processor.width,
        "flip_test": embedding_args.flip_test,
        "probe": probe(model, processor).tolist(),
    }
    if Path(model_args.model).exists():
        # The index must stay usable from another working folder.
        facts["model"] = str(Path(model_args.model).resolve())
    on_main(save_embeddings, args.output, features, names, facts)
    if this_process().is_main_process:
        print(f"{len(names):,} embeddings of {features.shape[1]} numbers ({model.config.test_feature}): {args.output}")


def image_names(folder: Path) -> list[str]:
    """The images under a folder, sorted, relative to it with forward slashes. Raises UserError where there is none."""
    if not folder.is_dir():
        raise UserError(f"images {folder}: no such folder: give the folder that holds the crops")
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES]
    if not names:
        raise UserError(f"images {folder}: no image ({', '.join(SUFFIXES)}) in it: give a folder that holds crops")
    return sorted(names)


def embed_feature(model: ImageEncoder, processor: ImageEncoderProcessor, images: list, **options) -> np.ndarray:
    """The model's configured feature alone, (N, D) float32, on process 0. options: those of `embed_images`."""
    feature = model.config.test_feature
    names = ("llm", "vision") if feature == "concat" else (feature,)
    return embed_images(model, processor, images, names=names, **options)[feature]


def probe(model: ImageEncoder, processor: ImageEncoderProcessor) -> np.ndarray:
    """The embedding (D,) of one fixed drawn image: other weights, sizes or image backends give another."""
    rows, columns = np.mgrid[0:128, 0:64]
    pixels = np.stack([2 * rows, 4 * columns, (rows * columns) % 256], axis=-1) % 256
    image = Image.fromarray(pixels.astype(np.uint8))
    with eval_mode(model):
        pixel_values = processor(images=[image])["pixel_values"].to(model.device)
        return model.encode_images(pixel_values)[0].detach().cpu().numpy()
