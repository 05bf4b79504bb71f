"""The parts of the loss, for the log: means between two entries, over all processes."""

from collections import Counter
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor


class LossParts:
    """Means of the loss parts by name between two logs; the micro-batches of a skipped step do not count.

    Each mean is over the micro-batches that have the part: one without captions says nothing of the captions' losses.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._sums: dict[str, Tensor] = {}
        self._counts: Counter[str] = Counter()
        self._of_step: list[dict[str, Tensor]] = []

    def add(self, parts: dict[str, Tensor]) -> None:
        """The parts of one micro-batch, detached scalars."""
        self._of_step.append(parts)

    def end_step(self, *, counted: bool) -> None:
        """The optimiser step is over: its micro-batches count, or are forgotten."""
        for parts in self._of_step if counted else ():
            self._counts.update(parts.keys())
            for name, value in parts.items():
                self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._of_step = []

    def take(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over micro-batches and processes since the last call, and starts anew."""
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
        """This process's sums, for JSON, to the last digit."""
        return {"sums": {name: float(value) for name, value in self._sums.items()}, "counts": dict(self._counts)}

    def load(self, saved: dict[str, Any]) -> None:
        """Goes on from `to_dict`."""
        self._sums = {name: torch.tensor(value, device=self.device) for name, value in saved["sums"].items()}
        self._counts = Counter(saved["counts"])
