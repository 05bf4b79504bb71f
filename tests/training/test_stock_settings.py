"""Stock settings of the Trainer: those without effect here are refused, and all others are checked first."""

import logging
import re
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainingArguments, integrations

from modeling_mllmreid.commands import train
from modeling_mllmreid.training import loading
from modeling_mllmreid.training.arguments import ReIDTrainingArguments
from modeling_mllmreid.training.batch_arguments import BatchArguments
from modeling_mllmreid.training.stock_settings import LOGGERS, RANGES, REFUSED
from modeling_mllmreid.utils import processes
from modeling_mllmreid.utils.errors import UserError

# Settings with the same effect as in the stock Trainer.
AS_IN_THE_TRAINER = """
activation_checkpointing activation_checkpointing_kwargs auto_find_batch_size bf16 dataloader_multiprocessing_context
dataloader_persistent_workers dataloader_pin_memory ddp_backend ddp_broadcast_buffers ddp_find_unused_parameters
ddp_static_graph debug deepspeed disable_tqdm eval_on_start eval_strategy fp16 fsdp fsdp_config full_determinism
gradient_checkpointing gradient_checkpointing_kwargs hub_model_id hub_private_repo hub_revision hub_strategy hub_token
ignore_data_skip load_best_model_at_end local_rank log_level log_level_replica log_on_each_node logging_first_step
logging_nan_inf_filter logging_strategy lr_scheduler_kwargs lr_scheduler_type max_steps metric_for_best_model optim
optim_args output_dir per_device_train_batch_size project push_to_hub report_to restore_callback_states_from_checkpoint
resume_from_checkpoint run_name save_only_model save_strategy skip_memory_metrics tf32 trackio_bucket_id
trackio_space_id trackio_static_space_id use_cpu
"""
# Settings of the language model inside, tested in test_kernels.
KERNELS = ("torch_compile", "torch_compile_backend", "torch_compile_mode", "use_liger_kernel")
OTHER = {int: 3, float: 0.5, str: "other", type(None): "other", list: ["other"]}


def arguments(tmp_path, **given):
    return ReIDTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **given)


def test_every_setting_of_the_installed_transformers_is_covered():
    looked_at = {*AS_IN_THE_TRAINER.split(), *KERNELS, *REFUSED, *RANGES}
    assert TrainingArguments.__dataclass_fields__.keys() - looked_at == set()


def test_settings_without_effect_are_refused(tmp_path):
    default = arguments(tmp_path, eval_strategy="no")
    for name in REFUSED:
        field = ReIDTrainingArguments.__dataclass_fields__[name]
        plain = field.default_factory() if callable(field.default_factory) else field.default
        other = not plain if isinstance(plain, bool) else OTHER[type(plain)]
        with pytest.raises(UserError, match=rf"^{name} .*: ") as stop:
            arguments(tmp_path, eval_strategy="no", **{name: False if name == "greater_is_better" else other})
        assert "\n" not in str(stop.value)
        assert hasattr(default, name)
    with pytest.raises(UserError, match="per_device_train_batch_size 8: a batch is P x K: set identities_per_batch"):
        arguments(tmp_path, per_device_train_batch_size=8)
    assert arguments(tmp_path, per_device_train_batch_size=64).per_device_train_batch_size == 64
    assert (
        TrainingArguments(str(tmp_path), use_cpu=True).per_device_train_batch_size == 8
    )  # the stock class is unchanged


def test_help_hides_refused_settings(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    text = capsys.readouterr().out
    assert "--identities_per_batch" in text and re.search(r"--learning_rate\b", text)
    for name in (*REFUSED, "per_device_train_batch_size"):
        assert f"--{name} " not in text


def test_numbers_out_of_range_are_refused(tmp_path):
    for name, (least, most) in RANGES.items():
        for value in (least - 1, float("nan"), float("inf"), float("-inf"), most + 1):
            with pytest.raises(UserError, match=f"^{name} .*: give "):
                arguments(tmp_path, **{name: value})
    for name, value in {
        "flip": 1.5,
        "erase": -0.1,
        "pad": -1,
        "val_identities": -1,
        "max_target_tokens": 0,
        "downscale": -1,
    }.items():
        with pytest.raises(UserError, match=f"^{name} {value}: give "):
            BatchArguments(**{name: value})


@pytest.fixture
def begin(tmp_path, disk_model, monkeypatch):
    """begin(flags): runs `train` until it loads the data; returns whether it gets there."""

    def reached(*_, **__):
        raise InterruptedError

    monkeypatch.setattr(train, "load_reid_dataset", reached)
    monkeypatch.setattr(train, "get_token", lambda: None)

    def run(*flags):
        given = ["--model", disk_model, "--dataset", "market1501", "--use_cpu", "true"]
        given += [] if "--output_dir" in flags else ["--output_dir", str(tmp_path / "run")]
        with pytest.raises(InterruptedError):
            train.main([*given, *flags])
        return True

    return run


@pytest.fixture(scope="module")
def disk_model(tmp_path_factory):
    from transformers import LlavaConfig

    folder = tmp_path_factory.mktemp("config")
    LlavaConfig().save_pretrained(folder)
    return str(folder)


def test_wrong_settings_fail_before_the_data_are_loaded(begin, tmp_path):
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "model").mkdir()
    mistakes = {
        "optim nonsense": "optim: invalid choice",
        "optim galore_adamw": "optim galore_adamw: does not support learning_rates",
        "optim lomo": "optim lomo: does not support",
        "optim adamw_anyprecision": "optim adamw_anyprecision .*: ",
        "optim_args betas": "optim adamw_torch_fused .optim_args betas.: ",
        "lr_scheduler_type cosine_with_min_lr": "lr_scheduler_type cosine_with_min_lr .*min_lr",
        'lr_scheduler_kwargs {"a":1}': "lr_scheduler_type linear .*: .*unexpected keyword argument 'a'",
        "lr_scheduler_kwargs text": "lr_scheduler_type linear .lr_scheduler_kwargs text.: ",
        "activation_checkpointing_kwargs text": "activation_checkpointing_kwargs: 'text' is unknown: give JSON with",
        "use_liger_kernel true": "use_liger_kernel: (liger-kernel is not installed: pip|its kernels need a CUDA GPU)",
        "torch_compile_backend nonsense": "torch_compile_backend nonsense: give one of .*inductor",
        "torch_compile_mode reduce-overhead": "torch_compile_mode reduce-overhead: give default or max-autotune-no",
        "report_to nonsense": "report_to nonsense: .* is not supported",
        "report_to codecarbon": "report_to codecarbon: .*not installed|report_to codecarbon: .*requires",
        "eval_strategy often": "training arguments: often is not a valid",
        "save_strategy steps": "requires the save and eval strategy to match",
        "metric_for_best_model loss": "metric_for_best_model loss: is not measured on val: give one of mAP, rank1",
        "max_steps 0": "max_steps 0: give at least 1, or -1 for num_train_epochs",
        "deepspeed /none.json": "training arguments: ",
        "fsdp nonsense": "training arguments: Unknown `fsdp` option: nonsense",
        'fsdp_config {"version":2}': "fsdp_config: has no effect without fsdp",
        "bf16 true --fp16 true": "training arguments: At most one of fp16 and bf16",
        "fp16 true": "fp16: needs a GPU: set bf16",
        "bf16 true --use_cpu false": "bf16: no GPU of this machine computes in bfloat16: add --use_cpu true",
        "push_to_hub true": "push_to_hub: no token of the Hub is known: run hf auth login",
        "push_to_hub true --hub_token hf_x --hub_model_id a/b/c": "hub_model_id: ",
        f"output_dir {tmp_path / 'file'}": "cannot be written",
        f"output_dir {tmp_path / 'file' / 'x'}": "cannot be written",
        "output_dir ": "output_dir: '' is empty",
        "resume_from_checkpoint nowhere": "resume_from_checkpoint nowhere: no such folder",
        f"resume_from_checkpoint {tmp_path / 'model'}": "not a checkpoint of a training, as it has no",
        'learning_rates {"a":NaN}': "learning_rates: 'a' has rate nan",
        "lora_targets (": "lora_targets: '\\(' is not a regular expression",
        "lora_rank 4": "lora_rank: there is no LoRA: set language_model or tower to lora, or leave it out",
        "test_share 1": "test_share 1.0: give a share above 0 and below 1",
    }
    for flags, message in mistakes.items():
        with pytest.raises(UserError, match=message) as stop:
            begin(*f"--{flags}".split(" "))
        assert "\n" not in str(stop.value), flags
    assert not (tmp_path / "run").exists()


def test_a_logger_that_is_not_installed_is_refused_before_the_model_is_loaded(begin, monkeypatch):
    for name, (_, install) in LOGGERS.items():
        monkeypatch.setitem(LOGGERS, name, (lambda: False, install))
        with pytest.raises(UserError) as stop:
            begin("--report_to", name)
        assert str(stop.value) == f"report_to {name}: {name} is not installed: {install}, or set report_to none"
    monkeypatch.setattr(integrations, "get_available_reporting_integrations", list)
    with pytest.raises(
        UserError, match=r"report_to all: no logger is installed: pip install 'mllmreid\[tensorboard\]'"
    ):
        begin("--report_to", "all")
    assert begin("--report_to", "none")


def test_valid_settings_are_accepted(begin):
    assert begin("--optim", "paged_adamw_8bit") if _bitsandbytes() else True
    assert begin("--optim", "sgd", "--optim_args", "momentum=0.9", "--warmup_steps", "0.1")
    assert begin("--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", '{"min_lr": 1e-6}')
    assert begin("--metric_for_best_model", "eval_vision_rank1", "--max_grad_norm", "0")


def _bitsandbytes() -> bool:
    from transformers.utils import is_bitsandbytes_available

    return is_bitsandbytes_available()


def test_one_process_uses_one_gpu_and_warns_once(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    state = SimpleNamespace(num_processes=1, device=torch.device("cuda:0"))
    processes._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        processes.warn_idle_gpus(state)
        processes.warn_idle_gpus(state)
        processes.warn_idle_gpus(SimpleNamespace(num_processes=4, device=torch.device("cuda:1")))
        processes.warn_idle_gpus(SimpleNamespace(num_processes=1, device=torch.device("cpu")))
    processes._warn_once.cache_clear()
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "4 GPUs, and this process uses one of them, cuda:0: to use all, start accelerate launch --multi_gpu "
        "--num_processes 4 run_reid.py ...; CUDA_VISIBLE_DEVICES chooses one"
    ]
    asked = []
    monkeypatch.setattr(processes, "warn_idle_gpus", asked.append)
    processes.this_process()  # as in embed and evaluate
    assert len(asked) == 1
    args = arguments(tmp_path)
    args._n_gpu = 4  # like the stock class
    assert TrainingArguments.n_gpu.fget(args) == 4 and args.n_gpu == 1 and args.train_batch_size == 64
    assert args.parallel_mode.value == "not_parallel"


@pytest.mark.parametrize(
    ("instructions", "warned"), [({"avx2": True}, True), ({"amx_bf16": True}, False), ({"bf16": True}, False)]
)
def test_bfloat16_on_a_processor_without_it_warns(instructions, warned, monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    processes._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        arguments(tmp_path, bf16=True)
        arguments(tmp_path, bf16=True)
        loading.to_device(torch.nn.Linear(2, 2))
        loading.to_device(torch.nn.Linear(2, 2, dtype=torch.bfloat16))
        processes.warn_slow_bfloat16(torch.device("cuda"), "nothing")
    processes._warn_once.cache_clear()
    reason = "this processor has no instructions for bfloat16 and is faster in float32: set"
    expected = [f"{reason} bf16 false, and dtype float32", f"{reason} dtype float32"] if warned else []
    assert [record.getMessage() for record in caplog.records] == expected
