"""A LoRA as one function: outputs and gradients of PEFT, in float32, under autocast, with dropout and 4 bits."""

import copy

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from modeling_mllmreid.model.adapters import adapter_weights, inject_adapter, merge_adapter
from modeling_mllmreid.training import lora
from modeling_mllmreid.training.lora import fuse_lora


class Net(nn.Module):
    """Two layers with a LoRA each, the first of them with a bias."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(48, 40), nn.Linear(40, 24, bias=False)

    def forward(self, x):
        return self.second(nn.functional.gelu(self.first(x)))


def with_lora(dropout=0.0, base=torch.float32, **settings):
    torch.manual_seed(0)
    net = Net()
    net.requires_grad_(False).to(base)
    inject_adapter(
        net, {"r": 6, "lora_alpha": 9, "lora_dropout": dropout, "target_modules": ["first", "second"], **settings}
    )
    for name, parameter in net.named_parameters():
        if ".lora_B" in name:  # zero in a new LoRA, so half of the gradients would be
            nn.init.normal_(parameter, std=0.3)
    return net.train()


def step(net, x, dtype=None, again=False):
    """Returns the output, the gradient of the input and those of the LoRA."""
    net.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is not None):
        output = checkpoint(net, x, use_reentrant=False) if again else net(x)
    (output.float() * torch.linspace(-1, 1, output.numel()).view(output.shape)).sum().backward()
    return {"output": output.detach(), "x": x.grad} | {
        name: parameter.grad.clone() for name, parameter in net.named_parameters() if parameter.requires_grad
    }


def inputs(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("shape", [(7, 48), (3, 5, 48)])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}])
def test_equals_peft_in_float32(shape, dropout, again, settings):
    net = with_lora(dropout, **settings)
    expected = step(net, inputs(*shape), again=again)
    assert fuse_lora(net) == 2
    got = step(net, inputs(*shape), again=again)
    assert got.keys() == expected.keys() and len(got) == 6
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-5, msg=name)
        assert got[name].dtype == torch.float32 and value.abs().max() > 0.01


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_rounds_no_worse_than_peft_under_autocast(base, dropout):
    net = with_lora(dropout, base)
    x = inputs(64, 48).bfloat16().float()
    exact = step(copy.deepcopy(net).double(), x.double()) if not dropout else None
    expected = step(net, x, torch.bfloat16)
    fuse_lora(net)
    got = step(net, x, torch.bfloat16)
    for name, value in expected.items():
        assert got[name].dtype == value.dtype
        assert (got[name] - value).norm() < 0.02 * value.norm(), name
        if exact is not None:
            errors = [(side[name].double() - exact[name]).norm() for side in (got, expected)]
            assert errors[0] < 1.2 * errors[1], name


def test_the_gradient_by_hand_is_that_of_differences():
    generator = torch.Generator().manual_seed(3)
    shapes = ((5, 7), (5, 4), (3, 4), (7, 3))
    tensors = [torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(lambda *all: lora.LoraSum.apply(*all, 0.7), tensors)


def test_a_copy_computes_with_its_own_weights():
    net = with_lora()
    fuse_lora(net)
    other = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in adapter_weights(other).values():
            parameter.mul_(2)
    x = inputs(4, 48)
    assert not torch.allclose(net(x), other(x))


def test_other_states_are_peft(monkeypatch):
    net = with_lora()
    x = inputs(4, 48)
    with_adapter = net(x)
    fuse_lora(net)
    monkeypatch.setattr(lora.LoraSum, "apply", None)  # a call would fail
    layers = [module for module in net.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    without = net(x)
    assert not torch.allclose(without, with_adapter)
    for layer in layers:
        layer.enable_adapters(True)
        layer.merge()
    torch.testing.assert_close(net(x), with_adapter, rtol=1e-4, atol=1e-5)
    half = with_lora(base=torch.bfloat16)
    expected = half(x.bfloat16())  # float32 weights of the LoRA without autocast: PEFT computes in float32
    fuse_lora(half)
    assert torch.equal(half(x.bfloat16()), expected)


class Casts(TorchDispatchMode):
    """Counts the conversions of tensors within it."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += "_to_copy" in str(function)
        return function(*args, **(kwargs or {}))


def test_a_step_casts_each_matrix_once_and_each_gradient_once():
    net = with_lora(base=torch.bfloat16)
    fuse_lora(net)
    with Casts() as casts:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = net(inputs(4, 48).bfloat16())
        output.backward(torch.ones_like(output))
    assert casts.count == 1 + 2 * 4  # that of the input, too


def test_files_and_merging_are_as_before():
    net = with_lora()
    names = list(adapter_weights(net))
    x = inputs(4, 48)
    expected = net(x)
    fuse_lora(net)
    assert list(adapter_weights(net)) == names
    merge_adapter(net)
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)


def test_more_than_plain_lora_stays_peft():
    net = with_lora(use_dora=True)
    assert fuse_lora(net) == 0
    assert fuse_lora(Net()) == 0
    mixed = with_lora(lora_bias=True, target_modules=["first"])
    assert fuse_lora(mixed) == 0
