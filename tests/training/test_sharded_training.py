"""FSDP2, ZeRO-2 and ZeRO-3 over two processes have the losses of one process, and unsharded checkpoints."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
import transformers.training_args
import yaml
from accelerate import DistributedType, PartialState
from accelerate.utils import is_deepspeed_available
from transformers import AutoModel

from modeling_mllmreid.commands import export
from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.evaluation import pair_fusion_fit
from modeling_mllmreid.evaluation.threshold import load_thresholds
from modeling_mllmreid.model import MllmReIDModel, MllmReIDVisionModel, mllm_forward
from modeling_mllmreid.model.processing_mllmreid import PAIR_ANSWERS, PAIR_QUESTION
from modeling_mllmreid.research.tiny_llava import build_processor, build_tiny_llava
from modeling_mllmreid.synthetic.people.captions import sample_descriptions
from modeling_mllmreid.training import arguments
from modeling_mllmreid.training.adapters import AdapterArguments, prepare_training
from modeling_mllmreid.training.arguments import ReIDTrainingArguments
from modeling_mllmreid.training.batch_arguments import BatchArguments
from modeling_mllmreid.training.run import train_reid
from modeling_mllmreid.training.trainer import ReIDTrainer

CONFIGS = Path(__file__).parents[2] / "configs"
LORA = {"language_model": "lora", "tower": "full", "lora_rank": 2, "lora_dropout": 0.0}
# SGD, as the steps of AdamW and clipping do not depend on the scale of the gradient.
PLAIN = {"optim": "sgd", "optim_args": "momentum=0.5", "learning_rate": 0.02, "max_grad_norm": 0.0}
ADAM = {"learning_rate": 1e-3}
# name -> (fields of `AdapterArguments`, training arguments)
FORMS: dict[str, tuple[dict | None, dict]] = {
    "full": (None, PLAIN),
    "thin": (LORA, ADAM),
    "bf16": (None, {"bf16": True, **ADAM}),
    "pairs": (None, PLAIN),
}
STEPS, HALF = 6, 3


def pairs_of_eight(features: torch.Tensor, person_ids: torch.Tensor, camera_ids: torch.Tensor) -> tuple:
    """Pairs within the images of one of two processes, also where one process has those of both."""
    places = torch.arange(len(person_ids), device=person_ids.device)
    second = torch.cat([places ^ 1, places // 8 * 8 + (places + 2) % 8])
    return places.repeat(2), second, (person_ids[places.repeat(2)] == person_ids[second]).float()


@patch.object(mllm_forward, "mine_pairs", pairs_of_eight)
@patch.object(pair_fusion_fit, "LEAST_PEOPLE", 3)
def train(people: str, output: Path, *, form: str, identities_per_batch: int, resume: Path | None = None) -> dict:
    """A run of `STEPS` steps: `losses` of this process, `evaluations` on val, `features` of two images at its end."""
    texts = [text for texts in sample_descriptions(300, seed=0) for text in texts]
    processor = build_processor([*texts, PAIR_QUESTION, *PAIR_ANSWERS], height=64, width=32, patch_size=16)
    world = load_reid_dataset("market1501", data_dir=people, captions_file=f"{people}/reid_raw.json")
    size = {"height": 64, "width": 32, "image_prefix_ids": processor.image_prefix_ids}
    backbone = output.parents[1] / "backbone"
    # In the order of the command: the arguments first, as they start the processes.
    args = ReIDTrainingArguments(
        output_dir=str(output),
        identities_per_batch=identities_per_batch,
        images_per_identity=2,
        max_steps=STEPS,
        lr_scheduler_type="constant",
        eval_strategy="steps",
        eval_steps=HALF,
        save_strategy="steps",
        save_steps=HALF,
        resume_from_checkpoint=None if resume is None else str(resume),
        diagnostics_steps=2,
        disable_tqdm=True,
        use_cpu="RANK" not in os.environ,
        **FORMS[form][1],
    )
    torch.manual_seed(0)
    pairs = {"pair_weight": 0.5} if form == "pairs" else {}
    model = MllmReIDModel.from_mllm_pretrained(backbone, **size, loss_lambda=0.7, num_identities=8, **pairs)
    if FORMS[form][0] is not None:
        adapters = AdapterArguments(**FORMS[form][0])
        prepare_training(model, adapters, backbone=str(backbone), revision=None, dtype=torch.float32)
    losses, compute_loss = [], ReIDTrainer.compute_loss

    def watched(self, *given, **options):
        loss = compute_loss(self, *given, **options)
        losses.append(loss.detach().double())
        return loss

    ReIDTrainer.compute_loss = watched
    try:
        batches = BatchArguments(target="caption", val_identities=4)
        trainer = train_reid(model, processor, world, batches, args).trainer
    finally:
        ReIDTrainer.compute_loss = compute_loss
    trained = trainer.accelerator.unwrap_model(trainer.model).eval()
    with torch.no_grad():
        features = {name: rows.clone() for name, rows in trained.image_features(pixels()).items()}
        features["encoded"] = trained.encode_images(pixels()).clone()
        score = pair_score(trained) if form == "pairs" else None
    engine = trainer.accelerator.distributed_type.value
    head = {name: p.dtype for name, p in trained.named_parameters() if name.startswith("reid_head")}
    return {
        "losses": torch.stack(losses),
        "evaluations": [entry["eval_mAP"] for entry in trainer.state.log_history if "eval_mAP" in entry],
        "features": features,
        "score": score,
        "best": trainer.state.best_model_checkpoint,
        "engine": engine,
        "head": head,
    }


def published(folder: Path) -> tuple[set[str], dict]:
    """(the names of the files that travel, `config.json`)."""
    names = {path.name for path in folder.iterdir() if path.suffix in (".py", ".json", ".safetensors")}
    return names, json.loads((folder / "config.json").read_text())


def pixels() -> torch.Tensor:
    return torch.linspace(-1, 1, 2 * 3 * 64 * 32).sin().view(2, 3, 64, 32)


@torch.no_grad()
def pair_score(model: MllmReIDModel) -> torch.Tensor:
    return model.score_pairs(model.read_images(pixels()), torch.tensor([0]), torch.tensor([1])).clone()


def one_of_two(rank: int, engine: str, people: str, output: str, port: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    pretend_accelerator(engine, output)
    results = {}
    for form in FORMS:
        folder = Path(output) / form
        results[form] = train(people, folder, form=form, identities_per_batch=4)
        resumed = folder.with_name(f"{form}-resumed")
        options = {"form": form, "identities_per_batch": 4, "resume": folder / f"checkpoint-{HALF}"}
        results[f"{form}-resumed"] = train(people, resumed, **options)
    torch.save(results, f"{output}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


def pretend_accelerator(engine: str, output: str) -> None:
    """Makes Accelerate run two gloo processes as `accelerate launch` does on GPUs with our configuration."""
    PartialState._prepare_backend = lambda *args: ("gloo", DistributedType.MULTI_GPU)
    for module in (transformers.training_args, arguments):
        module.is_torch_bf16_gpu_available = lambda: True
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    if engine == "fsdp2":
        config = yaml.safe_load((CONFIGS / "accelerate/one_node_fsdp2.yaml").read_text())["fsdp_config"]
        names = {"fsdp_transformer_layer_cls_to_wrap": "FSDP_TRANSFORMER_CLS_TO_WRAP"}
        os.environ.update({names.get(name, name.upper()): str(value) for name, value in config.items()})
        os.environ["ACCELERATE_USE_FSDP"] = "true"
    else:
        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        os.environ["ACCELERATE_DEEPSPEED_ZERO3_INIT"] = "false"
        config = json.loads((CONFIGS / f"deepspeed/{engine}.json").read_text())
        if engine == "zero3":
            # Small weights are not sharded, and here all are small.
            config["zero_optimization"] |= {"stage3_param_persistence_threshold": 0}
        file = Path(output) / f"{engine}-{os.environ['RANK']}.json"
        file.write_text(json.dumps(config))
        os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = str(file)


deepspeed = pytest.mark.skipif(not is_deepspeed_available(), reason="deepspeed is not installed: extra deepspeed")


@pytest.fixture(scope="module", params=["fsdp2", *(pytest.param(name, marks=deepspeed) for name in ("zero2", "zero3"))])
def runs(request, people, tmp_path_factory):
    """(names of the engine, folder, what one process gives by form, what each of two gives, `<form>-resumed` too)."""
    root = tmp_path_factory.mktemp(request.param)
    texts = [text for texts in sample_descriptions(300, seed=0) for text in texts]
    processor = build_processor([*texts, PAIR_QUESTION, *PAIR_ANSWERS], height=64, width=32, patch_size=16)
    build_tiny_llava(processor, hidden_size=32, tower_layers=2, lm_layers=2, seed=0).save_pretrained(root / "backbone")
    os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        one = {form: train(str(people), root / "one" / form, form=form, identities_per_batch=8) for form in FORMS}
        of_each = (request.param, str(people), str(root / "two"), 29500 + os.getpid() % 1000)
        (root / "two").mkdir()
        mp.spawn(one_of_two, of_each, nprocs=2)
    finally:
        del os.environ["DS_ACCELERATOR"]
    engines = {"fsdp2": ("FSDP", "FSDP"), "zero2": ("DEEPSPEED", "ZeRO-2"), "zero3": ("DEEPSPEED", "ZeRO-3")}
    return engines[request.param], root / "two", one, [torch.load(root / f"two/rank{rank}.pt") for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_sharded_training_has_the_losses_of_one_process_and_whole_checkpoints(runs, form, tmp_path):
    (engine, sharding), folder, one, two = runs
    ranks = [rank[form] for rank in two]
    assert {rank["engine"] for rank in ranks} == {engine}
    assert {dtype for rank in ranks for dtype in rank["head"].values()} == {torch.float32}
    mean = (ranks[0]["losses"] + ranks[1]["losses"]) / 2
    # In bfloat16 the weights differ by rounding, as those of one process differ from float32.
    for steps, tolerance in [(2, 1e-3), (STEPS, 1e-2)] if form == "bf16" else [(STEPS, 1e-5)]:
        torch.testing.assert_close(mean[:steps], one[form]["losses"][:steps], rtol=tolerance, atol=0)
    assert ranks[0]["evaluations"] == ranks[1]["evaluations"] and len(ranks[0]["evaluations"]) == 2
    assert ranks[0]["evaluations"] == pytest.approx(one[form]["evaluations"], abs=0.02 if form == "bf16" else 1e-3)
    # A resumed run repeats the second half.
    for rank, whole in zip(two, ranks, strict=True):
        again = rank[f"{form}-resumed"]
        torch.testing.assert_close(again["losses"], whole["losses"][HALF:], rtol=1e-6, atol=0)
        assert again["evaluations"] == pytest.approx(whole["evaluations"], abs=1e-6)

    expected = ranks[0]["features"]
    assert torch.equal(expected["encoded"], expected["llm"])
    for saved in (folder / form, folder / f"{form}-resumed", Path(ranks[0]["best"])):
        for load in (MllmReIDModel, AutoModel):
            model = load.from_pretrained(saved).eval()
            for name, rows in model.image_features(pixels()).items():
                torch.testing.assert_close(rows, expected[name], rtol=0, atol=1e-4, msg=f"{saved} {name}")
            if form == "pairs" and saved == folder / form:
                torch.testing.assert_close(pair_score(model), ranks[0]["score"], rtol=0, atol=1e-4)
    fusions = [load_thresholds(str(root / form))["llm"].fusion for root in (folder, folder.with_name("one"))]
    if form == "pairs":
        assert asdict(fusions[0]) == pytest.approx(asdict(fusions[1]), rel=0.02, abs=0.02) and fusions[0].people == 4
    else:
        assert fusions == [None, None]
    metadata = json.loads((folder / form / f"checkpoint-{STEPS}" / "run_facts.json").read_text())
    assert metadata["settings"]["sharding"] == sharding
    # The same files as one process writes, with the code of the model, and the same settings.
    names, settings = zip(*(published(root / form) for root in (folder, folder.with_name("one"))), strict=True)
    assert names[0] == names[1] and "modeling_mllmreid.py" in names[0] and settings[0] == settings[1]
    export.main(["--model", str(folder / form), "--to", "vision", "--output", str(tmp_path / "vision")])
    vision = MllmReIDVisionModel.from_pretrained(tmp_path / "vision").eval()
    assert np.allclose(vision.encode_images(pixels()).detach(), expected["vision"], atol=1e-4)
