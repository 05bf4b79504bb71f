"""The shared inputs of all runs: the data sets, the base LLaVA and the texts of the frozen teacher."""

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModelForImageTextToText, PreTrainedModel

from ...data.captions import missing_captions, read_records
from ...data.combinations import parse_combination
from ...data.licences import licence_of
from ...data.load import load_reid_dataset
from ...model.backbones import FAMILIES
from ...model.heads import mean_pool
from ...options.arguments import MethodArguments, ModelArguments
from ...text.continuations import write_continuations
from ...text.instructions import COMMON_INSTRUCTION, STANDARD_POOL
from ...training.batch_arguments import BatchArguments
from ...training.loading import load_native_processor, load_text_model, model_commit, to_device
from ...utils.errors import UserError
from ...utils.outputs import write_json
from ..tiny_llava import PRETRAINING_VERSION, TinyArguments, build_tiny, pretrain_tiny
from .plan import TINY, AblationArguments

INSTRUCTIONS = (COMMON_INSTRUCTION, *STANDARD_POOL)
TEST_SEED = 0


def load_set(args: AblationArguments, name: str, texts: Path | None = None) -> DatasetDict:
    """Loads a data set of the plan by its name, with its captions and, from `texts`, its continuations."""
    several = parse_combination(name) is not None
    folders: dict[str, Any] = {"data_dirs": args.data_dirs} if several else {"data_dir": args.data_dirs.get(name)}
    return load_reid_dataset(name, texts=texts, captions_file=args.captions_files.get(name), **folders)


def prepare_base(args: AblationArguments, tiny: TinyArguments, shared: Mapping[str, Any], folder: Path) -> str:
    """Returns the name of the native model that all runs start from; builds and pretrains a missing tiny one.

    The pretraining cycles through all instructions, so that no instruction is new to the model.
    """
    if args.base_model != TINY:
        return args.base_model
    method, batches = (_build(kind, shared) for kind in (MethodArguments, BatchArguments))
    height, width = method.height or 128, method.width or 64
    size = {"height": height, "width": width, "target_tokens": batches.max_target_tokens}
    settings = {"pretraining": PRETRAINING_VERSION, **asdict(tiny), **size}
    root = folder / f"tiny-{_digest(settings)}"
    if root.is_dir():
        return str(root)
    processor, mllm = build_tiny(tiny, height=height, width=width, seed=TEST_SEED, instructions=INSTRUCTIONS)
    losses = pretrain_tiny(mllm, processor, tiny, target_tokens=batches.max_target_tokens, instructions=INSTRUCTIONS)
    folder.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".tiny-", suffix=".part", dir=folder))
    for component in (processor.tokenizer, processor.image_processor, mllm):
        component.save_pretrained(partial)
    write_json(partial / "pretraining.json", {**settings, "losses": losses})
    partial.rename(root)
    return str(root)


def base_identity(args: AblationArguments, base: str) -> str:
    """The identity of the base model in the keys of runs: the folder name of a tiny one, else name and commit.

    Another teacher is a part of it.
    """
    own = Path(base).name if args.base_model == TINY else _name_and_commit(base)
    return own if args.teacher_model is None else f"{own} with texts of {_name_and_commit(args.teacher_model)}"


def make_teacher(args: AblationArguments, base: str, folder: Path, max_new_tokens: int) -> "Teacher":
    """The teacher of a plan: `teacher_model`, or the base model.

    Args:
        args (`AblationArguments`): The plan.
        base (`str`): Name or folder of the base model.
        folder (`Path`): Its texts go to a folder of their own in it.
        max_new_tokens (`int`): Longest continuation, in tokens.
    """
    name = base if args.teacher_model is None else args.teacher_model
    identity = base_identity(args, base) if args.teacher_model is None else _name_and_commit(name)
    texts = folder / f"texts-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    return Teacher(args, name, texts, max_new_tokens)


def _name_and_commit(name: str) -> str:
    return f"{name}@{model_commit(ModelArguments(name))}"


class Teacher:
    """The frozen model that writes the continuations. It is loaded at its first use."""

    def __init__(self, args: AblationArguments, base: str, folder: Path, max_new_tokens: int):
        self.base, self.folder, self.max_new_tokens = base, folder, max_new_tokens
        self.dtype = args.base_dtype
        self.is_tiny = args.base_model == TINY and args.teacher_model is None
        self._mllm: PreTrainedModel | None = None
        self.processor = load_native_processor(ModelArguments(base))

    @property
    def mllm(self) -> PreTrainedModel:
        """The frozen multimodal LLM, on the device."""
        if self._mllm is None:
            loaded = load_text_model(AutoModelForImageTextToText, ModelArguments(self.base, dtype=self.dtype))
            self._mllm = loaded.requires_grad_(False).eval()
            to_device(self._mllm)
        return self._mllm

    def path(self, name: str, split: str) -> Path:
        """The sidecar file of a split of a data set."""
        plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        return self.folder / f"{plain}-{split}-{self.max_new_tokens}-tokens.jsonl"

    def embed(self, texts: Sequence[str], batch_size: int = 128) -> np.ndarray:
        """The language model's latent of each text, (N, D): the mean over its tokens, minus the mean of all texts."""
        features = []
        family = FAMILIES[self.mllm.config.model_type]
        language_model = self.mllm.get_submodule(family.language_path)
        with torch.inference_mode():
            for start in range(0, len(texts), batch_size):
                ids = [self.processor.target_ids(text, 512) for text in texts[start : start + batch_size]]
                batch = self.processor.build_inputs(ids, [[] for _ in ids])
                inputs = {name: batch[name].to(self.mllm.device) for name in ("input_ids", "attention_mask")}
                hidden = language_model(**inputs).last_hidden_state
                features.append(mean_pool(hidden, inputs["attention_mask"].bool()).float().cpu().numpy())
        stacked = np.concatenate(features)
        return np.asarray(stacked - stacked.mean(axis=0))

    def continue_captions(self, name: str, split: str, images: Dataset) -> Path:
        """Writes a continuation of every caption to the sidecar; returns its path. Continues an interrupted file."""
        path = self.path(name, split)
        # The file may hold the texts of other images, as of a plan that compared more or fewer of them.
        if missing_captions(images, split, read_records(path) if path.exists() else []):
            write_continuations(
                self.mllm,
                self.processor,
                {split: images},
                path,
                instruction=COMMON_INSTRUCTION,
                model_name=self.base,
                revision=None,
                licence=None if self.is_tiny else licence_of(self.base),
                max_new_tokens=self.max_new_tokens,
                batch_size=128,
            )
        return path


def first_images(query: Dataset, count: int) -> Dataset:
    """The first image with a caption of each person, for at most `count` people."""
    people, captions = np.asarray(query["person_id"][:]), query["caption"][:]
    captioned = [image for image in range(len(people)) if captions[image]]
    _, first = np.unique(people[captioned], return_index=True)
    return query.select(np.sort(np.asarray(captioned, dtype=int)[first])[:count])


def check_captions(name: str, split: Dataset) -> None:
    """Raises UserError for a train split without captions."""
    if not any(split["caption"][:]):
        raise UserError(f"data set {name}: no training image has a caption: give captions_files, or lambda 1 alone")


def _build(kind: type, shared: Mapping[str, Any]) -> Any:
    """The dataclass from those of the values that are its fields."""
    return kind(**{name: value for name, value in shared.items() if name in {field.name for field in fields(kind)}})


def _digest(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
