"""ReIDTrainer: the Trainer with exact loss scaling, P x K batches, loss parts by name and retrieval evaluation."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from transformers import TrainerCallback

from ..data import PKSampler
from ..evaluation.protocol import evaluate_model
from ..model import MllmReIDModel, MllmReIDProcessor
from ..model.losses import mix_losses
from .arguments import ReIDTrainingArguments
from .batches import TrainDataset, label_counts
from .checkpoints import CheckpointingTrainer
from .diagnostics import Diagnostics
from .optimizer import parameter_groups
from .publishing import PublishingTrainer


class RetrievalParts(NamedTuple):
    """What a model is evaluated on: query and gallery splits of the data contract."""

    query: Dataset
    gallery: Dataset


class ReIDTrainer(PublishingTrainer, CheckpointingTrainer):
    """Trains [`MllmReIDModel`] on [`TrainDataset`]; evaluates retrieval on [`RetrievalParts`].

    Metrics are `eval_mAP`, `eval_rank1`, ... of the model's test feature, and `eval_<feature>_mAP`, ... of each.
    """

    args: ReIDTrainingArguments
    model: MllmReIDModel
    eval_dataset: Any
    processing_class: MllmReIDProcessor

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._window_counts: Tensor | None = None
        self._part_sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.args.device))
        self._part_steps = 0
        self._pk_sampler: PKSampler | None = None
        self._diagnostics = Diagnostics(self, self.args, self.processing_class)
        self.add_callback(_SamplerEpoch(self))

    # ---- data ----------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
        dataset: TrainDataset = self.train_dataset if train_dataset is None else train_dataset  # type: ignore[assignment]
        self._pk_sampler = PKSampler(
            dataset.person_ids,
            dataset.camera_ids,
            identities_per_batch=self.args.identities_per_batch,
            images_per_identity=self.args.images_per_identity,
            seed=self.args.seed,
            world_size=self.args.world_size,
            sources=dataset.sources if self.args.balance_sets else None,
        )
        return self._pk_sampler

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, None]:
        """The micro-batches of one optimiser step; counts their target tokens, over all processes."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = torch.tensor(sum(label_counts(batch) for batch in samples), device=device, dtype=torch.float64)
        self._window_counts = self.accelerator.reduce(counts, reduction="sum")
        self._diagnostics.begin_step()
        return samples, None

    # ---- loss ----------------------------------------------------------------------------------------------------

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of one micro-batch, such that an optimiser step over all micro-batches and processes is exact.

        The language loss is divided by the target tokens of the whole step, times the processes that DDP averages over;
        the ReID loss is on all processes' features already and is averaged over micro-batches. The Trainer divides what
        is returned by their number.
        """
        with self._diagnostics.watch(inputs) as seen:
            outputs = model(**inputs)
        language = None
        if outputs.language_loss_sums:
            image, text = self._window_counts.tolist()  # type: ignore[union-attr]
            counts = {"image": image, "text": text, "distillation": image}
            unwrapped = self.accelerator.unwrap_model(model)
            language = unwrapped.language_loss(outputs.language_loss_sums, counts)
            language = language * self.accelerator.num_processes * self.current_gradient_accumulation_steps
        loss = mix_losses(language, outputs.reid_loss, self.model.config.loss_lambda)
        if seen is not None:
            self._diagnostics.measure(seen, inputs, outputs, language)
        for name, value in outputs.loss_parts.items():
            self._part_sums[name] += value
        self._part_steps += 1
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of each loss part since the last log; what was diagnosed since follows in own entries."""
        if "loss" in logs and self._part_steps:
            names = sorted(self._part_sums)
            sums = torch.stack([self._part_sums[name] for name in names]) / self._part_steps
            means = self.accelerator.reduce(sums, reduction="mean").tolist()
            logs |= {name: round(value, 4) for name, value in zip(names, means, strict=True)}
            self._part_sums.clear()
            self._part_steps = 0
        super().log(logs, start_time)
        for values in self._diagnostics.take():
            super().log(values)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The optimiser with a learning rate for each module (`learning_rates`)."""
        if self.optimizer is None:
            groups = parameter_groups(
                self.model,
                learning_rate=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
                learning_rates=self.args.learning_rates,  # type: ignore[arg-type]
            )
            optimizer_class, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer_class(groups, **settings)
        return self.optimizer

    # ---- evaluation -----------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Retrieval metrics of the query against the gallery, 0 to 1. eval_dataset: [`RetrievalParts`]."""
        parts = self.eval_dataset if eval_dataset is None else eval_dataset
        model = self.accelerator.unwrap_model(self.model)
        rows = evaluate_model(
            model,
            self.processing_class,
            parts.query,
            parts.gallery,
            batch_size=self.args.per_device_eval_batch_size,
            num_workers=self.args.dataloader_num_workers,
            progress=False,
        )
        metrics: dict[str, float] = {}
        for feature, row in rows.items():
            values = {name: value for name, value in row.to_dict().items() if isinstance(value, float)}
            metrics |= {f"{metric_key_prefix}_{feature}_{name}": value for name, value in values.items()}
            if feature == model.config.test_feature:
                metrics |= {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _SamplerEpoch(TrainerCallback):
    """Tells the sampler its epoch: after a resume in the middle of one the loader's own call does not arrive."""

    def __init__(self, trainer: ReIDTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer._pk_sampler is not None:
            self.trainer._pk_sampler.set_epoch(int(state.epoch or 0))
