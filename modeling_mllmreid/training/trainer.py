"""ReIDTrainer: the Trainer with exact loss scaling, P x K batches, loss parts by name and retrieval evaluation."""

import json
import logging
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import HubStrategy

from ..data import PKSampler
from ..errors import UserError
from ..evaluation.protocol import evaluate_model
from ..evaluation.report import write_json
from ..hub.export import form_of, write_export
from ..hub.push import create_repository, upload
from ..model import MllmReIDModel, MllmReIDProcessor
from ..model.losses import mix_losses
from .arguments import ReIDTrainingArguments
from .batches import TrainDataset, label_counts
from .diagnostics import Diagnostics
from .optimizer import parameter_groups

logger = logging.getLogger(__name__)

TRAINING_ARGUMENTS_FILE = "training_args.json"


class RetrievalParts(NamedTuple):
    """What a model is evaluated on: query and gallery splits of the data contract."""

    query: Dataset
    gallery: Dataset


class ReIDTrainer(Trainer):
    """Trains [`MllmReIDModel`] on [`TrainDataset`]; evaluates retrieval on [`RetrievalParts`].

    Metrics are `eval_mAP`, `eval_rank1`, ... of the model's test feature, and `eval_<feature>_mAP`, ... of each.
    """

    args: ReIDTrainingArguments
    model: MllmReIDModel
    eval_dataset: Any
    processing_class: MllmReIDProcessor
    hub_model_id: Any

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

    # ---- evaluation and saving -----------------------------------------------------------------------------------

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

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Every weight of the checkpoint, in its full or its thin form; the stock method leaves out what it misses.

        DeepSpeed and FSDP load their own shards.
        """
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._load_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        """As `_load_from_checkpoint`, from the checkpoint that is best on val."""
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_best_model()
        else:
            self._load_weights(str(self.state.best_model_checkpoint))

    def _load_weights(self, folder: str) -> None:
        try:
            self.accelerator.unwrap_model(self.model).load_weights(folder)
        except (OSError, ValueError) as error:
            raise UserError(f"checkpoint {' '.join(str(error).split())}") from error

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Model, processor and training arguments as JSON.

        The stock method pickles the arguments, the Hub's token among them, into what is pushed.
        """
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        self.accelerator.unwrap_model(self.model).save_pretrained(folder, state_dict=state_dict)
        self.processing_class.save_pretrained(folder)
        write_json(folder / TRAINING_ARGUMENTS_FILE, json.loads(json.dumps(self.args.to_public_dict(), default=str)))

    # ---- publishing ----------------------------------------------------------------------------------------------

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Makes the repository, private where not said otherwise. Raises UserError where the Hub refuses."""
        if not self.is_world_process_zero():
            return
        private = self.args.hub_private_repo if private is None else private
        name = self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name
        self.hub_model_id = create_repository(name, private=private is not False, token=token or self.args.hub_token)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """A saved checkpoint as a whole export: the stock method pushes no code, and a pickle that holds the token.

        A push that fails is said in the log, and the next one sends what is missing.
        """
        if self.args.hub_strategy == HubStrategy.END or not self.is_world_process_zero():
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        try:
            self._publish(Path(checkpoint_folder), f"Training in progress, step {self.state.global_step}")
        except UserError as error:
            logger.warning("%s; training goes on", error)

    def push_to_hub(  # type: ignore[override]
        self, commit_message: str | None = "End of training", token: str | None = None, **_: Any
    ) -> str | None:
        """Pushes what `output_dir` holds, as an export; returns the commit's address.

        Raises UserError where the Hub refuses it; the trained model in `output_dir` is whole all the same.
        """
        if self.hub_model_id is None:
            self.init_hf_repo(token=token)
        if not self.is_world_process_zero():
            return None
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        try:
            return self._publish(Path(str(self.args.output_dir)), commit_message or "End of training", token)
        except UserError as error:
            raise UserError(
                f"{error} (the model is in {self.args.output_dir}: run_reid.py push --model {self.args.output_dir} "
                f"--to {self.hub_model_id})"
            ) from error

    def _publish(self, folder: Path, message: str, token: str | None = None) -> str:
        """Writes the model in memory as an export with the folder's reports, uploads it, and removes the export."""
        model = self.accelerator.unwrap_model(self.model)
        name = str(self.hub_model_id)
        aside = Path(str(self.args.output_dir)) / ".published"
        shutil.rmtree(aside, ignore_errors=True)
        try:
            write_export(model, self.processing_class, aside, to=form_of(model), name=name, source=folder)
            return upload(
                aside, name, message=message, revision=self.args.hub_revision, token=token or self.args.hub_token
            )
        finally:
            shutil.rmtree(aside, ignore_errors=True)


class _SamplerEpoch(TrainerCallback):
    """Tells the sampler its epoch: after a resume in the middle of one the loader's own call does not arrive."""

    def __init__(self, trainer: ReIDTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer._pk_sampler is not None:
            self.trainer._pk_sampler.set_epoch(int(state.epoch or 0))
