"""The vision form as an ONNX file, which runs without Python and without this package."""

import contextlib
import copy
import io
import logging
import os
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from ..model import MllmReIDVisionModel
from ..utils.errors import UserError

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
# A protobuf file ends at 2 GiB; the graph beside the weights takes some of it.
SINGLE_FILE = 2_000_000_000


class Embedding(nn.Module):
    """`encode_images` as a forward that torch can trace."""

    def __init__(self, model: MllmReIDVisionModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D)."""
        return self.model.encode_images(pixel_values)


def export_onnx(model: MllmReIDVisionModel, path: str | os.PathLike) -> None:
    """Writes a vision form to an ONNX file: `pixel_values`, (B, 3, H, W), to `embedding`, (B, D), both float32.

    B is free, H and W are the form's. Weights of 2 GB and more lie beside it, in `<path>.data`. The file is run and
    compared before it stays. Raises UserError where a package is missing, RuntimeError where the embeddings differ.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"onnx: {', '.join(missing)} not installed: pip install '.[onnx]'")
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass  # which comes with onnxscript

    path = Path(path)
    # A copy: the file is float32 on the CPU, whatever the model is, which stays as it was.
    form = copy.deepcopy(model).cpu().float().eval()
    form.tower.set_attn_implementation("sdpa")
    size = sum(tensor.numel() * tensor.element_size() for tensor in form.state_dict().values())
    try:
        with quiet():
            program = torch.onnx.export(
                Embedding(form).eval(),
                # Two crops: torch takes a batch of one for a constant.
                (random_crops(form, 2),),
                input_names=["pixel_values"],
                output_names=["embedding"],
                dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
                dynamo=True,
                verbose=False,
            )
            assert program is not None  # it is none with dynamo=False alone
            # torch gives this name to a lookup of position embeddings, too, and does not see that it is taken.
            graph = program.model.graph
            inner = [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]
            for value in inner:
                if value.name == "embedding" and not value.is_graph_output():
                    value.name = "position_rows"
            # Every node carries a stack trace, with this machine's paths.
            ClearMetadataAndDocStringPass()(program.model)
            program.save(path, external_data=size >= SINGLE_FILE)
        check_onnx(form, path)
    except BaseException:
        for written in (path, path.with_name(f"{path.name}.data")):
            written.unlink(missing_ok=True)
        raise


def check_onnx(form: MllmReIDVisionModel, path: Path) -> None:
    """Raises RuntimeError where onnxruntime's embeddings of one and of three random crops are not the form's."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 3):
        crops = random_crops(form, count)
        with torch.no_grad():
            expected = form.encode_images(crops).cpu()
        got = torch.from_numpy(session.run(["embedding"], {"pixel_values": crops.numpy()})[0])
        if got.shape != expected.shape:
            raise RuntimeError(f"{path}: gives {tuple(got.shape)}, the model {tuple(expected.shape)}")
        difference = (got - expected).abs().max().item()
        if not difference <= TOLERANCE:
            raise RuntimeError(f"{path}: embeddings are {difference:.1e} off the model's, over {TOLERANCE}")


def random_crops(form: MllmReIDVisionModel, count: int) -> Tensor:
    """(count, 3, H, W), the same at every call."""
    shape = (count, 3, form.config.height, form.config.width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(count))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Holds back what the exporter says of its own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
