"""The shipped engine configurations: Accelerate and DeepSpeed accept them, and they fit the model."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

from modeling_mllmreid.model import MllmReIDModel
from modeling_mllmreid.training.arguments import ReIDTrainingArguments
from modeling_mllmreid.training.trainer import ReIDTrainer
from modeling_mllmreid.utils.errors import UserError

ROOT = Path(__file__).parents[2]
LAUNCHES = sorted((ROOT / "configs/accelerate").glob("*.yaml"))
ZEROS = sorted((ROOT / "configs/deepspeed").glob("*.json"))


@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.stem)
def test_accelerate_takes_every_key(path):
    # Raises for unknown keys, but not for those of an engine.
    config = load_config_from_file(str(path))
    options = {action.dest for action in launch_command_parser()._actions}
    assert {*config.fsdp_config, *config.deepspeed_config} <= options
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(path), "x.py"]))
    engines = (args.multi_gpu, args.use_fsdp, args.use_deepspeed)
    kinds = (DistributedType.MULTI_GPU, DistributedType.FSDP, DistributedType.DEEPSPEED)
    assert engines == tuple(config.distributed_type == kind for kind in kinds)
    assert args.num_processes == yaml.safe_load(path.read_text())["num_processes"]
    if args.use_deepspeed:
        assert ROOT / args.deepspeed_config_file in ZEROS and args.zero3_init_flag is False


@pytest.mark.parametrize("path", [path for path in LAUNCHES if path.stem != "one_gpu"], ids=lambda path: path.stem)
def test_the_same_flags_start_every_engine_on_several_nodes(path):
    place = "--num_machines 2 --num_processes 16 --machine_rank 1 --main_process_ip 10.0.0.1 --main_process_port 29500"
    flags = ["--config_file", str(path), *place.split(), "run_reid.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(flags))
    args.deepspeed_fields_from_accelerate_config = ""  # as launch_command sets it
    (prepare_deepspeed_cmd_env if args.use_deepspeed else prepare_multi_gpu_env)(args)
    # The arguments of torchrun.
    assert (args.nnodes, args.nproc_per_node, int(args.node_rank)) == ("2", "8", 1)
    assert args.rdzv_endpoint == "10.0.0.1:29500"


def test_there_is_a_configuration_for_every_size():
    assert {path.stem for path in LAUNCHES} >= {"one_gpu", "several_nodes_ddp"} | {
        f"one_node_{engine}" for engine in ("ddp", "fsdp2", "zero2", "zero3")
    }
    assert [path.stem for path in ZEROS] == ["zero2", "zero3"]


def test_fsdp2_wraps_every_block_and_saves_whole_weights(make_model):
    config = load_config_from_file(str(ROOT / "configs/accelerate/one_node_fsdp2.yaml")).fsdp_config
    classes = config["fsdp_transformer_layer_cls_to_wrap"].split(",")
    blocks = [type(module).__name__ for module in make_model().modules() if type(module).__name__ in classes]
    assert blocks == ["CLIPEncoderLayer"] * 3 + ["LlamaDecoderLayer"] * 2
    assert (config["fsdp_version"], config["fsdp_state_dict_type"]) == (2, "FULL_STATE_DICT")


@pytest.mark.parametrize("path", ZEROS, ids=lambda path: path.stem)
def test_zero_has_its_stage_and_gathers_whole_weights(path):
    config = HfDeepSpeedConfig(str(path))
    assert config.get_value("zero_optimization.stage") == int(path.stem[-1])
    gathers = config.get_value("zero_optimization.stage3_gather_16bit_weights_on_model_save", False)
    assert config.is_zero3() == gathers == (path.stem == "zero3")


@pytest.mark.parametrize("path", ZEROS, ids=lambda path: path.stem)
def test_the_trainer_completes_the_deepspeed_configuration(path, tmp_path):
    pytest.importorskip("deepspeed", reason="deepspeed is not installed: extra deepspeed")
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig, unset_hf_deepspeed_config

    try:
        filled = HfTrainerDeepSpeedConfig(json.loads(path.read_text()))
        args = ReIDTrainingArguments(output_dir=str(tmp_path), identities_per_batch=4, use_cpu=True, bf16=True)
        filled.trainer_config_process(args)
        # The configuration of the model has no hidden_size, from which "auto" would read.
        filled.trainer_config_finalize(args, torch.nn.Identity(), num_training_steps=10)
    finally:
        unset_hf_deepspeed_config()
    assert "auto" not in json.dumps(filled.config) and filled.config["train_micro_batch_size_per_gpu"] == 16
    DeepSpeedZeroConfig(**filled.config["zero_optimization"])  # raises for an unknown field


def test_the_prefetch_sizes_are_those_of_the_shipped_recipes():
    from transformers import LlavaConfig

    zero = json.loads((ROOT / "configs/deepspeed/zero3.json").read_text())["zero_optimization"]
    width = LlavaConfig().text_config.hidden_size
    assert zero["reduce_bucket_size"] == width**2 and zero["stage3_param_persistence_threshold"] == 10 * width
    assert zero["stage3_prefetch_bucket_size"] == int(0.9 * width**2)


def test_a_sharded_model_is_still_ours_by_name(make_model):
    """FSDP2 replaces the class of the model. Checkpoints must not record its name and code."""
    from torch.distributed.fsdp import FSDPModule

    from modeling_mllmreid.training.engines import finish_sharding

    model = make_model()
    model.__class__ = type("FSDPMllmReIDModel", (FSDPModule, MllmReIDModel), {"__module__": "torch.somewhere"})
    with pytest.MonkeyPatch.context() as patch:
        registered = []
        patch.setattr(
            "modeling_mllmreid.training.engines.register_fsdp_forward_method",
            lambda model, name: registered.append(getattr(model, name).__name__),
        )
        finish_sharding(model)
    of_texts = {"encode_text", "generate", "image_language_loss"}
    assert {"image_features", "encode_images", "read_images", "score_pairs", *of_texts} == set(registered)
    assert (type(model).__name__, type(model).__module__) == (MllmReIDModel.__name__, MllmReIDModel.__module__)


def test_the_model_is_built_whole_under_zero3(tmp_path):
    from transformers.integrations import deepspeed

    class Zero3:
        def is_zero3(self) -> bool:
            return True

    config = Zero3()  # held here, as transformers keeps a weak reference
    deepspeed.set_hf_deepspeed_config(config)
    assert deepspeed.is_deepspeed_zero3_enabled()
    ReIDTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert not deepspeed.is_deepspeed_zero3_enabled()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grad_cache_chunk": 4}, "grad_cache_chunk is 4: FSDP reduces its shards in every backward pass"),
        ({"adapters": {"language_model": "lora", "quantize": "4bit"}}, "quantize: FSDP does not shard weights of 4"),
        ({"push_to_hub": True, "hub_model_id": "someone/something"}, "push_to_hub: under FSDP no process holds"),
        ({"fp16": True}, "fp16: not supported with FSDP"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size: needs the whole model in each process"),
    ],
)
def test_settings_for_ddp_alone_are_refused(train, monkeypatch, settings, message):
    made = ReIDTrainer.create_accelerator_and_postprocess

    def sharded(trainer):
        # Accelerate on a CPU does not support float16.
        half, trainer.args.fp16 = trainer.args.fp16, False
        made(trainer)
        trainer.is_fsdp_enabled, trainer.args.fp16 = True, half

    monkeypatch.setattr(ReIDTrainer, "create_accelerator_and_postprocess", sharded)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match=message):
        train(max_steps=1, **settings)
