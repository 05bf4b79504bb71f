"""The poolings of an encoder's states against loops, and the exponent of GeM."""

import pytest
import torch
from encoders import write_encoder

from modeling_mllmreid.model import MllmReIDVisionModel
from modeling_mllmreid.model.heads import mean_pool
from modeling_mllmreid.model.pooling import Pooling

STATES = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0))
DROPPED = 2


def naive(name: str, states: torch.Tensor, p: float = 3.0) -> list[float]:
    """The feature of one image, number by number."""
    patches = states[DROPPED:].tolist()
    columns = list(zip(*patches, strict=True))
    mean = [sum(column) / len(column) for column in columns]
    if name == "gem":
        return [(sum(max(x, 1e-6) ** p for x in column) / len(column)) ** (1 / p) for column in columns]
    class_token = states[0].tolist()
    return {"class": class_token, "mean": mean, "class_mean": class_token + mean}[name]


@pytest.mark.parametrize("name", ["class", "mean", "gem", "class_mean"])
def test_each_pooling_is_its_formula(name):
    pooling = Pooling(name)
    pooled = pooling(STATES, DROPPED)
    expected = torch.tensor([naive(name, states) for states in STATES])
    torch.testing.assert_close(pooled, expected, atol=1e-6, rtol=1e-5)
    assert pooled.shape == (3, pooling.feature_size(5)) and pooled.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(pooling(STATES, DROPPED), pooled, atol=0, rtol=0)
    assert Pooling(name)(STATES.bfloat16(), DROPPED).dtype == torch.float32


def test_the_exponent_of_gem():
    pooling = Pooling("gem")
    positive = STATES.abs() + 0.1
    with torch.no_grad():
        pooling.p.fill_(1.0)
        torch.testing.assert_close(pooling(positive, DROPPED), positive[:, DROPPED:].mean(dim=1))
        pooling.p.fill_(200.0)
        highest = positive[:, DROPPED:].amax(dim=1)
        assert (pooling(positive, DROPPED) - highest).abs().max() < 0.03
        pooling.p.fill_(3.14159)
    assert pooling.half().p.dtype == torch.float32 and pooling.p.item() == pytest.approx(3.14159, abs=1e-6)
    pooling(STATES, DROPPED).sum().backward()
    assert pooling.p.grad.abs() > 0
    pooling.reset_parameters()
    assert pooling.p.item() == 3.0
    assert Pooling("mean").p is None


def test_the_exponent_is_saved_and_a_new_one_starts_at_3(tmp_path):
    fields = {"height": 64, "width": 32}
    model = MllmReIDVisionModel.from_encoder_pretrained(write_encoder(tmp_path / "vit", "vit"), pooling="gem", **fields)
    assert model.pooling.p.item() == 3.0
    with torch.no_grad():
        model.pooling.p.fill_(4.5)
    model.save_pretrained(tmp_path / "gem")
    assert MllmReIDVisionModel.from_pretrained(tmp_path / "gem", dtype=torch.bfloat16).pooling.p.dtype == torch.float32
    assert MllmReIDVisionModel.from_pretrained(tmp_path / "gem").pooling.p.item() == 4.5
    mean = MllmReIDVisionModel.from_pretrained(tmp_path / "gem", pooling="mean")
    mean.save_pretrained(tmp_path / "mean")
    assert MllmReIDVisionModel.from_pretrained(tmp_path / "mean", pooling="gem").pooling.p.item() == 3.0


def test_masked_mean_pooling():
    hidden = torch.tensor([[[1.0], [3.0], [100.0]]])
    for mask, mean in (([True, True, False], 2), ([False, True, False], 3), ([False] * 3, 0)):
        assert mean_pool(hidden, torch.tensor([mask])).item() == mean
