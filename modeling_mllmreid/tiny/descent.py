"""The optimisation that both lessons share."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import Parameter
from tqdm.auto import tqdm


def descend(
    loss_of_step: Callable[[], Tensor],
    parameters: Iterable[Parameter],
    *,
    steps: int,
    warmup: int,
    learning_rate: float,
    weight_decay: float,
    name: str,
) -> float:
    """AdamW with a linear warm-up and a cosine to zero, in place; returns the mean loss of the last tenth of steps."""
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    losses: list[Tensor] = []
    with tqdm(range(steps), desc=name, unit="step") as bar:
        for _ in bar:
            loss = loss_of_step()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
            if len(losses) % 50 == 0:
                bar.set_postfix(loss=f"{float(losses[-1]):.3f}")
    return float(torch.stack(losses[-max(1, steps // 10) :]).mean())
