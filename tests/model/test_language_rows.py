"""A language loss that reads some of the images equals one whose other images have no target, without their cost."""

import copy

import pytest
import torch
from families import CONFIGS, build_reid, prompts

READ = torch.tensor([True, False, True, True, False, False])
PAIRS = {"pair_weight": 0.5, "pair_question_ids": [7, 9, 6], "pair_answer_ids": [10, 11]}


def compare(model, batch, read):
    """Both ways have the same losses, features and gradients; returns the outputs, that of the rows first."""
    plain = copy.deepcopy(model)
    outputs = []
    for one, rows in ((model, {"language_rows": read}), (plain, {})):
        torch.manual_seed(0)  # of the pairs
        outputs.append(one(**batch, **rows))
        outputs[-1].loss.backward()
    got, expected = outputs
    torch.testing.assert_close(got.loss, expected.loss, rtol=1e-10, atol=0)
    assert got.loss_parts.keys() == expected.loss_parts.keys() and got.label_counts == expected.label_counts
    for name, part in expected.loss_parts.items():
        torch.testing.assert_close(got.loss_parts[name], part, rtol=1e-10, atol=0)
    for name, features in got.features.items():
        torch.testing.assert_close(features, expected.features[name], rtol=1e-8, atol=1e-10)
    for (name, one), (_, other) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        one, other = (p.grad if p.grad is not None else torch.zeros_like(p) for p in (one, other))
        # The norms of language models compute in float32.
        torch.testing.assert_close(one, other, rtol=0, atol=2e-6 * float(other.abs().max()) + 1e-14, msg=name)
    return outputs


@pytest.mark.parametrize("family", CONFIGS)
def test_features_losses_and_gradients_of_every_family(family):
    model = build_reid(family, reid_on="both", llm_layer=2).double().train()
    batch = prompts(model, len(READ))
    batch["labels"][~READ] = -100
    pixels = torch.rand(len(READ), 3, model.config.height, model.config.width, dtype=torch.float64)
    compare(model, {**batch, "pixel_values": pixels, "person_ids": torch.tensor([0, 0, 1, 1, 2, 2])}, READ)


FIELDS = {
    "the visual encoder": {"reid_on": "vision"},
    "the LLM's feature": {"reid_on": "llm", "llm_layer": 1},
    "the language loss alone": {"loss_lambda": 0.0},
    "captions": {"reid_text": True, "distillation_weight": 0.5},
    "pairs": {**PAIRS, "reid_on": "vision"},
}


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
@pytest.mark.parametrize("read", [READ, torch.zeros(6, dtype=torch.bool)], ids=["some", "none"])
def test_with_every_other_loss(make_model, make_batch, fields, read):
    batch = make_batch(len(read))
    for name in ("labels", "text_labels"):
        batch[name][~read] = -100
    batch["pixel_values"] = batch["pixel_values"].double()
    got, expected = compare(make_model(**fields).double().train(), batch, read)
    if fields.get("reid_text"):
        torch.testing.assert_close(got.text_features, expected.text_features, rtol=1e-8, atol=1e-10)


def test_the_other_images_have_no_texts_to_run(make_model, make_batch):
    for fields, alone in (({"reid_on": "vision"}, []), ({"reid_on": "both"}, [8])):
        model, batch = make_model(**fields), make_batch(8)
        sizes: list[int] = []
        model.language_model.register_forward_pre_hook(
            lambda *given, sizes=sizes: sizes.append(len(given[2]["inputs_embeds"])), with_kwargs=True
        )
        model(**batch, language_rows=torch.arange(8) % 4 == 1)
        assert sizes == [*alone, 2, 2]


@pytest.mark.parametrize("fields", [{"reid_on": "vision"}, {"reid_text": True}])
def test_the_number_of_runs_depends_on_no_texts(make_model, make_batch, count_calls, fields):
    """Processes that share the weights of a step have different images with texts."""
    counts = set()
    for read in (torch.zeros(64), torch.arange(64) < 5, torch.ones(64)):
        model = make_model(**fields)
        calls = count_calls(model.language_model)
        model(**make_batch(64), language_rows=read.bool())
        counts.add(calls.calls)
    assert len(counts) == 1
