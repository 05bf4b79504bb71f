"""`train` on encoders without a language model: full, LoRA and frozen, resumed, exported, estimated, and mistakes."""

import gc
import json
import shutil

import pytest
import torch
from datasets import DatasetDict
from encoders import write_encoder
from safetensors.torch import load_file
from transformers import set_seed

from modeling_mllmreid import BatchArguments, ReIDTrainingArguments, load_reid_dataset, train_reid
from modeling_mllmreid.commands import embed, evaluate, export, train
from modeling_mllmreid.model import MllmReIDVisionModel
from modeling_mllmreid.options.arguments import ModelArguments
from modeling_mllmreid.retrieval.embeddings import load_embeddings
from modeling_mllmreid.training.adapters import AdapterArguments
from modeling_mllmreid.training.embedder import load_embedder
from modeling_mllmreid.training.encoder_training import use_fast_layout
from modeling_mllmreid.training.fake_runs import image_parameters
from modeling_mllmreid.training.loading import load_encoder
from modeling_mllmreid.training.parameters import freeze_unused_parameters
from modeling_mllmreid.utils.errors import UserError

STEPS = ["--identities_per_batch", "2", "--images_per_identity", "2", "--eval_strategy", "no"]
STEPS += ["--use_cpu", "true", "--disable_tqdm", "true"]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """encoders(kind): an encoder on disk."""
    root = tmp_path_factory.mktemp("encoders")
    return lambda kind: root / kind if (root / kind).exists() else write_encoder(root / kind, kind)


@pytest.fixture
def run(disk, encoders, tmp_path):
    """run(kind, *flags): trains on rendered people at 64 x 64 pixels; returns the folder."""

    def trained(kind, *flags, name="run", steps=2):
        model = encoders(kind) if isinstance(kind, str) else kind
        data = ["--dataset", "market1501", "--data_dir", str(disk.people)]
        size = [] if not isinstance(kind, str) else ["--height", "64", "--width", "64"]
        output = ["--output_dir", str(tmp_path / name), "--max_steps", str(steps)]
        train.main(["--model", str(model), *data, *size, *output, *STEPS, *flags])
        return tmp_path / name

    return trained


def test_an_encoder_trains_and_its_checkpoint_serves_every_command(run, disk, tmp_path, capsys):
    folder = run("dinov3_vit", "--pooling", "class_mean", "--learning_rate", "0.01")
    assert "checkpoint:" in capsys.readouterr().out
    start = MllmReIDVisionModel.from_encoder_pretrained(_model_of(folder))
    model, processor = load_encoder(ModelArguments(str(folder)))
    assert (model.config.pooling, model.config.num_identities, processor.height) == ("class_mean", 2, 64)
    trained = dict(model.tower.named_parameters())
    moved = [name for name, weight in start.tower.named_parameters() if not torch.equal(weight, trained[name])]
    assert len(moved) == len(trained) - 1  # all but the mask token
    record = json.loads((folder / "run.json").read_text())
    assert record["adapters"] == {"tower": "full"}
    augmentation = {"flip": 0.5, "pad": 10, "erase": 0.5, "color_jitter": 0.0, "downscale": 0.0}
    assert record["batches"] == {"val_identities": 0, **augmentation}
    report = json.loads((folder / "metrics.json").read_text())
    assert set(report["metrics"]) == {"vision"} and report["metrics"]["vision"]["num_queries"] == 6

    export.main(["--model", str(folder), "--output", str(tmp_path / "export")])
    card = (tmp_path / "export" / "README.md").read_text()
    assert "a visual encoder (`dinov3_vit`) trained with a ReID head, without a language model" in card
    assert "pooled by `class_mean`" in card and "| visual encoder | all weights trained |" in card
    assert "language target" not in card and "lambda" not in card and "| ID loss | weight 1.0" in card
    images = ["--images", str(disk.people / "query")]
    for model_folder, name in ((folder, "a"), (tmp_path / "export", "b")):
        embed.main(["--model", str(model_folder), *images, "--output", str(tmp_path / name)])
    one, other = (load_embeddings(tmp_path / name).features for name in "ab")
    assert one.shape == (6, 32) and (one == other).all()
    assert not [name for name in load_file(tmp_path / "export" / "model.safetensors") if "classifier" in name]
    # Another crop size, from the position embeddings that are interpolated.
    embed.main(["--model", str(folder), *images, "--output", str(tmp_path / "c"), "--height", "128"])
    assert load_embeddings(tmp_path / "c").metadata["height"] == 128


def _model_of(folder):
    return json.loads((folder / "run.json").read_text())["base_model"]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("siglip2", {}), ("swin", {"tower": "lora", "lora_dropout": 0.1}), ("reid_resnet", {})],
)
def test_a_resumed_training_is_the_same_to_the_last_bit(kind, settings, disk, encoders, tmp_path):
    people = load_reid_dataset("market1501", data_dir=str(disk.people))

    def trained(folder):
        set_seed(0)
        adapters, size = AdapterArguments(**settings), {"height": 64, "width": 64}
        model, processor = load_encoder(ModelArguments(str(encoders(kind))), size, adapters)
        args = ReIDTrainingArguments(
            output_dir=str(folder),
            identities_per_batch=2,
            images_per_identity=2,
            max_steps=4,
            learning_rate=0.01,
            bf16=kind == "reid_resnet",
            save_steps=2,
            eval_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        train_reid(model, processor, DatasetDict(train=people["train"]), BatchArguments(), args)
        assert in_channels_last(model) == (kind == "reid_resnet")
        return load_file(folder / "model.safetensors")

    one = trained(tmp_path / "whole")
    (tmp_path / "again").mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "again" / "checkpoint-2")
    other = trained(tmp_path / "again")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    before = load_file(tmp_path / "whole" / "checkpoint-2" / "model.safetensors")
    assert [name for name in one if not torch.equal(one[name], before[name])]
    log = [json.loads(line) for line in (tmp_path / "again" / "training_log.jsonl").read_text().splitlines()]
    assert log and all({"id_vision", "triplet_vision"} <= entry.keys() for entry in log if "loss" in entry)


def test_a_convolutional_encoder_runs_with_the_channels_last_on_a_cpu(encoders):
    cpu = torch.device("cpu")
    for kind, faster in (("reid_resnet", True), ("resnet", True), ("swin", False)):
        model = MllmReIDVisionModel.from_encoder_pretrained(encoders(kind), height=64, width=32).eval()
        crops = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = model.encode_images(crops)
            use_fast_layout(model, cpu)
            torch.testing.assert_close(model.encode_images(crops), expected, rtol=0, atol=1e-6)
        assert in_channels_last(model) == faster, kind
    loaded, _ = load_embedder(ModelArguments(str(encoders("reid_resnet"))))
    assert in_channels_last(loaded)
    # Instance norms keep the layout.
    features = torch.randn(2, 4, 8, 4).to(memory_format=torch.channels_last)
    assert loaded.tower.stages[0][0].norm1(features).is_contiguous(memory_format=torch.channels_last)


def in_channels_last(model) -> bool:
    """Whether the kernels with more than one position of an encoder are stored with the channels last."""
    kernels = [w for w in model.tower.parameters() if w.ndim == 4 and w.shape[1] > 1 and w.shape[2] > 1]
    return bool(kernels) and all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_cached_gradients_and_recomputed_activations_are_those_of_the_whole_batch(run):
    # Not Adam, which turns the rounding of a zero gradient into a step.
    settings = ("--optim", "sgd", "--learning_rate", "0.01")
    ways = {"plain": (), "cached": ("--grad_cache_chunk", "3"), "recomputed": ("--activation_checkpointing", "true")}
    weights = {
        name: load_file(run("dinov3_vit", *settings, *flags, name=name) / "model.safetensors")
        for name, flags in ways.items()
    }
    plain = weights.pop("plain")
    for other in weights.values():
        assert plain.keys() == other.keys()
        for name, weight in plain.items():  # the batch norm's statistics, and their number of batches, too
            torch.testing.assert_close(other[name], weight, atol=1e-4, rtol=1e-5)


def test_a_lora_trains_alone_and_an_export_merges_it(run, encoders, disk, tmp_path):
    folder = run("dinov2_with_registers", "--tower", "lora", "--lora_rank", "2", "--height", "56", "--width", "56")
    stored = load_file(folder / "model.safetensors")
    layers = {name.partition(".lora_")[0] for name in stored if ".lora_" in name}
    assert len(layers) == 2 * 6 and all(".layer." in name for name in layers)
    assert all(stored[name].any() for name in stored if ".lora_B" in name)  # they began as zeros
    start = MllmReIDVisionModel.from_encoder_pretrained(encoders("dinov2_with_registers")).tower.state_dict()
    kept = {name.replace(".base_layer.", "."): weight for name, weight in stored.items() if ".lora_" not in name}
    assert all(torch.equal(kept[f"tower.{name}"], weight) for name, weight in start.items())
    export.main(["--model", str(folder), "--output", str(tmp_path / "export")])
    assert not [name for name in load_file(tmp_path / "export" / "model.safetensors") if "lora" in name]
    models = [load_encoder(ModelArguments(str(path)))[0].eval() for path in (folder, tmp_path / "export")]
    pixels = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        torch.testing.assert_close(*(model.encode_images(pixels) for model in models), atol=1e-5, rtol=0)
    # Further training keeps the LoRA.
    again = run(folder, name="again")
    assert load_encoder(ModelArguments(str(again)))[0].config.lora_rank == 2
    with pytest.raises(UserError, match="tower full: the encoder of .* has a LoRA with lora, and"):
        run(folder, "--tower", "full", name="other")
    with pytest.raises(UserError, match="lora_rank 4: the encoder of .* has a LoRA with 2"):
        run(folder, "--lora_rank", "4", name="other")


def test_a_frozen_encoder_stays(run, encoders):
    stored = load_file(run("resnet", "--tower", "frozen") / "model.safetensors")
    start = load_file(encoders("resnet") / "model.safetensors")
    assert all(torch.equal(stored[f"tower.{name}"], weight) for name, weight in start.items())
    assert stored["reid_head.bottleneck.running_mean"].any()


@pytest.mark.parametrize(
    ("kind", "unused"),
    [
        ("siglip", "tower.head.probe"),
        ("dinov3_vit", "tower.embeddings.mask_token"),
        ("convnext", "tower.layernorm.weight"),
        ("clip", None),
    ],
)
def test_parameters_without_a_gradient_are_frozen(kind, unused, encoders):
    model = MllmReIDVisionModel.from_encoder_pretrained(encoders(kind), height=64, width=64, num_identities=2)
    frozen = freeze_unused_parameters(model)
    assert (unused in frozen) if unused else frozen == []
    model.train()(torch.randn(4, 3, 64, 64), torch.tensor([0, 0, 1, 1])).loss.backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert reached == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_a_fake_run_leaves_no_fake_positions_behind(encoders):
    model = MllmReIDVisionModel.from_encoder_pretrained(encoders("dinov3_vit"), height=96, width=48).eval()
    # Frozen objects are not among those that the garbage collector lists.
    gc.freeze()
    image_parameters(model, image=False, vision=True)
    gc.unfreeze()
    # DINOv3 caches the positions of patches by their number; a fake tensor would fail here.
    assert torch.isfinite(model.encode_images(torch.randn(2, 3, 96, 48))).all()


def test_the_dry_run_counts_what_is_trained(disk, encoders, tmp_path, capsys):
    flags = ["--dataset", "market1501", "--data_dir", str(disk.people), "--output_dir", str(tmp_path / "x")]
    counts = {}
    for mode in ("full", "lora", "frozen"):
        train.main(["--model", str(encoders("dinov2")), *flags, "--dry_run", "true", "--tower", mode])
        lines = capsys.readouterr().out.splitlines()
        counts[mode] = {line.split()[0]: int(line.split()[1].replace(",", "")) for line in lines if " trained" in line}
        activations = next(float(line.split()[1]) for line in lines if line.startswith("activations"))
        assert (activations > 0.01) == (mode != "frozen")
        assert "images of 252 x 126, 162 patches; ID classifier" in lines[-1]
    model = MllmReIDVisionModel.from_encoder_pretrained(encoders("dinov2"))
    encoder = sum(p.numel() for name, p in model.tower.named_parameters() if "mask_token" not in name)
    assert counts["full"]["vision"] == encoder and counts["full"]["heads"] == 16 + 1000 * 16
    layers = [module for module in model.tower.encoder.modules() if isinstance(module, torch.nn.Linear)]
    assert counts["lora"]["vision"] == 16 * sum(layer.in_features + layer.out_features for layer in layers)
    assert "vision" not in counts["frozen"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--loss_lambda", "0.5"], "loss_lambda is 0.5: an encoder without a language model has none: leave it out"),
        (["--reid_on", "both"], "reid_on is 'both': an encoder without a language model has none: leave it out"),
        (["--reid_text", "true"], "reid_text is True: an encoder without a language model has none"),
        (["--pair_weight", "1"], "pair_weight is 1.0: an encoder without a language model has none"),
        (["--llm_layer", "-2"], "llm_layer is -2: an encoder without a language model has none"),
        (["--target", "caption"], "target: an encoder without a language model has none: leave it out"),
        (["--texts", "texts.jsonl"], "texts: an encoder without a language model has none: leave it out"),
        (["--language_model", "lora"], "language_model: an encoder without a language model has none: leave it out"),
        (["--quantize", "4bit"], "quantize: an encoder without a language model has none: leave it out"),
        (["--test_feature", "llm"], "test_feature is 'llm'; give 'vision'"),
        (["--height", "100"], "100 x 126; both must be multiples of 14, .*: give 98 x 126"),
        (["--tower", "lora", "--lora_targets", "x"], "lora_targets x: matches no module of the encoder: correct it"),
    ],
)
def test_options_that_an_encoder_does_not_have(flags, message, disk, encoders, tmp_path):
    data = ["--dataset", "market1501", "--data_dir", str(disk.people), "--output_dir", str(tmp_path / "run")]
    with pytest.raises(UserError, match=message):
        train.main(["--model", str(encoders("dinov2")), *data, "--dry_run", "true", *flags])


def test_other_mistakes(run, disk, encoders, tmp_path):
    data = ["--dataset", "market1501", "--data_dir", str(disk.people), "--output_dir", str(tmp_path / "run")]
    with pytest.raises(UserError, match="tower lora: the encoder has no linear layers in its blocks: set"):
        train.main(["--model", str(encoders("resnet")), *data, "--dry_run", "true", "--tower", "lora"])
    with pytest.raises(UserError, match="pooling: only for an encoder without a language model: leave it out"):
        train.main(["--model", str(disk.native), *data, "--dry_run", "true", "--pooling", "gem"])
    with pytest.raises(UserError, match="activation_checkpointing: the encoder has no blocks that support it: leave"):
        run("resnet", "--activation_checkpointing", "true", name="resnet")
    folder = run("vit")
    with pytest.raises(UserError, match="pooling is class: its head was trained with mean: leave it out"):
        evaluate.main(["--model", str(folder), *data[:4], "--output_dir", str(tmp_path / "e"), "--pooling", "class"])
    with pytest.raises(UserError, match="to full: the model has no language model"):
        export.main(["--model", str(folder), "--output", str(tmp_path / "e"), "--to", "full"])
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="bert: 'bert' encodes no images: .* give a checkpoint of ours"):
        load_encoder(ModelArguments(str(tmp_path / "bert")), adapters=AdapterArguments())
