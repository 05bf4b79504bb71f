"""Makes a model that comes with the package out of a trained checkpoint, with large weights in 16 bits.

python -m modeling_mllmreid.hub.pack runs/pedestrians_small pedestrians-small
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ..data.contract import image_sources
from ..data.load import load_reid_dataset
from ..evaluation.calibration_fit import fit_calibration
from ..evaluation.embedding import embed_images
from ..evaluation.onnx_encoder import load_onnx
from ..evaluation.threshold import THRESHOLD_FILE, load_thresholds, save_thresholds
from ..model import MllmReIDVisionModel, MllmReIDVisionProcessor
from ..model.shipped_models import PRETRAINED
from ..options.arguments import OnnxArguments
from ..synthetic.worlds import World
from ..synthetic.write import write_pedestrians
from ..utils.outputs import scratch_folder
from .export import write_export
from .onnx import export_onnx, random_crops

WEIGHTS, CONFIG, ONNX = "model.safetensors", "config.json", "model.onnx"
# The card is written by hand. The package has the code of the model already.
AS_EXPORTED = ("processor_config.json", "run.json", "threshold.json")
# The people of the calibration are in no named world. Those of val are 100 of the 2,400 people of the towns, so hardly
# any look-alike of theirs is among them, and a calibration on them promises too much.
CALIBRATION = World(310, scenes=40, cameras=5, images_per_camera=2, test_identities=200)
CODE_FIELDS = ("auto_map", "custom_pipelines")
LEAST_COSINE = 0.999


def pack(checkpoint: Path, folder: Path) -> None:
    """Writes the files of a model that comes with the package.

    Args:
        checkpoint (`Path`): The trained encoder without language model.
        folder (`Path`): The folder for the files; files of the same names are replaced, its card stays.

    Raises:
        OSError, ValueError, UserError: As in loading and exporting a checkpoint.
        RuntimeError: 16 bits change the embeddings, or the ONNX file has others.
    """
    model = MllmReIDVisionModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    processor = MllmReIDVisionProcessor.from_pretrained(checkpoint)
    crops = random_crops(model, 16)
    with torch.no_grad():
        trained = model.encode_images(crops)
        # Both files have the rounded weights, so that they agree.
        for weight in filter(is_large, model.parameters()):
            weight.copy_(weight.half())
        cosine = (model.encode_images(crops) * trained).sum(dim=1).min().item()
    if not cosine >= LEAST_COSINE:
        raise RuntimeError(f"{checkpoint}: 16 bits change embeddings to a cosine of {cosine:.5f}, below {LEAST_COSINE}")
    folder.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder) as scratch:
        export = scratch / "export"
        write_export(model, processor, export, to="vision", name=folder.name, source=checkpoint)
        weights = {name: w.half() if is_large(w) else w for name, w in load_file(export / WEIGHTS).items()}
        done = scratch / "done"
        done.mkdir()
        save_file(weights, done / WEIGHTS, metadata={"format": "pt"})
        fields = json.loads((export / CONFIG).read_text(encoding="utf-8"))
        fields = {name: value for name, value in fields.items() if name not in CODE_FIELDS}
        (done / CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        # Products of weights and norms are no numbers of 16 bits.
        export_onnx(model, scratch / ONNX, processor, fuse_norms=False)
        halve_onnx(scratch / ONNX, done / ONNX)
        for name in AS_EXPORTED:
            (done / name).write_bytes((export / name).read_bytes())
        # Weights, ONNX file and config.json are of one training: they are replaced once all are complete.
        for path in done.iterdir():
            # A checkpoint is for its owner alone, and everyone reads an installed package.
            path.chmod(0o644)
            path.replace(folder / path.name)


def add_calibration(folder: Path, world: World = CALIBRATION) -> None:
    """Fits the calibration of a packed model on rendered people of their own, and writes it into threshold.json.

    Raises RuntimeError if the model has no threshold, or if no calibration reaches its precision.
    """
    threshold = load_thresholds(str(folder)).get("vision")
    if threshold is None:
        raise RuntimeError(f"{folder}: this model has no threshold: train it with val people")
    encoder, processor = load_onnx(folder / ONNX, OnnxArguments(), {})
    with TemporaryDirectory() as scratch:
        people = write_pedestrians(Path(scratch) / "people", world, captions_per_image=0).root
        splits = load_reid_dataset("market1501", data_dir=people, strict=False)
        features, persons = [], []
        for split in (splits["query"], splits["gallery"]):
            features.append(embed_images(encoder, processor, image_sources(split), names=("vision",))["vision"])
            persons += split["person_id"][:]
    calibration = fit_calibration(np.concatenate(features), persons)
    if calibration is None:
        raise RuntimeError(f"{folder}: groups of this model do not reach the precision: train it longer")
    save_thresholds(folder, {"vision": replace(threshold, calibration=calibration)})
    (folder / THRESHOLD_FILE).chmod(0o644)


def is_large(weight: torch.Tensor) -> bool:
    """Returns whether a weight is a kernel or a matrix, and not a vector of a norm."""
    return weight.ndim > 1


def halve_onnx(source: Path, target: Path) -> None:
    """Writes a copy of an ONNX file with 16 bits for each large weight that they hold exactly; the graph casts them."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = (program := onnx.load(source)).graph
    casts = []
    for index, weight in enumerate(graph.initializer):
        if weight.data_type != TensorProto.FLOAT or len(weight.dims) < 2:
            continue
        values = numpy_helper.to_array(weight)
        if ((halved := values.astype("float16")) == values).all():
            stored = f"{weight.name}_16_bits"
            casts.append(helper.make_node("Cast", [stored], [weight.name], to=TensorProto.FLOAT))
            graph.initializer[index].CopyFrom(numpy_helper.from_array(halved, stored))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(program)
    onnx.save(program, target)


if __name__ == "__main__":
    if len(sys.argv) != 3 or Path(sys.argv[2]).name != sys.argv[2]:
        sys.exit("usage: python -m modeling_mllmreid.hub.pack CHECKPOINT NAME")
    pack(Path(sys.argv[1]), PRETRAINED / sys.argv[2])
    add_calibration(PRETRAINED / sys.argv[2])
