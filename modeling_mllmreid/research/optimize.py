"""A training loop without a trainer, for the short steps of pretraining."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter
from tqdm.auto import tqdm


def optimize(
    step_loss: Callable[[], Tensor],
    trained: Sequence[tuple[Iterable[Parameter], float]],
    *,
    steps: int,
    warmup: int,
    weight_decay: float,
    name: str,
) -> float:
    """Minimises a loss in place by AdamW, with a linear warm-up and a cosine schedule to zero.

    Args:
        step_loss (`Callable`): Returns the loss of the next batch.
        trained (`Sequence[tuple]`): Groups of parameters, each with its peak learning rate.
        steps (`int`): Number of steps.
        warmup (`int`): Steps of the warm-up.
        weight_decay (`float`): Weight decay of all parameters.
        name (`str`): Name of the progress bar.

    Returns:
        `float`: The mean loss of the last tenth of the steps.
    """
    groups = [(list(parameters), rate) for parameters, rate in trained]
    all_parameters = [parameter for parameters, _ in groups for parameter in parameters]
    optimizer = torch.optim.AdamW(
        [{"params": parameters, "lr": rate} for parameters, rate in groups], weight_decay=weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    losses: list[Tensor] = []
    with tqdm(range(steps), desc=name, unit="step", disable=None) as bar:
        for _ in bar:
            loss = step_loss()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(all_parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
            if len(losses) % 50 == 0:
                bar.set_postfix(loss=f"{float(losses[-1]):.3f}")
    return float(torch.stack(losses[-max(1, steps // 10) :]).mean())
