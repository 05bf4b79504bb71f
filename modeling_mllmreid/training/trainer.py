"""ReIDTrainer: a Trainer with exact loss scaling, P x K batches, named losses in the log and retrieval evaluation."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PrinterCallback
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_utils import get_last_checkpoint

from ..data.pairs import PairSampler
from ..data.sampler import PKSampler
from ..evaluation.protocol import evaluate_model
from ..model import MllmReIDModel, MllmReIDProcessor
from ..model.losses import mix_losses
from ..utils.checkpoint_formats import LogWindowFile
from ..utils.json_files import read_json
from ..utils.outputs import write_json
from .arguments import ReIDTrainingArguments
from .batches import TrainDataset, label_counts
from .checkpointing import CheckpointingTrainer, PublishingTrainer
from .clock import TrainingClock
from .data_loading import SamplerEpoch, copy_while_computing, end_workers
from .diagnostics import Diagnostics
from .engines import prepare_sharding
from .grad_cache import average_gradients, cached_backward
from .guards import Preempted, StepGuard, explain_error
from .kernels import prepare_kernels
from .lora import fuse_lora
from .loss_parts import LossParts
from .parameters import parameter_groups
from .progress import TrainingProgress
from .resume import OTHER_CHECKPOINT


class QueryGallery(NamedTuple):
    """Query and gallery splits of the data contract, on which a model is evaluated.

    Args:
        query (`datasets.Dataset`): Query images.
        gallery (`datasets.Dataset`): Gallery images.
    """

    query: Dataset
    gallery: Dataset


class ReIDTrainer(CheckpointingTrainer, PublishingTrainer):
    """Trains [`MllmReIDModel`] on a [`TrainDataset`] and evaluates retrieval on a query and a gallery split.

    An optimiser step over all micro-batches and processes has the gradient of one large batch. The evaluation logs
    `eval_mAP`, `eval_rank1`, ... of the model's test feature, and `eval_<feature>_mAP`, ... of each feature.
    [`train_reid`] builds and runs it.

    Args:
        model (`MllmReIDModel`): The model, after `freeze_unused_parameters`.
        args (`ReIDTrainingArguments`): The training arguments.
        train_dataset (`TrainDataset`): The training samples.
        eval_dataset (`QueryGallery`, *optional*): The val split.
        data_collator (`TrainCollator`): Makes the batches.
        processing_class (`MllmReIDProcessor`): The processor, saved with the model.
        **kwargs: Other arguments of `transformers.Trainer`.

    Raises:
        UserError: A setting does not work with FSDP or DeepSpeed.

    Example:
        The loader of the trainer makes batches of P people with K images each; [`train_reid`] shows a whole training.

        >>> import tempfile
        >>> from datasets import Dataset
        >>> from PIL import Image
        >>> from modeling_mllmreid import BatchArguments, MllmReIDModel, ReIDTrainer, ReIDTrainingArguments
        >>> from modeling_mllmreid import TrainCollator, TrainDataset
        >>> from modeling_mllmreid.research.tiny_llava import build_processor, build_tiny_llava
        >>> processor = build_processor([], height=64, width=32, patch_size=16)
        >>> llava = build_tiny_llava(processor, hidden_size=16, tower_layers=1, lm_layers=1, seed=0)
        >>> columns = {"person_id": [1, 1, 2, 2], "camera_id": [0, 1, 0, 1], "source": ["mine"] * 4}
        >>> images = {"image": [Image.new("RGB", (32, 64))] * 4, "file_name": ["a.png", "b.png", "c.png", "d.png"]}
        >>> split, batch_args = Dataset.from_dict({**images, **columns}), BatchArguments()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trainer = ReIDTrainer(
        ...         model=MllmReIDModel.from_mllm(llava, height=64, width=32, num_identities=2, loss_lambda=1.0),
        ...         args=ReIDTrainingArguments(
        ...             output_dir=folder,
        ...             identities_per_batch=2,
        ...             images_per_identity=2,
        ...             eval_strategy="no",
        ...             use_cpu=True,
        ...         ),
        ...         train_dataset=TrainDataset(split, processor, batch_args, seed=0, language=False),
        ...         data_collator=TrainCollator(processor, batch_args, language=False, reid_text=False),
        ...         processing_class=processor,
        ...     )
        ...     batch = next(iter(trainer.get_train_dataloader()))
        >>> batch["pixel_values"].shape, sorted(batch["person_ids"].tolist())
        (torch.Size([4, 3, 64, 32]), [0, 0, 1, 1])

    Source: Hermans et al. 2017, "In Defense of the Triplet Loss for Person Re-Identification" (P x K batches).
    """

    args: ReIDTrainingArguments
    model: MllmReIDModel
    eval_dataset: Any
    processing_class: MllmReIDProcessor
    # The most similar other people by person, for `similar_people` above 1.
    similar: Mapping[int, Sequence[int]] | None = None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._window_counts: dict[str, Tensor] = {}
        self._loss_parts = LossParts(self.args.device)
        self._sampler: PKSampler | PairSampler | None = None
        self._diagnostics = Diagnostics(self, self.args, self.processing_class)
        self._guard = StepGuard(self, self.args)
        self.add_callback(SamplerEpoch(lambda: self._sampler))
        self.add_callback(self._guard)
        self.add_callback(TrainingClock())
        # The callback of the stock class prints dictionaries.
        self.remove_callback(PrinterCallback if self.args.disable_tqdm else DEFAULT_PROGRESS_CALLBACK)
        self._progress = TrainingProgress(self.args, copy_while_computing(self.accelerator, self.args))
        if self.is_world_process_zero():
            self.add_callback(self._progress)
        prepare_sharding(self)
        if self.args.fused_lora:
            fuse_lora(self.model)
        prepare_kernels(self)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trains as in transformers.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): Folder of a checkpoint, or True for the last one.

        Returns:
            `TrainOutput`: Steps, mean loss and speed.

        Raises:
            UserError: The user can fix the error: memory, files or values that are not finite.
            Preempted: SIGTERM arrived, and the checkpoint is written.
        """
        checkpoint = kwargs.get("resume_from_checkpoint", args[0] if args else None)
        self._refuse_foreign_checkpoint(
            get_last_checkpoint(self.args.output_dir) if checkpoint is True else checkpoint or None
        )
        try:
            with self._guard.listening():
                output = super().train(*args, **kwargs)
        except Exception as error:
            config = self.model.config
            images = f"{config.height} x {config.width}, {config.num_image_tokens} image tokens"
            user_error = explain_error(error, self.args, images)
            if user_error is None:
                raise
            raise user_error from error
        finally:
            self._progress.close()
            end_workers(self.callback_handler.train_dataloader)
        if self._guard.preempted:
            step = self.state.global_step
            raise Preempted(
                f"SIGTERM: stopped after step {step}, checkpoint-{step} is written: the same command continues"
            )
        return output

    # ---- data ----------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[tuple[int, int, int]]:
        dataset: TrainDataset = self.train_dataset if train_dataset is None else train_dataset  # type: ignore[assignment]
        shared = {"seed": self.args.seed, "world_size": self.args.world_size}
        if self.args.pairs_per_batch:
            captioned = [bool(texts) for texts in dataset.texts]
            self._sampler = PairSampler(captioned, pairs_per_batch=self.args.pairs_per_batch, **shared)
            return self._sampler
        self._sampler = PKSampler(
            dataset.person_ids,
            dataset.camera_ids,
            identities_per_batch=self.args.identities_per_batch,
            images_per_identity=self.args.images_per_identity,
            sources=dataset.sources if self.args.balance_sets else None,
            names=dataset.person_names,
            similar=self.similar,
            group_size=self.args.similar_people,
            **shared,
        )
        return self._sampler

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], None]:
        """Returns the micro-batches of one optimiser step, and counts their target tokens over all processes."""
        if self.is_in_train and self.state.global_step >= self.state.max_steps:
            # After a resume from the last step, the stock loop would take one more.
            self.control.should_training_stop = True
            return [], None
        with self._progress.waiting():
            samples = list(islice(epoch_iterator, num_batches))
        self._loss_parts.end_step(counted=not self._guard.skipped)
        self._guard.begin_step(self.model)
        counts = torch.stack([label_counts(batch).to(device) for batch in samples]).sum(dim=0)
        image, text = self.accelerator.reduce(counts, reduction="sum").clamp(min=1)
        self._window_counts = {"image": image, "text": text, "distillation": image}
        self._diagnostics.on_step_begin()
        return samples, None

    def step_files(self, step: int) -> list[str]:
        """Returns the file names of an optimiser step (counted from 1), over all processes and micro-batches."""
        sampler, dataset = self._sampler, self.train_dataset
        micro_steps = sampler.steps  # type: ignore[union-attr]
        accumulation = self.args.gradient_accumulation_steps
        steps_per_epoch = -(-micro_steps // accumulation)
        epoch, step_in_epoch = divmod(step - 1, steps_per_epoch)
        indices = [index for index, _, _ in sampler.epoch_order(epoch)]  # type: ignore[union-attr]
        images_per_step = len(indices) // micro_steps * accumulation
        first = step_in_epoch * images_per_step
        return [dataset.file_names[index] for index in indices[first : first + images_per_step]]  # type: ignore

    def floating_point_ops(self, inputs: Any) -> int:
        """Returns 0, as the stock estimate counts pixels as tokens."""
        return 0

    # ---- loss ----------------------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: dict[str, Tensor], num_items_in_batch: Any = None) -> Tensor:
        """Runs forward and backward of one micro-batch, in chunks with `grad_cache_chunk`."""
        if self.args.grad_cache_chunk:
            loss = self._cached_step(inputs)
        else:
            loss = super().training_step(model, inputs, num_items_in_batch)
        return self._guard.check_loss(loss)

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Returns the loss of one micro-batch, scaled so that the optimiser step has the gradient of one large batch.

        The language loss is divided by the target tokens of the whole step, and multiplied by the number of processes,
        as DDP averages over them. The ReID loss reads the features of all processes. The Trainer divides the result by
        the number of micro-batches.

        Args:
            model (`nn.Module`): The wrapped model.
            inputs (`dict[str, Tensor]`): A batch of `TrainCollator`, each tensor (B, ...).
            return_outputs (`bool`): Whether to return the outputs of the model too.

        Returns:
            `Tensor` or `tuple`: The loss, a scalar, or (loss, `MllmReIDOutput`).
        """
        with self._diagnostics.capture(inputs) as captured:
            outputs = model(**inputs)
        language = self._language_loss(outputs.language_loss_sums) if outputs.language_loss_sums else None
        reid = None if outputs.reid_loss is None else self.reid_share * outputs.reid_loss
        loss = mix_losses(language, reid, self.model.config.loss_lambda)
        if outputs.pair_loss is not None:
            loss = self.model.with_pair_loss(loss, outputs.pair_loss)
        if captured is not None:
            self._diagnostics.measure(captured, inputs, outputs, language)
        self._loss_parts.add(outputs.loss_parts)
        return (loss, outputs) if return_outputs else loss

    @property
    def reid_share(self) -> float:
        """Share of the weight of the ReID losses in this step, below 1 during `reid_warmup_steps`."""
        return min(1.0, (self.state.global_step + 1) / (self.args.reid_warmup_steps + 1))

    def _language_loss(self, sums: dict[str, Tensor]) -> Tensor:
        """Returns the language loss of summed losses, before the Trainer divides by the micro-batches."""
        factor = self.accelerator.num_processes * self.current_gradient_accumulation_steps
        # Divided here, since the counts stay on the device.
        means = {name: value / self._window_counts[name].to(value) for name, value in sums.items()}
        loss: Tensor = self.model.language_loss(means, dict.fromkeys(means, 1)) * factor
        return loss

    def _cached_step(self, inputs: dict[str, Tensor]) -> Tensor:
        """Computes the loss and its gradient, `grad_cache_chunk` images at a time."""
        self.model.train()
        # Schedule-free optimisers have two modes; the stock method switches them too.
        if callable(to_train := getattr(self.optimizer, "train", None)):
            to_train()
        inputs = self._prepare_inputs(inputs)
        accelerator, config = self.accelerator, self.model.config
        scaler = accelerator.scaler
        with self._diagnostics.capture(inputs) as captured:
            # The unwrapped model: DDP would reduce after every chunk, and never the head, as that runs outside of its
            # forward. Accelerate patches the forward of the unwrapped model, so mixed precision still applies.
            loss, outputs = cached_backward(
                self.model,
                inputs,
                chunk=self.args.grad_cache_chunk,
                language_loss=lambda sums: (
                    (1 - config.loss_lambda) * self._language_loss(sums) / self.current_gradient_accumulation_steps
                ),
                reid_weight=self.reid_share * config.loss_lambda / self.current_gradient_accumulation_steps,
                backward=accelerator.backward,
                scale=1.0 if scaler is None else scaler.get_scale(),
                pair_weight=getattr(config, "pair_weight", 0.0) / self.current_gradient_accumulation_steps,
                autocast=accelerator.autocast,
            )
        if captured is not None:
            self._diagnostics.measure(captured, inputs, outputs, None)
        self._loss_parts.add(outputs.loss_parts or {})
        if accelerator.sync_gradients:
            average_gradients(self.model)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs an entry with the mean of each named loss since the last one; diagnostics follow as separate entries."""
        if "loss" in logs:
            self._loss_parts.end_step(counted=not self._guard.skipped)
            logs |= self._loss_parts.take(self.accelerator)
        super().log(logs, start_time)
        for values in self._diagnostics.pop_entries():
            super().log(values)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        self._guard.check_grad_norm(norm)
        return norm

    def _save_rng_state(self, output_dir: str) -> None:
        """Also saves the sums since the last log entry, so that a resumed run logs the same values."""
        super()._save_rng_state(output_dir)
        self._loss_parts.end_step(counted=not self._guard.skipped)
        window = {
            "loss": self._tr_loss.item(),
            "step": self._globalstep_last_logged,
            "parts": self._loss_parts.to_dict(),
            "diagnostics": self._diagnostics.to_dict(),
        }
        write_json(self._window_file(output_dir), window)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None and (path := self._window_file(checkpoint)).is_file():
            window = read_json(path, LogWindowFile, remedy=OTHER_CHECKPOINT)
            self._tr_loss.fill_(window.loss)
            self._globalstep_last_logged = window.step
            self._loss_parts.load(window.parts.model_dump())
            self._diagnostics.load(window.diagnostics.model_dump())

    def _window_file(self, folder: str) -> Path:
        return Path(folder) / f"log_window_{self.args.process_index}.json"

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Creates the optimiser with the learning rates of `learning_rates`."""
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
        """Evaluates retrieval of the query against the gallery.

        Processes share the images and return the same values, as they decide which checkpoint is saved.

        Args:
            eval_dataset (`QueryGallery`, *optional*): Query and gallery; `self.eval_dataset` by default.
            ignore_keys (`list[str]`, *optional*): Unused.
            metric_key_prefix (`str`): Prefix of the names.

        Returns:
            `dict[str, float]`: mAP, rank-k and mINP by name, 0 to 1.
        """
        splits = self.eval_dataset if eval_dataset is None else eval_dataset
        metrics_by_feature = evaluate_model(
            self.model,
            self.processing_class,
            splits.query,
            splits.gallery,
            batch_size=self.args.per_device_eval_batch_size,
            num_workers=self.args.dataloader_num_workers,
            progress=False,
        )
        metrics: dict[str, float] = {}
        for feature, feature_metrics in metrics_by_feature.items():
            values = {name: value for name, value in feature_metrics.to_dict().items() if isinstance(value, float)}
            metrics |= {f"{metric_key_prefix}_{feature}_{name}": value for name, value in values.items()}
            if feature == self.model.config.test_feature:
                metrics |= {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
