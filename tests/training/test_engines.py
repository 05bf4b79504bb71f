"""Two gloo processes against one with a doubled batch in a real training: losses, batches, gradients, weights."""

import copy
import os
from unittest.mock import patch

import pytest
import torch
from accelerate import PartialState
from children import start_children
from datasets import DatasetDict

from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.model import MllmReIDModel, mllm_forward
from modeling_mllmreid.model.processing_mllmreid import PAIR_ANSWERS, PAIR_QUESTION
from modeling_mllmreid.research.tiny_llava import build_processor, build_tiny_llava
from modeling_mllmreid.synthetic.people.captions import sample_descriptions
from modeling_mllmreid.training.arguments import ReIDTrainingArguments
from modeling_mllmreid.training.batch_arguments import BatchArguments
from modeling_mllmreid.training.run import train_reid
from modeling_mllmreid.training.trainer import ReIDTrainer

WHOLE = {"reid_on": "both", "loss_lambda": 0.7, "distillation_weight": 0.5}
# name -> (fields of the model's configuration, steps, gradient accumulation, number format, chunk of cached gradients)
SETTINGS = {
    "both branches": (WHOLE, 20, 1, torch.float64, 0),
    "both branches in float32": (WHOLE, 20, 1, torch.float32, 0),
    "both branches, accumulated": (WHOLE, 4, 2, torch.float64, 0),
    "ReID losses alone": ({"reid_on": "both", "loss_lambda": 1.0, "triplet_soft_margin": True}, 4, 1, torch.float64, 0),
    "captions too": ({**WHOLE, "reid_text": True}, 4, 1, torch.float64, 0),
    "captions too, cached": ({**WHOLE, "reid_text": True}, 4, 1, torch.float64, 3),
    "captions of few": ({**WHOLE, "reid_text": True}, 4, 1, torch.float64, 0),
    "captions of few, cached": ({**WHOLE, "reid_text": True}, 4, 1, torch.float64, 3),
    "both branches, accumulated, cached": (WHOLE, 4, 2, torch.float64, 5),
    "pairs": ({**WHOLE, "pair_weight": 0.5}, 4, 1, torch.float64, 0),
    "pairs alone, accumulated, cached": ({"loss_lambda": 1.0, "pair_weight": 0.5}, 4, 2, torch.float64, 3),
}
# A second run repeats the last steps of this one from a checkpoint in the middle of a later epoch.
RESUMED, RESUMED_FROM = "both branches", 18


def few_captions(world):
    """One image of six keeps its captions, so processes have different numbers of captions, and some have none."""
    train = world["train"].map(lambda row, index: {"caption": row["caption"][: index % 6 == 0]}, with_indices=True)
    return DatasetDict({**world, "train": train})


def pairs_of_eight(features, person_ids, camera_ids):
    """Pairs within the images of one of two processes, also where one process has those of both."""
    assert camera_ids.shape == person_ids.shape
    places = torch.arange(len(person_ids))
    partner, other = places ^ 1, places // 8 * 8 + (places + 2) % 8
    assert (person_ids[partner] == person_ids).all() and (person_ids[other] != person_ids).all()
    labels = torch.cat([torch.ones(len(places)), torch.zeros(len(places))])
    return places.repeat(2), torch.cat([partner, other]), labels


@patch.object(mllm_forward, "mine_pairs", pairs_of_eight)
def train_all(people: str, output: str, identities_per_batch: int) -> dict[str, dict]:
    """By setting: `losses` (steps,), `rows` of each micro-batch (person, pixels' sum, target or not), `weights`,
    and `gradients`.

    Gradients are those of the first optimiser step, before they are clipped: the weights that AdamW makes would not
    tell a gradient from its multiple.
    """
    texts = [text for texts in sample_descriptions(300, seed=0) for text in texts]
    processor = build_processor([*texts, *PAIR_ANSWERS, PAIR_QUESTION], height=64, width=32, patch_size=16)
    world = load_reid_dataset("market1501", data_dir=people, captions_file=f"{people}/reid_raw.json")
    results = {}
    for number, (name, (fields, steps, accumulation, dtype, chunk)) in enumerate(SETTINGS.items()):
        llava = build_tiny_llava(processor, hidden_size=32, tower_layers=1, lm_layers=1, seed=0)
        size = {"height": 64, "width": 32, "image_prefix_ids": processor.image_prefix_ids}
        torch.manual_seed(0)
        model = MllmReIDModel.from_mllm(llava, **size, **fields).to(dtype)
        args = ReIDTrainingArguments(
            output_dir=f"{output}/{number}",
            identities_per_batch=identities_per_batch,
            images_per_identity=2,
            max_steps=steps,
            gradient_accumulation_steps=accumulation,
            grad_cache_chunk=chunk,
            learning_rate=1e-3,
            eval_strategy="no",
            save_strategy="steps" if name == RESUMED else "no",
            save_steps=RESUMED_FROM,
            use_cpu=True,
            disable_tqdm=True,
        )
        losses, rows, gradients = [], [], {}
        training_step, clip = ReIDTrainer.training_step, ReIDTrainer._clip_grad_norm

        def watched(self, model, inputs, *given, step=training_step, losses=losses, rows=rows):
            people, pixels = inputs["person_ids"], inputs["pixel_values"].double().sum((1, 2, 3))
            with_target = (inputs["labels"] != -100).any(1) if "labels" in inputs else torch.ones(len(people))
            of_row = people, pixels, with_target
            rows.append(torch.stack([values.double() for values in of_row], 1))
            loss = step(self, model, inputs, *given)
            losses.append(loss.double())
            return loss

        def watched_clip(self, model, clip=clip, gradients=gradients):
            if not gradients:
                trained = {key: p for key, p in self.model.named_parameters() if p.requires_grad}
                gradients.update({key: p.grad.clone() for key, p in trained.items()})
            return clip(self, model)

        ReIDTrainer.training_step, ReIDTrainer._clip_grad_norm = watched, watched_clip
        try:
            data = few_captions(world) if "few" in name else world
            trained = train_reid(model, processor, data, BatchArguments(target="caption"), args).trainer
            if name == RESUMED:
                args.resume_from_checkpoint = f"{args.output_dir}/checkpoint-{RESUMED_FROM}"
                train_reid(copy.deepcopy(trained.model), processor, data, BatchArguments(target="caption"), args)
        finally:
            ReIDTrainer.training_step, ReIDTrainer._clip_grad_norm = training_step, clip
        results[name] = {
            "losses": torch.stack(losses[: steps * accumulation]).view(steps, accumulation).sum(1),
            "rows": torch.stack(rows[: steps * accumulation]),
            "again": (losses[steps * accumulation :], rows[steps * accumulation :]),
            "gradients": gradients,
            "weights": trained.accelerator.unwrap_model(trained.model).state_dict(),
            "processes": trained.accelerator.num_processes,
        }
    return results


def one_of_two(rank: int, people: str, output: str, port: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    # It expects one GPU for each process, also on the CPU.
    PartialState.wait_for_everyone = None
    torch.save(train_all(people, f"{output}/two", identities_per_batch=4), f"{output}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def runs(people, tmp_path_factory):
    """Returns the results of one process with 8 people in a batch, and of each of two with 4."""
    output = tmp_path_factory.mktemp("engines")
    two = start_children(one_of_two, str(people), str(output), 29500 + os.getpid() % 1000, count=2)
    one = train_all(str(people), f"{output}/one", identities_per_batch=8)
    while not two.join():
        pass
    return one, [torch.load(output / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_train_as_one_with_the_doubled_batch(runs, name):
    one, two = runs[0][name], [rank[name] for rank in runs[1]]
    assert (one["processes"], *(rank["processes"] for rank in two)) == (1, 2, 2)
    # The ranks together have the batch of the one process, and no person is in two of them.
    assert torch.equal(torch.cat([rank["rows"] for rank in two], dim=1), one["rows"])
    for first, second in zip(*(rank["rows"][:, :, 0].tolist() for rank in two), strict=True):
        assert set(first).isdisjoint(second) and len({*first, *second}) == 8
    if "few" in name:
        captions = [rank["rows"][:, :, 2].sum(1).tolist() for rank in two]
        assert any(first != second for first, second in zip(*captions, strict=True)) and 0 in captions[0] + captions[1]
    exact = SETTINGS[name][3] == torch.float64
    mean = (two[0]["losses"] + two[1]["losses"]) / 2
    torch.testing.assert_close(mean, one["losses"], rtol=1e-9 if exact else 1e-4, atol=0)
    assert {"reid_head.llm.classifier.weight", "reid_head.llm.bottleneck.weight"} <= one["gradients"].keys()
    # Some gradients are rounding errors, such as that of a key bias.
    largest = max(float(gradient.abs().max()) for gradient in one["gradients"].values())
    for key, gradient in one["gradients"].items():
        for rank in two:
            tolerance = {"rtol": 1e-7, "atol": 1e-12} if exact else {"rtol": 1e-3, "atol": 1e-5 * largest}
            torch.testing.assert_close(rank["gradients"][key], gradient, **tolerance, msg=key)
    for key, weight in one["weights"].items():
        assert torch.equal(two[0]["weights"][key], two[1]["weights"][key]), key
        tolerance = {"rtol": 1e-7, "atol": 1e-9} if exact else {"rtol": 1e-3, "atol": 1e-4}
        torch.testing.assert_close(two[0]["weights"][key], weight, **tolerance, msg=key)


def test_a_run_resumed_within_a_later_epoch_takes_the_same_batches(runs):
    for of_process in (runs[0], *runs[1]):
        run = of_process[RESUMED]
        losses, rows = run["again"]
        assert torch.equal(torch.stack(rows), run["rows"][RESUMED_FROM:])
        torch.testing.assert_close(torch.stack(losses), run["losses"][RESUMED_FROM:], rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["captions too", "both branches, accumulated"])
def test_cached_gradients_train_like_plain_ones(runs, name):
    plain, cached = (runs[0][of] for of in (name, f"{name}, cached"))
    torch.testing.assert_close(cached["losses"], plain["losses"], rtol=1e-9, atol=0)
    for key, gradient in plain["gradients"].items():
        torch.testing.assert_close(cached["gradients"][key], gradient, rtol=1e-7, atol=1e-12, msg=key)
    for key, weight in plain["weights"].items():
        torch.testing.assert_close(cached["weights"][key], weight, rtol=1e-7, atol=1e-9, msg=key)
