"""ONNX files from anywhere: finds, checks and identifies them, and opens them with onnxruntime, without torch."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from ..utils.errors import UserError
from ..utils.processes import place, this_process, usable_cores

PACKAGES = ("onnx", "onnxruntime")
SUFFIX = ".onnx"
# First bytes of a zip archive, which torch.save writes, and of a pickle.
PICKLED = (b"PK\x03\x04", b"\x80")
PICKLES = (".pth", ".pt", ".bin", ".pkl", ".pickle", ".ckpt", ".tar", ".pyth")


def find_onnx(name: str) -> Path | None:
    """Returns the ONNX file that a model's name stands for, or None for any other model.

    Args:
        name (`str`): A file `*.onnx`, or a folder with one such file and no `*.safetensors`.

    Raises:
        UserError: The file does not exist, or the folder has several ONNX files.
    """
    if "\0" in name:
        return None
    path = Path(name)
    if path.suffix.lower() == SUFFIX and not path.is_dir():
        if not path.exists():
            raise UserError(f"model {name}: no such file: correct the path")
        return path
    if not path.is_dir() or next(path.glob("*.safetensors"), None):
        return None
    files = sorted(file for file in path.glob(f"*{SUFFIX}") if file.is_file())
    if len(files) > 1:
        names = ", ".join(file.name for file in files[:10])
        raise UserError(f"model {name}: has {len(files)} ONNX files: give one of them: {names}")
    return files[0] if files else None


def missing_packages() -> list[str]:
    """Returns the packages that an ONNX file needs and that are not installed."""
    return [name for name in PACKAGES if find_spec(name) is None]


def refuse_single_file(name: str) -> None:
    """Raises UserError with the remedy if a model's name is that of a file, or of a folder with only an ONNX file."""
    if (path := find_onnx(name)) is not None:
        raise UserError(
            f"model {path}: an ONNX file can be used by embed, search and evaluate alone: give a checkpoint's folder "
            "or a name on the Hub"
        )
    # A dry run needs the configuration file alone.
    if os.path.isfile(name) and Path(name).suffix.lower() != ".json":
        raise UserError(f"model {name}: {_remedy(Path(name))}")


def _remedy(path: Path) -> str:
    """Returns what kind of file this is, and what to give in its place."""
    if path.suffix.lower() == ".safetensors":
        return "a file of weights: give the checkpoint's folder, or make one of a published ReID model with convert"
    if path.suffix.lower() in PICKLES or _first_bytes(path).startswith(PICKLED):
        return "a pickle, which no command but convert reads: make a folder of it with convert FILE --to FOLDER"
    return "a file: give a checkpoint's folder, a name on the Hub or an ONNX file (*.onnx)"


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(4)
    except OSError as error:
        raise UserError(f"model {path}: cannot be read ({error.strerror}): restore the file") from error


class OnnxFile:
    """An ONNX file with its session. Nothing outside of its folder is read.

    Args:
        path (`Path`): The file.

    Attributes:
        path (`Path`): The file.
        digest (`str`): Its SHA-256; with files of external data, the SHA-256 of the SHA-256 of all of them.
        session (`onnxruntime.InferenceSession`): The loaded model.
        inputs, outputs (`list[onnxruntime.NodeArg]`): Names, types and shapes.
        metadata (`dict[str, str]`): Its entries `metadata_props`.

    Raises:
        UserError: A package is missing, the file is not ONNX, is damaged, or needs operators or files that are missing.
    """

    def __init__(self, path: Path):
        if missing := missing_packages():
            raise UserError(f"model {path}: {', '.join(missing)} not installed: pip install 'mllmreid[onnx]'")
        if not path.is_file():
            raise UserError(f"model {path}: is a folder, a pipe or a device, not a file: give an ONNX file")
        if _first_bytes(path).startswith(PICKLED):
            raise UserError(f"model {path}: {_remedy(path.with_suffix('.pth'))}")
        self.path = path
        proto = _read(path)
        self.metadata = {entry.key: entry.value for entry in proto.metadata_props}
        self.digest = _digest(path, _external_files(path, proto))
        del proto
        self.session = _open(path)
        self.inputs, self.outputs = self.session.get_inputs(), self.session.get_outputs()
        try:
            for entry in (*self.inputs, *self.outputs):
                str(entry)  # decodes its name
        except UnicodeDecodeError as error:
            raise UserError(f"model {path}: has a name that is not UTF-8: export the model again") from error


def _read(path: Path) -> Any:
    """Returns the file as a protobuf message, without external data. Raises UserError for another kind of file."""
    import onnx

    try:
        proto = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise UserError(f"model {path}: cannot be read ({error.strerror}): restore the file") from error
    except Exception as error:  # the errors of protobuf's several implementations have no common class
        raise UserError(f"model {path}: not an ONNX file, or a damaged one: export the model again") from error
    # Other bytes can be a message without any field.
    if not proto.graph.node or not proto.graph.output:
        raise UserError(f"model {path}: not an ONNX file, or one without a graph: export the model again")
    return proto


def _tensors(graph: Any) -> Iterator[Any]:
    """Yields the tensors that a graph, its nodes and their graphs hold."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Any) -> Iterator[Any]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def _external_files(path: Path, proto: Any) -> list[str]:
    """Returns the names of the files of external data. Raises UserError for one that is missing or elsewhere."""
    functions = (tensor for function in proto.functions for tensor in _tensors_of_nodes(function.node))
    tensors = chain(_tensors(proto.graph), functions)
    names = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    folder = path.parent.resolve()
    for name in sorted(names, key=repr):
        # A name that is not UTF-8 is bytes.
        inside = isinstance(name, str) and not PurePosixPath(name).is_absolute() and "\0" not in name
        if not inside or not (path.parent / name).resolve().is_relative_to(folder):
            raise UserError(f"model {path}: its external data {name!r} is outside of its folder: export it again")
        if not (path.parent / name).is_file():
            raise UserError(f"model {path}: its external data {name!r} is missing: put it in the same folder")
    return sorted(names)


def _digest(path: Path, external: Sequence[str]) -> str:
    """Returns the SHA-256 of the file, or that of the SHA-256 of all files."""
    digests = []
    for file in (path, *(path.parent / name for name in external)):
        try:
            with file.open("rb") as opened:
                digests.append(hashlib.file_digest(opened, "sha256").hexdigest())
        except OSError as error:
            raise UserError(f"model {file}: cannot be read ({error.strerror}): restore the file") from error
    return digests[0] if not external else hashlib.sha256("".join(digests).encode()).hexdigest()


def _open(path: Path) -> Any:
    """Returns onnxruntime's session, on this process's GPU if there is one. Raises UserError if it refuses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised too
    options.intra_op_num_threads = _threads()
    providers: list[Any] = ["CPUExecutionProvider"]
    place()  # refuses a launch that lost its processes
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        # Imports torch, whose CUDA libraries onnxruntime needs too.
        device = this_process().device
        if device.type == "cuda":
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0, "use_tf32": 0}))
    try:
        # Its fallback prints a banner, and falls back to the same providers.
        return onnxruntime.InferenceSession(path, options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's errors have no public class in common
        raise UserError(
            f"model {path}: onnxruntime cannot load it ({reason(error)}): export the model again"
        ) from error


def _threads() -> int:
    """Returns the number of threads for one run: that of OpenMP if it is set, as in torch, or one for each core."""
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(given) if given.isdecimal() and int(given) else usable_cores()


def reason(error: Exception) -> str:
    """Returns the message of an error of onnxruntime on one line, without its code and its places in source files."""
    # "[ONNXRuntimeError] : 1 : FAIL : the message"
    return " ".join(str(error).split()).split(" : ", 3)[-1][:300]
