"""The fingerprint of a run compares every setting that changes the training, and no other."""

import copy
import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from transformers import TrainerState

from modeling_mllmreid.model import MllmReIDConfig, MllmReIDModel
from modeling_mllmreid.training import resume
from modeling_mllmreid.training.adapters import AdapterArguments, apply_adapters
from modeling_mllmreid.training.arguments import ReIDTrainingArguments
from modeling_mllmreid.training.batch_arguments import BatchArguments
from modeling_mllmreid.training.batches import TrainDataset
from modeling_mllmreid.training.resume import (
    ADDED_SETTINGS,
    checkpoint_to_resume,
    identities_digest,
    last_checkpoint,
    refuse_absent_checkpoint,
    run_fingerprint,
)
from modeling_mllmreid.training.stock_settings import REFUSED
from modeling_mllmreid.utils.errors import UserError

# Settings of outputs, reports, speed and devices. No weight depends on them.
CHANGE_NO_WEIGHT = [
    "dataloader_multiprocessing_context",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "ddp_timeout",
    "debug",
    "diagnostics_steps",
    "disable_tqdm",
    "hub_model_id",
    "hub_private_repo",
    "hub_revision",
    "hub_strategy",
    "hub_token",
    "local_rank",
    "log_level",
    "log_level_replica",
    "log_on_each_node",
    "logging_first_step",
    "logging_nan_inf_filter",
    "logging_steps",
    "logging_strategy",
    "max_skipped_steps",
    "output_dir",
    "per_device_eval_batch_size",
    "project",
    "push_to_hub",
    "report_to",
    "resume_from_checkpoint",
    "run_name",
    "save_only_model",
    "save_total_limit",
    "skip_memory_metrics",
    "trackio_bucket_id",
    "trackio_space_id",
    "trackio_static_space_id",
    "use_cpu",
]
# Configuration fields about the origin of the model. Other entries of the fingerprint cover them.
RECORDS = [
    "backbone_fingerprint",
    "base_licence",
    "identities_digest",
    "image_prefix_ids",
    "mllm_config",
    "overlap",
    "trained_on",
]
COMPARED = sorted({f.name for f in fields(ReIDTrainingArguments)} - {*CHANGE_NO_WEIGHT, *REFUSED})
OF_BATCHES = sorted({f.name for f in fields(BatchArguments)} - {"texts"})
OF_MODEL = sorted(set(MllmReIDConfig.__annotations__) - {*RECORDS, "model_type", "sub_configs"})


@pytest.fixture(scope="module")
def made(world, parts, tmp_path_factory):
    """made(...): the arguments of `run_fingerprint`: arguments, batches, model, samples and val of a run."""
    processor, llava = parts
    folder = str(tmp_path_factory.mktemp("run"))
    size = {"height": 64, "width": 32, "image_prefix_ids": processor.image_prefix_ids}

    def run(images=None, model=None, processor=processor, val=world["query"]):
        rates = {"a": 1, "b": 2}
        args = ReIDTrainingArguments(output_dir=folder, use_cpu=True, eval_strategy="no", learning_rates=rates)
        batches = BatchArguments(target="caption")
        model = MllmReIDModel.from_mllm(copy.deepcopy(llava), **size) if model is None else model
        images = world["train"].select(range(16)) if images is None else images
        samples = TrainDataset(images, processor, batches, seed=0, language=True)
        model.config.identities_digest = identities_digest(samples)
        return {"args": args, "batches": batches, "model": model, "samples": samples, "val": val}

    return run


@pytest.fixture(scope="module")
def shared(made):
    """A run with a checkpoint in its folder. Tests change copies of it."""
    run = made()
    write_checkpoint(Path(run["args"].output_dir) / "checkpoint-2", run_fingerprint(**run))
    return run


@pytest.fixture
def run(shared):
    """The shared run with copies of arguments, batches and configuration that a test may change."""
    config = copy.deepcopy(shared["model"].config)
    yield {**shared, "args": copy.copy(shared["args"]), "batches": copy.copy(shared["batches"])}
    shared["model"].config = config


def write_checkpoint(folder, metadata):
    folder.mkdir(exist_ok=True)
    TrainerState(global_step=2, max_steps=4).save_to_json(str(folder / "trainer_state.json"))
    (folder / "run_facts.json").write_text(json.dumps(metadata))


def difference(shared, now):
    """Returns the difference that keeps a run from continuing the shared checkpoint; empty if it continues."""
    folder = shared["args"].output_dir
    args = copy.copy(shared["args"])  # the folder of the checkpoints is not in the fingerprint
    try:
        assert checkpoint_to_resume(args, run_fingerprint(**now)) == Path(folder) / "checkpoint-2"
    except UserError as error:
        message = str(error).removeprefix(f"{folder}/checkpoint-2: belongs to a run with other settings (")
        return message.removesuffix(
            "): give another output_dir, or resume_from_checkpoint true to continue from it all the same, false to "
            "remove it and start again"
        )
    return ""


def other(value):
    """Returns another value of the same type."""
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else "other"


@pytest.mark.parametrize("name", COMPARED)
def test_every_training_argument_is_compared(shared, run, name):
    before = getattr(run["args"], name)
    # The first pattern that matches counts, so another order is another setting.
    after = {"b": 2.0, "a": 1.0} if name == "learning_rates" else other(before)
    setattr(run["args"], name, after)
    assert difference(shared, run).startswith(f"{name} ")


@pytest.mark.parametrize("name", CHANGE_NO_WEIGHT)
def test_settings_that_change_no_weight_are_not_compared(shared, run, name):
    setattr(run["args"], name, other(getattr(run["args"], name)))
    assert difference(shared, run) == ""


@pytest.mark.parametrize("name", OF_BATCHES)
def test_every_setting_of_the_batches_is_compared(shared, run, name):
    before = getattr(run["batches"], name)
    after = "standard" if name == "instruction" else other(before)
    setattr(run["batches"], name, after)
    assert difference(shared, run) == f"{name} {before}, now {after}"


@pytest.mark.parametrize("name", OF_MODEL)
def test_every_setting_of_the_model_is_compared(shared, run, name):
    before = getattr(run["model"].config, name)
    setattr(run["model"].config, name, other(before))
    assert difference(shared, run) == f"{name} {before}, now {other(before)}"


def test_where_texts_are_read_from_is_no_difference(shared, run):
    run["batches"].texts = "elsewhere/texts.jsonl"
    assert difference(shared, run) == ""


def test_a_run_without_validation_images_is_another(shared, run):
    assert run_fingerprint(**{**run, "val": None})["val"] is None
    assert difference(shared, {**run, "val": None}) == "other validation images"


def test_several_differences_are_counted(shared, run):
    run["args"].seed, run["batches"].flip, run["batches"].erase = 3, 0.25, 0.0
    assert difference(shared, run) == "erase 0.5, now 0.0 and 2 more"
    run["args"].seed = 42
    assert difference(shared, run) == "erase 0.5, now 0.0 and 1 more"


def test_a_checkpoint_of_a_version_without_some_settings_is_resumed(shared, run):
    metadata = run_fingerprint(**run)
    settings = {name: value for name, value in metadata["settings"].items() if name not in ADDED_SETTINGS}
    path = Path(run["args"].output_dir) / "checkpoint-2"
    write_checkpoint(path, {**metadata, "settings": settings})
    assert len(settings) + len(ADDED_SETTINGS) == len(metadata["settings"]) and difference(shared, run) == ""
    run["batches"].color_jitter = 0.2
    assert difference(shared, run) == "color_jitter 0.0, now 0.2"
    write_checkpoint(path, metadata)


def test_a_missing_setting_is_a_difference(run, folder):
    metadata = run_fingerprint(**run)
    for before, now, message in (
        ({"gone": 1}, {}, "gone 1, now None"),
        ({}, {"new": 2}, "new None, now 2"),
    ):
        write_checkpoint(folder / "checkpoint-10", {**metadata, "settings": {**metadata["settings"], **before}})
        with pytest.raises(UserError, match=rf"other settings \({message}\)"):
            checkpoint_to_resume(asking(run, folder, None), {**metadata, "settings": {**metadata["settings"], **now}})


def test_processes_and_what_shards_are_compared(shared, run, monkeypatch):
    assert difference(shared, {**run, "sharding": "fsdp"}) == "sharding None, now fsdp"
    monkeypatch.setattr(ReIDTrainingArguments, "world_size", 2)
    assert difference(shared, run) == "processes 1, now 2"


def changed(dataset, column, change):
    """Returns the images with one value of a column changed."""
    values = dataset[column][:]
    values[3] = change(values[3])
    return dataset.remove_columns(column).add_column(column, values, feature=dataset.features[column])


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("file_name", lambda value: value + "x"),
        ("person_id", lambda value: value + 1000),
        ("camera_id", lambda value: value + 1),
        ("source", lambda value: value + "x"),
        ("caption", lambda value: ["another caption"]),
    ],
)
def test_images_and_texts_are_compared(shared, made, world, column, change):
    now = made(changed(world["train"].select(range(16)), column, change), shared["model"])
    expected = "other people" if column == "person_id" else "other training images or texts"
    assert difference(shared, now) == expected
    now["model"].config.identities_digest = identities_digest(shared["samples"])
    if column != "caption":
        now = {**shared, "val": changed(shared["val"], column, change)}
        assert difference(shared, now) == "other validation images"


def test_other_people_under_the_same_names_differ(shared, run):
    run["model"].config.identities_digest = "another"
    assert difference(shared, run) == "other people"


def test_people_of_own_data_are_known_by_their_names():
    """Their numbers change when a person is added who is not trained on."""
    numbered, named = resume._people([3, 7], ["3", "7"]), resume._people([3, 7], ["anna", "ben"])
    assert (numbered, named) == ([3, 7], ["anna", "ben"]) and resume._people([4, 8], ["anna", "ben"]) == named


def test_inputs_are_compared(shared, made, parts):
    numbers = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.1, 0.2, 0.3], "rescale_factor": 0.5}
    for name, value in {**numbers, "do_rescale": False, "do_normalize": False}.items():
        processor = copy.deepcopy(parts[0])
        setattr(processor.image_processor, name, value)
        assert difference(shared, made(model=shared["model"], processor=processor)) == (
            "other prompts or pixel statistics"
        )
    for name in ("image_template", "text_template"):
        processor = copy.deepcopy(parts[0])
        setattr(processor, name, "a man " + getattr(processor, name))
        assert difference(shared, made(model=shared["model"], processor=processor)) == (
            "other prompts or pixel statistics"
        )


def test_the_initial_model_is_compared(shared):
    model = copy.deepcopy(shared["model"])
    run = {**shared, "model": model}
    config = model.mllm.config.vision_config
    with torch.no_grad():
        for parameter in model.mllm.parameters():
            for place in (0, -1):
                before = parameter.view(-1)[place].clone()
                parameter.view(-1)[place] += 1
                assert difference(shared, run) == "another initial model"
                parameter.view(-1)[place] = before
    # Sharding engines leave empty parameters.
    model.mllm.register_parameter("elsewhere", torch.nn.Parameter(torch.zeros(0), requires_grad=False))
    assert difference(shared, run) == ""
    del model.mllm.elsewhere
    # Fields that saving and generating add do not change the model.
    model.mllm.config.use_cache = False
    model.mllm.config.architectures, model.mllm.config.dtype = ["LlavaForConditionalGeneration"], "float32"
    assert difference(shared, run) == ""
    dropout, config.attention_dropout = config.attention_dropout, 0.5
    assert difference(shared, run) == "another initial model"
    config.attention_dropout = dropout
    # The origin does not change the model.
    model.mllm.config._name_or_path, model.mllm.config.transformers_version = "elsewhere", "5.0"
    assert difference(shared, run) == ""


def test_what_is_trained_and_its_number_format_are_compared(shared):
    model = copy.deepcopy(shared["model"])
    next(model.parameters()).requires_grad_(False)
    assert difference(shared, {**shared, "model": model}) == "other trained weights"
    half = copy.deepcopy(shared["model"]).half()  # the heads stay
    assert difference(shared, {**shared, "model": half}) == "dtypes ['float32'], now ['float16', 'float32']"


@pytest.fixture
def lora(made, parts):
    """lora(**settings): a run whose language model is trained by LoRA."""

    def run(seed=0, **settings):
        now = made()
        torch.manual_seed(seed)
        apply_adapters(now["model"], AdapterArguments(language_model="lora", **settings), torch.float32)
        return now

    return run


def test_settings_of_a_lora_are_compared(lora, tmp_path):
    then = lora()
    then["args"].output_dir = str(tmp_path)
    write_checkpoint(tmp_path / "checkpoint-2", run_fingerprint(**then))
    # The random weights of a new LoRA do not change the model.
    assert difference(then, lora(seed=1)) == ""
    assert difference(then, lora(lora_alpha=16)) == "lora_alpha 32, now 16"
    assert difference(then, lora(lora_dropout=0.5)) == "lora_dropout 0.05, now 0.5"
    assert difference(then, lora(lora_rank=4)) == "other trained weights"
    assert difference(then, lora(tower="lora")) == "other trained weights"
    loaded = lora()
    with torch.no_grad():
        next(p for name, p in loaded["model"].named_parameters() if ".lora_B." in name).fill_(1)
    assert difference(then, loaded) == "another initial model"


@pytest.fixture
def folder(tmp_path, shared):
    """The folder of a run with checkpoints of steps 2 and 10, an incomplete one, and other files."""
    for step in (2, 10):
        write_checkpoint(tmp_path / f"checkpoint-{step}", run_fingerprint(**shared))
    for name in ("checkpoint-11", "checkpoint-last", "checkpoint-copy-12"):
        (tmp_path / name).mkdir()
    for name in ("checkpoint-last", "checkpoint-copy-12"):
        (tmp_path / name / "trainer_state.json").write_text("{}")
    return tmp_path


def asking(run, folder, wanted):
    args = copy.copy(run["args"])
    args.output_dir, args.resume_from_checkpoint = str(folder), wanted
    return args


def test_the_last_whole_checkpoint_is_found(folder, tmp_path):
    assert last_checkpoint(folder) == folder / "checkpoint-10"
    assert last_checkpoint(tmp_path / "nothing") is None


def test_which_checkpoint_is_taken(shared, run, folder):
    metadata = run_fingerprint(**run)
    other_settings = {**metadata, "settings": {**metadata["settings"], "seed": 7}}
    last, first = folder / "checkpoint-10", folder / "checkpoint-2"
    assert checkpoint_to_resume(asking(run, folder, None), metadata) == last
    for wanted in ("true", "True", True):
        assert checkpoint_to_resume(asking(run, folder, wanted), other_settings) == last
    assert checkpoint_to_resume(asking(run, folder, str(first)), other_settings) == first
    with pytest.raises(UserError, match=f"{last}: belongs to a run with other settings .seed 42, now 7.: give another"):
        checkpoint_to_resume(asking(run, folder, None), other_settings)
    for wanted in (str(first), "true"):
        with pytest.raises(UserError, match="its ID classifier was trained on other people: give it as"):
            checkpoint_to_resume(asking(run, folder, wanted), {**metadata, "identities": "others"})
        write_checkpoint(first, {**metadata, "identities": None})
        write_checkpoint(last, {**metadata, "identities": None})
        assert checkpoint_to_resume(asking(run, folder, wanted), {**metadata, "identities": "others"}) is not None
        write_checkpoint(first, metadata)
        write_checkpoint(last, metadata)
    # Only the main process removes checkpoints.
    args = asking(run, folder, "False")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReIDTrainingArguments, "should_save", False)
        assert checkpoint_to_resume(args, metadata) is None and last.is_dir()
    assert checkpoint_to_resume(args, metadata) is None
    assert not list(folder.glob("checkpoint-*"))
    assert checkpoint_to_resume(asking(run, folder, None), metadata) is None
    with pytest.raises(UserError, match=f"resume_from_checkpoint: no checkpoint in {folder}: leave it out to start"):
        checkpoint_to_resume(asking(run, folder, "true"), metadata)


def test_a_checkpoint_without_a_fingerprint(run, folder):
    (folder / "checkpoint-10/run_facts.json").unlink()
    with pytest.raises(UserError, match=r"other settings \(it has no run_facts.json\): give another output_dir"):
        checkpoint_to_resume(asking(run, folder, None), run_fingerprint(**run))
    assert checkpoint_to_resume(asking(run, folder, "true"), run_fingerprint(**run)) == folder / "checkpoint-10"


@pytest.mark.parametrize("broken", ["{", '{"global_step": -1}', '{"global_step": 1, "no_field_of_it": 2}'])
def test_a_broken_state_is_named(run, folder, broken):
    path = folder / "checkpoint-10/trainer_state.json"
    path.write_text(broken)
    for wanted in (None, "true", str(folder / "checkpoint-10")):
        with pytest.raises(UserError, match=f"{path}.*: give another checkpoint as resume_from_checkpoint, or false"):
            checkpoint_to_resume(asking(run, folder, wanted), run_fingerprint(**run))
    metadata = folder / "checkpoint-2/run_facts.json"
    metadata.write_text("[]")
    with pytest.raises(UserError, match=f"{metadata}.*: give another checkpoint as resume_from_checkpoint, or false"):
        checkpoint_to_resume(asking(run, folder, str(folder / "checkpoint-2")), run_fingerprint(**run))


def test_a_folder_that_is_not_a_checkpoint(run, folder):
    for wanted in (None, "true", "False", "none", str(folder / "checkpoint-2")):
        refuse_absent_checkpoint(asking(run, folder, wanted))
    for take in (refuse_absent_checkpoint, lambda args: checkpoint_to_resume(args, run_fingerprint(**run))):
        with pytest.raises(UserError, match=f"resume_from_checkpoint {folder}/nothing: no such folder: give a checkp"):
            take(asking(run, folder, str(folder / "nothing")))
        with pytest.raises(UserError, match="checkpoint-11: not a checkpoint of a training"):
            take(asking(run, folder, str(folder / "checkpoint-11")))
