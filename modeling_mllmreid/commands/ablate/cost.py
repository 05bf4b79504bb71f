"""What a training step of a row costs: floating-point operations, counted over one real step."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from ...processes import this_process
from ...training.batches import TrainCollator, TrainDataset
from ...training.freezing import freeze_unused_parameters
from .plan import Cost, Plan, Run
from .run import Place, arguments_of, start, training_data

# Fields of a row that change what it is told, not what it computes; the oracle's head is nothing beside the tower.
NO_COST = ("permute_captions", "caption_noise", "attribute_weight")


def step_costs(plan: Plan, place: Place) -> dict[str, Cost]:
    """What a step of each row costs, beside one of the row that the others' budget comes from.

    Counted by torch over one batch of P x K images, forward and backward; what is frozen has no backward pass. Rows
    that differ in their texts alone cost the same.
    """
    known: dict[str, Cost] = {}
    costs = {}
    for row, settings in plan.settings.items():
        told = {name: value for name, value in settings.items() if name not in NO_COST}
        key = json.dumps(told, sort_keys=True)
        if key not in known:
            run = plan.first(row)
            known[key] = Cost(*(_count(run, place, stage) if run.stages[stage] else 0.0 for stage in (0, 1)))
        costs[row] = known[key]
    first = float(plan.settings[str(plan.args.flops_of)].get("language_first", 0.0))
    reference = costs[str(plan.args.flops_of)].of_steps(first)
    return {row: replace(cost, reference=reference) for row, cost in costs.items()}


def _count(run: Run, place: Place, stage: int) -> float:
    method, adapters, batches, treatment, training = arguments_of(run, place, Path(run.folder))
    torch.manual_seed(0)
    model, processor = start(place, method, adapters, this_process().device)
    if stage == 0:
        model.config.loss_lambda = 0.0
    language = model.config.loss_lambda < 1
    samples = TrainDataset(training_data(run, place, treatment)["train"], processor, batches, seed=0, language=language)
    model.set_num_identities(samples.num_identities)
    freeze_unused_parameters(model)
    model.to(this_process().device).train()
    size = training.identities_per_batch * training.images_per_identity
    collate = TrainCollator(processor, batches, language=language, reid_text=False)
    batch = collate([samples[row % len(samples), 0, row] for row in range(size)])
    with FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    return float(counter.get_total_flops())
