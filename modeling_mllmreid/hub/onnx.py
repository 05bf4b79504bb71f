"""Exports the vision form to an ONNX file, which runs without Python and without this package."""

import contextlib
import copy
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from ..evaluation.onnx_settings import SETTINGS_KEY, TRAINED_ON_KEY
from ..model import MllmReIDVisionModel, MllmReIDVisionProcessor
from ..utils.errors import UserError

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
# A protobuf file is limited to 2 GiB, of which the graph takes some.
SINGLE_FILE = 2_000_000_000


class Embedding(nn.Module):
    """A module whose forward pass is `encode_images`, which torch can trace."""

    def __init__(self, model: MllmReIDVisionModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Embeds crops of shape (B, 3, H, W). Returns (B, D)."""
        return self.model.encode_images(pixel_values)


# What `--model FILE.onnx` reads of an image processor.
SETTINGS = ("size", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "resample")


def export_onnx(
    model: MllmReIDVisionModel,
    path: str | os.PathLike[str],
    processor: MllmReIDVisionProcessor | None = None,
    *,
    fuse_norms: bool = True,
) -> None:
    """Writes a vision form to an ONNX file, and runs the file to compare its embeddings with the model's.

    The input `pixel_values` has shape (B, 3, H, W) and the output `embedding` has shape (B, D), both float32. B is
    free; H and W are the model's.

    Args:
        model ([`MllmReIDVisionModel`]):
            The vision form; it is not changed.
        path (`str` or `os.PathLike`):
            The file. Weights of 2 GB and more go to a second file, `<path>.data`.
        processor ([`MllmReIDVisionProcessor`], *optional*):
            The model's processor, whose settings the file's metadata holds, with the names of the training's data sets.
        fuse_norms (`bool`, *optional*, defaults to `True`):
            Whether batch norms become part of the convolutions. Otherwise the file has the model's own weights, and
            onnxruntime fuses them when it loads the file.

    Raises:
        UserError: if a package is missing.
        RuntimeError: if the embeddings differ. No file is left.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"onnx: {', '.join(missing)} not installed: pip install 'mllmreid[onnx]'")
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass  # which comes with onnxscript
    from onnxscript import optimizer

    path = Path(path)
    # A copy, since the file is float32 and traced on the CPU, whatever the model is.
    form = copy.deepcopy(model).cpu().float().eval()
    size = sum(tensor.numel() * tensor.element_size() for tensor in form.state_dict().values())
    encoder = form.tower
    form.tower = form.config.tower.traceable(form.tower, form.config.height, form.config.width)
    try:
        with quiet():
            program = torch.onnx.export(
                Embedding(form).eval(),
                # Two crops, since torch takes a batch of one for a constant.
                (random_crops(form, 2),),
                input_names=["pixel_values"],
                output_names=["embedding"],
                dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
                dynamo=True,
                optimize=fuse_norms,
                verbose=False,
            )
            assert program is not None  # None is possible only with dynamo=False
            if not fuse_norms:
                for simplify in (optimizer.inline, optimizer.fold_constants, optimizer.remove_unused_nodes):
                    simplify(program.model)
            # torch gives the output's name to a lookup of position embeddings too.
            graph = program.model.graph
            inner = [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]
            for value in inner:
                if value.name == "embedding" and not value.is_graph_output():
                    value.name = "position_embeddings_lookup"
            # Every node holds a stack trace with this machine's paths.
            ClearMetadataAndDocStringPass()(program.model)
            program.model.metadata_props.update(metadata(model, processor))
            program.save(path, external_data=size >= SINGLE_FILE)
        form.tower = encoder
        check_onnx(form, path)
    except BaseException:
        for written in (path, path.with_name(f"{path.name}.data")):
            written.unlink(missing_ok=True)
        raise


def metadata(model: MllmReIDVisionModel, processor: MllmReIDVisionProcessor | None) -> dict[str, str]:
    """Returns the entries of the file's metadata: the data sets of the training, and how the model takes images."""
    entries = {TRAINED_ON_KEY: json.dumps(model.config.trained_on or [])}
    if processor is not None:
        settings = processor.image_processor.to_dict()
        entries[SETTINGS_KEY] = json.dumps({name: settings[name] for name in SETTINGS if name in settings})
    return entries


def check_onnx(form: MllmReIDVisionModel, path: Path) -> None:
    """Raises RuntimeError if onnxruntime's embeddings of one and of three random crops differ from the model's."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        crops = random_crops(form, count)
        with torch.no_grad():
            expected = form.encode_images(crops).cpu()
        embeddings = torch.from_numpy(session.run(["embedding"], {"pixel_values": crops.numpy()})[0])
        if embeddings.shape != expected.shape:
            raise RuntimeError(f"{path}: gives {tuple(embeddings.shape)}, the model {tuple(expected.shape)}")
        difference = (embeddings - expected).abs().max().item()
        if not difference <= TOLERANCE:
            raise RuntimeError(f"{path}: embeddings are {difference:.1e} off the model's, over {TOLERANCE}")


def random_crops(form: MllmReIDVisionModel, count: int) -> Tensor:
    """Returns random crops of shape (count, 3, H, W), the same at every call."""
    shape = (count, 3, form.config.height, form.config.width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(count))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppresses the exporter's warnings and log lines about its own steps."""
    previous_level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous_level)
