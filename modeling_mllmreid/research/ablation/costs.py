"""The FLOPs of a step of each variant, counted on a real batch."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from ...training.batches import TrainCollator, TrainDataset
from ...training.parameters import freeze_unused_parameters
from ...utils.processes import this_process
from .plan import Cost, Plan, Run
from .runs import RunInputs, arguments_of, load_base, training_data

Measured = TypeVar("Measured")

# Fields that do not change the cost of a step; the head of the attribute baseline is small against the tower.
NO_COST = ("permute_captions", "caption_noise", "attribute_weight")


def step_costs(plan: Plan, inputs: RunInputs) -> dict[str, Cost]:
    """The FLOPs of a step of each variant, with those of the variant that sets the budget.

    Torch counts them over one batch of P x K images, forward and backward; frozen weights have no backward pass.
    Variants that only differ in their texts cost the same.
    """

    def count(run: Run) -> Cost:
        return Cost(*(_count(run, inputs, stage) if run.stages[stage] else 0.0 for stage in (0, 1)))

    return with_reference(plan, by_cost(plan, count))


def by_cost(
    plan: Plan, measure: Callable[[Run], Measured], *, without: Collection[str] = NO_COST
) -> dict[str, Measured]:
    """Measures a step of each variant, once for those of the same cost.

    Args:
        plan (`Plan`): The plan.
        measure (`Callable`): Measures the steps of a run.
        without (`Collection[str]`): Fields that make no difference.
    """
    known: dict[str, Measured] = {}
    measured = {}
    for variant, settings in plan.settings.items():
        fields = {name: value for name, value in settings.items() if name not in without}
        # Between 0 and 1 the same losses are computed.
        fields["loss_lambda"] = settings["loss_lambda"] if settings["loss_lambda"] in (0, 1) else 0.5
        key = json.dumps(fields, sort_keys=True)
        if key not in known:
            known[key] = measure(plan.first(variant))
        measured[variant] = known[key]
    return measured


def with_reference(plan: Plan, costs: Mapping[str, Cost]) -> dict[str, Cost]:
    """Returns the costs with that of the variant that sets the budget."""
    language_first = float(plan.settings[str(plan.args.flops_of)].get("language_first", 0.0))
    reference = costs[str(plan.args.flops_of)].mean_per_step(language_first)
    return {variant: replace(cost, reference=reference) for variant, cost in costs.items()}


def _count(run: Run, inputs: RunInputs, stage: int) -> float:
    """FLOPs of one training step of a stage."""
    method, adapters, batches, control, training = arguments_of(run, inputs, Path(run.folder))
    torch.manual_seed(0)
    model, processor = load_base(inputs, method, adapters, this_process().device)
    if stage == 0:
        model.config.loss_lambda = 0.0
    language = model.config.loss_lambda < 1
    samples = TrainDataset(training_data(run, inputs, control)["train"], processor, batches, seed=0, language=language)
    model.set_num_identities(samples.num_identities)
    freeze_unused_parameters(model)
    model.to(this_process().device).train()
    size = training.identities_per_batch * training.images_per_identity
    collate = TrainCollator(processor, batches, language=language, reid_text=False)
    batch = collate([samples[position % len(samples), 0, position] for position in range(size)])
    with FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    return float(counter.get_total_flops())
