"""Parameter groups: a learning rate for each module by regular expression, weight decay for matrices only."""

from collections import defaultdict

from torch import nn

from ..errors import UserError
from .patterns import matches


def parameter_groups(
    model: nn.Module, *, learning_rate: float, weight_decay: float, learning_rates: dict[str, float]
) -> list[dict]:
    """Optimiser groups of the trained parameters.

    learning_rates: pattern -> rate; the first pattern found in a parameter's name counts, `learning_rate` where none
    is. Biases, norms and other vectors get no weight decay. Raises UserError for a pattern that matches no trained
    parameter.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    unmatched = set(learning_rates)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        pattern = next((pattern for pattern in learning_rates if matches(pattern, name, "learning_rates")), None)
        unmatched.discard(pattern)
        rate = learning_rate if pattern is None else learning_rates[pattern]
        groups[rate, weight_decay if parameter.ndim > 1 else 0.0].append(parameter)
    if unmatched:
        raise UserError(f"learning_rates: {sorted(unmatched)[0]!r} matches no trained parameter: mend or remove it")
    return [{"params": rows, "lr": rate, "weight_decay": decay} for (rate, decay), rows in groups.items()]
