"""Loading of a model that embeds images; an ONNX file needs no torch."""

from typing import TYPE_CHECKING, Any

from ..evaluation.onnx_encoder import load_onnx
from ..evaluation.onnx_files import find_onnx
from ..options.arguments import ModelArguments, OnnxArguments
from ..utils.errors import UserError

if TYPE_CHECKING:
    from ..evaluation.torch_embedding import Encoder, EncoderProcessor


def load_embedder(
    arguments: ModelArguments, fields: dict[str, Any] | None = None, onnx: OnnxArguments | None = None
) -> "tuple[Encoder, EncoderProcessor]":
    """Loads a model that embeds images to the device of this process: an ONNX file, or a model of `load_encoder`.

    Args:
        arguments (`ModelArguments`): Name or folder of the model, or an ONNX file.
        fields (`dict[str, Any]`, *optional*): Configuration fields to replace; an ONNX file takes height and width.
        onnx (`OnnxArguments`, *optional*): How an ONNX file takes images, where the file does not say so.

    Returns:
        `tuple[Encoder, EncoderProcessor]`

    Raises:
        UserError: As in `load_encoder` and `load_onnx`, and if the model cannot embed a crop.
    """
    fields = dict(fields or {})
    path = find_onnx(arguments.model)
    if path is None:
        from .loading import load_ready_encoder  # torch and transformers take seconds to import

        return load_ready_encoder(arguments, fields)
    others = sorted(set(fields) - {"height", "width"})
    if others:
        raise UserError(f"model {path}: an ONNX file has no such settings: leave out {', '.join(others)}")
    return load_onnx(path, onnx or OnnxArguments(), fields, arguments.dtype_name)
