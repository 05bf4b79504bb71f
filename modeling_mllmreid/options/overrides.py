"""Fields that have no effect while another field has a certain value."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from ..utils.errors import UserError


class Override(NamedTuple):
    """The field that takes an effect away.

    Args:
        name (`str`): Its name.
        when (`Callable`): Returns whether a value of it does so.
        remedy (`str`): A value that does not.
    """

    name: str
    when: Callable[[Any], bool]
    remedy: str


_NO_EVALUATION = Override("eval_strategy", lambda strategy: strategy == "no", "steps")
_NO_PUSH = Override("push_to_hub", lambda push: not push, "true")
OVERRIDES = {
    "num_train_epochs": Override("max_steps", lambda steps: steps > 0, "-1"),
    "eval_steps": Override("eval_strategy", lambda strategy: strategy != "steps", "steps"),
    "save_steps": Override("save_strategy", lambda strategy: strategy != "steps", "steps"),
    "logging_steps": Override("logging_strategy", lambda strategy: strategy != "steps", "steps"),
    "eval_delay": _NO_EVALUATION,
    "metric_for_best_model": _NO_EVALUATION,
    "save_total_limit": Override("save_strategy", lambda strategy: strategy == "no", "steps"),
    "warmup_steps": Override("lr_scheduler_type", lambda name: name == "constant", "constant_with_warmup"),
    "hub_model_id": _NO_PUSH,
    "hub_strategy": _NO_PUSH,
    "hub_private_repo": _NO_PUSH,
    "hub_revision": _NO_PUSH,
}


def is_overridden(name: str, values: Mapping[str, Any]) -> bool:
    """Returns whether one of the values takes the effect of a field away."""
    override = OVERRIDES.get(name)
    return override is not None and override.name in values and override.when(values[override.name])


def refuse_overridden(flags: Iterable[str], values: Mapping[str, Any], command: str) -> None:
    """Raises UserError for a flag without effect. A line of a recipe may have none: flags change what recipes set.

    Args:
        flags (`Iterable[str]`): Names of the fields that the command line sets.
        values (`Mapping[str, Any]`): Values of all fields, by name.
        command (`str`): Name of the command, for the error.
    """
    for name in flags:
        if is_overridden(name, values):
            other, _, remedy = OVERRIDES[name]
            value = str(getattr(values[other], "value", values[other])).lower()
            raise UserError(
                f"{command}: {name}: has no effect with {other} {value}: set {other} to {remedy}, or leave {name} out"
            )
