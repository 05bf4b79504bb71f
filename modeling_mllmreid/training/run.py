"""Training run: from a loaded data set to the best checkpoint, its thresholds and its record."""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import PreTrainedConfig, TrainerCallback

from ..data.contract import image_sources
from ..data.images import check_images
from ..data.splits import split_query_gallery, split_validation
from ..evaluation.threshold import save_thresholds
from ..evaluation.threshold_fit import FittedThresholds, fit_thresholds
from ..model import ImageEncoder, ImageEncoderProcessor, MllmReIDProcessor
from ..utils.errors import UserError
from ..utils.outputs import only_writer, owner_only
from ..utils.processes import on_main
from .arguments import ReIDTrainingArguments
from .batch_arguments import BatchArguments
from .batch_size import find_batch_size
from .batches import TrainCollator, TrainDataset
from .encoder_training import use_fast_layout
from .engines import sharding_of
from .parameters import freeze_unused_parameters
from .resume import checkpoint_to_resume, identities_digest, is_finished, run_fingerprint
from .setting_errors import setting_errors
from .similar import similar_people
from .stock_settings import try_settings
from .trainer import QueryGallery, ReIDTrainer

logger = logging.getLogger(__name__)


@dataclass
class TrainedModel:
    """Result of `train_reid`.

    Args:
        trainer (`ReIDTrainer`): The trainer. Its model is the best one on val, if there is a val split.
        val (`QueryGallery`, *optional*): Query and gallery of val.
    """

    trainer: ReIDTrainer
    val: QueryGallery | None


def train_reid(
    model: ImageEncoder,
    processor: ImageEncoderProcessor,
    dataset: DatasetDict,
    batch_args: BatchArguments,
    args: ReIDTrainingArguments,
    *,
    collator: type[TrainCollator] = TrainCollator,
    prepare: Callable[[Any], None] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainedModel:
    """Trains a model on `dataset["train"]`, selects the best checkpoint on val, and saves it with its processor.

    It decodes every image once before the first step, and never reads the query and gallery splits.

    Args:
        model (`MllmReIDModel` or `MllmReIDVisionModel`): The model of [`load_for_training`], trained in place.
        processor (`MllmReIDProcessor` or `MllmReIDVisionProcessor`): The processor of the model.
        dataset (`datasets.DatasetDict`): Splits of the data contract: `train`, and `val` unless `val_identities` or
            `eval_strategy="no"` is set.
        batch_args (`BatchArguments`): Texts and augmentation.
        args (`ReIDTrainingArguments`): Training arguments; the model is saved into `output_dir`.
        collator (`type[TrainCollator]`): Class that makes the batches.
        prepare (`Callable`, *optional*): Called with the model after freezing, before the optimiser is made.
        callbacks (`Sequence[TrainerCallback]`): Callbacks of transformers. `on_log` receives the losses, `on_evaluate`
            the metrics on val, and `control.should_training_stop = True` ends the training. Every process calls them.

    Returns:
        `TrainedModel`: The trainer with the trained model, and the val split.

    Raises:
        UserError: The data set has no train split, images are broken, or settings do not fit the data or each other.

    Example:
        A tiny LLaVA trains on rendered pedestrians:

        >>> import tempfile
        >>> from pathlib import Path
        >>> from modeling_mllmreid import BatchArguments, MllmReIDModel, ReIDTrainingArguments
        >>> from modeling_mllmreid import load_reid_dataset, train_reid
        >>> from modeling_mllmreid.research.tiny_llava import build_processor, build_tiny_llava
        >>> from modeling_mllmreid.synthetic.write import write_pedestrians
        >>> processor = build_processor([], height=64, width=32, patch_size=16)
        >>> llava = build_tiny_llava(processor, hidden_size=16, tower_layers=1, lm_layers=1, seed=0)
        >>> prefix = processor.image_prefix_ids
        >>> model = MllmReIDModel.from_mllm(llava, height=64, width=32, loss_lambda=1.0, image_prefix_ids=prefix)
        >>> sizes = {"train_identities": 4, "test_identities": 1, "images_per_camera": 2, "cameras": 2}
        >>> with tempfile.TemporaryDirectory() as folder:  # doctest: +ELLIPSIS
        ...     written = write_pedestrians(Path(folder) / "data", **sizes)
        ...     dataset = load_reid_dataset("market1501", data_dir=f"{folder}/data")
        ...     args = ReIDTrainingArguments(
        ...         output_dir=f"{folder}/model",
        ...         identities_per_batch=4,
        ...         images_per_identity=2,
        ...         max_steps=1,
        ...         eval_strategy="no",
        ...         use_cpu=True,
        ...     )
        ...     trained = train_reid(model, processor, dataset, BatchArguments(), args)
        ...     sorted(path.name for path in Path(folder, "model").glob("*.safetensors"))
        16 training images of 4 people; ... parameters, ... trained
        ...
        ['model.safetensors']
        >>> trained.trainer.state.global_step
        1
    """
    try_settings(args)
    _check_method(model.config, batch_args, args)
    train, val_split, val = _training_splits(dataset, batch_args, args)
    check_images([source for split in (train, val_split) if split is not None for source in image_sources(split)])

    config = model.config
    language = config.loss_lambda < 1
    needs_captions = language or config.reid_text or collator.needs_captions
    read = batch_args
    if not language and read.target == "continuation":
        read = replace(read, target="caption")  # No loss reads the continuation, so it need not exist.
    samples = TrainDataset(train, processor, read, seed=args.seed, language=needs_captions)
    _set_identities(model, processor, samples, args)
    _check_checkpointing(model, args)
    frozen = freeze_unused_parameters(model)
    if prepare is not None:
        prepare(model)
    _refuse_half_precision(model)
    use_fast_layout(model, args.device)
    if args.process_index == 0:
        print(f"{len(samples):,} training images of {samples.num_identities:,} people; {parameter_counts(model)}")
    pairs = getattr(config, "pair_weight", 0) > 0
    batches = collator(processor, batch_args, language=language, reid_text=config.reid_text, pairs=pairs)
    if args.auto_find_batch_size:
        find_batch_size(args, model, samples, batches)
    logger.info("frozen, as no loss reaches them: %s", ", ".join(frozen) or "none")
    trainer = ReIDTrainer(
        model=model,
        args=args,
        train_dataset=samples,
        eval_dataset=val,
        data_collator=batches,
        processing_class=processor,
        callbacks=list(callbacks),
    )
    if args.similar_people > 1:
        workers = args.dataloader_num_workers
        sources = (samples.images, samples.person_ids)
        trainer.similar = similar_people(
            model, processor, *sources, batch_size=args.per_device_eval_batch_size, num_workers=workers
        )
    fingerprint = run_fingerprint(args, batch_args, model, samples, val=val_split, sharding=sharding_of(trainer))
    _train_and_save(trainer, fingerprint, val)
    return TrainedModel(trainer, val)


def _check_method(config: PreTrainedConfig, batch_args: BatchArguments, args: ReIDTrainingArguments) -> None:
    """Raises UserError if distillation has no text branch to learn from, or the ReID losses no batches of people."""
    if args.pairs_per_batch and config.loss_lambda > 0:
        raise UserError(
            f"pairs_per_batch: the ReID losses need batches of P x K: set loss_lambda ({config.loss_lambda:g}) to 0, "
            "or leave it out"
        )
    if args.pairs_per_batch and args.similar_people > 1:
        raise UserError(
            "similar_people: groups people of batches of P x K: leave pairs_per_batch out, or similar_people"
        )
    if getattr(config, "pair_weight", 0):
        if args.pairs_per_batch:
            raise UserError(
                "pair_weight: pairs of one person need batches of P x K: leave pairs_per_batch out, or pair_weight"
            )
        checkpointing = dict(args.activation_checkpointing_kwargs or {})  # type: ignore[arg-type]
        if args.activation_checkpointing and checkpointing.get("use_reentrant"):
            raise UserError(
                "activation_checkpointing_kwargs: use_reentrant keeps no gradient of what the pairs read: leave it out"
            )
    if config.distillation_weight and config.loss_lambda < 1 and not batch_args.text_branch:
        raise UserError(
            "distillation_weight needs the text branch as its teacher: set text_branch true, or leave it out"
        )


def _check_checkpointing(model: ImageEncoder, args: ReIDTrainingArguments) -> None:
    """Raises UserError if the model has no blocks that recompute their activations; transformers marks the others."""
    able = any(hasattr(module, "gradient_checkpointing") for module in model.modules())
    if args.activation_checkpointing and not able:
        raise UserError("activation_checkpointing: the encoder has no blocks that support it: leave it out")


def _training_splits(
    dataset: DatasetDict, batch_args: BatchArguments, args: ReIDTrainingArguments
) -> tuple[Dataset, Dataset | None, QueryGallery | None]:
    """Returns the train split, the val split, and query and gallery of val."""
    if "train" not in dataset:
        raise UserError(f"the data set has {', '.join(dataset)}: training needs a train split")
    train, val = dataset["train"], dataset.get("val")
    if val is None and batch_args.val_identities:
        _refuse_too_few_people(train, batch_args.val_identities, args)
        train, val = split_validation(train, val_identities=batch_args.val_identities, seed=args.seed)
    if val is None and args.eval_strategy != "no":
        raise UserError("there is no val split: set val_identities, or eval_strategy to 'no'")
    if val is None and args.eval_on_start:
        raise UserError("eval_on_start: there is no val split: set val_identities, or leave it out")
    return train, val, None if val is None else QueryGallery(*split_query_gallery(val))


def _refuse_too_few_people(train: Dataset, val_identities: int, args: ReIDTrainingArguments) -> None:
    """Raises UserError if val and a batch of P x K together need more people than there are."""
    if args.pairs_per_batch or args.auto_find_batch_size:
        return
    people, batch = len(train.unique("person_id")), args.identities_per_batch * args.world_size
    if val_identities + batch > people:
        each = f" x world_size {args.world_size}" if args.world_size > 1 else ""
        raise UserError(
            f"{people} people in the train split, but val_identities {val_identities} and identities_per_batch "
            f"{args.identities_per_batch}{each} need {val_identities + batch}: lower one of them, or give more people"
        )


def _set_identities(
    model: ImageEncoder, processor: ImageEncoderProcessor, samples: TrainDataset, args: ReIDTrainingArguments
) -> None:
    """Records the training data in the configuration, and makes a new ID classifier for other identities."""
    config: Any = model.config
    if isinstance(processor, MllmReIDProcessor):
        config.image_prefix_ids = processor.image_prefix_ids
        if config.pair_weight:
            with setting_errors("pair_weight", "train another model, or leave it out"):
                config.pair_question_ids, config.pair_answer_ids = (
                    processor.pair_question_ids(),
                    processor.pair_answer_ids(),
                )
    names = {name.partition(":")[0] for name in config.trained_on or []}
    config.trained_on = sorted({*(config.trained_on or []), *(set(samples.sources) - names)})
    digest = identities_digest(samples)
    if (config.num_identities, config.identities_digest) != (samples.num_identities, digest):
        if config.num_identities and args.process_index == 0:
            print(f"new ID classifier: {_classifier_mismatch(config, samples.num_identities)}")
        model.set_num_identities(samples.num_identities, digest)


def _classifier_mismatch(config: PreTrainedConfig, num_identities: int) -> str:
    """Returns the reason why the ID classifier of a checkpoint does not fit."""
    if config.num_identities != num_identities:
        return f"that of the checkpoint has {config.num_identities:,} people, the data {num_identities:,}"
    if config.identities_digest is None:
        return "the checkpoint does not record the people of its classifier"
    return f"the {num_identities:,} people of the checkpoint are others than those of the data"


def _refuse_half_precision(model: ImageEncoder) -> None:
    """Raises UserError if a trained parameter has 16 bits."""
    half = [name for name, p in model.named_parameters() if p.requires_grad and p.dtype.itemsize < 4]
    if half:
        raise UserError(
            f"{half[0]} is trained in {model.get_parameter(half[0]).dtype}, where small updates are lost: load the "
            "model with dtype float32 and set bf16 for speed"
        )


def _train_and_save(trainer: ReIDTrainer, fingerprint: dict[str, Any], val: QueryGallery | None) -> None:
    """Trains from the start or a checkpoint, and saves model, state and thresholds."""
    trainer.run_fingerprint = fingerprint
    args, main_process = trainer.args, trainer.args.process_index == 0
    writer = only_writer(Path(str(args.output_dir)), work="training") if main_process else nullcontext()
    with writer, owner_only():
        checkpoint = on_main(checkpoint_to_resume, args, fingerprint)
        if checkpoint is not None and main_process:
            ended = ", where a training ended: set resume_from_checkpoint false to train again"
            print(f"continues from {checkpoint}{ended if is_finished(checkpoint) else ''}")
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        # Not `save_model()`, which would also push: the card needs the metrics that are measured next.
        trainer.save_model(_internal_call=True)
        trainer.save_state()
        save_thresholds_on_val(trainer, val)


def save_thresholds_on_val(trainer: ReIDTrainer, val: QueryGallery | None) -> None:
    """Fits the thresholds of the trained model on val, and writes them to its folder; all processes call it.

    Args:
        trainer (`ReIDTrainer`): The trainer with the trained model.
        val (`QueryGallery`, *optional*): Query and gallery of val. Without it the file is empty, as thresholds of an
            earlier run in this folder belong to other weights.
    """
    model: Any = trainer.model
    processor: Any = trainer.processing_class
    fitted = FittedThresholds({})
    if val is not None:
        # Processes that share the weights score the same pairs, as their forward passes must agree.
        share, batch_size = sharding_of(trainer) is None, trainer.args.per_device_eval_batch_size
        fitted = fit_thresholds(model, processor, *val, share=share, batch_size=batch_size, progress=False)
    if trainer.args.process_index == 0:
        if fitted.no_fusion:
            logger.warning("no fusion of pair scores on val: %s", fitted.no_fusion)
        if not fitted.thresholds and not trainer.args.pairs_per_batch:
            reason = "there is no val split" if val is None else "val has too few people (it takes 10 searches or more)"
            print(f"no threshold for searches: {reason}; set val_identities higher, or run the command calibrate later")
        save_thresholds(str(trainer.args.output_dir), fitted.thresholds)


def parameter_counts(model: ImageEncoder) -> str:
    """Returns the numbers of all parameters and of the trained ones, in words."""
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"{total:,} parameters, {trained:,} trained"
