"""Two gloo processes against one: the ReID loss and every parameter's gradient."""

import os

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from modeling_mllmreid.model import MllmReIDModel


def gradients(model: MllmReIDModel, batch: dict[str, torch.Tensor], wrapped=None) -> tuple[float, dict]:
    loss = (wrapped or model)(**batch).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def one_of_two(rank: int, folder: str, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.set_num_threads(1)
    given = torch.load(f"{folder}/given.pt")
    model = MllmReIDModel.from_pretrained(folder).train()
    for name in given["frozen"]:
        model.get_parameter(name).requires_grad_(False)
    half = {name: value[4 * rank : 4 * rank + 4] for name, value in given["batch"].items()}
    got = gradients(model, half, DistributedDataParallel(model))
    if rank == 1:
        torch.save(got, f"{folder}/got.pt")
    dist.destroy_process_group()


def test_two_processes_have_the_loss_and_gradients_of_one(make_model, make_batch, tmp_path):
    from modeling_mllmreid.training.freezing import freeze_unused_parameters

    model = make_model(loss_lambda=1.0, triplet_soft_margin=True).train()
    # Both processes need people of the other: each half alone would mine other triplets.
    batch = {name: value for name, value in make_batch(8).items() if name in ("pixel_values", "person_ids")}
    frozen = freeze_unused_parameters(model)
    model.save_pretrained(tmp_path)
    torch.save({"batch": batch, "frozen": frozen}, tmp_path / "given.pt")
    expected_loss, expected = gradients(model, batch)
    mp.spawn(one_of_two, args=(str(tmp_path), 29500 + os.getpid() % 1000), nprocs=2)
    loss, got = torch.load(tmp_path / "got.pt")
    assert abs(loss - expected_loss) < 1e-5 and got.keys() == expected.keys()
    assert {"reid_head.llm.classifier.weight", "reid_head.vision.bottleneck.weight"} <= got.keys()
    for name, gradient in expected.items():
        assert torch.allclose(got[name], gradient, atol=1e-5, rtol=1e-3), name
