"""Makes a model that comes with the package out of a trained checkpoint, with large weights in 16 bits.

python -m modeling_mllmreid.hub.pack runs/pedestrians_small pedestrians-small
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ..model import MllmReIDVisionModel, MllmReIDVisionProcessor
from ..model.shipped_models import PRETRAINED
from ..utils.outputs import scratch_folder
from .export import write_export
from .onnx import export_onnx, random_crops

WEIGHTS, CONFIG, ONNX = "model.safetensors", "config.json", "model.onnx"
# The card is written by hand. The package has the code of the model already.
AS_EXPORTED = ("processor_config.json", "run.json", "threshold.json")
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
