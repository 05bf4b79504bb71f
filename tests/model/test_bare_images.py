"""Images without a caption where captions enter the ReID losses: they enter no loss on captions."""

import copy

import pytest
import torch
import torch.nn.functional as F

from modeling_mllmreid.training.diagnostic_measures import weighted_reid_losses

FIELDS = {"reid_text": True, "reid_on": "llm", "loss_lambda": 0.6, "label_smoothing": 0.2, "triplet_soft_margin": True}
BARE = torch.tensor([True, False, True, True, False, True, False, True])


def without_captions(batch, bare):
    """The batch of the collator for these images: no caption, no target."""
    batch = {name: values.clone() for name, values in batch.items()}
    batch["text_caption_mask"][bare] = False
    for name in ("labels", "text_labels"):
        batch[name][bare] = -100
    return batch


def triplet(anchors, anchor_ids, others, other_ids, own=False):
    """Batch-hard with a soft margin, by loops."""
    terms = []
    for i, anchor in enumerate(anchors):
        pairs = [((anchor - other).norm(), other_ids[j]) for j, other in enumerate(others) if not (own and i == j)]
        near = [distance for distance, person in pairs if person == anchor_ids[i]]
        far = [distance for distance, person in pairs if person != anchor_ids[i]]
        if near and far:
            terms.append(F.softplus(max(near) - min(far)))
    return sum(terms) / len(terms)


def test_losses_gradients_and_statistics_are_those_of_the_images_with_captions(make_model, make_batch):
    model = make_model(**FIELDS).double().train()
    batch = without_captions(make_batch(8), BARE)
    batch["pixel_values"] = batch["pixel_values"].double()
    plain, people = copy.deepcopy(model), batch["person_ids"]
    output = model(**batch)
    output.loss.backward()

    seen = plain(**{name: values for name, values in batch.items() if name != "person_ids"})
    images, captions = seen.features["llm"], seen.text_features[~BARE]
    samples, ids = torch.cat([images, captions]), torch.cat([people, people[~BARE]])
    head = plain.reid_head["llm"]
    normed = (
        (samples - samples.mean(0))
        / (samples.var(0, unbiased=False) + head.bottleneck.eps).sqrt()
        * head.bottleneck.weight
    )
    expected = {
        "id_llm": F.cross_entropy(normed @ head.classifier.weight.T, ids, label_smoothing=0.2),
        "triplet_llm": triplet(images, people, images, people, own=True),
        "triplet_text": (
            triplet(images, people, captions, people[~BARE]) + triplet(captions, people[~BARE], images, people)
        )
        / 2,
    }
    loss = 0.4 * plain.language_loss(seen.language_loss_sums, seen.label_counts) + 0.6 * sum(expected.values())
    loss.backward()

    torch.testing.assert_close(output.loss, loss)
    for name, value in expected.items():
        torch.testing.assert_close(output.loss_parts[name], value.detach())
        if name != "triplet_text":
            torch.testing.assert_close(weighted_reid_losses(model.config, output, people)[name], 0.6 * value)
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)
    torch.testing.assert_close(model.reid_head["llm"].bottleneck.running_mean, 0.1 * samples.detach().mean(0))
    torch.testing.assert_close(output.captioned, ~BARE)


@pytest.mark.parametrize("loss_lambda", [0.6, 1.0])
def test_a_batch_without_captions_equals_a_batch_of_images(make_model, make_batch, loss_lambda):
    fields = {**FIELDS, "loss_lambda": loss_lambda}
    model, plain = make_model(**fields).double().train(), make_model(**{**fields, "reid_text": False}).double().train()
    batch = without_captions(make_batch(8), torch.ones(8, dtype=torch.bool))
    batch["pixel_values"] = batch["pixel_values"].double()
    output, expected = model(**batch), plain(**batch)
    output.loss.backward()
    expected.loss.backward()
    torch.testing.assert_close(output.loss, expected.loss)
    assert output.loss_parts.keys() == expected.loss_parts.keys() == {"id_llm", "triplet_llm"}
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        gradient = torch.zeros_like(one) if one.grad is None else one.grad
        torch.testing.assert_close(gradient, torch.zeros_like(one) if other.grad is None else other.grad, msg=name)
