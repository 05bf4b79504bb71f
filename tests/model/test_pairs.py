"""Pairs of crops: what a question sees, in every family; symmetry; mining; the loss in a training step."""

import pytest
import torch
from families import CONFIGS, PREFIX, build_reid
from transformers import DynamicCache

from modeling_mllmreid.model import MllmReIDModel
from modeling_mllmreid.model.pairs import mine_pairs, pair_loss

QUESTION, ANSWERS = [7, 9, 11, 6], [20, 30]
PAIR = {"pair_question_ids": QUESTION, "pair_answer_ids": ANSWERS}
# Its tiny layers see 8 positions.
every_family = pytest.mark.parametrize("family", [name for name in CONFIGS if name != "Gemma 3"])


def crops(model: MllmReIDModel, n: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, model.config.height, model.config.width, generator=generator)


@every_family
def test_a_question_sees_both_crops_as_in_caches_that_are_joined_by_hand(family):
    model = build_reid(family, **PAIR)
    first, second = torch.tensor([0, 1, 3]), torch.tensor([2, 0, 1])
    with torch.inference_mode():
        pixels = crops(model)
        scores = model.score_pairs(model.read_images(pixels), first, second)
        image = model.project_image(model.run_tower(pixels))
        embeddings = model.embed_image_prompt(image)
        stock, (start, length) = DynamicCache(), (len(PREFIX), embeddings.shape[1])
        inputs = model.backbone.language_inputs(model.mllm, embeddings, None, image, start)
        model.language_model(inputs_embeds=embeddings, past_key_values=stock, use_cache=True, **inputs)
        expected = []
        for one, other in zip(first, second, strict=True):
            joined = DynamicCache()
            for number, layer in enumerate(stock.layers):
                states = [[s[one, :, :length], s[other, :, start:length]] for s in (layer.keys, layer.values)]
                joined.update(*(torch.cat(pair, dim=1)[None] for pair in states), number)
            question = model.embed_tokens(torch.tensor([QUESTION]))
            # The position after the image, of all that the family's own inputs have.
            longer = torch.cat([embeddings[:1], question], dim=1)
            positions = model.backbone.language_inputs(model.mllm, longer, None, image, start).get("position_ids")
            positions = torch.arange(longer.shape[1])[None] if positions is None else positions[:, :1]
            output = model.language_model(
                inputs_embeds=question, position_ids=positions[..., length:], past_key_values=joined, use_cache=True
            )
            logits = model.mllm.lm_head(output.last_hidden_state[0, -1])
            expected.append(logits[ANSWERS[0]] - logits[ANSWERS[1]])
    torch.testing.assert_close(scores, torch.stack(expected), rtol=1e-4, atol=1e-4)
    assert scores.std() > 1e-3


def test_one_sequence_with_a_mask_gives_the_same_scores():
    model = build_reid("LLaVA, CLIP", **PAIR)
    with torch.inference_mode():
        pixels = crops(model, 2)
        (score,) = model.score_pairs(model.read_images(pixels), torch.tensor([0]), torch.tensor([1]))
        images = model.project_image(model.run_tower(pixels)).embeddings
        tokens, start = images.shape[1], len(PREFIX)
        prefix, question = (model.embed_tokens(torch.tensor([ids])) for ids in (PREFIX, QUESTION))
        sequence = torch.cat([prefix, images[:1], images[1:], question], dim=1)
        sees = torch.ones(sequence.shape[1], sequence.shape[1]).tril()
        sees[start + tokens : start + 2 * tokens, start : start + tokens] = 0
        inside = torch.arange(start + tokens)
        after = torch.arange(start + tokens, start + tokens + len(QUESTION))
        hidden = model.language_model(
            inputs_embeds=sequence,
            attention_mask=torch.log(sees)[None, None].clamp(min=torch.finfo().min),
            position_ids=torch.cat([inside, inside[start:], after])[None],
            use_cache=False,
        ).last_hidden_state[0, -1]
        logits = model.mllm.lm_head(hidden)
    torch.testing.assert_close(score, logits[ANSWERS[0]] - logits[ANSWERS[1]], rtol=1e-4, atol=1e-4)


@every_family
def test_scores_do_not_depend_on_the_order_of_a_pair_or_on_the_batch(family):
    model = build_reid(family, **PAIR)
    with torch.inference_mode():
        reading = model.read_images(crops(model))
        first, second = torch.tensor([0, 1, 2, 3]), torch.tensor([1, 2, 3, 3])
        scores = model.score_pairs(reading, first, second)
        torch.testing.assert_close(model.score_pairs(reading, second, first), scores, rtol=0, atol=1e-5)
        one, two = model.read_images(crops(model)[[1]]), model.read_images(crops(model)[[2, 0]])
        apart = model.score_pairs(one, torch.tensor([0, 0]), torch.tensor([1, 0]), two)
        torch.testing.assert_close(apart, scores[:2], rtol=0, atol=1e-5)


def test_layers_that_see_one_crop_in_part_are_refused():
    model = build_reid("Gemma 3", **PAIR)
    reading = model.read_images(crops(model))
    with pytest.raises(ValueError, match="see 8 positions, two crops take"):
        model.score_pairs(reading, torch.tensor([0]), torch.tensor([1]))
    model.config.get_text_config().sliding_window = 4096
    assert torch.isfinite(model.score_pairs(reading, torch.tensor([0]), torch.tensor([1]))).all()


def test_a_model_without_a_question_says_so():
    model = build_reid("LLaVA, CLIP")
    with pytest.raises(ValueError, match="the model has no question about pairs: train it with pair_weight"):
        model.score_pairs(model.read_images(crops(model)), torch.tensor([0]), torch.tensor([1]))


# ---- training ------------------------------------------------------------------------------------------------------


def gradients(model: MllmReIDModel, batch: dict, **fields) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(0)
    output = model(**batch, camera_ids=torch.arange(8) % 3)
    output.loss.backward()
    assert output.loss_parts["pair"] == output.pair_loss > 0
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("ways", [{}, {"every_n_layers": 2}])
@pytest.mark.parametrize("loss_lambda", [0.7, 1.0])
def test_recomputed_activations_give_the_same_gradients(make_model, make_batch, loss_lambda, ways):
    model = make_model(loss_lambda=loss_lambda, pair_weight=0.5, **PAIR).double().train()
    batch = make_batch(8)
    batch["pixel_values"] = batch["pixel_values"].double()
    expected = gradients(model, batch)
    runs = []
    for layer in model.language_model.layers:
        layer.self_attn.register_forward_hook(lambda *_: runs.append(1))
    model.activation_checkpointing_enable(**ways)
    got = gradients(model, batch)
    # The image branch, the question and perhaps the text branch in two layers, some of them twice.
    assert len(runs) > 4 + 2 * (loss_lambda < 1)
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_the_loss_reaches_the_tower_through_both_crops_of_a_pair(make_model, make_batch):
    model = make_model(loss_lambda=0.0, pair_weight=1.0, **PAIR).train()
    batch = {name: value for name, value in make_batch(8).items() if name in ("pixel_values", "person_ids")}
    pixels = batch["pixel_values"].requires_grad_()
    torch.manual_seed(0)
    reading = model.read_images(pixels)
    model.score_pairs(reading, torch.tensor([0]), torch.tensor([5])).sum().backward()
    reached = pixels.grad.abs().sum(dim=(1, 2, 3)) > 0
    assert reached.tolist() == [True, False, False, False, False, True, False, False]


# ---- mining --------------------------------------------------------------------------------------------------------


def test_each_crop_gets_one_pair_of_each_kind_across_cameras():
    torch.manual_seed(0)
    people, cameras = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([1, 1, 2, 5, 5, 3])
    features = torch.randn(6, 8)
    for _ in range(20):
        first, second, labels = mine_pairs(features, people, cameras)
        # The crop of person 2 has no positive.
        assert first.tolist() == [0, 1, 2, 3, 4] * 2 and labels.tolist() == [1.0] * 5 + [0.0] * 5
        assert torch.equal(people[first] == people[second], labels.bool()) and (first != second).all()
        # Person 0 is before two cameras, person 1 before one.
        assert (cameras[second[:3]] != cameras[first[:3]]).all()


def test_negatives_are_often_the_nearest():
    torch.manual_seed(0)
    features = torch.eye(8)
    features[0] = features[2] + 0.1
    people = torch.arange(8) // 2
    hits = sum(int(mine_pairs(features, people)[1][8]) == 2 for _ in range(200))
    # Half of them, and one in six of the other half.
    assert 90 < hits < 140


def test_a_batch_without_pairs_has_a_loss_of_zero_with_a_graph():
    first, second, labels = mine_pairs(torch.randn(3, 4), torch.zeros(3, dtype=torch.long))
    assert len(first) == len(second) == 0
    scores = torch.zeros(0, requires_grad=True)
    pair_loss(scores, labels).backward()
    assert scores.grad is not None
