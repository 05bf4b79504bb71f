"""The processes that a launcher started, of which this is one."""

import torch
from accelerate import PartialState


def this_process() -> PartialState:
    """This process's place among all, with the device that is its own; alone where nothing was launched.

    Without a GPU the backend must be asked for: several processes would each take themselves for the only one.
    """
    return PartialState(cpu=not torch.cuda.is_available())
