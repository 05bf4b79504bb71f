"""The settings of an ablation: the plan, the shared fields, and the fields of each variant."""

import contextlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ...model import MllmReIDConfig
from ...options.parser import build_options, read_mapping
from ...utils.errors import UserError
from ..tiny_llava import TinyArguments
from .plan import AblationArguments, ControlArguments, check_plan
from .runs import GROUPS

# The groups whose fields all variants can share.
SHARED_GROUPS = tuple(group for group in GROUPS if group is not ControlArguments)
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


def make_settings(options: Mapping[str, Any]) -> AblationSettings:
    """Builds and checks the settings of an ablation.

    Args:
        options (`Mapping[str, Any]`): Values by field, of `AblationArguments`, `TinyArguments` and `SHARED_GROUPS`.

    Returns:
        `AblationSettings`: The settings.

    Raises:
        UserError: For a missing or unknown field, a plan that does not fit together, and a variant whose fields
            exclude one another; before any work starts.
    """
    args, tiny = build_options((AblationArguments, TinyArguments), options, "ablate")
    if args.dry_run and not torch.cuda.is_available():
        options = {**options, "use_cpu": True}  # bfloat16 on a machine without GPU is no mistake here
    variants = {name: read_mapping(GROUPS, own, f"variants: {name!r}") for name, own in check_plan(args).items()}
    run_fields = {field.name for group in GROUPS for field in fields(group)}
    # Every variant names lambda, so that one that names the default is the same run as one that leaves it out.
    shared = {"loss_lambda": LOSS_LAMBDA, **{name: value for name, value in options.items() if name in run_fields}}
    if shared.get("max_steps", 0) < 1:
        raise UserError("max_steps: is missing: give the number of training steps of each variant")
    for name, own in variants.items():
        build_options(GROUPS, {**shared, **own}, f"variant {name!r}")
    own_fields = {name: _with_mappings(own) for name, own in variants.items()}
    return AblationSettings(args, tiny, _with_mappings(shared), own_fields)


def _with_mappings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values with mappings in place of their JSON, whose spaces differ between a flag and a file: it is one run."""
    mappings: dict[str, Any] = {}
    for name, value in values.items():
        with contextlib.suppress(ValueError):
            if isinstance(value, str) and isinstance(content := json.loads(value), dict):
                mappings[name] = content
    return {**values, **mappings}
