"""Measures the cost of a training step relative to its bare modules, a plain loop, and other settings.

python benchmarks/training.py [--size small] [--parts floor trainer adapters processes cached] [--repeats 12]
                              [--recipe configs/NAME.yaml] [--field value ...]

floor      a step of `ReIDTrainer` (forward, losses, backward, optimiser) against a bare forward and backward of the
           same modules over as many tokens without padding: image branch alone, both branches, and lambda 1.
trainer    the same step against a plain loop with the same model, batches, losses and optimiser.
adapters   steps with a LoRA, with 4 bits, and with compiled layers, against those that train all weights.
processes  images a second of two processes against those of one.
cached     steps of 64 x 4 images with cached gradients (`grad_cache_chunk`) against plain ones of 8 x 4: time per image
           and peak memory.

Both sides of a ratio take turns in one run. Batches are made before it, and logging has its default rate. `--field` is
an option of `run_reid.py train`, and replaces that of the recipe.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timing
import torch
from evaluation import memory
from models import SIZES, Prepared, make_batches, make_reid, useful_tokens
from torch import Tensor
from transformers import TrainerCallback
from transformers.utils import is_bitsandbytes_available

from modeling_mllmreid.model import MllmReIDModel
from modeling_mllmreid.options.arguments import MethodArguments, ModelArguments
from modeling_mllmreid.options.data_arguments import DataArguments
from modeling_mllmreid.options.parser import build_options, read_options
from modeling_mllmreid.training.adapters import AdapterArguments
from modeling_mllmreid.training.arguments import ReIDTrainingArguments
from modeling_mllmreid.training.batch_arguments import BatchArguments
from modeling_mllmreid.training.batches import TrainCollator
from modeling_mllmreid.training.loading import load_model
from modeling_mllmreid.training.modules import linear_layers
from modeling_mllmreid.training.parameters import freeze_unused_parameters
from modeling_mllmreid.training.progress import TrainingProgress
from modeling_mllmreid.training.trainer import ReIDTrainer
from modeling_mllmreid.utils.errors import UserError

GROUPS = (ModelArguments, MethodArguments, AdapterArguments, DataArguments, BatchArguments, ReIDTrainingArguments)
ADAPTERS: dict[str, dict[str, Any]] = {
    "full": {"language_model": "full", "tower": "full", "quantize": None},
    "lora": {"language_model": "lora", "tower": "full", "quantize": None},
    "4bit": {"language_model": "lora", "tower": "full", "quantize": "4bit"},
    "lora by PEFT": {"language_model": "lora", "tower": "full", "quantize": None, "fused_lora": False},
    "4bit by PEFT": {"language_model": "lora", "tower": "full", "quantize": "4bit", "fused_lora": False},
    "lora compiled": {"language_model": "lora", "tower": "full", "quantize": None, "torch_compile": True},
    "lora by liger": {"language_model": "lora", "tower": "full", "quantize": None, "use_liger_kernel": True},
}
IDENTITIES = 751  # in the train split of Market-1501


def main() -> None:
    """Runs the measurements and prints their ratios."""
    parts = (floor, trainer, adapters, processes, cached)
    run_parts(__doc__, {part.__name__: part for part in parts}, repeats=12)


def run_parts(
    description: str | None,
    parts: Mapping[str, Callable[[argparse.Namespace, timing.Results], object]],
    *,
    repeats: int,
) -> None:
    """Reads the command line and runs the measurements of `--parts`, all by default."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--size", default="small", choices=SIZES)
    parser.add_argument("--backbone", help="a LLaVA that replaces the random one of this size")
    parser.add_argument("--recipe", help="a configuration of `train`")
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=parts)
    parser.add_argument("--adapters", nargs="+", default=list(ADAPTERS), choices=ADAPTERS)
    parser.add_argument("--steps", type=int, default=6, help="steps of each process, in processes and cached")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    timing.add_arguments(parser, repeats)
    args, flags = parser.parse_known_args()
    args.fields = read_options(GROUPS, [*([] if args.recipe is None else [args.recipe]), *flags], "train")
    torch.set_num_threads(args.threads)
    if args.worker is not None:
        args.fields = json.loads(args.worker)
        return work(args)
    results = timing.Results(args)
    for name in args.parts:
        parts[name](args, results)
        gc.collect()
    results.append()


# ---- timed steps -----------------------------------------------------------------------------------------------------


def make_trainer(
    args: argparse.Namespace, *, num_identities: int = IDENTITIES, **fields: Any
) -> tuple[ReIDTrainer, list[dict[str, Tensor]]]:
    """Makes a trainer as `train` does, and its batches. `fields` replace options of `train`."""
    height, width = SIZES[args.size][:2]
    options = {"identities_per_batch": 4, "images_per_identity": 2, "dataset": "prepared", **args.fields}
    options |= {"model": args.backbone or "random", "height": height, "width": width, "output_dir": tempfile.mkdtemp()}
    options |= {"eval_strategy": "no", "save_strategy": "no", "disable_tqdm": True, "use_cpu": args.device == "cpu"}
    options |= {"dataloader_num_workers": 0, "logging_steps": 500, "max_steps": args.repeats + 2, **fields}
    model_args, method, adapter, _, batch_args, arguments = build_options(GROUPS, options, "train")
    if args.backbone is None:
        device, given = arguments.device, method.given()
        model, processor = make_reid(args.size, model_args.torch_dtype, device, adapter, **given)
    else:
        model, processor = load_model(model_args, method.given(), adapter, arguments.device)
    model.set_num_identities(num_identities)
    freeze_unused_parameters(model)
    people, images = arguments.identities_per_batch, arguments.images_per_identity
    collator = TrainCollator(
        processor, batch_args, language=model.config.loss_lambda < 1, reid_text=model.config.reid_text
    )
    batches = make_batches(processor, collator, people, images, target_tokens=batch_args.max_target_tokens)
    samples = Prepared(batches, people * arguments.world_size, images * 100)
    trainer = ReIDTrainer(
        model=model, args=arguments, train_dataset=samples, data_collator=samples.collate, processing_class=processor
    )
    trainer.remove_callback(TrainingProgress)
    return trainer, batches


class Turns(TrainerCallback):
    """Times the steps of a training, and runs the other functions after each step."""

    def __init__(self, device: str, others: Mapping[str, Callable[[int], object]]):
        self.device, self.others = device, others
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._mark: float | None = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._mark is None:
            self._mark = timing.now(self.device)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds["trainer"].append(timing.now(self.device) - self._mark)
        for name, other in self.others.items():
            start = timing.now(self.device)
            other(state.global_step - 1)
            self.seconds[name].append(timing.now(self.device) - start)
        # The time of a step includes the logging of the previous one.
        self._mark = timing.now(self.device)


def train_in_turns(
    trainer: ReIDTrainer, others: Mapping[str, Callable[[int], object]], device: str
) -> dict[str, list[float]]:
    """Returns the seconds of each step of the trainer and of each other function, without the first two."""
    turns = Turns(device, others)
    trainer.add_callback(turns)
    trainer.train()
    return {name: values[2:] for name, values in turns.seconds.items()}


class Floor:
    """A bare forward and backward of the modules, with the number of tokens of a batch and without padding.

    Every sequence has the mean length of the batch, rounded down, and the mean number of targets.
    """

    def __init__(self, trainer: ReIDTrainer, batch: dict[str, Tensor]):
        self.model: MllmReIDModel = trainer.model
        self.half, self.device = trainer.args.bf16, trainer.args.device
        self.pixels = batch["pixel_values"].to(self.device)
        images, words = len(self.pixels), self.model.config.get_text_config().vocab_size
        self.ids, self.targets = {}, {}
        for branch in ("", "text_"):
            if f"{branch}labels" in batch:
                length = int(batch[f"{branch}attention_mask"].sum()) // images
                count = int((batch[f"{branch}labels"] != -100).sum()) // images
                self.ids[branch] = torch.randint(5, words, (images, length), device=self.device)
                self.targets[branch] = self.ids[branch][:, -count:].flatten()

    def __call__(self) -> None:
        """Runs forward and backward, and clears the gradients."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
            loss = self._loss()
        loss.backward()
        self.model.zero_grad()

    def _loss(self) -> Tensor:
        llava, layer = self.model.mllm.model, self.model.config.mllm_config.vision_feature_layer
        trained = any(p.requires_grad for p in llava.vision_tower.parameters())
        with torch.set_grad_enabled(trained):
            pixels = self.pixels.to(llava.vision_tower.dtype)
            states = llava.vision_tower(pixels, interpolate_pos_encoding=True, output_hidden_states=[layer])
        image, embed = llava.multi_modal_projector(states.hidden_states[layer][:, 1:]), llava.get_input_embeddings()
        prefix = torch.tensor([self.model.config.image_prefix_ids] * len(image), device=self.device)
        before = embed(prefix)
        if not self.ids:
            sequences = torch.cat([before, image.to(before.dtype)], dim=1)
            return llava.language_model(inputs_embeds=sequences, use_cache=False).last_hidden_state.float().mean()
        after = embed(self.ids[""][:, prefix.shape[1] + image.shape[1] :])
        sequences = {"": torch.cat([before, image.to(before.dtype), after], dim=1)}
        if "text_" in self.ids:
            sequences["text_"] = embed(self.ids["text_"])
        losses = []
        for branch, embeddings in sequences.items():
            hidden = llava.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
            count = len(self.targets[branch]) // len(hidden)
            logits = self.model.mllm.lm_head(hidden[:, -count - 1 : -1].flatten(0, 1))
            losses.append(torch.nn.functional.cross_entropy(logits.float(), self.targets[branch]))
        return torch.stack(losses).mean()


class ByHand:
    """A training step of a plain loop: loss of the model, clipping, optimiser of the trainer, schedule."""

    def __init__(self, trainer: ReIDTrainer, batches: list[dict[str, Tensor]]):
        self.model, self.args, self.batches = trainer.model, trainer.args, batches
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        optimizer_class, settings = trainer.get_optimizer_cls_and_kwargs(self.args, self.model)
        self.optimizer = optimizer_class(self.parameters, **settings)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)

    def __call__(self, step: int) -> None:
        """Runs one step on the batch with this number."""
        batch = self.batches[step % len(self.batches)]
        batch = {name: value.to(self.args.device) for name, value in batch.items()}
        with torch.autocast(self.args.device.type, dtype=torch.bfloat16, enabled=self.args.bf16):
            loss = self.model(**batch).loss
        loss.backward()
        if self.args.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.args.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()


def setting(args: argparse.Namespace, trainer: ReIDTrainer) -> str:
    """Returns size, batch and precision of a training in a few words."""
    arguments, recipe = trainer.args, "" if args.recipe is None else f"{Path(args.recipe).stem}, "
    batch = f"{arguments.identities_per_batch} x {arguments.images_per_identity}"
    return f"{recipe}{args.size}, {batch}, {'bfloat16' if arguments.bf16 else 'float32'}"


def operations_a_token(trainer: ReIDTrainer) -> int:
    """Returns the operations of a step that one useful token needs in the linear layers of the language model.

    Two for each weight in the forward pass (multiply, add), two in the gradient of the input, and two more in that of a
    weight that is trained: 4 x parameters for a LoRA or a frozen model, 6 x for one that is trained in full. What is
    computed again for activation checkpointing does not count, nor do attention, the LoRA's own products and the tower.
    """
    mllm, backbone = trainer.model.mllm, trainer.model.backbone
    total = 0
    for name in linear_layers(mllm, backbone, backbone.language_path):
        if ".lora_" not in name:
            layer = mllm.get_submodule(name)
            total += (6 if layer.weight.requires_grad else 4) * layer.in_features * layer.out_features
    return total


def utilisation(operations: float, device: str) -> str:
    """Returns the share of the GPU's dense bfloat16 peak (MFU) in words, if the peak is known."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    peaks = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # NVIDIA's data sheets, SXM
    peak = next((peak for card, peak in peaks.items() if card in name), None)
    return "" if peak is None else f", MFU {operations / peak:.1%}"


# ---- measurements ----------------------------------------------------------------------------------------------------


def floor(args: argparse.Namespace, results: timing.Results) -> None:
    """Measures the step of the trainer against the bare modules on its tokens without padding."""
    kinds = {"image branch": {"text_branch": False}, "both branches": {}, "lambda 1": {"loss_lambda": 1.0}}
    for kind, fields in kinds.items():
        trainer, batches = make_trainer(args, **fields)
        floors = [Floor(trainer, batch) for batch in batches]
        seconds = train_in_turns(trainer, {"floor": lambda step, steps=floors: steps[step % len(steps)]()}, args.device)
        name = f"step / bare modules over useful tokens, {kind} ({setting(args, trainer)})"
        results.ratio(name, seconds["trainer"], seconds["floor"], 1.15)
        if kind == "both branches":
            tokens = np.mean([useful_tokens(batch) for batch in batches]) / np.median(seconds["trainer"])
            results.add(f"useful tokens a second, {kind} ({setting(args, trainer)})", f"{tokens:,.0f}")
            operations = tokens * operations_a_token(trainer)
            share = utilisation(operations, args.device)
            results.add(
                f"model operations a second, {kind} ({setting(args, trainer)})", f"{operations / 1e12:.3f} T{share}"
            )
        del trainer, floors
        gc.collect()


def trainer(args: argparse.Namespace, results: timing.Results) -> None:
    """Measures the step of the trainer against a plain loop."""
    reid_trainer, batches = make_trainer(args)
    seconds = train_in_turns(reid_trainer, {"hand": ByHand(reid_trainer, batches)}, args.device)
    results.ratio(
        f"ReIDTrainer / loop by hand ({setting(args, reid_trainer)})", seconds["trainer"], seconds["hand"], 1.03
    )


def adapters(args: argparse.Namespace, results: timing.Results) -> None:
    """Measures steps with other adapters against the first of `--adapters`."""
    functions, trainers = {}, {}
    for name in args.adapters:
        if ADAPTERS[name]["quantize"] and not is_bitsandbytes_available():
            results.skip(f"step, {name}", "bitsandbytes is not installed")
            continue
        try:
            trainers[name], batches = make_trainer(args, **ADAPTERS[name])
        except UserError as reason:
            results.skip(f"step, {name}", str(reason))
            continue
        if trainers[name].args.activation_checkpointing:
            trainers[name].model.activation_checkpointing_enable()
        trainers[name].model.train()
        step = ByHand(trainers[name], batches)
        functions[name] = lambda step=step: step(0)
    seconds = timing.alternate(functions, args.repeats, args.device)
    first, *others = functions
    for name in others:
        results.ratio(f"step, {name} / {first} ({setting(args, trainers[name])})", seconds[name], seconds[first])


def processes(args: argparse.Namespace, results: timing.Results) -> None:
    """Measures images a second of two processes against one, in new processes that take turns."""
    if args.device == "cuda" and torch.cuda.device_count() < 2:
        return results.skip("2 processes", "there is one GPU")
    speeds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(2):
        for count in speeds:
            run = start_worker(args, {}, count)
            speeds[count].append(run["images"] / run["seconds"])
    results.ratio(f"images a second, 2 processes / 1 ({args.size})", speeds[2], speeds[1])


def cached(args: argparse.Namespace, results: timing.Results) -> None:
    """Measures large batches with cached gradients against small plain ones, each in its own process."""
    plain = {"identities_per_batch": 8, "images_per_identity": 4}
    large = {"identities_per_batch": 64, "images_per_identity": 4, "grad_cache_chunk": 32}
    runs: dict[str, list[dict[str, float]]] = {"plain": [], "cached": []}
    for _ in range(2):
        for name, fields in {"plain": plain, "cached": large}.items():
            runs[name].append(start_worker(args, fields, 1))
    times = {name: [run["seconds"] / run["images"] for run in measured] for name, measured in runs.items()}
    peaks = {name: [run["mib"] for run in measured] for name, measured in runs.items()}
    results.ratio(f"time an image, 64 x 4 cached / 8 x 4 plain ({args.size})", times["cached"], times["plain"])
    results.ratio(f"peak memory, 64 x 4 cached / 8 x 4 plain ({args.size})", peaks["cached"], peaks["plain"], 1.2)


# ---- processes -------------------------------------------------------------------------------------------------------


def start_worker(args: argparse.Namespace, fields: dict[str, Any], count: int) -> dict[str, float]:
    """Trains in `count` new processes; returns median seconds of a step, images over all processes, and peak MiB."""
    launch = [] if count == 1 else ["-m", "torch.distributed.run", "--nproc_per_node", str(count)]
    options = {name: getattr(args, name) for name in ("size", "backbone", "device", "threads", "steps")}
    flags = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    flags += ["--worker", json.dumps({**args.fields, **fields})]
    run = subprocess.run([sys.executable, *launch, __file__, *flags], stdout=subprocess.PIPE, text=True)
    run.check_returncode()
    return json.loads(next(line for line in run.stdout.splitlines() if line.startswith('{"seconds"')))


def work(args: argparse.Namespace) -> None:
    """Runs one process of a training. The first process prints the result as JSON, with memory above the start."""
    trainer, batches = make_trainer(args, max_steps=args.steps + 2)
    device, step_start = trainer.args.device, [0.0]
    steps: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if not state.global_step:
                self.before = memory(device, reset=True)
            step_start[0] = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if device.type == "cuda":
                torch.cuda.synchronize()
            steps.append(time.perf_counter() - step_start[0])

    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    if trainer.args.process_index == 0:
        mib = (memory(device) - clock.before) / 2**20
        images = len(batches[0]["pixel_values"]) * trainer.args.world_size
        print(json.dumps({"seconds": float(np.median(steps[2:])), "images": images, "mib": mib}), flush=True)


if __name__ == "__main__":
    main()
