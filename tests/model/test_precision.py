"""Number formats: a double model is exact to float64's digits, half precision goes up to float32."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from modeling_mllmreid.model.heads import ReIDHead, mean_pool
from modeling_mllmreid.model.losses import batch_hard_triplet_loss, distillation_sum, id_loss, language_loss_sum
from modeling_mllmreid.model.precision import at_least_float32


@pytest.mark.parametrize("format, kept", [(torch.float64, torch.float64), (torch.bfloat16, torch.float32)])
def test_pooling_heads_and_losses_are_float32_at_least(format, kept):
    torch.manual_seed(0)
    rows, labels = torch.randn(8, 6, dtype=format), torch.arange(8) // 2
    head = ReIDHead(6, 4).to(kept)
    head.remake_classifier(8)
    parts = [
        at_least_float32(rows),
        mean_pool(rows.view(2, 4, 6)),
        mean_pool(rows.view(2, 4, 6), torch.ones(2, 4, dtype=torch.bool)),
        *head(rows),
        id_loss(rows, labels),
        batch_hard_triplet_loss(rows, labels),
        batch_hard_triplet_loss(rows, labels, rows + 1, labels),
        language_loss_sum(rows, labels),
        distillation_sum(rows, rows + 1),
    ]
    assert {part.dtype for part in parts} == {kept}


def test_a_double_model_has_the_gradient_of_its_loss_to_eight_digits(make_model, make_batch):
    """By central differences, which anything rounded to float32 on the way would spoil from the second digit on."""
    model = make_model(reid_text=True, triplet_soft_margin=True).double().train()
    for module in model.modules():
        if isinstance(module, LlamaRMSNorm):
            # transformers' own rounds to float32.
            module.forward = lambda x, norm=module: torch.nn.functional.rms_norm(
                x, x.shape[-1:], norm.weight, norm.variance_epsilon
            )
    batch = make_batch(8)
    output = model(**batch)
    output.loss.backward()
    assert {part.dtype for part in (output.loss, *output.features.values(), *output.loss_parts.values())} == {
        torch.float64
    }
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    torch.manual_seed(1)
    way = [torch.randn_like(parameter) for parameter in trained]
    slope = sum((parameter.grad * step).sum() for parameter, step in zip(trained, way, strict=True))

    def loss_at(scale: float) -> torch.Tensor:
        with torch.no_grad():
            for parameter, step in zip(trained, way, strict=True):
                parameter.add_(step, alpha=scale)
            loss = model(**batch).loss
            for parameter, step in zip(trained, way, strict=True):
                parameter.sub_(step, alpha=scale)
        return loss

    # Two differences, so that the error of a finite step (its square) falls out.
    near, far = ((loss_at(size) - loss_at(-size)) / (2 * size) for size in (1e-5, 2e-5))
    torch.testing.assert_close((4 * near - far) / 3, slope, rtol=1e-7, atol=0)
