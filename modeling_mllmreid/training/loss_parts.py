"""Loss parts: the means of the named losses that a log entry reports.

A log entry covers several optimiser steps, and a step several micro-batches and processes. The sums stay on the device
until the entry is written, so that a step does not wait for the host.
"""

from collections import Counter
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor


class LossParts:
    """Means of the losses by name between two log entries; the micro-batches of a skipped step do not count.

    Each mean is over the micro-batches that have the loss, as a micro-batch without captions has no caption losses.

    Args:
        device (`torch.device`): Device of the sums.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._sums: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()
        self._step_losses: list[dict[str, Tensor]] = []

    def add(self, losses: dict[str, Tensor]) -> None:
        """Adds the losses of a micro-batch.

        Args:
            losses (`dict[str, Tensor]`): Detached scalars by name.
        """
        self._step_losses.append(losses)

    def end_step(self, *, counted: bool) -> None:
        """Ends an optimiser step.

        Args:
            counted (`bool`): Whether its micro-batches count; False drops them, as for a skipped step.
        """
        for losses in self._step_losses if counted else ():
            self._counts.update(losses.keys())
            for name, value in losses.items():
                self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._step_losses = []

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """Returns the means since the last call, and resets the sums.

        Args:
            accelerator (`Accelerator`): Sums over the processes, which may have different losses.

        Returns:
            `dict[str, float]`: The mean of each loss over micro-batches and processes, with four decimals.
        """
        names = sorted(set(gather_object(list(self._sums))))
        if not names:
            return {}
        zero = torch.zeros((), device=self.device)
        sums = torch.stack([self._sums.get(name, zero) for name in names])
        counts = torch.tensor([float(self._counts[name]) for name in names], device=self.device)
        sums, counts = accelerator.reduce((sums, counts), reduction="sum")
        self._sums, self._counts = {}, Counter()
        return {name: round(value, 4) for name, value in zip(names, (sums / counts).tolist(), strict=True)}

    def to_dict(self) -> dict[str, Any]:
        """Returns the sums and counts of this process for JSON."""
        return {"sums": {name: float(value) for name, value in self._sums.items()}, "counts": dict(self._counts)}

    def load(self, saved: dict[str, Any]) -> None:
        """Restores the sums and counts of `to_dict`."""
        self._sums = {name: torch.tensor(value, device=self.device) for name, value in saved["sums"].items()}
        self._counts = Counter(saved["counts"])
