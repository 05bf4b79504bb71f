"""ReIDTrainer: the Trainer with exact loss scaling, P x K batches, loss parts by name and retrieval evaluation."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_utils import get_last_checkpoint

from ..data.sampler import PKSampler
from ..evaluation.protocol import evaluate_model
from ..evaluation.report import write_json
from ..model import MllmReIDModel, MllmReIDProcessor
from ..model.losses import mix_losses
from ..utils.formats import LogWindowFile
from ..utils.json_files import read_json
from .arguments import ReIDTrainingArguments
from .batches import TrainDataset, label_counts
from .checkpointing import CheckpointingTrainer, PublishingTrainer
from .diagnostics import Diagnostics
from .engines import prepare_sharding
from .grad_cache import average_gradients, cached_backward
from .guards import Preempted, StepGuard, explain_error
from .parameters import parameter_groups
from .progress import TrainingProgress
from .resume import ANOTHER


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


class QueryGallery(NamedTuple):
    """What a model is evaluated on: query and gallery splits of the data contract."""

    query: Dataset
    gallery: Dataset


class ReIDTrainer(CheckpointingTrainer, PublishingTrainer):
    """Trains [`MllmReIDModel`] on [`TrainDataset`]; evaluates retrieval on [`QueryGallery`].

    Metrics are `eval_mAP`, `eval_rank1`, ... of the model's test feature, and `eval_<feature>_mAP`, ... of each.
    """

    args: ReIDTrainingArguments
    model: MllmReIDModel
    eval_dataset: Any
    processing_class: MllmReIDProcessor

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._window_counts: dict[str, float] = {}
        self._parts = LossParts(self.args.device)
        self._pk_sampler: PKSampler | None = None
        self._diagnostics = Diagnostics(self, self.args, self.processing_class)
        self._guard = StepGuard(self, self.args)
        self.add_callback(_SamplerEpoch(self))
        self.add_callback(self._guard)
        # The one that the stock class has added prints dictionaries.
        self.remove_callback(PrinterCallback if self.args.disable_tqdm else DEFAULT_PROGRESS_CALLBACK)
        self._progress = TrainingProgress(self.args)
        if self.is_world_process_zero():
            self.add_callback(self._progress)
        prepare_sharding(self)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; what the user can mend is raised as UserError, and Preempted after SIGTERM."""
        checkpoint = kwargs.get("resume_from_checkpoint", args[0] if args else None)
        self._refuse_foreign(get_last_checkpoint(self.args.output_dir) if checkpoint is True else checkpoint or None)
        try:
            with self._guard.listening():
                output = super().train(*args, **kwargs)
        except Exception as error:
            config = self.model.config
            images = f"{config.height} x {config.width}, {config.num_image_tokens} image tokens"
            plain = explain_error(error, self.args, images)
            if plain is None:
                raise
            raise plain from error
        finally:
            self._progress.close()
        if self._guard.preempted:
            step = self.state.global_step
            raise Preempted(
                f"SIGTERM: stopped after step {step}, checkpoint-{step} is written: the same command goes on"
            )
        return output

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
            names=dataset.person_names,
        )
        return self._pk_sampler

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, None]:
        """The micro-batches of one optimiser step; counts their target tokens, over all processes."""
        if self.is_in_train and self.state.global_step >= self.state.max_steps:
            # Resumed from the last step: the stock loop would take one more.
            self.control.should_training_stop = True
            return [], None
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._parts.end_step(counted=not self._guard.skipped)
        self._guard.begin_step(self.model)
        counts = torch.tensor(sum(label_counts(batch) for batch in samples), device=device, dtype=torch.float64)
        image, text = self.accelerator.reduce(counts, reduction="sum").tolist()
        self._window_counts = {"image": image, "text": text, "distillation": image}
        self._diagnostics.on_step_begin()
        return samples, None

    def files_of_step(self, step: int) -> list[str]:
        """The training images of an optimiser step, counted from 1, of all processes and micro-batches."""
        sampler, dataset = self._pk_sampler, self.train_dataset
        runs = sampler.steps  # type: ignore[union-attr]
        accumulated = self.args.gradient_accumulation_steps
        steps_of_epoch = -(-runs // accumulated)
        epoch, step_of_epoch = divmod(step - 1, steps_of_epoch)
        of_epoch = [index for index, _, _ in sampler.epoch_order(epoch)]  # type: ignore[union-attr]
        images = len(of_epoch) // runs
        first = step_of_epoch * accumulated * images
        return [dataset.file_names[index] for index in of_epoch[first : first + accumulated * images]]  # type: ignore

    def floating_point_ops(self, inputs: Any) -> int:
        """None are told: the stock estimate takes pixels for tokens."""
        return 0

    # ---- loss ----------------------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: dict[str, Tensor], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of one micro-batch, with `grad_cache_chunk` in parts."""
        if self.args.grad_cache_chunk:
            loss = self._cached_step(inputs)
        else:
            loss = super().training_step(model, inputs, num_items_in_batch)
        return self._guard.check_loss(loss)

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of one micro-batch, such that an optimiser step over all micro-batches and processes is exact.

        The language loss is divided by the target tokens of the whole step, times the processes that DDP averages over;
        the ReID loss is on all processes' features already and is averaged over micro-batches. The Trainer divides what
        is returned by their number.
        """
        with self._diagnostics.capture(inputs) as captured:
            outputs = model(**inputs)
        language = self._language_loss(outputs.language_loss_sums) if outputs.language_loss_sums else None
        loss = mix_losses(language, outputs.reid_loss, self.model.config.loss_lambda)
        if captured is not None:
            self._diagnostics.measure(captured, inputs, outputs, language)
        self._parts.add(outputs.loss_parts)
        return (loss, outputs) if return_outputs else loss

    def _language_loss(self, sums: dict[str, Tensor]) -> Tensor:
        """What summed losses add to the micro-batch's language loss, before the Trainer divides by accumulation."""
        language = self.model.language_loss(sums, self._window_counts)
        return language * self.accelerator.num_processes * self.current_gradient_accumulation_steps

    def _cached_step(self, inputs: dict[str, Tensor]) -> Tensor:
        """`compute_loss` and its backward pass, `grad_cache_chunk` images at once."""
        self.model.train()
        # As the stock method does, for optimisers of two modes (schedule-free ones).
        if callable(to_train := getattr(self.optimizer, "train", None)):
            to_train()
        inputs = self._prepare_inputs(inputs)
        accelerator, config = self.accelerator, self.model.config
        scaler = accelerator.scaler
        with self._diagnostics.capture(inputs) as captured:
            # Not the wrapped model: DDP would reduce after every chunk, and never the head, outside of its forward.
            # Mixed precision comes with the model's own forward, which accelerate has changed.
            loss, outputs = cached_backward(
                self.model,
                inputs,
                chunk=self.args.grad_cache_chunk,
                language_loss=lambda sums: (
                    (1 - config.loss_lambda) * self._language_loss(sums) / self.current_gradient_accumulation_steps
                ),
                reid_weight=config.loss_lambda / self.current_gradient_accumulation_steps,
                backward=accelerator.backward,
                scale=1.0 if scaler is None else scaler.get_scale(),
            )
        if captured is not None:
            self._diagnostics.measure(captured, inputs, outputs, None)
        self._parts.add(outputs.loss_parts or {})
        if accelerator.sync_gradients:
            average_gradients(self.model)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the mean of each loss part since the last log; diagnostics follow as entries of their own."""
        if "loss" in logs:
            self._parts.end_step(counted=not self._guard.skipped)
            logs |= self._parts.take(self.accelerator)
        super().log(logs, start_time)
        for values in self._diagnostics.pop_entries():
            super().log(values)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        self._guard.check_grad_norm(norm)
        return norm

    def _save_rng_state(self, output_dir: str) -> None:
        """Beside it, what was summed up since the last log: a resumed run's entries are those of one that went on."""
        super()._save_rng_state(output_dir)
        self._parts.end_step(counted=not self._guard.skipped)
        window = {
            "loss": self._tr_loss.item(),
            "step": self._globalstep_last_logged,
            "parts": self._parts.to_dict(),
            "diagnostics": self._diagnostics.to_dict(),
        }
        write_json(self._window_file(output_dir), window)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None and (path := self._window_file(checkpoint)).is_file():
            window = read_json(path, LogWindowFile, remedy=ANOTHER)
            self._tr_loss.fill_(window.loss)
            self._globalstep_last_logged = window.step
            self._parts.load(window.parts.model_dump())
            self._diagnostics.load(window.diagnostics.model_dump())

    def _window_file(self, folder: str) -> Path:
        return Path(folder) / f"log_window_{self.args.process_index}.json"

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

    # ---- evaluation ----------------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Retrieval metrics of the query against the gallery, 0 to 1. eval_dataset: [`QueryGallery`].

        Processes share the images and get the same numbers: what is saved and stopped by them must not differ.
        """
        parts = self.eval_dataset if eval_dataset is None else eval_dataset
        rows = evaluate_model(
            self.model,
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
            if feature == self.model.config.test_feature:
                metrics |= {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class _SamplerEpoch(TrainerCallback):
    """Tells the sampler its epoch: after a resume in the middle of one the loader's own call does not arrive.

    And an epoch in which a resumed run had no step left ends without the evaluation and the checkpoint that it has had.
    """

    def __init__(self, trainer: ReIDTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer._pk_sampler is not None:
            self.trainer._pk_sampler.set_epoch(int(state.epoch or 0))
        self.begun = state.global_step

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.begun:
            control.should_log = control.should_evaluate = control.should_save = False
