"""The settings of an ablation: the plan, the shared fields, and the fields of each variant."""

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ...model import MllmReIDConfig
from ...options.parser import build_options, read_mapping, read_options
from ...options.yaml_files import read_yaml
from ...utils.errors import UserError
from ...utils.shipped import recipe_path
from ..tiny_llava import TinyArguments
from .plan import AblationArguments, ControlArguments, check_plan
from .runs import GROUPS

logger = logging.getLogger(__name__)

# Old field name -> new one. One release accepts the old name with a warning.
RENAMED = {"rows": "variants"}
# The default of the model's configuration.
LOSS_LAMBDA: float = inspect.signature(MllmReIDConfig.__init__).parameters["loss_lambda"].default


@dataclass(frozen=True)
class AblationSettings:
    """All that a configuration of an ablation gives.

    Args:
        args (`AblationArguments`): The plan.
        tiny (`TinyArguments`): The sizes of the tiny LLaVA.
        shared (`dict[str, Any]`): The fields that all variants share.
        variants (`dict[str, dict[str, Any]]`): The own fields of each variant, by its name.
    """

    args: AblationArguments
    tiny: TinyArguments
    shared: dict[str, Any]
    variants: dict[str, dict[str, Any]]

    @property
    def folder(self) -> Path:
        """The output folder."""
        return Path(self.shared.get("output_dir", "runs/ablation"))


def read_settings(argv: Sequence[str]) -> AblationSettings:
    """Reads the settings from `[config.yaml] [--field value ...]`.

    Args:
        argv (`Sequence[str]`): The arguments of the command.

    Returns:
        `AblationSettings`: The checked settings.

    Raises:
        UserError: For an unknown field, a value out of range, a plan that does not fit together, and a variant whose
            fields exclude one another; before any work starts.
    """
    shared_groups = tuple(group for group in GROUPS if group is not ControlArguments)
    options = _read_with_old_names((AblationArguments, TinyArguments, *shared_groups), argv)
    args, tiny = build_options((AblationArguments, TinyArguments), options, "ablate")
    variants = {name: read_mapping(GROUPS, own, f"variants: {name!r}") for name, own in check_plan(args).items()}
    run_fields = {field.name for group in GROUPS for field in fields(group)}
    # Every variant names lambda, so that one that names the default is the same run as one that leaves it out.
    shared = {"loss_lambda": LOSS_LAMBDA, **{name: value for name, value in options.items() if name in run_fields}}
    if shared.get("max_steps", 0) < 1:
        raise UserError("max_steps: is missing: give the number of training steps of each variant")
    for name, own in variants.items():
        build_options(GROUPS, {**shared, **own}, f"variant {name!r}")
    return AblationSettings(args, tiny, shared, variants)


def _read_with_old_names(groups: Sequence[type], argv: Sequence[str]) -> dict[str, Any]:
    """Reads the options, with the old names of `RENAMED` in the file and the flags replaced by the new ones."""
    flags = [_current_flag(flag) for flag in argv]
    if not flags or flags[0].startswith("-") or {"-h", "--help"} & set(flags):
        return read_options(groups, flags, "ablate")
    path = recipe_path(flags[0], "ablate")
    content = _current_fields(read_yaml(path), str(path))
    return {**read_mapping(groups, content, str(path)), **read_options(groups, flags[1:], "ablate")}


def _current_flag(flag: str) -> str:
    """The flag with the field's current name."""
    name, equals, value = flag.partition("=")
    old = name.removeprefix("--")
    if not name.startswith("--") or old not in RENAMED:
        return flag
    _warn("ablate", old)
    return f"--{RENAMED[old]}{equals}{value}"


def _current_fields(content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of a file by their current names."""
    for old in RENAMED.keys() & content.keys():
        _warn(where, old)
        if RENAMED[old] in content:
            raise UserError(f"{where}: {old} and {RENAMED[old]} are the same field: leave {old} out")
    return {RENAMED.get(name, name): value for name, value in content.items()}


def _warn(where: str, old: str) -> None:
    logger.warning("%s: %s is now called %s: the next release refuses the old name", where, old, RENAMED[old])
