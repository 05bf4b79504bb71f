"""Training on a GPU: the steps of the CPU, precision, cached gradients, QLoRA, and resuming."""

import copy

import pytest
import torch

from modeling_mllmreid.model import MllmReIDModel
from modeling_mllmreid.training.grad_cache import cached_backward
from modeling_mllmreid.training.parameters import freeze_unused_parameters

pytestmark = pytest.mark.gpu

# Plain SGD, as the steps of adaptive optimisers depend on the last digit of tiny gradients.
SGD = {"use_cpu": False, "optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "constant"}


def losses(trained):
    return [entry["loss"] for entry in trained.trainer.state.log_history if "loss" in entry]


def test_steps_equal_those_of_the_cpu(train):
    settings = {**SGD, "max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": False}
    expected = losses(train("cpu", **{**settings, "use_cpu": True}))
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        here = train("gpu", **settings)
        shared = train("workers", **settings, dataloader_num_workers=2)
    assert next(here.trainer.model.parameters()).is_cuda
    assert losses(here) == pytest.approx(expected, rel=1e-3)
    assert losses(shared) == pytest.approx(losses(here), rel=1e-4)
    half = losses(train("half", **settings, bf16=True))
    assert half == pytest.approx(expected, rel=0.03) and half != losses(here)


def gradients(model) -> torch.Tensor:
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize(("half", "error"), [(False, 1e-4), (True, 0.03)])
def test_cached_gradients_are_those_of_the_plain_step(make_model, make_batch, device, half, error):
    """In one chunk the dropout is the same too, with random numbers of the GPU."""
    fields = {"reid_text": True, "distillation_weight": 0.5}
    for chunk, dropout in ((3, 0.0), (100, 0.5)):
        plain, batch = make_model(**fields).to(device).train(), make_batch(8)
        for layer in plain.mllm.model.language_model.layers:
            layer.self_attn.attention_dropout = dropout
        plain.mllm.config.text_config._attn_implementation = "eager"
        freeze_unused_parameters(plain)
        model = copy.deepcopy(plain)
        counts = {"image": int((batch["labels"][:, 1:] != -100).sum())}
        counts |= {"text": int((batch["text_labels"][:, 1:] != -100).sum()), "distillation": counts["image"]}
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=half):
            torch.manual_seed(3)
            expected = plain(**batch).loss
        expected.backward()
        torch.manual_seed(3)
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=half):
            loss, _ = cached_backward(
                model,
                batch,
                chunk=chunk,
                language_loss=lambda sums, m=model, c=counts: (1 - m.config.loss_lambda) * m.language_loss(sums, c),
                reid_weight=model.config.loss_lambda,
                backward=lambda part: part.backward(),
            )
        assert float(loss) == pytest.approx(float(expected), rel=error)
        got, wanted = gradients(model), gradients(plain)
        assert (got - wanted).norm() < error * wanted.norm()


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_qlora_with_a_paged_8bit_optimiser(train, make_batch, tmp_path, quantize):
    adapters = {"language_model": "lora", "lora_rank": 4, "quantize": quantize}
    settings = {"use_cpu": False, "bf16": True, "optim": "paged_adamw_8bit", "save_strategy": "steps", "save_steps": 2}
    trained = train(adapters=adapters, max_steps=4, **settings).trainer
    model = trained.model.eval()
    assert type(trained.optimizer.optimizer).__module__.startswith("bitsandbytes")
    assert all(torch.isfinite(p).all() for p in model.parameters() if p.requires_grad)
    moved = [p for name, p in model.named_parameters() if ".lora_B" in name]
    assert moved and all(p.is_cuda and p.abs().max() > 0 for p in moved)
    pixels = make_batch(4)["pixel_values"]
    quantization = model.mllm.config.quantization_config
    again = MllmReIDModel.from_pretrained(tmp_path / "run/checkpoint-4", quantization_config=quantization).eval()
    with torch.no_grad():
        rows = (of.encode_images(pixels) for of in (model, again))
        assert torch.nn.functional.cosine_similarity(*rows).min() > 0.999


@pytest.mark.parametrize("adapters", [None, {"language_model": "lora", "lora_rank": 4, "lora_dropout": 0.3}])
def test_a_run_resumes_from_its_checkpoint(train, tmp_path, adapters):
    """As one run, to float32's digits: CUDA does not fix the order of the sums in every backward pass.

    The bits are the same on the CPU alone. The dropout shows that the GPU's random state goes on, too.
    """
    settings = {**SGD, "max_steps": 6, "save_strategy": "steps", "save_steps": 3, "adapters": adapters}
    whole = train("whole", **settings)
    resumed = train("resumed", resume_from_checkpoint=str(tmp_path / "whole/checkpoint-3"), **settings)
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-4)
    for name, weight in whole.trainer.model.state_dict().items():
        torch.testing.assert_close(resumed.trainer.model.state_dict()[name], weight, atol=1e-4, rtol=1e-3, msg=name)


def test_a_paged_8bit_optimiser_steps_over_weights_on_the_cpu():
    """As `train --use_cpu true` with a recipe's own optimiser: large enough to be paged, were it on the GPU."""
    optimizers = pytest.importorskip("bitsandbytes").optim
    torch.zeros(1, device="cuda")
    for kind in (optimizers.PagedAdamW8bit, optimizers.AdamW8bit):
        weight = torch.nn.Parameter(torch.ones(500, 400))
        optimizer = kind([weight], lr=0.01, weight_decay=0)
        for _ in range(3):
            weight.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        torch.cuda.synchronize()
        torch.testing.assert_close(weight.detach(), torch.full((500, 400), 0.97), atol=2e-3, rtol=0)
