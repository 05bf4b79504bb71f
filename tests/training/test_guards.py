"""Guards that end a training early: values that are not finite, a dead loader process, out of memory."""

import os
import signal
import threading
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback

from modeling_mllmreid.model import MllmReIDModel, MllmReIDVisionConfig, MllmReIDVisionModel
from modeling_mllmreid.model.processing_mllmreid import PAIR_ANSWERS, PAIR_QUESTION
from modeling_mllmreid.training.arguments import ReIDTrainingArguments
from modeling_mllmreid.training.batch_size import largest_fitting
from modeling_mllmreid.training.batches import TrainDataset
from modeling_mllmreid.training.guards import StepGuard, explain_error
from modeling_mllmreid.training.trainer import ReIDTrainer
from modeling_mllmreid.utils.errors import UserError


@pytest.fixture
def broken(monkeypatch):
    """broken(positions) makes the pixels of these samples NaN; returns the files that it read, by position."""

    def breaking(positions):
        read, get = {}, TrainDataset.__getitem__

        def with_nan(samples, sample):
            item = get(samples, sample)
            read[sample[1], sample[2]] = samples.file_names[sample[0]]
            if sample[2] in positions:
                item["pixel_values"] = torch.full_like(item["pixel_values"], float("nan"))
            return item

        monkeypatch.setattr(TrainDataset, "__getitem__", with_nan)
        return read

    return breaking


@pytest.fixture
def weights(monkeypatch):
    """Returns the state of the model after every optimiser step."""
    states = []

    class Keep(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    made = ReIDTrainer.__init__

    def init(trainer, *args, **kwargs):
        made(trainer, *args, **kwargs)
        trainer.add_callback(Keep())

    monkeypatch.setattr(ReIDTrainer, "__init__", init)
    return states


def test_a_step_that_is_not_finite_leaves_nothing_behind(train, broken, weights):
    # 4 x 2 images in a micro-batch and two micro-batches in a step: position 20 is in the first of the second step.
    broken({20})
    trained = train(max_steps=3, gradient_accumulation_steps=2, diagnostics_steps=0)
    first, second, third = weights
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]) or "num_batches" in name, name
    assert any(not torch.equal(second[name], third[name]) for name in second)
    assert all(torch.isfinite(tensor).all() for tensor in third.values() if tensor.is_floating_point())
    logs = [entry for entry in trained.trainer.state.log_history if "loss" in entry]
    assert all(entry["id_llm"] > 0 for entry in (logs[0], logs[2])) and "id_llm" not in logs[1]


def test_after_too_many_skipped_steps_the_files_are_named(train, broken):
    read = broken(set(range(8, 100)))
    with pytest.raises(UserError, match="3 steps in a row") as stop:
        train(max_steps=9, max_skipped_steps=2, max_grad_norm=0.0, batch={"val_identities": 0})
    message = str(stop.value)
    assert message.startswith("step 4: loss or gradient not finite") and "max_skipped_steps 2" in message
    assert f"images: {', '.join(read[0, position] for position in range(24, 32))}: check learning_rate" in message


def test_under_deepspeed_the_first_step_that_is_not_finite_ends_the_training():
    accelerator = SimpleNamespace(device="cpu", scaler=None, reduce=lambda flags, reduction: flags)
    trainer = SimpleNamespace(
        accelerator=accelerator, is_deepspeed_enabled=True, step_files=lambda step: [f"{step}.jpg"]
    )
    args = SimpleNamespace(fp16=False, learning_rate=1e-3, max_grad_norm=1.0, max_skipped_steps=3)
    guard = StepGuard(trainer, args)
    guard.begin_step(SimpleNamespace(reid_head=torch.nn.Identity()))
    guard.check_loss(torch.tensor(1.0))
    guard.check_grad_norm(float("inf"))
    with pytest.raises(UserError, match="DeepSpeed has taken the step, so only .* images: 5.jpg: check"):
        guard.on_pre_optimizer_step(args, SimpleNamespace(global_step=4), None)


@pytest.fixture
def guard():
    """Returns a guard of one process, the accelerator, the statistics of the head, and the log warnings."""
    accelerator = SimpleNamespace(device="cpu", scaler=None, reduce=lambda flags, reduction: flags)
    head = torch.nn.BatchNorm1d(2)
    model = torch.nn.ModuleDict({"reid_head": head, "other": torch.nn.Linear(2, 2)})
    model.reid_head = head
    trainer = SimpleNamespace(
        accelerator=accelerator, is_deepspeed_enabled=False, model=model, step_files=lambda step: list("abcdefghij")
    )
    args = SimpleNamespace(fp16=False, learning_rate=1e-3, max_grad_norm=2.0, max_skipped_steps=2)
    return StepGuard(trainer, args), trainer


def take_step(guard, trainer, losses, norm):
    """Runs one optimiser step of these micro-batches; returns the logged value of each loss."""
    trainer.model.other.weight.grad = torch.ones(2, 2)
    guard.begin_step(trainer.model)
    logged = []
    for loss in losses:
        trainer.model.reid_head.running_mean += 1
        logged.append(float(guard.check_loss(torch.tensor(loss))))
    guard.check_grad_norm(norm)
    guard.on_pre_optimizer_step(guard.args, SimpleNamespace(global_step=6), None)
    return logged


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("losses", "norm", "scaler", "skipped"),
    [
        ([1.0, 2.0], torch.tensor(3.0), None, False),
        ([1.0, 2.0], None, None, False),
        ([NAN, 2.0], torch.tensor(3.0), None, True),
        ([1.0, INF], None, None, True),
        ([1.0, 2.0], torch.tensor(INF), None, True),
        ([1.0, 2.0], NAN, None, True),
        # A gradient scaler checks gradients itself. The guard still checks losses.
        ([1.0, 2.0], torch.tensor(INF), "scaler", False),
        ([NAN, 2.0], torch.tensor(3.0), "scaler", True),
    ],
)
def test_which_steps_are_taken(guard, losses, norm, scaler, skipped):
    guard, trainer = guard
    trainer.accelerator.scaler = scaler
    logged = take_step(guard, trainer, losses, norm)
    assert logged == [loss if abs(loss) < INF else 0.0 for loss in losses]
    assert guard.skipped == skipped and (trainer.model.other.weight.grad is None) == skipped
    assert trainer.model.reid_head.running_mean.tolist() == ([0, 0] if skipped else [2, 2])
    # The next step starts again.
    assert take_step(guard, trainer, [1.0], None) == [1.0] and not guard.skipped


def test_only_steps_in_a_row_count(guard):
    guard, trainer = guard
    for losses in ([NAN], [NAN], [1.0], [NAN], [NAN]):
        take_step(guard, trainer, losses, None)
    with pytest.raises(UserError) as stop:
        take_step(guard, trainer, [NAN], None)
    assert str(stop.value) == (
        "step 7: loss or gradient not finite, 3 steps in a row (max_skipped_steps 2); images: a, b, c, d, e, f, g, "
        "h and 2 more: check learning_rate (0.001), max_grad_norm (2) and these files"
    )
    guard.args.fp16 = True
    trainer.step_files = lambda step: list("abcdefgh")
    with pytest.raises(UserError, match="f, g, h: check bf16 in place of fp16, learning_rate"):
        take_step(guard, trainer, [NAN], None)


def test_a_training_outside_of_the_main_thread_leaves_signals_alone(guard):
    guard, _ = guard
    handlers = []

    def listen():
        with guard.listening():
            handlers.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    with guard.listening():
        handlers.append(signal.getsignal(signal.SIGTERM))
    assert handlers[0] is before is signal.getsignal(signal.SIGTERM) and handlers[1] is not before


def test_step_files_are_those_that_were_read(train, broken):
    read = broken(set())
    trainer = train(max_steps=5, gradient_accumulation_steps=2, num_train_epochs=3).trainer
    # Six micro-batches of eight in an epoch, two in a step.
    for step, (epoch, first) in {1: (0, 0), 3: (0, 32), 4: (1, 0), 5: (1, 16)}.items():
        expected = [read[epoch, position] for position in range(first, first + 16)]
        assert trainer.step_files(step) == expected
    # Six are a step of four and a step of two, so the next epoch begins with the third step.
    trainer.args.gradient_accumulation_steps = 4
    for step, (epoch, first, last) in {1: (0, 0, 32), 2: (0, 32, 48), 3: (1, 0, 32), 4: (1, 32, 48)}.items():
        expected = [read[epoch, position] for position in range(first, last) if (epoch, position) in read]
        assert trainer.step_files(step)[: len(expected)] == expected
        assert len(trainer.step_files(step)) == last - first


def test_a_loading_process_that_dies_is_reported(train, monkeypatch):
    def die(samples, sample):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(TrainDataset, "__getitem__", die)
    with pytest.raises(UserError, match=r"a data loading process died .*lower dataloader_num_workers \(1\)"):
        train(max_steps=2, dataloader_num_workers=1)


def test_an_error_in_a_loading_process_is_one_line(train, monkeypatch):
    def refuse(samples, sample):
        raise UserError("0001.jpg: broken image (cut off): replace or remove it")

    monkeypatch.setattr(TrainDataset, "__getitem__", refuse)
    with pytest.raises(UserError) as stop:
        train(max_steps=2, dataloader_num_workers=1)
    assert str(stop.value) == "0001.jpg: broken image (cut off): replace or remove it"


@pytest.fixture
def memory_of(monkeypatch):
    """memory_of(rows): more images than that in one forward pass are out of memory. Returns a list of whether each
    pass had activation checkpointing on."""

    def limit(rows):
        checkpointed = []
        forward = MllmReIDModel.forward

        def limited(model, pixel_values, **batch):
            checkpointed.append(any(getattr(module, "gradient_checkpointing", False) for module in model.modules()))
            if len(pixel_values) > rows:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return forward(model, pixel_values, **batch)

        monkeypatch.setattr(MllmReIDModel, "forward", limited)
        return checkpointed

    return limit


def test_out_of_memory_names_sizes_and_settings(train, memory_of):
    memory_of(5)
    words = (
        r"out of memory with 4 x 2 images of 64 x 32, 8 image tokens .*: set grad_cache_chunk \(off\) to a few images"
    )
    with pytest.raises(UserError, match=words):
        train(max_steps=1)


def test_a_net_without_layers_to_compute_again_refuses_activation_checkpointing(tmp_path):
    args = ReIDTrainingArguments(output_dir=str(tmp_path), eval_strategy="no", use_cpu=True)
    net = {"model_type": "reid_osnet", "channels": [16, 64, 64, 64], "blocks": [1, 1, 1], "feature_size": 8}
    model = MllmReIDVisionModel(MllmReIDVisionConfig(vision_config=net))
    with pytest.raises(ValueError, match="compatible") as raised:
        model.gradient_checkpointing_enable()
    words = "activation_checkpointing: no layer of this encoder, such as a convolutional net, can be computed again"
    assert words in str(explain_error(raised.value, args, ""))


def test_out_of_memory_names_the_free_memory(monkeypatch, tmp_path):
    args = ReIDTrainingArguments(output_dir=str(tmp_path), eval_strategy="no", use_cpu=True, grad_cache_chunk=6)
    error = torch.OutOfMemoryError("CUDA out of memory.")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "(CPU memory): set grad_cache_chunk (6)" in str(explain_error(error, args, "64 x 32"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3 * 2**29, 2**33))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 6 * 2**30)
    words = "16 x 4 images of 64 x 32 (6.0 GiB used at most, 1.5 of 8.0 GiB free): set grad_cache_chunk (6)"
    assert words in str(explain_error(error, args, "64 x 32"))
    assert "activation_checkpointing (false) to true" in str(explain_error(error, args, "64 x 32"))
    assert "lower identities_per_batch or max_target_tokens, or set auto_find_b" in str(explain_error(error, args, ""))
    pairs = ReIDTrainingArguments(output_dir=str(tmp_path), eval_strategy="no", use_cpu=True, pairs_per_batch=6)
    words = str(explain_error(error, pairs, "64 x 32"))
    assert words.startswith("out of memory with 6 images of 64 x 32 (") and "auto_find" not in words
    assert "lower pairs_per_batch or max_target_tokens; train --dry_run prints" in words
    assert explain_error(ValueError("something else"), args, "64 x 32") is None
    assert explain_error(UserError("wrong: fix it"), args, "64 x 32") is None


def test_the_largest_number_of_people_that_fits_is_found_and_kept(train, memory_of, monkeypatch, capsys):
    memory_of(7)
    settings = {"auto_find_batch_size": True, "identities_per_batch": 6, "save_strategy": "steps", "save_steps": 1}
    trainer = train(max_steps=1, **settings).trainer
    assert "identities_per_batch: 3, the most that fit with 2 images each" in capsys.readouterr().out
    assert trainer.args.per_device_train_batch_size == 6 and trainer._train_batch_size == 6
    # A resumed run keeps its number, independent of the free memory.
    memory_of(6)
    capsys.readouterr()
    assert train(max_steps=2, resume_from_checkpoint="true", **settings).trainer.args.identities_per_batch == 3
    assert "identities_per_batch: 3, as in the checkpoint's run" in capsys.readouterr().out
    memory_of(1)
    with pytest.raises(UserError, match="the 2 images of one person do not fit"):
        train("other", max_steps=1, **settings)
    with pytest.raises(UserError, match="with grad_cache_chunk \\(2\\) the memory of a step depends on the chunk"):
        train("other", max_steps=1, grad_cache_chunk=2, **settings)


def test_people_that_fit_come_in_whole_groups(train, memory_of, capsys):
    memory_of(7)
    trainer = train(max_steps=1, auto_find_batch_size=True, identities_per_batch=6, similar_people=2).trainer
    assert "identities_per_batch: 2, the most that fit" in capsys.readouterr().out
    assert trainer.args.identities_per_batch == 2


def test_the_search_asks_about_pairs(train, memory_of, monkeypatch):
    memory_of(8)
    asked, score_pairs = [], MllmReIDModel.score_pairs
    monkeypatch.setattr(
        MllmReIDModel, "score_pairs", lambda model, *given: asked.append(len(given[1])) or score_pairs(model, *given)
    )
    settings = {"model": {"pair_weight": 1.0}, "words": (PAIR_QUESTION, *PAIR_ANSWERS)}
    train(max_steps=1, auto_find_batch_size=True, identities_per_batch=4, **settings)
    # In the search and in the step, each time two pairs of the eight images. Those of val follow.
    assert asked[:2] == [16, 16]


def test_the_search_uses_the_settings_of_the_training(train, memory_of):
    checkpointed = memory_of(8)
    train(max_steps=1, auto_find_batch_size=True, activation_checkpointing=True)
    assert len(checkpointed) == 2 and all(checkpointed)


@pytest.mark.parametrize("limit", range(9))
def test_bisection_finds_the_limit(limit):
    tried = []
    assert largest_fitting(lambda people: tried.append(people) or people <= limit, 8) == limit
    assert len(tried) == len(set(tried)) <= 4


def test_a_gradient_that_is_not_finite_is_skipped_where_the_loss_is_finite(train, monkeypatch):
    step = ReIDTrainer.training_step

    def broken(trainer, model, inputs, *given):
        loss = step(trainer, model, inputs, *given)
        if trainer.state.global_step == 1:
            next(p for p in model.parameters() if p.grad is not None).grad.fill_(float("nan"))
        return loss

    monkeypatch.setattr(ReIDTrainer, "training_step", broken)
    trainer = train(max_steps=3).trainer
    assert trainer.state.global_step == 3 and all(p.isfinite().all() for p in trainer.model.parameters())
