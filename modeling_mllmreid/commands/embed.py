"""`embed`: computes the embeddings of a folder of person crops, for search."""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from ..data.images import NAMED_FILES, OWN_FILES, broken_images, is_hidden, list_image_tree, safe_join
from ..evaluation.embedding import embed_feature, model_fingerprint
from ..evaluation.onnx_encoder import OnnxEncoder, check_onnx_options, print_onnx
from ..model.images import SUFFIXES
from ..options.arguments import EmbeddingArguments, MethodArguments, ModelArguments, OnnxArguments
from ..options.parser import parse
from ..retrieval.embeddings import (
    check_embeddings_output,
    fault_of_name,
    printable,
    save_embeddings,
    stored_model,
)
from ..training.embedder import load_embedder
from ..utils.errors import UserError
from ..utils.processes import on_main, place


@dataclass
class EmbedArguments:
    """The images to embed, and the output folder."""

    images: str = field(metadata={"help": f"Folder of person crops ({', '.join(SUFFIXES)}), with its sub-folders."})
    output: str = field(metadata={"help": "Folder for the embeddings and their file names."})
    on_error: Literal["stop", "skip"] = field(
        default="stop", metadata={"help": "Stop at an image that cannot be used, or leave such images out."}
    )


class ImageList(NamedTuple):
    """The images to embed, the faults of the unusable ones, and the files that are not images."""

    names: list[str]
    left_out: dict[str, str]
    others: list[str]


def main(argv: list[str]) -> None:
    """Writes the test feature of every image under a folder, ordered by name; the processes share the images."""
    groups = (ModelArguments, EmbedArguments, EmbeddingArguments, MethodArguments, OnnxArguments)
    model_args, args, embedding_args, method_args, onnx_args = parse(groups, argv, "embed")
    check_onnx_options(onnx_args, [model_args.model])
    folder, model_name = Path(args.images), model_args.model_name
    images = on_main(find_images, folder, args.on_error)
    on_main(check_embeddings_output, args.output, inputs=[folder])
    earlier = on_main(stored_model, args.output)
    if args.on_error == "skip":
        images = on_main(without_broken, folder, images)
    if model_name == model_args.model and os.path.exists(model_name):
        # An absolute path, so that search works from another working directory.
        model_name = str(Path(model_name).resolve())
    for path in (str(folder.resolve()), model_name):
        if fault := fault_of_name(path.lstrip("/")):
            raise UserError(f"{printable(path)}: {fault}: rename the folder")
    model, processor = load_embedder(model_args, method_args.given(), onnx_args)
    print_onnx(model)
    features = embed_feature(model, processor, [folder / name for name in images.names], **asdict(embedding_args))
    metadata = {
        **asdict(model_args),
        "model": model_name,
        "dtype": model_args.dtype_name,
        "fields": method_args.given(),
        "images": str(folder.resolve()),
        "test_feature": model.config.test_feature,
        "height": processor.height,
        "width": processor.width,
        "flip_test": embedding_args.flip_test,
        "fingerprint": model_fingerprint(model, processor).tolist(),
        "left_out": {printable(name): fault for name, fault in sorted(images.left_out.items())},
    }
    if isinstance(model, OnnxEncoder):
        metadata |= model.metadata()
    on_main(save_embeddings, args.output, features, images.names, metadata)
    if place().rank == 0:
        width, feature = features.shape[1], metadata["test_feature"]
        if earlier not in (None, model_name):
            print(f"replaced: the embeddings of {printable(earlier)}")
        print(f"{len(features):,} embeddings of {width} numbers ({feature}): {printable(args.output)}")
        print_left_out("images that cannot be used", list(images.left_out))
        print_left_out("files and links that are no images", images.others)


def print_left_out(kind: str, names: list[str]) -> None:
    """Prints the number of left out files of a kind, and the names of the first ones."""
    if names:
        more = ", ..." if len(names) > NAMED_FILES else ""
        print(f"left out, {kind}: {len(names):,} ({', '.join(map(printable, names[:NAMED_FILES]))}{more})")


def find_images(folder: Path, on_error: str = "stop") -> ImageList:
    """Lists the images under a folder by relative name, sorted; ignores hidden files and folders.

    Raises UserError if there is no image, or, unless on_error is "skip", if an image cannot be embedded.
    """
    if os.path.isfile(folder):
        raise UserError(f"images {folder}: is a file: give the folder that holds the crops")
    if not os.path.isdir(folder):  # Path.is_dir raises for an impossible path
        raise UserError(f"images {folder}: no such folder: give the folder that holds the crops")
    listed = list_image_tree(folder)
    faults = {name: fault for name in listed.names if (fault := _fault(folder, name))}
    if faults and on_error != "skip":
        name, fault = next(iter(faults.items()))
        raise UserError(
            f"images {folder}: {printable(name)}: {fault} ({len(faults)} such images): rename or replace it, or leave "
            "such images out with --on_error skip"
        )
    names = [name for name in listed.names if name not in faults]
    others = sorted([*(name for name in listed.left_out if name not in OWN_FILES), *_linked_folders(folder)])
    return _not_empty(folder, ImageList(names, faults, others))


def without_broken(folder: Path, images: ImageList) -> ImageList:
    """Opens every image, and leaves out those that cannot be opened. Raises UserError if none can."""
    paths = [folder / name for name in images.names]
    broken = {
        images.names[place]: text.removeprefix(f"{paths[place]}: ") for place, text in broken_images(paths).items()
    }
    names = [name for name in images.names if name not in broken]
    return _not_empty(folder, ImageList(names, {**images.left_out, **broken}, images.others))


def _not_empty(folder: Path, images: ImageList) -> ImageList:
    """Returns the list. Raises UserError if it has no image."""
    if not images.names:
        faults = next((f"; {printable(name)}: {fault}" for name, fault in images.left_out.items()), "")
        raise UserError(
            f"images {folder}: no image ({', '.join(SUFFIXES)}) in it{faults}: give a folder that holds crops"
        )
    return images


def _linked_folders(folder: Path) -> list[str]:
    """Returns the symbolic links to folders, which are not followed."""
    linked = []
    for root, folders, _ in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        linked += [Path(root, name) for name in folders if os.path.islink(os.path.join(root, name))]
    return [path.relative_to(folder).as_posix() for path in linked]


def _fault(folder: Path, name: str) -> str | None:
    """Returns why an image cannot be embedded, without opening it, or None."""
    if fault := fault_of_name(name):
        return fault
    if os.path.islink(folder / name):
        try:
            safe_join(folder, name)
        except UserError:
            return "a symbolic link that leads out of the folder"
    return None
