"""`embed`: the embeddings of a folder of person crops, for search."""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from ..data.images import NAMED_FILES, broken_images, is_hidden, list_image_tree, safe_join
from ..evaluation.embedding import embed_feature, model_fingerprint
from ..model.images import SUFFIXES
from ..options.arguments import EmbeddingArguments, MethodArguments, ModelArguments
from ..options.parser import parse
from ..retrieval.embeddings import check_embeddings_output, fault_of_name, printable, save_embeddings
from ..training.loading import load_encoder, to_device
from ..utils.errors import UserError
from ..utils.processes import on_main, this_process


@dataclass
class EmbedArguments:
    """What is embedded, and where to."""

    images: str = field(metadata={"help": f"Folder of person crops ({', '.join(SUFFIXES)}), with its sub-folders."})
    output: str = field(metadata={"help": "Folder for the embeddings and their file names."})
    on_error: Literal["stop", "skip"] = field(
        default="stop", metadata={"help": "Stop at an image that cannot be used, or leave such images out."}
    )


class FoundImages(NamedTuple):
    """The images to embed, the others with what is wrong with each, and files that are no images."""

    names: list[str]
    left_out: dict[str, str]
    others: list[str]


def main(argv: list[str]) -> None:
    """Writes the configured feature of every image under a folder, ordered by name; processes share the images."""
    groups = (ModelArguments, EmbedArguments, EmbeddingArguments, MethodArguments)
    model_args, args, embedding_args, method_args = parse(groups, argv, "embed")
    folder, model_name = Path(args.images), model_args.model
    found = on_main(find_images, folder, args.on_error)
    on_main(check_embeddings_output, args.output, inputs=[folder])
    if args.on_error == "skip":
        found = on_main(without_broken, folder, found)
    if os.path.exists(model_name):
        # The index must stay usable from another working folder.
        model_name = str(Path(model_name).resolve())
    for path in (str(folder.resolve()), model_name):
        if fault := fault_of_name(path.lstrip("/")):
            raise UserError(f"{printable(path)}: {fault}: rename the folder")
    model, processor = load_encoder(model_args, method_args.given())
    to_device(model)
    features = embed_feature(model, processor, [folder / name for name in found.names], **asdict(embedding_args))
    metadata = {
        **asdict(model_args),
        "model": model_name,
        "dtype": str(model_args.torch_dtype).removeprefix("torch."),
        "fields": method_args.given(),
        "images": str(folder.resolve()),
        "test_feature": model.config.test_feature,
        "height": processor.height,
        "width": processor.width,
        "flip_test": embedding_args.flip_test,
        "fingerprint": model_fingerprint(model, processor).tolist(),
        "left_out": {printable(name): fault for name, fault in sorted(found.left_out.items())},
    }
    on_main(save_embeddings, args.output, features, found.names, metadata)
    if this_process().is_main_process:
        width, feature = features.shape[1], metadata["test_feature"]
        print(f"{len(features):,} embeddings of {width} numbers ({feature}): {printable(args.output)}")
        for what, names in (
            ("images that cannot be used", list(found.left_out)),
            ("files and links that are no images", found.others),
        ):
            if names:
                more = ", ..." if len(names) > NAMED_FILES else ""
                print(f"left out: {len(names):,} {what}: {', '.join(map(printable, names[:NAMED_FILES]))}{more}")


def find_images(folder: Path, on_error: str = "stop") -> FoundImages:
    """The images under a folder by their names relative to it, sorted; hidden files and folders are passed over.

    Raises UserError where there is no image, and, unless on_error is "skip", naming one that no index may hold.
    """
    if not os.path.isdir(folder):  # unlike Path's, False for what can be no path
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
    others = sorted([*listed.left_out, *_linked_folders(folder)])
    return _some(folder, FoundImages(names, faults, others))


def without_broken(folder: Path, found: FoundImages) -> FoundImages:
    """Opens every image, and moves those that cannot be opened to what is left out. Raises UserError where all are."""
    paths = [folder / name for name in found.names]
    broken = {
        found.names[place]: text.removeprefix(f"{paths[place]}: ") for place, text in broken_images(paths).items()
    }
    names = [name for name in found.names if name not in broken]
    return _some(folder, FoundImages(names, {**found.left_out, **broken}, found.others))


def _some(folder: Path, found: FoundImages) -> FoundImages:
    """What was found, where there is an image in it."""
    if not found.names:
        faults = next((f"; {printable(name)}: {fault}" for name, fault in found.left_out.items()), "")
        raise UserError(
            f"images {folder}: no image ({', '.join(SUFFIXES)}) in it{faults}: give a folder that holds crops"
        )
    return found


def _linked_folders(folder: Path) -> list[str]:
    """Folders behind symbolic links, which are not entered."""
    linked = []
    for root, folders, _ in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(name)]
        linked += [Path(root, name) for name in folders if os.path.islink(os.path.join(root, name))]
    return [path.relative_to(folder).as_posix() for path in linked]


def _fault(folder: Path, name: str) -> str | None:
    """Why a file that is called an image cannot stand in an index, without opening it."""
    if fault := fault_of_name(name):
        return fault
    if os.path.islink(folder / name):
        try:
            safe_join(folder, name)
        except UserError:
            return "a symbolic link that leads out of the folder"
    return None
